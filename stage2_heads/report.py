"""Scores as tables on a terminal: one head, its classes, or several heads side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from stage2_heads.comparison import COMPARED, PAIRED, Comparison
from stage2_heads.levels import METRICS
from stage2_heads.plain_tables import plain, plain_table
from stage2_heads.score_report import Figure, ScoreReport

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["METRIC_NAMES", "class_table", "comparison_table", "score_table"]

METRIC_NAMES = {
    "top_1": "top-1",
    "top_3": "top-3",
    "cmap_present": "cmAP, present classes",
    "cmap_padded_5": "cmAP, padded 5",
    "cmap_padded_3": "cmAP, padded 3",
    "ap_micro": "AP, micro",
    "ap11": "AP, 11 recall levels",
    "ap11_confidence": "AP, 11 thresholds",
    "auroc": "AUROC, macro",
    "f1_micro": "F1, micro",
    "f1_macro": "F1, macro",
}


def score_table(report: ScoreReport, title: str = "") -> Table:
    """Every metric per recording and per window, with its interval, n and what random scores get."""
    table = plain_table(title or "Scores", _caption(report.notes))
    table.add_column("metric")
    for level in ("recording", "window"):
        table.add_column(f"per {level}", justify="right")
        table.add_column("95 % interval", justify="right")
        table.add_column("n", justify="right")
        table.add_column("random", justify="right")
    for name in METRICS:
        by_recording, by_window = report.recording[name], report.window[name]
        table.add_row(
            METRIC_NAMES[name] + _at_threshold(name, report) + _seen(report),
            _number(by_recording.value),
            _interval(by_recording),
            str(by_recording.n),
            _number(report.random_baseline[name]),
            _number(by_window.value),
            _interval(by_window),
            str(by_window.n),
            _number(report.random_baseline["window"][name]),
        )
    return table


def class_table(report: ScoreReport, title: str = "") -> Table:
    """Every class with its support, most first; classes without support come last, without figures."""
    table = plain_table(title or "Classes", f"precision, recall and F1 per recording{_at(report)}")
    for heading in ("class", "name"):
        table.add_column(heading)
    for heading in ("recordings", "windows", "AP", "AUROC", "precision", "recall", "F1", "AP, windows"):
        table.add_column(heading, justify="right")
    for row in sorted(report.per_class, key=lambda row: (-row["support"], row["label"])):
        figures = (row[key] for key in ("ap", "auroc", "precision", "recall", "f1", "ap_window"))
        table.add_row(
            plain(row["label"]) + _seen(report),
            plain(row["common_name"] or row["scientific_name"]),
            str(row["support"]),
            str(row["support_windows"]),
            *(_number(value) for value in figures),
        )
    return table


def comparison_table(comparison: Comparison, title: str = "") -> Table:
    """A line a head, per recording: figures with intervals, and differences to the first head."""
    reports = comparison.reports
    first_name, first = next(iter(reports.items()))
    paired_to = [f"Differences are to {first_name}, on the same recordings."] if len(reports) > 1 else []
    table = plain_table(title or "Heads compared, per recording", _caption([*paired_to, *comparison.notes]))
    table.add_column("head", no_wrap=True)
    table.add_column("n", justify="right")
    for metric in COMPARED:
        table.add_column(METRIC_NAMES[metric], justify="right")
    if len(reports) > 1:
        for metric in PAIRED:
            table.add_column(f"difference in {METRIC_NAMES[metric]}", justify="right")
    for name, report in reports.items():
        cells = [f"{_number(f.value)}\n{_interval(f)}" for f in (report.recording[metric] for metric in COMPARED)]
        if len(reports) > 1:
            paired = comparison.differences.get(name, {})
            cells += [_signed(paired[metric]) if metric in paired else "" for metric in PAIRED]
        table.add_row(plain(name) + _seen(report), str(len(report.recordings)), *cells)
    random = [_number(first.random_baseline[metric]) for metric in COMPARED]
    table.add_section()
    table.add_row("random scores", str(len(first.recordings)), *random, *[""] * (len(table.columns) - 2 - len(random)))
    return table


def _caption(notes: Iterable[str]) -> str:
    return "\n".join(notes)


def _seen(report: ScoreReport) -> str:
    """What stands on every line when heard recordings were scored."""
    return f" (incl. {report.n_seen} heard in training)" if report.n_seen else ""


def _at_threshold(name: str, report: ScoreReport) -> str:
    return _at(report) if name.startswith("f1_") else ""


def _at(report: ScoreReport) -> str:
    return " at tuned thresholds" if report.threshold is None else f" at {report.threshold:g}"


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(figure: Figure) -> str:
    return "-" if figure.low is None or figure.high is None else f"{figure.low:.3f} - {figure.high:.3f}"


def _signed(figure: Figure) -> str:
    assert figure.value is not None
    return f"{figure.value:+.3f}\n{figure.low:+.3f} to {figure.high:+.3f}"
