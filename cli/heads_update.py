"""`heads update`: a fitted head goes on learning, from new recordings of a store or from a stream of lines."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.common import JsonOption, console, print_names, progress, write_summary
from cli.heads_annotations import (
    AnnotationsOption,
    Boxes,
    LabelColumnOption,
    OverlapSecondsOption,
    OverlapShareOption,
    SpeciesOption,
    boxes_asked,
)
from cli.heads_common import OnlyOption

if TYPE_CHECKING:
    from stage2_heads.base import Head

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `heads`."""
    app.command()(update)


def update(
    head_path: Annotated[Path, typer.Argument(help="A head made by `heads fit`.")],
    store_path: Annotated[
        Path | None, typer.Argument(help="A store with the new recordings. Leave out with --stream.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Table in BirdCLEF's layout: the recordings to learn, by filename. Default: all of --split."),
    ] = None,
    split: Annotated[
        str,
        typer.Option(help="Of these only train, valid or all. Default: train; with --labels or --annotations, all."),
    ] = "",
    only: OnlyOption = "",
    annotations: AnnotationsOption = None,
    overlap_s: OverlapSecondsOption = None,
    overlap_share: OverlapShareOption = None,
    annotated_species: SpeciesOption = "",
    label_column: LabelColumnOption = "",
    stream: Annotated[
        bool, typer.Option(help="Learn JSON lines from standard input; answers go to standard output.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the updated head here, and leave HEAD as it is.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order in which windows are learnt.")] = 0,
    json_path: JsonOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Save nothing: say what would be learnt; with --stream, score only.")
    ] = False,
) -> None:
    """Teach a fitted head more recordings. They count as heard from then on, and are never scored."""
    from cli.head_backbones import carry_backbones
    from cli.heads_stream import learn_stream
    from embeddings.errors import InputError
    from stage2_heads.head_files import held_alone
    from stage2_heads.heads import load_head

    if stream == (store_path is not None):
        raise InputError("name a store with new recordings, or pass --stream and write lines to standard input.")
    if stream and (labels is not None or annotations is not None or split or only):
        raise InputError(
            "--labels, --annotations, --split and --only choose recordings of a store; the lines of --stream bring "
            "their own."
        )
    if labels is not None and annotations is not None:
        raise InputError("--labels and --annotations both say what is true of recordings; give one of them.")
    if out is not None and out.exists() and not (out / "head.json").is_file():
        raise InputError(f"--out {out} exists and is not a head; name a new folder.")
    target = out or head_path
    in_place = not dry_run and target.resolve() == head_path.resolve()
    with held_alone(head_path) if in_place else nullcontext():
        head = load_head(head_path)
        boxes = boxes_asked(annotations, overlap_s, overlap_share, annotated_species, label_column, head)
        if store_path is None:
            summary = learn_stream(head, target, dry_run)
        else:
            summary = _learn_store(head, head_path, store_path, labels, boxes, split, only, seed, target, dry_run)
        if not dry_run and target.is_dir():
            carry_backbones(head_path, target)
    write_summary(json_path, {"head": str(target), "kind": head.kind, "saved": not dry_run, **summary})
    if summary.get("n_errors") or summary.get("problems"):
        raise typer.Exit(1)


def _learn_store(
    head: Head,
    head_path: Path,
    store_path: Path,
    table: Path | None,
    boxes: Boxes | None,
    split: str,
    only: str,
    seed: int,
    target: Path,
    dry_run: bool,
) -> dict[str, Any]:
    from cli.update_rows import boxed_rows, labelled_rows
    from embeddings.store import Store
    from stage2_heads.updating import update_head

    was_tuned = head.tuning_ is not None
    if boxes is None:
        rows, summary = labelled_rows(head, head_path, Store(store_path), table, split, only)
    else:
        rows, summary = boxed_rows(head, head_path, Store(store_path), boxes, split, only)
    what = f"{summary['n_recordings']} recordings, {rows.n_rows} windows"
    if fresh := summary["new_classes"]:
        what += f", {len(fresh)} new classes: {', '.join(fresh)}"
    lacking = "a label" if boxes is None else "annotations"
    left_out = f"Left out: {summary['n_heard']} that the head has heard, {summary['n_unlabelled']} without {lacking}."
    print_names("To mend", summary["problems"])
    if boxes is None:  # reading boxes says it of them
        print_names("In the table, not in the store", summary["unmatched"])
    if dry_run:
        console().print(f"Would learn {what}. {left_out}", soft_wrap=True)
        return summary
    before = _scores_so_far(head)
    with progress("learning", rows.n_rows, "windows") as advance:
        done = 0

        def report(share: float) -> None:
            nonlocal done
            advance(round(rows.n_rows * share) - done)
            done = round(rows.n_rows * share)

        update_head(head, rows, seed=seed, progress=report)
    head.provenance["updates"] = [
        *head.provenance.get("updates", []),
        {
            "store": str(store_path.resolve()),
            "n_recordings": summary["n_recordings"],
            "n_windows": rows.n_rows,
            **(boxes.to_json() if boxes else {}),
        },
    ]
    head.save(target)
    summary["progressive"] = _since(before, _scores_so_far(head))
    console().print(f"Learnt {what}. {left_out}", soft_wrap=True)
    if was_tuned and head.tuning_ is None:
        console().print("Its tuned calibration and thresholds know nothing of the new classes and are gone: tune anew.")
    for name, score in summary["progressive"].items():
        console().print(
            f"{name}Predicted before each was learnt: {score['n_hits']} of {score['n_rows']} windows right, "
            f"{score['n_new_hits']} of {score['n_new']} of recordings met for the first time.",
            soft_wrap=True,
        )
        print_names(f"{name}Alarms of drift", [str(drift) for drift in score["drifts"]])
    console().print(f"Head: {target}")
    return summary


def _scores_so_far(head: Head) -> dict[str, dict[str, Any]]:
    """Counts and alarms of each online head: the head itself, or those of a fused head's blocks under their names."""
    from stage2_heads.fused import FusedHead
    from stage2_heads.online import OnlineHead

    heads = {"": head}
    if isinstance(head, FusedHead):
        heads = {f"{name}: ": own for (name, _), own in zip(head.blocks_, head.heads_, strict=True)}
    return {
        name: {
            **{count: getattr(own.progressive_, count) for count in ("n_rows", "n_hits", "n_new", "n_new_hits")},
            "drifts": [drift.to_json() for drift in own.progressive_.drifts],
        }
        for name, own in heads.items()
        if isinstance(own, OnlineHead)
    }


def _since(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What came between the two."""
    changed = {}
    for name, later in now.items():
        earlier = before[name]
        changed[name] = {key: value - earlier[key] for key, value in later.items() if key != "drifts"}
        changed[name]["drifts"] = [drift for drift in later["drifts"] if drift["row"] > earlier["n_rows"]]
    return changed
