"""`heads`: fit heads on stored embeddings, score them on recordings nobody has heard, compare them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import heads_combine, heads_tune, heads_update
from cli.common import DryRunOption, JsonOption, console, fact_words, make_app, run, write_summary
from cli.heads_common import (
    blocks_in,
    head_settings,
    require_free_or_refit,
    rows_of_split,
    secondary_weight_of,
    share_progress,
    unfitted_head,
    warn_of_torn_shards,
)

if TYPE_CHECKING:
    from embeddings.contract import Heard
    from embeddings.store import Store
    from stage2_heads.base import Head
    from stage2_heads.score_report import ScoreReport

app = make_app("Fit heads on a store's embeddings, score them honestly, compare them.")
heads_tune.register(app)

StoreArgument = Annotated[Path, typer.Argument(help="A store made by `embed extract`.")]
SplitOption = Annotated[str, typer.Option(help="valid, train or all. Default: all that is unheard.")]
FoldOption = Annotated[str, typer.Option(help="Take this published fold as the validation side.")]
PoolOption = Annotated[str, typer.Option(help="A recording's score from its windows: mean, lme (log-mean-exp) or max.")]
ThresholdOption = Annotated[
    float | None,
    typer.Option(help="Score at which F1 counts a detection. Default: what `heads tune` chose, else 0.5."),
]
BootstrapOption = Annotated[int, typer.Option(help="Replicates behind the 95 % intervals.")]
SecondaryOption = Annotated[
    str, typer.Option(help="What a secondary label is in figures: positive, ignored, or a weight between 0 and 1.")
]
SeenOption = Annotated[bool, typer.Option(help="Score heard recordings too; every figure will say so.")]
SeedOption = Annotated[int, typer.Option(help="Seed of what is drawn.")]


@app.command()
def fit(
    store_path: StoreArgument,
    head: Annotated[str, typer.Option(help="svm, logistic, mlp, knn, prototypes or online; with --shots several.")],
    out: Annotated[Path, typer.Option(help="Folder of the head, or of the curve.")],
    split: Annotated[str, typer.Option(help="Recordings to fit on: train, valid or all.")] = "train",
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
    seed: SeedOption = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace even a head of another kind or other blocks.")] = False,
    shots: Annotated[
        str, typer.Option(help="Draw a learning curve instead: recordings of each class to fit on, as 1,2,4,8,all.")
    ] = "",
    seeds: Annotated[int | None, typer.Option(help="With --shots: draws of the recordings. Default 10.")] = None,
    json_path: JsonOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Fit a head on the labelled windows of a store, or with --shots see how many recordings a class needs."""
    if shots or seeds is not None:
        from cli.heads_shots import draw_curve

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
            overwrite=overwrite,
            json_path=json_path,
            dry_run=dry_run,
        )
        return
    import time

    import numpy as np

    from embeddings.store import Store
    from stage2_heads.fused import FusedHead
    from stage2_heads.stored_rows import stored_rows

    store = Store(store_path)
    warn_of_torn_shards(store)
    names = [block.name for block in store.choose_blocks(blocks.split(",") if blocks else None)]
    unfitted = unfitted_head(head, fusion, len(names), head_settings(head, setting or [], seed))
    require_free_or_refit(out, unfitted.kind, names, overwrite)
    rows = rows_of_split(store, split, valid_fold)
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
    fitted.provenance = {
        "store": str(store.path.resolve()),
        "split": {"side": split, "valid_fold": valid_fold, **store.split_settings},
        "n_windows": labelled.n_rows,
        "n_recordings": n_fitted,
    }
    weighed = ""
    if isinstance(fitted, FusedHead):
        shares = fitted.weights_ / fitted.weights_.sum()
        fitted.provenance["block_weights"] = {name: round(float(w), 3) for name, w in zip(names, shares, strict=True)}
        fitted.provenance["blocks_weighed_on"] = fitted.weighed_on_
        weighed = "\nBlocks weigh " + ", ".join(f"{n} {w:.2f}" for n, w in zip(names, shares, strict=True))
        weighed += f" ({fitted.weighed_on_})."
    fitted.save(out)
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
def score(
    head_path: Annotated[Path, typer.Argument(help="A head made by `heads fit`.")],
    store_path: StoreArgument,
    split: SplitOption = "",
    valid_fold: FoldOption = "",
    pool: PoolOption = "mean",
    threshold: ThresholdOption = None,
    bootstrap: BootstrapOption = 1000,
    seed: SeedOption = 0,
    include_seen: SeenOption = False,
    secondary: SecondaryOption = "positive",
    per_class: Annotated[bool, typer.Option(help="Print the table of classes.")] = True,
    json_path: JsonOption = None,
) -> None:
    """Score a head on the recordings that neither it nor its backbones have heard."""
    from embeddings.store import Store
    from stage2_heads.heads import load_head
    from stage2_heads.report import class_table, score_table

    store = Store(store_path)
    head = load_head(head_path)
    heard = head.heard_.union(store.heard(blocks_in(head, head_path, store)))
    weight = secondary_weight_of(secondary)
    report = _evaluate(
        head, head_path, store, heard, split, valid_fold, pool, threshold, bootstrap, seed, include_seen, weight
    )
    out = console()
    side = f"split {split}" if split else "all that is unheard"
    out.print(score_table(report, f"{head_path} on {store_path}, {side}; windows pooled by {pool}"))
    if per_class:
        out.print(class_table(report, "Per class"))
    _print_left_out(report)
    write_summary(json_path, {"head": str(head_path), "store": str(store_path), "split": split, **report.to_json()})


@app.command()
def compare(
    paths: Annotated[list[Path], typer.Argument(metavar="[HEAD...] STORE", help="Fitted heads, and last the store.")],
    head: Annotated[
        str, typer.Option(help="No fitted heads: kinds to fit on every block and score, such as svm,mlp,knn.")
    ] = "",
    blocks: Annotated[
        str,
        typer.Option(help="With --head: blocks to fit on, such as birdnet,efficientnet+birdnet. Default: all ways."),
    ] = "",
    folds: Annotated[
        int, typer.Option(help="With --head: score every unheard recording, in so many folds, not the valid side.")
    ] = 0,
    seeds: Annotated[str, typer.Option(help="With --head: seeds of the heads, such as 0,1,2.")] = "0",
    out: Annotated[Path | None, typer.Option(help="With --head: folder of the report (CSV, Markdown, HTML).")] = None,
    split: SplitOption = "",
    valid_fold: FoldOption = "",
    pool: PoolOption = "mean",
    threshold: ThresholdOption = None,
    bootstrap: BootstrapOption = 1000,
    seed: SeedOption = 0,
    include_seen: SeenOption = False,
    secondary: SecondaryOption = "positive",
    json_path: JsonOption = None,
) -> None:
    """Heads side by side on the same unheard recordings, with paired differences.

    Fitted ones (heads compare HEAD... STORE), or kinds on all blocks in one run (heads compare STORE --head svm,knn).
    """
    if head:
        from cli.heads_contest import hold_contest
        from embeddings.errors import InputError

        if threshold is not None or include_seen:
            raise InputError("--threshold and --include-seen are for fitted heads; leave them out with --head.")
        hold_contest(
            paths,
            heads=head.split(","),
            blocks=blocks.split(",") if blocks else [],
            folds=folds,
            seeds=seeds,
            split=split,
            valid_fold=valid_fold,
            pool=pool,
            secondary_weight=secondary_weight_of(secondary),
            bootstrap=bootstrap,
            seed=seed,
            out=out,
            json_path=json_path,
        )
        return
    from embeddings.contract import Heard
    from embeddings.errors import InputError
    from embeddings.store import Store
    from stage2_heads.comparison import compare_reports
    from stage2_heads.heads import load_head
    from stage2_heads.report import comparison_table

    if len(paths) < 2:
        raise InputError(
            "name at least one head, and last the store: heads compare HEAD... STORE; or kinds to fit: "
            "heads compare STORE --head svm,mlp,knn"
        )
    if blocks or folds or out or seeds != "0":
        raise InputError("--blocks, --folds, --seeds and --out need --head, the kinds of heads to fit.")
    *head_paths, store_path = paths
    weight = secondary_weight_of(secondary)
    store = Store(store_path)
    heads = {path: load_head(path) for path in head_paths}
    # One list of heard recordings for all, so that every head is scored on the same ones.
    heard = Heard().union(*(h.heard_.union(store.heard(blocks_in(h, path, store))) for path, h in heads.items()))
    reports = {}
    for path, fitted in heads.items():
        reports[_short_name(path, head_paths)] = _evaluate(
            fitted, path, store, heard, split, valid_fold, pool, threshold, bootstrap, seed, include_seen, weight
        )
    comparison = compare_reports(reports)
    side = f"split {split}" if split else "all that is unheard"
    console().print(comparison_table(comparison, f"{store_path}, {side}; per recording, windows pooled by {pool}"))
    _print_left_out(next(iter(reports.values())))
    write_summary(json_path, {"store": str(store_path), "split": split, **comparison.to_json()})


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
    table.add_row("tuning", heads_tune.tuning_row(head))
    facts = {name: fact_words(value) for name, value in head.facts().items()}
    for key, value in (facts | head.provenance).items():
        table.add_row(key, str(value))
    console().print(table)


def _evaluate(
    head: Head,
    head_path: Path,
    store: Store,
    heard: Heard,
    split: str,
    valid_fold: str,
    pool: str,
    threshold: float | None,
    n_bootstrap: int,
    seed: int,
    include_seen: bool,
    secondary_weight: float,
) -> ScoreReport:
    from stage2_heads.labels import RecordingLabels
    from stage2_heads.scoring import evaluate

    warn_of_torn_shards(store)
    reader = store.reader(blocks_in(head, head_path, store))
    rows = rows_of_split(store, split or "all", valid_fold)
    places, recording_of_row = store.index.recordings_of(rows)
    return evaluate(
        head,
        reader,
        rows,
        recording_of_row,
        [RecordingLabels.of(store.catalogue.recordings[p]) for p in places],
        pool=pool,
        heard=heard,
        include_seen=include_seen,
        n_bootstrap=n_bootstrap,
        seed=seed,
        threshold=threshold,
        secondary_weight=secondary_weight,
    )


def _short_name(path: Path, among: list[Path]) -> str:
    return path.name if sum(p.name == path.name for p in among) == 1 else str(path)


def _print_left_out(report: ScoreReport) -> None:
    left = report.left_out
    out = console()
    out.print(
        f"Scored {len(report.recordings)} recordings. Left out: {left['heard']} heard in training, "
        f"{left['no_label']} without a label. Classes without a scored recording: {report.absent_classes}."
    )


heads_update.register(app)
heads_combine.register(app)


def main() -> None:
    """Entry point of `heads`."""
    run(app)


if __name__ == "__main__":
    main()
