"""`heads tune`: a head's calibration and its thresholds, chosen on held-out recordings and judged on others."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.common import DryRunOption, JsonOption, console, require_replaceable, write_summary
from cli.heads_annotations import (
    AnnotationsOption,
    Boxes,
    LabelColumnOption,
    OverlapSecondsOption,
    OverlapShareOption,
    SpeciesOption,
    boxes_asked,
)
from cli.heads_common import FoldOption, LabelsOption, OnlyOption, TargetOption, open_store

if TYPE_CHECKING:
    from embeddings.store import Store
    from stage2_heads.base import Head
    from stage2_heads.rows import LabelledRows
    from stage2_heads.tuning import TuneSettings

__all__ = ["register", "tune"]

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
    only: OnlyOption = "",
    labels: LabelsOption = None,
    target: TargetOption = "",
    annotations: AnnotationsOption = None,
    overlap_s: OverlapSecondsOption = None,
    overlap_share: OverlapShareOption = None,
    annotated_species: SpeciesOption = "",
    label_column: LabelColumnOption = "",
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
    from cli.tuning_tables import class_table, tuning_table
    from embeddings.errors import InputError
    from stage2_heads.head_files import held_alone
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
    require_replaceable("--plot", plot, (b"\x89PNG",), "a PNG picture")
    settings = TuneSettings(calibration, Rule(precision, min_recordings), top_k, pool, folds)
    place = out or head_path
    in_place = not dry_run and place.resolve() == head_path.resolve()
    with held_alone(head_path) if in_place else nullcontext():
        head = load_head(head_path)
        boxes = boxes_asked(annotations, overlap_s, overlap_share, annotated_species, label_column, head)
        if boxes is not None and (labels is not None or target == "type"):
            raise InputError("--annotations label windows by themselves; leave out --labels and --target type.")
        store = open_store(store_path, labels, "" if boxes else target or head.provenance.get("target", ""))
        blocks = blocks_in(head, head_path, store)
        if out is not None:
            require_free_or_refit(out, head.kind, [name for name, _ in head.blocks_], overwrite)
        unheard = split == "valid"
        rows = _rows_to_tune_on(
            head, head_path, store, blocks, boxes, unheard=unheard, valid_fold=valid_fold, only=only
        )
        what = _plan(head, head_path, rows, settings, unheard)
        if dry_run:
            console().print(f"Would tune {what}; head: {place}.")
            return
        if not unheard and rows.n_recordings < (n_fitted := _n_fitted(head)):
            console().print(
                f"Warning: {store_path} has labelled windows of {rows.n_recordings} of the {n_fitted} recordings that "
                "the head was fitted on; copies of it learn from those only.",
            )
        with share_progress(f"tuning {head.kind}") as report_share:
            report = tune_head(head, rows, settings, unheard=unheard, progress=report_share)
        head.provenance["tuned"] = {
            "store": str(store.path.resolve()),
            "split": split,
            "valid_fold": valid_fold,
            **({"only": only} if only else {}),
            **(boxes.to_json() if boxes else {}),
            "folds": folds,
            "min_recordings": min_recordings,
        }
        head.save(place)
        carry_backbones(head_path, place)
    screen = console()
    screen.print(tuning_table(report, f"Tuned {head_path} on {store_path}: {report.tuning.calibrated_on}"))
    if per_class:
        screen.print(class_table(report))
    for note in report.notes:
        screen.print(note)
    if plot is not None:
        names = ("as fitted", f"tuned, {calibration}")
        draw_reliability(report.before, report.after, plot, title=f"{head_path} on {store_path}", names=names)
        screen.print(f"Picture: {plot}")
    screen.print(f"Head: {place}")
    write_summary(json_path, {"head": str(place), "store": str(store_path), **report.to_json(head.labels_)})


def _rows_to_tune_on(
    head: Head,
    head_path: Path,
    store: Store,
    blocks: list[str],
    boxes: Boxes | None,
    *,
    unheard: bool,
    valid_fold: str,
    only: str,
) -> LabelledRows:
    import numpy as np

    from cli.heads_common import named_like, on_side
    from embeddings.errors import InputError
    from stage2_heads.annotated_rows import annotated_rows
    from stage2_heads.labels import RecordingLabels
    from stage2_heads.leaks import heard_mask
    from stage2_heads.rows import ANNOTATED, label_rows
    from stage2_heads.tuning import heard_before_tuning

    everyone = [RecordingLabels.of(r) for r in store.catalogue.recordings]
    before = heard_before_tuning(head, everyone)
    if unheard:
        # Recorders' files are seldom divided into sides: annotated ones are taken wherever they are.
        side = "all" if boxes is not None and not valid_fold else "valid"
        wanted = on_side(store, side, valid_fold) & ~heard_mask(everyone, before.union(store.heard(blocks)))
        where = "" if side == "all" else f" on the {side} side"
        missing = f"all the recordings{where} of {store.path} were heard by it or its backbones"
        which = "that nobody has heard"
    else:
        if boxes is not None and head.windows_ != ANNOTATED:
            raise InputError(
                f"head {head_path} was fitted on recordings' labels, and copies fitted on boxes would be other heads. "
                "Tune it on annotated recordings that nobody has heard: --split valid."
            )
        fitted = before.trained_on | before.selected_on
        wanted = np.array([r.recording in fitted for r in everyone], dtype=bool)
        missing = f"{store.path} has none of the {len(fitted)} recordings that it was fitted on"
        which = "that it was fitted on"
    if only:
        wanted &= named_like(store, only)
        missing += f", or none that fits --only {only}"
    rows = store.index.rows_of(wanted)
    if not len(rows):
        raise InputError(
            f"head {head_path} cannot be tuned here: {missing}. Name the store that it was fitted on, or, with "
            "--split valid, one with recordings that nobody has heard."
        )
    if boxes is not None:
        return annotated_rows(store, blocks, boxes.windows(store, rows, head, which=which), head.labels_)
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
