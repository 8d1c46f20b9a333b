"""What a learning curve came to, as a table for the terminal, CSV, Markdown and a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embeddings.files import write_atomically, write_text
from stage2_heads.score_report import Figure
from stage2_heads.shots import METRICS, CurvePoint, Shots, shots_name

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["curve_table", "write_curve"]

_PALETTE = ("#1b6ca8", "#d1495b", "#66a182", "#8d6a9f", "#edae49", "#2e4057", "#a44a3f", "#5c8001")
_APART = 0.05  # heads stand beside each other, in doublings of the recordings, so that their intervals can be seen

_FILES_ONLY = ("classes with", "recordings", "sd of")  # a terminal is narrower than a page

Sizes = Mapping[Shots, tuple[int, float]]
"""Shots -> classes that have so many recordings, and the mean number of recordings in a draw."""


def curve_table(points: Sequence[CurvePoint], sizes: Sizes, title: str) -> Table:
    """The curve for a terminal."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption=_caption(points), caption_justify="left")
    headings = _headings(points)
    shown = [place for place, heading in enumerate(headings) if not heading.startswith(_FILES_ONLY)]
    for place in shown:
        table.add_column(headings[place], justify="left" if place == 1 else "right")
    last = None
    for point in _ordered(points):
        if last not in (None, point.shots):
            table.add_section()
        last = point.shots
        row = _row(point, sizes)
        table.add_row(*(row[place].replace(" (", "\n(") for place in shown))
    return table


def write_curve(
    points: Sequence[CurvePoint], sizes: Sizes, folder: Path, *, title: str, notes: Sequence[str] = ()
) -> list[Path]:
    """curve.csv, curve.md and curve.png in `folder`, whole or not at all. Returns their paths."""
    headings = _headings(points)
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(_row(point, sizes)) + " |" for point in _ordered(points)]
    text = "\n\n".join([f"# {title}", "\n".join(lines), _caption(points), *notes]) + "\n"
    paths = [folder / f"curve.{ending}" for ending in ("csv", "md", "png")]
    write_atomically(paths[0], lambda path: _write_csv(path, points, sizes))
    write_text(paths[1], text)
    write_atomically(paths[2], lambda path: _draw(path, points, title))
    return paths


def _ordered(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Heads beside each other at each number of shots."""
    return sorted(points, key=lambda point: math.inf if point.shots is None else point.shots)


def _headings(points: Sequence[CurvePoint]) -> list[str]:
    headings = ["shots", "head", "classes with so many", "recordings fitted on"]
    for name in METRICS.values():
        headings += [name, f"sd of {name}"]
    return headings + [f"{name} - {points[0].head}" for name in METRICS.values()]


def _row(point: CurvePoint, sizes: Sizes) -> list[str]:
    n_classes, n_fitted = sizes[point.shots]
    row = [shots_name(point.shots), point.head, str(n_classes), f"{n_fitted:.1f}"]
    for name in METRICS:
        spread = point.spread[name]
        row += [_cell(point.figures[name]), "" if spread is None else _number(spread)]
    return row + [_cell(point.against[name], sign=True) if point.against else "" for name in METRICS]


def _cell(figure: Figure, *, sign: bool = False) -> str:
    value, low, high = (_number(number, sign) for number in (figure.value, figure.low, figure.high))
    return f"{value} ({low}{' to ' if sign else '-'}{high})"


def _number(value: float | None, sign: bool = False) -> str:
    """Three digits after the point, and none before it but 1: .732, +.041, 1.000."""
    assert value is not None
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text


def _caption(points: Sequence[CurvePoint]) -> str:
    n, n_seeds = points[0].n, points[0].n_seeds
    draws = f"{n_seeds} draws" if n_seeds > 1 else "1 draw"
    both = (
        "each replicate weighs recordings and draws anew (Bayesian bootstrap), the same for every row: the intervals "
        "hold the luck of both"
        if n_seeds > 1
        else "recordings weighed anew (Bayesian bootstrap); with one draw they do not hold the luck of the draw"
    )
    return (
        f"{n} recordings that none of the fits nor a backbone has heard, the same for every row; mean of {draws}, "
        f"nested, the same for every head. In brackets 95 % intervals of that mean: {both}. On class means of small "
        f"sets they are narrower than the truth. sd: standard deviation over draws, how far one may be off."
    )


def _write_csv(path: Path, points: Sequence[CurvePoint], sizes: Sizes) -> None:
    first = points[0].head
    ends = ("", "_low", "_high")
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        columns = ["shots", "head", "classes_with_so_many", "recordings_fitted_on", "n", "seeds"]
        columns += [f"{name}{end}" for name in METRICS for end in (*ends, "_sd")]
        writer.writerow(columns + [f"{name} - {first}{end}" for name in METRICS for end in ends])
        for point in _ordered(points):
            n_classes, n_fitted = sizes[point.shots]
            row: list[Any] = [shots_name(point.shots), point.head, n_classes, n_fitted, point.n, point.n_seeds]
            for name in METRICS:
                row += [*_ends(point.figures[name]), point.spread[name]]
            for name in METRICS:
                row += _ends(point.against.get(name))
            writer.writerow(["" if value is None else value for value in row])


def _ends(figure: Figure | None) -> list[float | None]:
    return [None] * 3 if figure is None else [figure.value, figure.low, figure.high]


def _draw(path: Path, points: Sequence[CurvePoint], title: str) -> None:
    """Both metrics over recordings a class, a line a head, with intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    heads = list(dict.fromkeys(point.head for point in points))
    shots = list(dict.fromkeys(point.shots for point in _ordered(points)))
    numbers = [number for number in shots if number is not None]
    places: dict[Shots, float] = {number: math.log2(number) for number in numbers}
    places |= {None: (math.log2(numbers[-1]) if numbers else 0.0) + 1.0}  # all that there are: one step further
    lowest = min(figure.low or 0.0 for point in points for figure in point.figures.values())

    canvas = Canvas(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(canvas)
    canvas.suptitle(title, x=0.01, ha="left", fontsize=10, wrap=True)
    for axes, (name, heading) in zip(canvas.subplots(1, 2, sharey=True), METRICS.items(), strict=True):
        for i, head in enumerate(heads):
            own = _ordered([point for point in points if point.head == head])
            at = [places[point.shots] + _APART * (i - (len(heads) - 1) / 2) for point in own]
            found, colour = [point.figures[name] for point in own], _PALETTE[i % len(_PALETTE)]
            for x, figure in zip(at, found, strict=True):
                axes.plot([x, x], [figure.low, figure.high], color=colour, linewidth=2, alpha=0.45)
            values = [figure.value for figure in found]
            axes.plot(at, values, "o-", color=colour, markersize=5, linewidth=1.4, label=head)
        axes.set_xticks([places[number] for number in shots], [shots_name(number) for number in shots])
        axes.set(title=heading, xlabel="recordings of each class", ylim=(max(0.0, lowest - 0.05), 1.02))
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right", fontsize=9)
    canvas.savefig(path, dpi=130, format="png")
