"""A contest of heads as a table, CSV, Markdown, and one HTML page that needs nothing else."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cli.figures import figure_words
from embeddings.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas
    from rich.table import Table

    from stage2_heads.contest import Contest, Result

__all__ = ["CURVES", "contest_table", "write_contest"]

_METRICS = {"top_1": "top-1", "cmap_present": "cmAP, present", "cmap_padded_5": "cmAP, padded 5", "auroc": "AUROC"}
_FILES_ONLY = ("cmAP, padded 5",)  # a terminal is narrower than a page
CURVES = 3  # of the best entries: learning curves cost as much as the contest's own fits
_CURVES = 6  # entries whose other curves are drawn: more cannot be told apart
_CONFUSED = 12  # pairs of species that are listed
_BINS = 10
_PALETTE = ("#1b6ca8", "#d1495b", "#66a182", "#8d6a9f", "#c98a1b", "#2e4057")


def contest_table(contest: Contest) -> Table:
    """The ranking for a terminal."""
    from rich.table import Table

    table = Table(title=contest.verdict(), title_justify="left", caption=_caption(contest), caption_justify="left")
    shown = [place for place, heading in enumerate(_headings()) if heading not in _FILES_ONLY]
    for place in shown:
        table.add_column(_headings()[place], justify="left" if place < 2 else "right")
    for row in _rows(contest):
        table.add_row(*(row[place].replace(" (", "\n(").replace(" + ", "\n+ ") for place in shown))
    return table


def write_contest(contest: Contest, folder: Path) -> list[Path]:
    """contest.csv, contest.md and contest.html in `folder`. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "contest.csv", lambda path: _write_csv(path, contest))
    write_atomically(folder / "contest.md", lambda path: _write_text(path, _markdown(contest)))
    write_atomically(folder / "contest.html", lambda path: _write_text(path, _html(contest)))
    return [folder / name for name in ("contest.csv", "contest.md", "contest.html")]


def _caption(contest: Contest) -> str:
    """What the figures are of."""
    n = len(contest.truth)
    seeds = f"mean of seeds {', '.join(map(str, contest.seeds))}" if len(contest.seeds) > 1 else "one seed"
    return (
        f"{n} recordings that neither head nor backbone heard ({contest.how}), fitted on {contest.n_fitted}; {seeds}. "
        f"In brackets 95 % intervals: Bayesian bootstrap over recordings, the same weights for every row, so that "
        f"differences are paired."
    )


def _headings() -> list[str]:
    return ["head", "blocks", *_METRICS.values(), "cmAP - best", "fit, s", "windows/s", "size"]


def _rows(contest: Contest) -> list[list[str]]:
    best = contest.results[0]
    return [
        [
            r.entry.head,
            " + ".join(r.entry.blocks),
            *(figure_words(r.figures[name]) for name in _METRICS),
            "" if r is best else figure_words(r.minus(best, "cmap_present"), sign=True),
            f"{r.fit_s:.2f}",
            f"{r.windows_per_s:,.0f}",
            _size(r.n_bytes),
        ]
        for r in contest.results
    ]


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.0f} kB"


def _markdown(contest: Contest) -> str:
    lines = [f"# {contest.verdict()}", "", "| " + " | ".join(_headings()) + " |", "|" + "---|" * len(_headings())]
    lines += ["| " + " | ".join(row) + " |" for row in _rows(contest)]
    return "\n".join([*lines, "", _caption(contest), *(f"\n{note}" for note in contest.notes), ""])


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_csv(path: Path, contest: Contest) -> None:
    best = contest.results[0]
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        ends = ("", "_low", "_high")
        writer.writerow(
            ["head", "blocks", "n"]
            + [f"{name}{end}" for name in (*_METRICS, "cmap_present_minus_best", "top_1_minus_best") for end in ends]
            + ["fit_s", "windows_per_s", "bytes"]
        )
        for r in contest.results:
            figures = [r.figures[name] for name in _METRICS]
            figures += [r.minus(best, name) for name in ("cmap_present", "top_1")]
            values = [v for f in figures for v in (f.value, f.low, f.high)]
            cost = (round(r.fit_s, 3), round(r.windows_per_s), r.n_bytes)
            writer.writerow([r.entry.head, " + ".join(r.entry.blocks), len(contest.truth), *values, *cost])


def _html(contest: Contest) -> str:
    """The page; every picture is drawn into it as SVG."""
    from jinja2 import Environment

    best = contest.results[0]
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(
        verdict=contest.verdict(),
        caption=_caption(contest),
        headings=_headings(),
        rows=_rows(contest),
        notes=contest.notes,
        best=best.entry.name,
        overview=_svg(_draw_overview(contest)),
        curves=_svg(_draw_curves(contest)),
        learning=_svg(_draw_learning(contest)) if any(r.curve for r in contest.results) else "",
        classes=_svg(_draw_classes(contest, best)),
        reliability=_svg(_draw_reliability(contest)),
        matrix=_svg(_draw_matrix(contest, best)),
        confused=_confused(contest, best),
    )


def _svg(canvas: Canvas) -> str:
    text = io.StringIO()
    canvas.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def _canvas(width: float, height: float) -> Canvas:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(canvas)
    return canvas


def _draw_overview(contest: Contest) -> Canvas:
    canvas = _canvas(9, 0.9 + 0.28 * len(contest.results))
    axes = canvas.subplots()
    for place, r in enumerate(contest.results):
        figure = r.figures["cmap_present"]
        colour = _PALETTE[0] if len(r.entry.blocks) == 1 else _PALETTE[1]
        ends = np.array([figure.low, figure.value, figure.high], float)  # nan, which is not drawn, where undefined
        axes.plot(ends, [place] * 3, color=colour, linewidth=2, alpha=0.5)
        axes.plot(ends[1], place, "o", color=colour)
    axes.set_yticks(range(len(contest.results)), [r.entry.name for r in contest.results], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="cmAP over present classes, with its 95 % interval (red: several blocks)")
    _plain(axes)
    return canvas


def _draw_curves(contest: Contest) -> Canvas:
    from sklearn.metrics import precision_recall_curve

    canvas = _canvas(6.5, 4.2)
    axes = canvas.subplots()
    for colour, r in zip(_PALETTE, contest.results[:_CURVES], strict=False):
        precision, recall, _ = precision_recall_curve(contest.truth[contest.counted], r.scores[contest.counted])
        axes.step(recall, precision, where="post", color=colour, label=r.entry.name, linewidth=1.4)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=7, frameon=False, loc="lower left")
    _plain(axes)
    return canvas


def _draw_learning(contest: Contest) -> Canvas:
    canvas = _canvas(6.5, 4.2)
    axes = canvas.subplots()
    for colour, r in zip(_PALETTE, [r for r in contest.results if r.curve], strict=False):
        n, figures = zip(*r.curve, strict=True)
        low, value, high = (np.array([getattr(f, end) for f in figures], float) for end in ("low", "value", "high"))
        axes.plot(n, value, "o-", color=colour, markersize=3.5, label=r.entry.name)
        axes.fill_between(n, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(n, [str(count) for count in n])
    axes.minorticks_off()
    axes.set(xlabel="recordings fitted on", ylabel="cmAP over present classes")
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    _plain(axes)
    return canvas


def _draw_classes(contest: Contest, best: Result) -> Canvas:
    rows = sorted((row for row in best.per_class if row["ap"] is not None), key=lambda row: -row["ap"])
    canvas = _canvas(9, 0.9 + 0.24 * len(rows))
    axes = canvas.subplots()
    axes.barh(range(len(rows)), [row["ap"] for row in rows], color=_PALETTE[0], alpha=0.85)
    names = [f"{contest.names.get(row['label']) or row['label']}  (n = {row['support']})" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="average precision per recording", xlim=(0, 1))
    _plain(axes)
    return canvas


def _draw_reliability(contest: Contest) -> Canvas:
    canvas = _canvas(5, 4.2)
    axes = canvas.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    truth = contest.truth[contest.counted]
    for colour, r in zip(_PALETTE, contest.results[:_CURVES], strict=False):
        scores = r.scores[contest.counted]
        bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
        counts = np.bincount(bins, minlength=_BINS)
        there = counts > 0
        mean_score = np.bincount(bins, scores, _BINS)[there] / counts[there]
        share_true = np.bincount(bins, truth, _BINS)[there] / counts[there]
        error = float((np.abs(mean_score - share_true) * counts[there]).sum() / len(scores))
        axes.plot(mean_score, share_true, "o-", color=colour, markersize=3, label=f"{r.entry.name}: {error:.3f}")
    axes.set(xlabel="mean score", ylabel="share that is true", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=7, frameon=False, title="expected calibration error", title_fontsize=7)
    _plain(axes)
    return canvas


def _confusion(contest: Contest, best: Result) -> np.ndarray:
    """(c, c) recordings of each primary label, by the class that scored highest."""
    counts = np.zeros((len(contest.labels),) * 2, int)
    known = contest.primary >= 0
    np.add.at(counts, (contest.primary[known], best.scores[known].argmax(axis=1)), 1)
    return counts


def _draw_matrix(contest: Contest, best: Result) -> Canvas:
    counts = _confusion(contest, best)
    n = len(counts)
    side = min(12.0, 2.2 + 0.26 * n)
    canvas = _canvas(side, side)
    axes = canvas.subplots()
    axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    if n <= 60:
        names = [contest.names.get(label) or label for label in contest.labels]
        axes.set_xticks(range(n), names, rotation=90, fontsize=6)
        axes.set_yticks(range(n), names, fontsize=6)
        for i, j in zip(*np.nonzero(counts), strict=True):
            shade = "white" if counts[i, j] > 0.6 * counts[i].sum() else "black"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=6, color=shade)
    axes.set(xlabel="highest score", ylabel="primary label")
    return canvas


def _confused(contest: Contest, best: Result) -> list[dict[str, Any]]:
    """The pairs of species that are taken for one another most often."""
    counts = _confusion(contest, best)
    of_class = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_CONFUSED]
    pairs = [(int(place) // len(counts), int(place) % len(counts)) for place in order]
    name = [contest.names.get(label) or label for label in contest.labels]
    return [
        {"true": name[i], "taken_for": name[j], "n": int(counts[i, j]), "of": int(of_class[i])}
        for i, j in pairs
        if counts[i, j]
    ]


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Heads compared</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.25em } h2 { font-size: 1.05em; margin-top: 2.2em }
table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums }
th, td { padding: .25em .6em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
.wide { overflow-x: auto } svg { max-width: 100%; height: auto } p.small { font-size: 13px; color: #555 }
</style></head><body>
<h1>{{ verdict }}</h1>
<p class="small">{{ caption }}</p>
<div class="wide"><table><tr>{% for h in headings %}<th>{{ h }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% for note in notes %}<p class="small">{{ note }}</p>{% endfor %}
{{ overview|safe }}
<h2>Precision and recall, all classes together</h2>
{{ curves|safe }}
{% if learning %}<h2>Would more recordings help?</h2>
<p class="small">The best heads, fitted on an eighth, a quarter, half and all of their recordings.</p>
{{ learning|safe }}{% endif %}
<h2>Are scores probabilities?</h2>
{{ reliability|safe }}
<h2>Per class: {{ best }}</h2>
{{ classes|safe }}
<h2>Which species are taken for which: {{ best }}</h2>
{% if confused %}<table><tr><th>recording of</th><th>highest score</th><th>recordings</th></tr>
{% for c in confused %}<tr><td>{{ c.true }}</td><td>{{ c.taken_for }}</td><td>{{ c.n }} of {{ c.of }}</td></tr>
{% endfor %}</table>{% else %}<p>No recording had another species' score above its own.</p>{% endif %}
{{ matrix|safe }}
</body></html>
"""
