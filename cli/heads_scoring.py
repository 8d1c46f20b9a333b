"""`heads score` and `heads compare`: figures of heads on recordings that nobody has heard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.common import JsonOption, console, write_summary
from cli.heads_annotations import (
    AnnotationsOption,
    LabelColumnOption,
    OverlapSecondsOption,
    OverlapShareOption,
    SpeciesOption,
    boxes_asked,
    score_annotated,
)
from cli.heads_common import (
    FoldOption,
    LabelsOption,
    OnlyOption,
    SeedOption,
    StoreArgument,
    TargetOption,
    blocks_in,
    open_store,
    rows_of_split,
    secondary_weight_of,
    share_progress,
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
    only: OnlyOption = "",
    valid_fold: FoldOption = "",
    pool: PoolOption = "mean",
    threshold: ThresholdOption = None,
    bootstrap: BootstrapOption = 1000,
    seed: SeedOption = 0,
    include_seen: SeenOption = False,
    secondary: SecondaryOption = "positive",
    labels: LabelsOption = None,
    target: TargetOption = "",
    annotations: AnnotationsOption = None,
    overlap_s: OverlapSecondsOption = None,
    overlap_share: OverlapShareOption = None,
    annotated_species: SpeciesOption = "",
    label_column: LabelColumnOption = "",
    per_class: Annotated[bool, typer.Option(help="Print the table of classes.")] = True,
    json_path: JsonOption = None,
) -> None:
    """Score a head on the recordings that neither it nor its backbones have heard."""
    from stage2_heads.heads import load_head
    from stage2_heads.report import class_table, score_table

    boxes = boxes_asked(annotations, overlap_s, overlap_share, annotated_species, label_column)
    head = load_head(head_path)
    if boxes is not None and (labels is not None or target == "type" or pool != "mean" or secondary != "positive"):
        from embeddings.errors import InputError

        raise InputError(
            "--annotations are scored window by window; leave out --labels, --target type, --pool and --secondary."
        )
    store = open_store(store_path, labels, "" if boxes else target or head.provenance.get("target", ""))
    heard = head.heard_.union(store.heard(blocks_in(head, head_path, store)))
    weight = secondary_weight_of(secondary)
    asked = _Asked(split, valid_fold, pool, threshold, bootstrap, seed, include_seen, weight, labels, only)
    if boxes is not None:
        score_annotated(
            boxes,
            head,
            head_path,
            store,
            blocks_in(head, head_path, store),
            heard,
            split=asked.side,
            valid_fold=valid_fold,
            only=only,
            threshold=threshold,
            bootstrap=bootstrap,
            seed=seed,
            include_seen=include_seen,
            per_class=per_class,
            json_path=json_path,
        )
        return
    report = asked.report_of(head, head_path, store, heard)
    out = console()
    out.print(score_table(report, f"{head_path} on {store_path}, {asked.words}; windows pooled by {pool}"))
    if per_class:
        out.print(class_table(report, "Per class"))
    _print_left_out(report)
    write_summary(json_path, {"head": str(head_path), "store": str(store_path), **asked.to_json(), **report.to_json()})


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
    target: TargetOption = "",
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
            target=target,
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
    asked = _Asked(split, valid_fold, pool, threshold, bootstrap, seed, include_seen, weight, labels)
    heads = {path: load_head(path) for path in head_paths}
    targets = {fitted.provenance.get("target", "species") for fitted in heads.values()}
    if len(targets) > 1 and not target:
        raise InputError("some of these heads tell species apart, others types of call: compare those of one kind.")
    store = open_store(store_path, labels, target or targets.pop())
    # One list of heard recordings for all, so that every head is scored on the same ones.
    heard = Heard().union(*(h.heard_.union(store.heard(blocks_in(h, path, store))) for path, h in heads.items()))
    reports = {
        _short_name(path, head_paths): asked.report_of(fitted, path, store, heard) for path, fitted in heads.items()
    }
    comparison = compare_reports(reports)
    title = f"{store_path}, {asked.words}; per recording, windows pooled by {pool}"
    console().print(comparison_table(comparison, title))
    _print_left_out(next(iter(reports.values())))
    write_summary(json_path, {"store": str(store_path), **asked.to_json(), **comparison.to_json()})


@dataclass(frozen=True)
class _Asked:
    """What `score` and `compare` were asked for, beside heads and store."""

    split: str
    valid_fold: str
    pool: str
    threshold: float | None
    n_bootstrap: int
    seed: int
    include_seen: bool
    secondary_weight: float
    labels: Path | None
    only: str = ""

    @property
    def side(self) -> str:
        """Which recordings: a published fold is a validation side."""
        return self.split or ("valid" if self.valid_fold else "all")

    @property
    def words(self) -> str:
        fold = f" of fold {self.valid_fold}" if self.valid_fold else ""
        labels = f", labels of {self.labels}" if self.labels is not None else ""
        named = f", named {self.only}" if self.only else ""
        return ("all that is unheard" if self.side == "all" else f"split {self.side}") + fold + named + labels

    def to_json(self) -> dict[str, Any]:
        labels = str(self.labels) if self.labels is not None else "the store's"
        return {"split": self.split, "only": self.only, "valid_fold": self.valid_fold, "labels": labels}

    def report_of(self, head: Head, head_path: Path, store: Store, heard: Heard) -> ScoreReport:
        """Score one head on what `heard` does not cover."""
        from stage2_heads.labels import RecordingLabels
        from stage2_heads.scoring import evaluate

        rows = rows_of_split(store, self.side, self.valid_fold, self.only)
        places, recording_of_row = store.index.recordings_of(rows)
        with share_progress(f"scoring {head_path.name}") as progress:
            return evaluate(
                head,
                store.reader(blocks_in(head, head_path, store)),
                rows,
                recording_of_row,
                [RecordingLabels.of(store.catalogue.recordings[p]) for p in places],
                pool=self.pool,
                heard=heard,
                include_seen=self.include_seen,
                n_bootstrap=self.n_bootstrap,
                seed=self.seed,
                threshold=self.threshold,
                secondary_weight=self.secondary_weight,
                progress=progress,
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
