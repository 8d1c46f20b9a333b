"""`heads score` and `heads compare`: figures of heads on recordings that nobody has heard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.common import JsonOption, console, write_summary
from cli.heads_common import (
    FoldOption,
    LabelsOption,
    SeedOption,
    StoreArgument,
    blocks_in,
    open_store,
    rows_of_split,
    secondary_weight_of,
)

if TYPE_CHECKING:
    from embeddings.contract import Heard
    from embeddings.store import Store
    from stage2_heads.base import Head
    from stage2_heads.score_report import ScoreReport

__all__ = ["register"]

SplitOption = Annotated[str, typer.Option(help="valid, train or all. Default: all that is unheard.")]
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


def register(app: typer.Typer) -> None:
    """Add the commands to `heads`."""
    app.command()(score)
    app.command()(compare)


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
    labels: LabelsOption = None,
    per_class: Annotated[bool, typer.Option(help="Print the table of classes.")] = True,
    json_path: JsonOption = None,
) -> None:
    """Score a head on the recordings that neither it nor its backbones have heard."""
    from stage2_heads.heads import load_head
    from stage2_heads.report import class_table, score_table

    store = open_store(store_path, labels)
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
    labels: LabelsOption = None,
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
            labels=labels,
            out=out,
            json_path=json_path,
        )
        return
    from embeddings.contract import Heard
    from embeddings.errors import InputError
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
    store = open_store(store_path, labels)
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
