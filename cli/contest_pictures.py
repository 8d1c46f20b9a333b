"""The pictures of a contest's report, each as SVG inside the page."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

    from stage2_heads.arrangement import Arrangement
    from stage2_heads.contest import Contest, Result

__all__ = [
    "confusion",
    "draw_classes",
    "draw_curves",
    "draw_learning",
    "draw_map",
    "draw_matrix",
    "draw_overview",
    "draw_reliability",
    "svg_of",
]

_CURVES = 6  # entries whose curves are drawn: more cannot be told apart
_COLOURED = 20  # species that have a colour and a shape of their own on a map
_BINS = 10
_PALETTE = ("#1b6ca8", "#d1495b", "#66a182", "#8d6a9f", "#c98a1b", "#2e4057")


def svg_of(canvas: Canvas) -> str:
    text = io.StringIO()
    canvas.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def _canvas(width: float, height: float) -> Canvas:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(canvas)
    return canvas


def draw_overview(contest: Contest) -> Canvas:
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


def draw_curves(contest: Contest) -> Canvas:
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


def draw_learning(contest: Contest) -> Canvas:
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


def draw_map(contest: Contest, arrangement: Arrangement) -> Canvas:
    from matplotlib import colormaps

    canvas = _canvas(7.5, 4.4)
    axes = canvas.subplots()
    labels = np.array(arrangement.labels)
    known, counts = np.unique(labels, return_counts=True)
    shown = known[np.argsort(-counts, kind="stable")[:_COLOURED]]
    rest = ~np.isin(labels, shown)
    if rest.any():
        x, y = arrangement.places[rest].T
        axes.scatter(x, y, s=12, color="#bbbbbb", label="others", linewidths=0)
    for i, label in enumerate(shown):
        x, y = arrangement.places[labels == label].T
        marker, name = "osD^"[i // 10 % 4], contest.names.get(label) or label
        axes.scatter(x, y, s=20, color=colormaps["tab10"](i % 10), marker=marker, label=name, linewidths=0)
    axes.set(xticks=[], yticks=[])
    axes.legend(fontsize=6.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return canvas


def draw_classes(contest: Contest, best: Result) -> Canvas:
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


def draw_reliability(contest: Contest) -> Canvas:
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


def confusion(contest: Contest, best: Result) -> np.ndarray:
    """(c, c) recordings of each primary label, by the class that scored highest."""
    counts = np.zeros((len(contest.labels),) * 2, int)
    known = contest.primary >= 0
    np.add.at(counts, (contest.primary[known], best.scores[known].argmax(axis=1)), 1)
    return counts


def draw_matrix(contest: Contest, best: Result) -> Canvas:
    counts = confusion(contest, best)
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


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
