"""A store's windows under annotations: what is true of each, and what a head may be fitted on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embeddings.annotations import AnnotatedFile, Annotations, match_annotations
from embeddings.errors import InputError
from stage2_heads.labels import RecordingLabels
from stage2_heads.leaks import heard_mask
from stage2_heads.rows import ANNOTATED, LabelledRows
from stage2_heads.window_labels import POSITIVE, UNKNOWN, OverlapRule, WindowTruth, boxes_within, window_truth

if TYPE_CHECKING:
    from embeddings.shards import RowTable
    from embeddings.store import Store

__all__ = ["AnnotatedWindows", "annotated_rows", "annotated_windows", "rows_to_fit"]

_SLACK_S = 0.5  # people draw a little beyond the end, and decoders differ by some samples
_SHOWN = 20  # bad boxes told before "and N more"


@dataclass(frozen=True)
class AnnotatedWindows:
    """The windows of those recordings that somebody annotated.

    rows, recording_of_row  (n,) row numbers of the store, and the place of each row's recording in `recordings`
    start_s, end_s          (n,) seconds
    names                   of the recordings' files
    files                   recording -> its boxes, cut to its length;  looked_for: recording -> species, None: all
    unmatched               annotations of no recording in the store;  by_name_alone: as in `Matched`
    n_unannotated           recordings that were asked for but that nobody annotated
    """

    rows: np.ndarray
    recording_of_row: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    recordings: tuple[RecordingLabels, ...]
    names: tuple[str, ...]
    files: dict[int, AnnotatedFile]
    looked_for: dict[int, frozenset[str] | None]
    rule: OverlapRule
    unmatched: tuple[str, ...] = ()
    by_name_alone: tuple[str, ...] = ()
    n_unannotated: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Boxes per label, most first."""
        return dict(Counter(box.label for file in self.files.values() for box in file.boxes).most_common())

    @property
    def species_names(self) -> dict[str, tuple[str, str]]:
        """Label -> (scientific name, common name), where the annotations name it."""
        found: dict[str, tuple[str, str]] = {}
        for box in (box for file in self.files.values() for box in file.boxes):
            scientific, common = found.get(box.label, ("", ""))
            found[box.label] = (scientific or box.scientific_name, common or box.common_name)
        return {label: names for label, names in found.items() if any(names)}

    @property
    def species(self) -> tuple[str, ...]:
        """Labels that have boxes and whose absence is known somewhere, sorted: what a head can be fitted on."""
        asked = set(self.looked_for.values())
        everything = None in asked
        return tuple(
            sorted(label for label in self.counts if everything or any(label in s for s in asked if s is not None))
        )

    def truth(self, labels: Sequence[str]) -> WindowTruth:
        """What is true of each window, for these classes."""
        return window_truth(
            labels, self.start_s, self.end_s, self.recording_of_row, self.files, self.looked_for, self.rule
        )


def annotated_windows(
    store: Store,
    rows: np.ndarray,
    annotations: Annotations,
    *,
    rule: OverlapRule | None = None,
    species: Iterable[str] = (),
    classes: Iterable[str] = (),
    which: str = "asked for",
) -> AnnotatedWindows:
    """Bring annotations and a store's windows together.

    rows     (n,) row numbers, ascending: those of recordings without annotations are left out
    species  what was looked for in the recordings whose annotations do not say; none: everything
    classes  of the head that is to be scored: species may be named that have no box
    which    recordings these are, for errors
    Raises InputError when nothing matches, when a box lies beyond its recording, when a name is ambiguous, and for a
    species that is neither boxed nor a class.
    """
    species = frozenset(species)
    if unknown := species - set(annotations.counts) - set(classes):
        raise InputError(
            f"no box is labelled {', '.join(sorted(unknown))}; the labels are "
            f"{', '.join(annotations.counts) or 'none at all'}. Correct --annotated-species."
        )
    recordings = store.catalogue.recordings
    matched = match_annotations(annotations, recordings)
    if not matched.by_place:
        theirs = annotations.files[0].name
        raise InputError(
            f"none of the {len(annotations.files)} annotated recordings is in {store.path}. The annotations' names "
            f"look like {theirs!r}, the store's like {recordings[0].filename if recordings else '(none)'!r}."
        )
    embedded = set(np.unique(store.index.place).tolist())
    without = [f"{f.name} ({f.where}), without windows" for p, f in matched.by_place.items() if p not in embedded]
    places, code = store.index.recordings_of(rows)
    annotated = np.array([int(place) in matched.by_place for place in places], dtype=bool)
    if not annotated.any():
        raise InputError(
            f"none of the {len(places)} recordings {which} is annotated; the annotated ones are elsewhere in the "
            "store. Change --only or --split, or annotate others."
        )
    kept = annotated[code]
    rows, code = np.asarray(rows)[kept], (np.cumsum(annotated) - 1)[code[kept]].astype(np.int32)
    places = places[annotated]
    window = store.rows.take(rows)
    files = _within(store, [matched.by_place[int(place)] for place in places], code, window)
    return AnnotatedWindows(
        rows=rows,
        recording_of_row=code,
        start_s=window.start_s,
        end_s=window.end_s,
        recordings=tuple(RecordingLabels.of(recordings[place]) for place in places),
        names=tuple(recordings[place].filename or recordings[place].path.name for place in places),
        files=dict(enumerate(files)),
        looked_for={i: f.looked_for if f.says_looked_for else (species or None) for i, f in enumerate(files)},
        rule=rule or OverlapRule(),
        unmatched=(*matched.unmatched, *without),
        by_name_alone=matched.by_name_alone,
        n_unannotated=int((~annotated).sum()),
    )


def _within(store: Store, files: Sequence[AnnotatedFile], code: np.ndarray, window: RowTable) -> list[AnnotatedFile]:
    """Boxes cut to their recordings; refuses those that lie beyond."""
    plan = store.plan
    # Where the last window ends the recording ends, unless its rest was dropped or fell between two windows.
    cut = plan.last == "shift" or (plan.last == "pad" and plan.hop_s <= plan.window_s)
    slack_s = _SLACK_S if cut else _SLACK_S + plan.hop_s
    last = np.zeros(len(files))
    np.maximum.at(last, code, window.end_s)
    partial = np.zeros(len(files), bool)  # what of it could not be embedded may be its end, which nobody knows then
    np.logical_or.at(partial, code, window.partial)
    kept, bad = [], list[str]()
    for file, end, is_open in zip(files, last, partial, strict=True):
        within, beyond = boxes_within(file, float(end), np.inf if is_open else slack_s, cut=cut and not is_open)
        kept.append(within)
        bad += beyond
    if bad:
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        rows = "\n  ".join(bad[:_SHOWN])
        raise InputError(
            f"{len(bad)} boxes lie beyond the end of their recordings. Are they of other files?\n  {rows}{more}"
        )
    return kept


def annotated_rows(
    store: Store, blocks: Sequence[str], windows: AnnotatedWindows, labels: Sequence[str]
) -> LabelledRows:
    """Windows with what is true of each for these classes, nan where nobody knows.

    Windows of which no class is known, and recordings left without any, are left out.
    Raises InputError when none is left.
    """
    labels = tuple(labels)
    states = windows.truth(labels).states
    told = (states != UNKNOWN).any(axis=1)
    if not told.any():
        raise InputError(
            f"of none of {len(states)} annotated windows it is known whether they hold any of {len(labels)} classes. "
            "Name species that were looked for with --annotated-species."
        )
    states, code = states[told], windows.recording_of_row[told]
    targets = np.zeros((len(windows.recordings), len(labels)), dtype=np.float32)
    np.maximum.at(targets, code, (states == POSITIVE).astype(np.float32))
    kinds, truth_of_row = np.unique(states, axis=0, return_inverse=True)
    reader = store.reader(blocks)
    rows = LabelledRows(
        reader=reader,
        rows=windows.rows[told],
        recording_of_row=code,
        targets=targets,
        labels=labels,
        blocks=reader.blocks,
        recordings=windows.recordings,
        heard_by_block=np.stack([heard_mask(windows.recordings, store.heard([block])) for block in blocks], axis=1),
        windows=ANNOTATED,
        window_targets=np.where(kinds == UNKNOWN, np.float32(np.nan), kinds.astype(np.float32)),
        target_of_row=truth_of_row.reshape(-1),
    )
    return rows.subset(np.bincount(code, minlength=len(windows.recordings)) > 0)


def rows_to_fit(
    store: Store, blocks: Sequence[str], windows: AnnotatedWindows, *, partial: bool = True
) -> tuple[LabelledRows, dict[str, int]]:
    """What a head fits on: its classes are all that can be told, `windows.species`.

    partial : the head learns windows of which only some classes are known; False: such windows are left out
    Returns the rows, and how many windows each label has there.
    Raises InputError when a class has no window left with it, or none without it.
    """
    if not windows.species:
        raise InputError("no species has boxes in the recordings asked for, or none of those that were looked for.")
    rows = annotated_rows(store, blocks, windows, windows.species)
    if not partial:
        rows = rows.complete()
    n_known, n_with = rows.known_counts()
    for n, words in ((n_with, "with"), (n_known - n_with, "without")):
        if lacking := [label for label, there in zip(rows.labels, n, strict=True) if not there]:
            among = f"{rows.n_rows} windows" + (
                "" if partial else f" of which all {len(rows.labels)} classes are known"
            )
            raise InputError(
                f"no window {words} {', '.join(lacking[:5])} is left among {among}. Name the species that were looked "
                "for with --annotated-species, fewer at a time, or annotate more recordings."
            )
    return rows, {label: int(n) for label, n in zip(rows.labels, n_with, strict=True)}
