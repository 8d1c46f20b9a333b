"""What `heads update` learns from a store: windows that the head has not heard, with labels or with boxes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cli.heads_annotations import Boxes
    from embeddings.store import Store
    from stage2_heads.base import Head
    from stage2_heads.rows import LabelledRows

__all__ = ["boxed_rows", "labelled_rows"]


def labelled_rows(
    head: Head, head_path: Path, store: Store, table: Path | None, split: str, only: str
) -> tuple[LabelledRows, dict[str, Any]]:
    """Windows to learn with their recordings' labels, and what is told of them.

    The head is given room for their new classes.
    """
    import numpy as np

    from cli.heads_common import named_like, on_side
    from embeddings.errors import InputError
    from embeddings.relabel import relabelled
    from embeddings.tables import read_table
    from stage2_heads.labels import RecordingLabels
    from stage2_heads.leaks import heard_mask
    from stage2_heads.rows import label_rows
    from stage2_heads.updating import new_classes

    names = _blocks(head, head_path, store)
    wanted = on_side(store, split or ("train" if table is None else "all"), "")
    if only:
        wanted &= named_like(store, only)
    catalogue = list(store.catalogue)
    problems: list[str] = []
    unmatched: list[str] = []
    if table is not None:
        given = relabelled(store.catalogue, table)
        problems, unmatched, catalogue = given.problems, given.unmatched, given.recordings
        named = {row.filename for row in read_table(table) if not row.problem}
        wanted &= np.array([recording.filename in named for recording in catalogue])
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


def boxed_rows(
    head: Head, head_path: Path, store: Store, boxes: Boxes, split: str, only: str
) -> tuple[LabelledRows, dict[str, Any]]:
    """Annotated windows to learn, and what is told of them. The head is given room for species that it does not know.

    Raises InputError when nothing is left that the head has not heard.
    """
    import numpy as np

    from cli.common import console
    from cli.heads_annotations import say_unasked
    from cli.heads_common import named_like, on_side
    from embeddings.errors import InputError
    from stage2_heads.annotated_rows import annotated_rows
    from stage2_heads.labels import RecordingLabels
    from stage2_heads.leaks import heard_mask

    names = _blocks(head, head_path, store)
    wanted = on_side(store, split or "all", "") & np.isin(np.arange(len(store.catalogue)), store.index.place)
    if only:
        wanted &= named_like(store, only)
    heard = heard_mask([RecordingLabels.of(recording) for recording in store.catalogue], head.heard_)
    rows = store.index.rows_of(wanted & ~heard)
    if not len(rows):
        raise InputError(
            f"nothing to learn: the head has heard all {int(wanted.sum())} recordings that were asked for and have "
            "windows. Add recordings with `embed extract`, or change --only or --split."
        )
    windows = boxes.windows(store, rows, head, which="that were asked for and that the head has not heard")
    fresh = sorted(set(windows.species) - set(head.labels_))
    head.add_classes(fresh)
    head.names_ = {label: both for label, both in windows.species_names.items() if label in fresh} | head.names_
    say_unasked(windows, head.labels_)
    told = annotated_rows(store, names, windows, head.labels_)
    learnt = head.rows_to_learn(told)
    if n_left := told.n_rows - learnt.n_rows:
        console().print(
            f"{n_left} windows are left out: a {head.kind} head learns those of which every class is known to be there "
            "or not."
        )
    summary = {
        "store": str(store.path),
        **boxes.to_json(),
        "n_recordings": learnt.n_recordings,
        "n_windows": learnt.n_rows,
        "windows_left_out": len(windows.rows) - learnt.n_rows,
        "n_heard": int((wanted & heard).sum()),
        "n_unlabelled": windows.n_unannotated,
        "new_classes": fresh,
        "problems": [],
        "unmatched": list(windows.unmatched),
    }
    return learnt, summary


def _blocks(head: Head, head_path: Path, store: Store) -> list[str]:
    from cli.heads_common import blocks_in
    from embeddings.errors import InputError

    names = blocks_in(head, head_path, store)
    if not names:
        raise InputError(f"{head_path} does not say which blocks it was fitted on; fit it with `heads fit`.")
    return names
