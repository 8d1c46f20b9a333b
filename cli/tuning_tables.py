"""What `heads tune` and `heads info` print of a tuning: figures before and after, and thresholds class by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from stage2_heads.base import Head
    from stage2_heads.score_report import Figure
    from stage2_heads.tuning import TuningReport

__all__ = ["class_table", "tuning_row", "tuning_table"]


def tuning_row(head: Head) -> str:
    """What `heads info` says of a head's tuning."""
    tuning = head.tuning_
    if tuning is None:
        return "not tuned: a detection is a score of 0.5 or more"
    before, after = tuning.calibration_error
    most = f", at most {tuning.top_k} classes a row" if tuning.top_k is not None else ""
    lines = [
        f"{tuning.calibrator.method} calibration and thresholds by {tuning.rule}{most}, on {tuning.n_recordings} "
        f"recordings ({tuning.n_windows} windows); calibration error {before:.4f} as fitted, {after:.4f} tuned"
    ]
    for level, chosen in (("windows", tuning.window), (f"recordings ({tuning.pool} of windows)", tuning.recording)):
        each = (
            f"{label} {value:.3f}" + ("" if own else "*")
            for label, value, own in zip(head.labels_, chosen.values, chosen.own, strict=True)
        )
        lines.append(f"thresholds, {level} (* shared): {', '.join(each)}")
    return "\n".join(lines)


def tuning_table(report: TuningReport, title: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    before, after = report.before, report.after
    table = Table(title=Text(title), title_justify="left")
    for heading in ("", "as fitted", "tuned", "n"):
        table.add_column(heading, justify="left" if not heading else "right")
    errors = [_figure(r.error, 4) for r in (before, after)]
    table.add_row("calibration error, all scores (95 %)", *errors, str(before.error.n))
    n_classes = sum(row["recordings"] > 0 for row in report.per_class)
    means = [f"{error:.4f}" for error in report.mean_class_error]
    table.add_row("calibration error, mean of classes", *means, f"{n_classes} classes")
    table.add_row("log-loss", f"{before.log_loss:.4f}", f"{after.log_loss:.4f}", str(before.error.n))
    for level, (untuned, tuned) in report.agreement.items():
        table.add_section()
        for name in ("precision", "recall"):
            shares = (_number(getattr(one, name)) for one in (untuned, tuned))
            table.add_row(f"{name}, per {level}", *shares, str(tuned.n))
        for name, heading in (("f1_micro", "F1, micro"), ("f1_macro", "F1, macro")):
            figures = (_figure(getattr(one, name), 3) for one in (untuned, tuned))
            table.add_row(f"{heading}, per {level} (95 %)", *figures, str(tuned.n))
    return table


def class_table(report: TuningReport) -> Table:
    from rich.table import Table

    table = Table(title="Per class", title_justify="left", caption="* shared by classes with few recordings")
    for heading in ("class", "name"):
        table.add_column(heading)
    headings = ("recordings", "windows", "error, as fitted", "tuned", "threshold, windows", "recordings' threshold")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in sorted(report.per_class, key=lambda row: (-row["recordings"], row["label"])):
        thresholds = (
            f"{row[f'threshold_{level}']:.3f}" + ("" if row[f"own_threshold_{level}"] else "*")
            for level in ("window", "recording")
        )
        table.add_row(
            row["label"],
            row["common_name"] or row["scientific_name"],
            str(row["recordings"]),
            str(row["windows"]),
            f"{row['calibration_error_before']:.4f}",
            f"{row['calibration_error_after']:.4f}",
            *thresholds,
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _figure(figure: Figure, digits: int) -> str:
    if figure.value is None:
        return "-"
    return f"{figure.value:.{digits}f} ({figure.low:.{digits}f} - {figure.high:.{digits}f})"
