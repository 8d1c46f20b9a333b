"""What a head scored on annotated windows, with all that a reader must know, and as tables on a terminal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stage2_heads.bootstrap import rule_of_three
from stage2_heads.plain_tables import plain, plain_table
from stage2_heads.score_report import Figure

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["WindowReport", "figures_table", "file_table", "window_notes"]

_FEW = 20  # recordings below which a bootstrap over them is rough
_SHOWN = 40  # lines of the table of files on a screen
_NAMES = {
    "ap": "AP, mean over classes",
    "auroc": "AUROC, mean over classes",
    "recall": "calls found",
    "false_alarms_per_hour": "false alarms an hour",
}


@dataclass(frozen=True)
class WindowReport:
    """Figures of a head on annotated windows.

    overall         ap, auroc (means over the `n_ranked` classes that have windows with and without them), recall,
                    false_alarms_per_hour (of all classes together)
    per_class       a mapping a class;  per_file: a mapping a recording
    left_out        how much was not scored, and why;  n_seen: heard recordings that were scored all the same
    outside_labels  labels of boxes that are no class of the head, with their numbers
    threshold       where a score is a detection; None: the head's tuned thresholds, in `per_class`
    hours           of sound whose truth is known for some class
    """

    overall: dict[str, Figure]
    per_class: tuple[dict[str, Any], ...]
    per_file: tuple[dict[str, Any], ...]
    left_out: dict[str, int]
    outside_labels: dict[str, int]
    n_windows: int
    n_recordings: int
    n_ranked: int
    n_seen: int
    hours: float
    rule: dict[str, Any]
    threshold: float | None
    calibrated_on: str
    n_bootstrap: int
    seed: int
    notes: tuple[str, ...] = ()

    def with_notes(self, notes: list[str]) -> WindowReport:
        return replace(self, notes=tuple(notes))

    def to_json(self) -> dict[str, Any]:
        """Plain values; nothing undefined is a number."""

        def plain(value: Any) -> Any:
            if isinstance(value, Figure):
                return value.to_json()
            if isinstance(value, dict):
                return {name: plain(part) for name, part in value.items()}
            return [plain(part) for part in value] if isinstance(value, tuple) else value

        return {name: plain(getattr(self, name)) for name in self.__dataclass_fields__}


def window_notes(report: WindowReport, unpublished: str) -> list[str]:
    """Sentences that belong under the figures. unpublished : what a backbone does not tell of its training."""
    rule, left = report.rule, report.left_out
    notes = [
        f"A window is positive when it holds {rule['overlap_s']:g} s of a box or {rule['overlap_share']:.0%} of it; "
        "one that holds less of it is left out.",
        "A call is found when a window that holds enough of it is detected; boxes of a species that overlap are one "
        "call. Detected windows without the species that overlap or touch are one false alarm.",
    ]
    if report.n_seen:
        notes.append(f"{report.n_seen} of {report.n_recordings} recordings were heard in training: figures flatter.")
    if left["heard"]:
        notes.append(f"{left['heard']} annotated recordings heard in training are left out.")
    if left["windows_unknown"]:
        notes.append(f"{left['windows_unknown']} windows of which nothing is known for sure are left out.")
    if left["calls_in_no_window"]:
        notes.append(f"{left['calls_in_no_window']} calls that no window holds enough of are left out.")
    if report.outside_labels:
        said = ", ".join(f"{label} {n}" for label, n in report.outside_labels.items())
        notes.append(f"Boxes of labels that are no class of the head, left out: {said}.")
    if unpublished:
        notes.append(unpublished)
    if report.calibrated_on:
        notes.append(f"Scores are calibrated on {report.calibrated_on}.")
    if report.n_recordings < _FEW:
        notes.append(
            f"{report.n_recordings} recordings: a bootstrap over so few promises more than it keeps."
            + (" With one there is no interval." if report.n_recordings == 1 else "")
        )
    flat = [_NAMES[name] for name, f in report.overall.items() if f.value is not None and f.low == f.high]
    if flat and report.n_recordings > 1:
        notes.append(
            f"An interval of no width ({', '.join(flat)}) is not certainty: by the rule of three, "
            f"{report.n_recordings} recordings without exception leave room for a rate of "
            f"{rule_of_three(report.n_recordings):.3f}."
        )
    return notes


def figures_table(report: WindowReport, title: str, *, per_class: bool = True) -> Table:
    """All classes together and each class: ranking, calls found, false alarms."""
    table = plain_table(title, "\n".join(report.notes))
    table.add_column("class")
    for heading in ("windows with", "of", "AP", "AUROC", "at", "calls", "found", "false alarms an hour", "hours"):
        table.add_column(heading, justify="right")
    seen = f" (incl. {report.n_seen} heard in training)" if report.n_seen else ""
    overall = report.overall
    table.add_row(
        f"all ({report.n_ranked} ranked)" + seen,
        "",
        str(report.n_windows),
        _with_interval(overall["ap"]),
        _with_interval(overall["auroc"]),
        "",
        str(overall["recall"].n),
        _with_interval(overall["recall"]),
        _with_interval(overall["false_alarms_per_hour"], 1),
        f"{report.hours:.2f}",
    )
    for row in sorted(report.per_class, key=lambda row: (-row["calls"], row["label"])) if per_class else ():
        table.add_row(
            plain(row["label"]) + seen,
            str(row["windows_with"]),
            str(row["windows_known"]),
            _with_interval(row["ap"]),
            _with_interval(row["auroc"]),
            f"{row['threshold']:.3g}",
            str(row["calls"]),
            _with_interval(row["recall"]),
            _with_interval(row["false_alarms_per_hour"], 1),
            f"{row['hours']:.2f}",
        )
    return table


def file_table(report: WindowReport) -> Table:
    """A line a recording; the first forty."""
    more = len(report.per_file) - _SHOWN
    table = plain_table("Per file", f"and {more} more; --json FILE lists all" if more > 0 else "")
    table.add_column("file")
    for heading in ("minutes", "windows", "with a call", "calls", "found", "false alarms"):
        table.add_column(heading, justify="right")
    for row in report.per_file[:_SHOWN]:
        table.add_row(
            plain(row["file"]) + (" (heard in training)" if row["heard"] else ""),
            f"{60 * row['hours']:.1f}",
            *(str(row[name]) for name in ("windows", "windows_with", "calls", "found", "false_alarms")),
        )
    return table


def _with_interval(figure: Figure, decimals: int = 3) -> str:
    if figure.value is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.{decimals}f}"
    return f"{figure.value:.{decimals}f}\n{figure.low:.{decimals}f} - {figure.high:.{decimals}f}"
