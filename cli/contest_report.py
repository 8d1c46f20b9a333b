"""A contest of heads as a table, CSV, Markdown, and one HTML page that needs nothing else."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cli.contest_pictures import (
    confusion,
    draw_classes,
    draw_curves,
    draw_learning,
    draw_map,
    draw_matrix,
    draw_overview,
    draw_reliability,
    svg_of,
)
from cli.figures import figure_words
from embeddings.files import write_atomically, write_text

if TYPE_CHECKING:
    from rich.table import Table

    from stage2_heads.arrangement import Arrangement
    from stage2_heads.contest import Contest, Result

__all__ = ["CURVES", "contest_table", "write_contest"]

_METRICS = {"top_1": "top-1", "cmap_present": "cmAP, present", "cmap_padded_5": "cmAP, padded 5", "auroc": "AUROC"}
_FILES_ONLY = ("cmAP, padded 5",)  # a terminal is narrower than a page
CURVES = 3  # of the best entries: learning curves cost as much as the contest's own fits
_CONFUSED = 12  # pairs of species that are listed


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
    write_text(folder / "contest.md", _markdown(contest))
    write_text(folder / "contest.html", _html(contest))
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
    lines += ["", _caption(contest), *(f"\n{note}" for note in contest.notes), ""]
    if contest.arrangements:
        lines += ["How the blocks arrange recordings before any head is fitted:", ""]
        lines += [f"- {_arranged(arrangement)}" for arrangement in contest.arrangements]
    return "\n".join([*lines, ""])


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
        overview=svg_of(draw_overview(contest)),
        curves=svg_of(draw_curves(contest)),
        arrangements=[(_arranged(a), svg_of(draw_map(contest, a))) for a in contest.arrangements],
        learning=svg_of(draw_learning(contest)) if any(r.curve for r in contest.results) else "",
        classes=svg_of(draw_classes(contest, best)),
        reliability=svg_of(draw_reliability(contest)),
        matrix=svg_of(draw_matrix(contest, best)),
        confused=_confused(contest, best),
    )


def _arranged(arrangement: Arrangement) -> str:
    """A set of blocks, and how well it keeps species together, in a sentence."""
    return (
        f"{' + '.join(arrangement.blocks)}: silhouette {figure_words(arrangement.silhouette, sign=True)}, adjusted "
        f"mutual information {arrangement.mutual:.3f} (sd {arrangement.mutual_sd:.3f} over ten starts of k-means)"
    )


def _confused(contest: Contest, best: Result) -> list[dict[str, Any]]:
    """The pairs of species that are taken for one another most often."""
    counts = confusion(contest, best)
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
{% if arrangements %}<h2>Which network hears these birds best, before any head?</h2>
<p class="small">Recordings that nothing was fitted on, as search sees them: a recording is the mean of its windows,
each block centred and of length 1. Silhouette: how much nearer recordings of one species lie to each other than to the
nearest other species, -1 to 1. Mutual information: how well clusters found without labels are the species, 0 by
chance, 1 the same. The maps are t-SNE's: near is alike, far means little.</p>
{% for words, picture in arrangements %}<p class="small">{{ words }}</p>{{ picture|safe }}{% endfor %}{% endif %}
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
