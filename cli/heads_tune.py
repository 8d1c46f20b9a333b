"""`heads tune`: a head's calibration and its thresholds, chosen on held-out recordings and judged on others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.common import DryRunOption, JsonOption, console, write_summary
from cli.heads_common import FoldOption, LabelsOption, TargetOption, open_store

if TYPE_CHECKING:
    from rich.table import Table

    from embeddings.store import Store
    from stage2_heads.base import Head
    from stage2_heads.rows import LabelledRows
    from stage2_heads.score_report import Figure
    from stage2_heads.tuning import TuneSettings, TuningReport

__all__ = ["register", "tune", "tuning_row"]

_SIDES = ("train", "valid")


def register(app: typer.Typer) -> None:
    """Add the command to `heads`."""
    app.command()(tune)


def tune(
    head_path: Annotated[Path, typer.Argument(help="A head made by `heads fit`.")],
    store_path: Annotated[Path, typer.Argument(help="The store that it was fitted on.")],
    calibration: Annotated[
        str,
        typer.Option(help="Decisions to scores: shared (one sigmoid), platt (one a class), isotonic, temperature."),
    ] = "platt",
    threshold: Annotated[
        str | None, typer.Option(help="Rule for the threshold of each class: best-f1 (the default).")
    ] = None,
    precision: Annotated[
        float | None, typer.Option(help="Instead: the lowest threshold with at least this precision, such as 0.9.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Keep the K best classes of a window, then drop those under their threshold.")
    ] = None,
    min_recordings: Annotated[
        int, typer.Option(help="A class with fewer held-out recordings gets the threshold shared by all.")
    ] = 10,
    split: Annotated[
        str,
        typer.Option(
            help="train: the recordings that the head was fitted on, cross-fitted. valid: those nobody has heard, "
            "which then are never scored."
        ),
    ] = "train",
    valid_fold: FoldOption = "",
    labels: LabelsOption = None,
    target: TargetOption = "",
    pool: Annotated[
        str, typer.Option(help="Pooling that thresholds of recordings are for: mean, lme or max.")
    ] = "mean",
    folds: Annotated[int, typer.Option(help="Divisions of the recordings; with --split train a fit each.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Save a copy here, and leave the head as it is.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Let --out replace even a head of another kind or blocks.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw scores beside what came true, before and after (PNG).")
    ] = None,
    per_class: Annotated[bool, typer.Option(help="Print the table of classes.")] = True,
    json_path: JsonOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Calibrate a head class by class, choose its thresholds, and keep both in the head."""
    from cli.head_backbones import carry_backbones
    from cli.heads_common import blocks_in, require_free_or_refit, share_progress
    from embeddings.errors import InputError
    from stage2_heads.heads import load_head
    from stage2_heads.reliability import draw_reliability
    from stage2_heads.thresholds import Rule
    from stage2_heads.tuning import TuneSettings
    from stage2_heads.tuning import tune as tune_head

    if threshold not in (None, "best-f1"):
        raise InputError(f"--threshold {threshold} is not a rule; choose best-f1, or give --precision a share.")
    if threshold and precision is not None:
        raise InputError("--threshold best-f1 and --precision exclude each other; give one of them.")
    if split not in _SIDES:
        raise InputError(f"--split {split} cannot be tuned on; choose {' or '.join(_SIDES)}.")
    if plot is not None and plot.suffix.lower() != ".png":
        raise InputError(f"--plot {plot} must end in .png.")
    settings = TuneSettings(calibration, Rule(precision, min_recordings), top_k, pool, folds)
    head = load_head(head_path)
    store = open_store(store_path, labels, target or head.provenance.get("target", ""))
    blocks = blocks_in(head, head_path, store)
    place = out or head_path
    if out is not None:
        require_free_or_refit(out, head.kind, [name for name, _ in head.blocks_], overwrite)
    unheard = split == "valid"
    rows = _rows_to_tune_on(head, head_path, store, blocks, unheard=unheard, valid_fold=valid_fold)
    what = _plan(head, head_path, rows, settings, unheard)
    if dry_run:
        console().print(f"Would tune {what}; head: {place}.")
        return
    if not unheard and rows.n_recordings < (n_fitted := _n_fitted(head)):
        console().print(
            f"Warning: {store_path} has labelled windows of {rows.n_recordings} of the {n_fitted} recordings that the "
            "head was fitted on; copies of it learn from those only.",
            markup=False,
        )
    with share_progress(f"tuning {head.kind}") as report_share:
        report = tune_head(head, rows, settings, unheard=unheard, progress=report_share)
    head.provenance["tuned"] = {
        "store": str(store.path.resolve()),
        "split": split,
        "valid_fold": valid_fold,
        "folds": folds,
        "min_recordings": min_recordings,
    }
    head.save(place)
    carry_backbones(head_path, place)
    screen = console()
    screen.print(_table(report, f"Tuned {head_path} on {store_path}: {report.tuning.calibrated_on}"))
    if per_class:
        screen.print(_class_table(report))
    for note in report.notes:
        screen.print(note, markup=False)
    if plot is not None:
        names = ("as fitted", f"tuned, {calibration}")
        draw_reliability(report.before, report.after, plot, title=f"{head_path} on {store_path}", names=names)
        screen.print(f"Picture: {plot}", markup=False)
    screen.print(f"Head: {place}", markup=False)
    write_summary(json_path, {"head": str(place), "store": str(store_path), **report.to_json(head.labels_)})


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


def _rows_to_tune_on(
    head: Head, head_path: Path, store: Store, blocks: list[str], *, unheard: bool, valid_fold: str
) -> LabelledRows:
    import numpy as np

    from cli.heads_common import on_side
    from embeddings.errors import InputError
    from stage2_heads.labels import RecordingLabels
    from stage2_heads.leaks import heard_mask
    from stage2_heads.rows import label_rows
    from stage2_heads.tuning import heard_before_tuning

    everyone = [RecordingLabels.of(r) for r in store.catalogue.recordings]
    before = heard_before_tuning(head, everyone)
    if unheard:
        wanted = on_side(store, "valid", valid_fold) & ~heard_mask(everyone, before.union(store.heard(blocks)))
        missing = f"all its recordings on the valid side of {store.path} were heard by it or its backbones"
    else:
        fitted = before.trained_on | before.selected_on
        wanted = np.array([r.recording in fitted for r in everyone], dtype=bool)
        missing = f"{store.path} has none of the {len(fitted)} recordings that it was fitted on"
    rows = store.index.rows_of(wanted)
    if not len(rows):
        raise InputError(
            f"head {head_path} cannot be tuned here: {missing}. Name the store that it was fitted on, or, with "
            "--split valid, one with recordings that nobody has heard."
        )
    places, recording_of_row = store.index.recordings_of(rows)
    return label_rows(
        store.reader(blocks),
        rows,
        recording_of_row,
        [everyone[p] for p in places],
        blocks=head.blocks_,
        labels=head.labels_,
        heard_by_block=np.stack(
            [heard_mask([everyone[p] for p in places], store.heard([name])) for name in blocks], axis=1
        ),
        windows=head.windows_,
        rms_dbfs=store.rows.rms_dbfs[rows] if head.windows_ == "loudest" else None,
        secondary_weight=head.secondary_weight_,
    )


def _plan(head: Head, head_path: Path, rows: LabelledRows, settings: TuneSettings, unheard: bool) -> str:
    fits = f"of the {_n_fitted(head)} that it was fitted on, by {settings.n_folds} fits"
    how = "which nobody has heard" if unheard else fits
    most = f", at most {settings.top_k} classes a row" if settings.top_k is not None else ""
    return (
        f"{head_path} ({head.kind}, {len(head.labels_)} labels): {settings.calibration} calibration, thresholds by "
        f"{settings.rule.words}{most}, on {rows.n_rows} windows of {rows.n_recordings} recordings {how}"
    )


def _n_fitted(head: Head) -> int:
    return len(head.heard_.trained_on | (head.heard_.selected_on - head.tuned_on_))


def _table(report: TuningReport, title: str) -> Table:
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


def _class_table(report: TuningReport) -> Table:
    from rich.markup import escape
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
            escape(row["label"]),
            escape(row["common_name"] or row["scientific_name"]),
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
