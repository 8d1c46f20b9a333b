"""`heads update`: a fitted head goes on learning, from new recordings of a store or from a stream of lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.common import JsonOption, console, print_names, progress, write_summary

if TYPE_CHECKING:
    from embeddings.store import Store
    from stage2_heads.base import Head
    from stage2_heads.rows import LabelledRows

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
        str, typer.Option(help="Of these only train, valid or all. Default: train; with --labels, all that it names.")
    ] = "",
    stream: Annotated[
        bool, typer.Option(help="Learn JSON lines from standard input; answers go to standard output.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the updated head here, and leave HEAD as it is.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order in which windows are learnt.")] = 0,
    json_path: JsonOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Save nothing: say what would be learnt; with --stream, score only.")
    ] = False,
) -> None:
    """Teach a fitted head more recordings. They count as heard from then on, and are never scored."""
    from cli.head_backbones import carry_backbones
    from embeddings.errors import InputError
    from stage2_heads.heads import load_head

    if stream == (store_path is not None):
        raise InputError("name a store with new recordings, or pass --stream and write lines to standard input.")
    if stream and (labels is not None or split):
        raise InputError("--labels and --split choose recordings of a store; the lines of --stream bring their own.")
    if out is not None and out.exists() and not (out / "head.json").is_file():
        raise InputError(f"--out {out} exists and is not a head; name a new folder.")
    head = load_head(head_path)
    target = out or head_path
    if store_path is None:
        summary = _learn_stream(head, target, dry_run)
    else:
        summary = _learn_store(head, head_path, store_path, labels, split, seed, target, dry_run)
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
    split: str,
    seed: int,
    target: Path,
    dry_run: bool,
) -> dict[str, Any]:
    from embeddings.store import Store
    from stage2_heads.updating import update_head

    was_tuned = head.tuning_ is not None
    rows, summary = _new_rows(head, head_path, Store(store_path), table, split)
    what = f"{summary['n_recordings']} recordings, {rows.n_rows} windows"
    if fresh := summary["new_classes"]:
        what += f", {len(fresh)} new classes: {', '.join(fresh)}"
    left_out = f"Left out: {summary['n_heard']} that the head has heard, {summary['n_unlabelled']} without a label."
    print_names("To mend", summary["problems"])
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
        {"store": str(store_path.resolve()), "n_recordings": summary["n_recordings"], "n_windows": rows.n_rows},
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


def _new_rows(
    head: Head, head_path: Path, store: Store, table: Path | None, split: str
) -> tuple[LabelledRows, dict[str, Any]]:
    """The windows to learn, and what is told of them. The head is given room for their new classes."""
    import numpy as np

    from embeddings.contract import require_same_blocks
    from embeddings.errors import InputError
    from embeddings.relabel import relabelled
    from embeddings.tables import read_table
    from stage2_heads.labels import RecordingLabels
    from stage2_heads.leaks import heard_mask
    from stage2_heads.rows import label_rows
    from stage2_heads.updating import new_classes

    if split not in ("", "train", "valid", "all"):
        raise InputError(f"--split {split} is not a side; choose train, valid or all.")
    available = {name: block.fingerprint for name, block in store.blocks.items()}
    names = require_same_blocks(head.blocks_, available, who=f"head {head_path}", where=f"store {store.path}")
    if not names:
        raise InputError(f"{head_path} does not say which blocks it was fitted on; fit it with `heads fit`.")
    catalogue = list(store.catalogue)
    wanted = np.ones(len(catalogue), dtype=bool)
    problems: list[str] = []
    unmatched: list[str] = []
    if table is not None:
        given = relabelled(store.catalogue, table)
        problems, unmatched, catalogue = given.problems, given.unmatched, given.recordings
        named = {row.filename for row in read_table(table) if not row.problem}
        wanted = np.array([recording.filename in named for recording in catalogue])
    side = split or ("train" if table is None else "all")
    if side != "all":
        wanted &= np.array([recording.split in (side, "both") for recording in catalogue])
    wanted &= np.isin(np.arange(len(catalogue)), store.index.place)
    recordings = [RecordingLabels.of(recording) for recording in catalogue]
    labelled = np.array([bool(r.primary_label) for r in recordings])
    heard = heard_mask(recordings, head.heard_)
    chosen = np.flatnonzero(wanted & labelled & ~heard)
    n_heard, n_unlabelled = int((wanted & heard).sum()), int((wanted & ~heard & ~labelled).sum())
    if not len(chosen):
        raise InputError(
            f"nothing to learn: of {int(wanted.sum())} recordings that were asked for and have windows, the head has "
            f"heard {n_heard}, and {n_unlabelled} have no label. Add recordings with `embed extract`, or give --labels."
        )
    fresh = new_classes(head, [recordings[i] for i in chosen])
    head.add_classes(fresh)
    rows = store.index.rows_of(np.isin(np.arange(len(catalogue)), chosen))
    places, recording_of_row = store.index.recordings_of(rows)
    learnt = label_rows(
        store.reader(names),
        rows,
        recording_of_row,
        [recordings[i] for i in places],
        blocks=head.blocks_,
        labels=head.labels_,
        windows=head.windows_,
        rms_dbfs=store.rows.rms_dbfs[rows] if head.windows_ == "loudest" else None,
        secondary_weight=head.secondary_weight_,
    )
    summary = {
        "store": str(store.path),
        "n_recordings": len(chosen),
        "n_windows": learnt.n_rows,
        "n_heard": n_heard,
        "n_unlabelled": n_unlabelled,
        "new_classes": list(fresh),
        "problems": problems,
        "unmatched": unmatched,
    }
    return learnt, summary


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


def _learn_stream(head: Head, target: Path, dry_run: bool) -> dict[str, Any]:
    """Answer every line of standard input; save at its end, or when interrupted between two lines."""
    import json
    import os
    import signal

    from threadpoolctl import threadpool_limits

    from stage2_heads.updating import LineStream

    answering = LineStream(head)
    interrupts = _Interrupts()
    before = {number: signal.signal(number, interrupts) for number in (signal.SIGINT, signal.SIGTERM)}
    hold = threadpool_limits(1, user_api="blas")  # a line is learnt before a second thread has woken up
    try:
        while line := interrupts.wait_for(sys.stdin.buffer.readline):
            sys.stdout.write(json.dumps(answering.answer(line)) + "\n")
            sys.stdout.flush()
    except KeyboardInterrupt:
        pass  # what was learnt is saved below
    except BrokenPipeError:  # nobody reads the answers any more, which the interpreter must not stumble on when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        hold.restore_original_limits()
        for number, handler in before.items():
            signal.signal(number, handler)
    saved = "nothing was saved (--dry-run)"
    if not dry_run and answering.n_rows:
        head.provenance["updates"] = [*head.provenance.get("updates", []), {"stream_lines": answering.n_rows}]
        head.save(target)
        saved = f"head: {target}"
    elif not dry_run:
        saved = "there was nothing to learn, and nothing was saved"
    # Standard output belongs to the answers.
    sys.stderr.write(
        f"{answering.n_lines} lines, {answering.n_rows} learnt, {answering.n_hits} of them predicted right, "
        f"{answering.n_errors} that could not be used; {saved}.\n"
    )
    return {
        "n_lines": answering.n_lines,
        "n_learnt": answering.n_rows,
        "n_right": answering.n_hits,
        "n_errors": answering.n_errors,
    }


class _Interrupts:
    """A signal handler that ends the wait for a line at once, but lets a line that has come be learnt whole."""

    def __init__(self) -> None:
        self._waiting = self._asked = False

    def __call__(self, *_: object) -> None:
        self._asked = True
        if self._waiting:
            raise KeyboardInterrupt

    def wait_for(self, read: Any) -> Any:
        self._waiting = True
        try:
            if self._asked:
                raise KeyboardInterrupt
            return read()
        finally:
            self._waiting = False
