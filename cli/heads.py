"""`heads`: fit heads on stored embeddings, score them on recordings nobody has heard, compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import heads_combine, heads_predict, heads_scoring, heads_tune, heads_update
from cli.common import DryRunOption, JsonOption, console, fact_words, make_app, run, write_summary
from cli.heads_annotations import (
    AnnotationsOption,
    LabelColumnOption,
    OverlapSecondsOption,
    OverlapShareOption,
    SpeciesOption,
    annotated_to_fit,
    boxes_asked,
)
from cli.heads_common import (
    FoldOption,
    LabelsOption,
    OnlyOption,
    SeedOption,
    StoreArgument,
    TargetOption,
    head_settings,
    open_store,
    require_free_or_refit,
    rows_of_split,
    share_progress,
    unfitted_head,
)
from cli.tuning_tables import tuning_row

app = make_app("Fit heads on a store's embeddings, score them honestly, compare them.")


@app.command()
def fit(
    store_path: StoreArgument,
    out: Annotated[Path, typer.Option(help="Folder of the head, or of the curve.")],
    head: Annotated[
        str, typer.Option(help="svm, logistic, mlp, knn, prototypes or online; with --shots several.")
    ] = "svm",
    split: Annotated[
        str, typer.Option(help="Recordings to fit on: train, valid or all. Default: train; with --annotations all.")
    ] = "",
    only: OnlyOption = "",
    blocks: Annotated[str | None, typer.Option(help="Blocks to use, separated by commas. Default: all.")] = None,
    windows: Annotated[str, typer.Option(help="Which windows carry a recording's label: all or loudest.")] = "all",
    secondary_weight: Annotated[float, typer.Option(help="Target of a secondary label among the classes.")] = 1.0,
    fusion: Annotated[
        str,
        typer.Option(
            help="Several blocks: late (a head a block, weighed by unheard recordings), equal, or early (side by side)."
        ),
    ] = "late",
    setting: Annotated[list[str] | None, typer.Option("--set", help="A setting of the head, such as k=10.")] = None,
    valid_fold: FoldOption = "",
    labels: LabelsOption = None,
    target: TargetOption = "",
    annotations: AnnotationsOption = None,
    overlap_s: OverlapSecondsOption = None,
    overlap_share: OverlapShareOption = None,
    annotated_species: SpeciesOption = "",
    label_column: LabelColumnOption = "",
    seed: SeedOption = 0,
    with_backbones: Annotated[
        bool, typer.Option(help="Copy the backbones into the head: `heads predict` then needs nothing else.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace even a head of another kind or other blocks.")] = False,
    shots: Annotated[
        str, typer.Option(help="Draw a learning curve instead: recordings of each class to fit on, as 1,2,4,8,all.")
    ] = "",
    seeds: Annotated[int | None, typer.Option(help="With --shots: draws of the recordings. Default 10.")] = None,
    json_path: JsonOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Fit a head on the labelled windows of a store, or with --shots see how many recordings a class needs."""
    from embeddings.errors import InputError

    boxes = boxes_asked(annotations, overlap_s, overlap_share, annotated_species, label_column)
    split = split or ("train" if boxes is None else "all")
    if boxes is not None and (labels is not None or target == "type" or windows != "all" or secondary_weight != 1):
        raise InputError(
            "--annotations label windows by themselves; leave out --labels, --target type, --windows and "
            "--secondary-weight."
        )
    if shots or seeds is not None:
        from cli.heads_shots import draw_curve

        if boxes is not None or only:
            raise InputError("--shots draws whole recordings by their labels; leave out --annotations and --only.")
        draw_curve(
            store_path,
            out,
            head=head,
            shots=shots,
            seeds=10 if seeds is None else seeds,
            seed=seed,
            blocks=blocks,
            windows=windows,
            secondary_weight=secondary_weight,
            fusion=fusion,
            settings=setting or [],
            split=split,
            valid_fold=valid_fold,
            labels=labels,
            target=target,
            overwrite=overwrite,
            json_path=json_path,
            dry_run=dry_run,
        )
        return
    import time

    import numpy as np

    from cli.head_backbones import copy_backbones
    from stage2_heads.fused import FusedHead
    from stage2_heads.head_files import BACKBONES
    from stage2_heads.stored_rows import stored_rows

    store = open_store(store_path, labels, target)
    names = [block.name for block in store.choose_blocks(blocks.split(",") if blocks else None)]
    unfitted = unfitted_head(head, fusion, len(names), head_settings(head, setting or [], seed))
    require_free_or_refit(out, unfitted.kind, names, overwrite)
    facts: dict[str, Any] = {"only": only} if only else {}
    rows = rows_of_split(store, split, valid_fold, only)
    if boxes is not None:
        windows = "annotated"
        labelled, species_names, more = annotated_to_fit(boxes, unfitted, store, names, rows)
        facts |= more
    else:
        labelled = stored_rows(store, names, rows, windows=windows, secondary_weight=secondary_weight)
    n_fitted = len(np.unique(labelled.recording_of_row))
    how = f", {fusion} fusion," if unfitted.kind != head else ""
    what = (
        f"{head}{how} on {' + '.join(names)} ({labelled.dim} numbers), {labelled.n_rows} windows of {n_fitted} "
        f"recordings, {len(labelled.labels)} labels, split {split}, {windows} windows"
    )
    if dry_run:
        console().print(f"Would fit {what}.")
        return
    began = time.monotonic()
    with share_progress(f"fitting {head}") as report:
        fitted = unfitted.fit(labelled, progress=report)
    if boxes is not None:
        fitted.names_ = species_names
    fitted.provenance = {
        "store": str(store.path.resolve()),
        "labels": "boxes" if boxes else str(labels.resolve()) if labels is not None else "the store's",
        "target": target or "species",
        "split": {"side": split, "valid_fold": valid_fold, **store.split_settings},
        "n_windows": labelled.n_rows,
        "n_recordings": n_fitted,
        **facts,
    }
    weighed = ""
    if isinstance(fitted, FusedHead):
        shares = fitted.weights_ / fitted.weights_.sum()
        fitted.provenance["block_weights"] = {name: round(float(w), 3) for name, w in zip(names, shares, strict=True)}
        fitted.provenance["blocks_weighed_on"] = fitted.weighed_on_
        weighed = "\nBlocks weigh " + ", ".join(f"{n} {w:.2f}" for n, w in zip(names, shares, strict=True))
        weighed += f" ({fitted.weighed_on_})."
    fitted.save(out)
    if with_backbones or (out / BACKBONES).is_dir():
        copy_backbones(store, names, out)
    seconds = time.monotonic() - began
    calibrated = f" Scores calibrated on {fitted.calibrated_on_}." if fitted.calibrated_on_ else ""
    told = "".join(f"\n{name}: {fact_words(value)}" for name, value in fitted.facts().items())
    console().print(f"Fitted {what}, in {seconds:.1f} s.{calibrated}{weighed}{told}\nHead: {out}")
    write_summary(
        json_path,
        {
            "head": str(out),
            "kind": head,
            "blocks": names,
            "labels": list(fitted.labels_),
            "seconds": seconds,
            "calibrated_on": fitted.calibrated_on_,
            **fitted.facts(),
            **fitted.provenance,
        },
    )


@app.command()
def info(head_path: Annotated[Path, typer.Argument(help="A head made by `heads fit`.")]) -> None:
    """What a head is: kind, settings, blocks, classes, what it was fitted on and how it was calibrated."""
    from dataclasses import asdict

    from rich.table import Table

    from stage2_heads.heads import load_head

    head = load_head(head_path)
    table = Table(title=str(head_path), show_header=False, title_justify="left")
    table.add_row("kind", head.kind)
    table.add_row("settings", ", ".join(f"{k}={v}" for k, v in asdict(head.settings).items()))
    for (name, fingerprint), dim in zip(head.blocks_, head.dims_, strict=True):
        table.add_row(f"block {name}", f"{dim} numbers, fingerprint {fingerprint.digest[:12]}")
    classes = [head.names_.get(label, ("", ""))[1] or label for label in head.labels_]
    table.add_row("classes", f"{len(classes)}: {', '.join(classes)}")
    n_heard = len(head.heard_.trained_on) + len(head.heard_.selected_on)
    table.add_row("fitted on", f"{n_heard} recordings, {head.windows_} windows")
    table.add_row("calibrated on", head.calibrated_on_ or "not needed: scores are votes")
    table.add_row("tuning", tuning_row(head))
    facts = {name: fact_words(value) for name, value in head.facts().items()}
    for key, value in (facts | head.provenance).items():
        table.add_row(key, str(value))
    console().print(table)


for module in (heads_scoring, heads_predict, heads_tune, heads_update, heads_combine):
    module.register(app)


def main() -> None:
    """Entry point of `heads`."""
    run(app)


if __name__ == "__main__":
    main()
