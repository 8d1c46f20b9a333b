"""Labelled windows as heads read them: batches of vectors and targets, out of core, in a repeatable order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from embeddings.contract import Fingerprint, RowReader
from embeddings.errors import ContractError, InputError
from stage2_heads.array_reader import ArrayReader, BlockReader
from stage2_heads.labels import RecordingLabels, class_set, target_matrix
from stage2_heads.run_coded import RunCoded, run_coded

__all__ = ["WINDOW_POLICIES", "ArrayReader", "LabelledRows", "label_rows"]

WINDOW_POLICIES = ("all", "loudest")
ANNOTATED = "annotated"  # windows with a truth of their own, which no policy for recordings' labels replaces
_BLOCK_ROWS = 256  # rows that lie side by side and are read in one go
_POOL_BYTES = 64 << 20  # vectors among which a shuffled epoch mixes
_HELD_BYTES = 256 << 20  # vectors that are read once and kept, because small sets are gone over thousands of times


@dataclass(frozen=True)
class LabelledRows:
    """Windows with the targets of their recordings, or with targets of their own.

    reader             where the vectors are
    rows               (n,) int32, or int64 in a reader of more than 2^31 rows: the reader's row numbers in use
    recording_of_row   (n,) int32, which recording (a row of `targets`) each window belongs to; this and `rows` are kept
                       by runs where that saves memory, and pass for plain arrays
    targets            (n_recordings, n_labels) float32 in [0, 1]: what is true somewhere in each recording
    labels             the classes, in the order of the targets' columns
    blocks             (name, Fingerprint) of each block, in order
    recordings         who they are; fills the head's list of what it has heard, and keeps one source on one side
    heard_by_block     (n_recordings, n_blocks) bool: the block's backbone was trained or selected on the recording
    windows            "all"; "loudest" after `loudest()`; "annotated" where windows have targets of their own
    secondary_weight   the target that secondary labels were given
    window_targets     (m, n_labels) float32, the different truths that windows have, where windows of one recording
                       differ, nan where nobody knows;  target_of_row: (n,) int32, which of them each window has.
                       None: their recording's
    """

    reader: RowReader
    rows: np.ndarray | RunCoded
    recording_of_row: np.ndarray | RunCoded
    targets: np.ndarray
    labels: tuple[str, ...]
    blocks: tuple[tuple[str, Fingerprint], ...]
    recordings: tuple[RecordingLabels, ...] = ()
    heard_by_block: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))
    windows: str = "all"
    secondary_weight: float = 1.0
    window_targets: np.ndarray | None = None
    target_of_row: np.ndarray | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the usual way to normalise a frozen dataclass's own fields
        smallest = np.int32 if self.reader.n_rows <= np.iinfo(np.int32).max else np.int64
        set_field(self, "rows", run_coded(_whole_numbers(self.rows, smallest), 1))
        set_field(self, "recording_of_row", run_coded(_whole_numbers(self.recording_of_row, np.int32), 0))
        set_field(self, "targets", np.asarray(self.targets, dtype=np.float32))
        if self.window_targets is not None:
            set_field(self, "window_targets", np.asarray(self.window_targets, dtype=np.float32))
        if len(self.heard_by_block) == 0:
            set_field(self, "heard_by_block", np.zeros((self.n_recordings, len(self.blocks)), dtype=bool))
        n_recordings = self.n_recordings
        if self.rows.shape != self.recording_of_row.shape or self.rows.ndim != 1:
            raise InputError(f"{self.rows.shape} rows but {self.recording_of_row.shape} codes; give one each.")
        truths, truth_of_row = self.truths
        for targets in (self.targets, truths):
            if targets.ndim != 2 or targets.shape[1] != len(self.labels):
                raise InputError(f"targets of shape {targets.shape} do not fit {len(self.labels)} labels.")
            bad = ~((targets >= 0) & (targets <= 1))
            if np.any(bad if targets is self.targets else bad & ~np.isnan(targets)):
                raise InputError("targets must lie between 0 and 1.")
        if truth_of_row.shape != self.rows.shape:
            raise InputError(f"{self.rows.shape} rows but target_of_row of {truth_of_row.shape}; give one each.")
        for what, numbers, n in (
            ("codes", self.recording_of_row, n_recordings),
            ("row numbers", self.rows, self.reader.n_rows),
            ("numbers of targets", truth_of_row, len(truths)),
        ):
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < n:
                raise InputError(f"{what} run from {numbers.min()} to {numbers.max()}, but there are {n} to be had.")
        if len(self.blocks) != len(self.reader.dims):
            raise ContractError(f"{len(self.blocks)} blocks are named, but the reader has {len(self.reader.dims)}.")
        if len(self.recordings) not in (0, n_recordings):
            raise InputError(f"recordings has {len(self.recordings)} entries for {n_recordings} recordings.")
        if self.heard_by_block.shape != (n_recordings, len(self.blocks)):
            raise InputError(
                f"heard_by_block of shape {self.heard_by_block.shape} does not fit {n_recordings} recordings and "
                f"{len(self.blocks)} blocks."
            )

    @property
    def n_rows(self) -> int:
        return len(self.rows)

    @property
    def truths(self) -> tuple[np.ndarray, np.ndarray | RunCoded]:
        """(m, n_labels) targets, and (n,) which of them each window has."""
        if self.window_targets is None or self.target_of_row is None:
            return self.targets, self.recording_of_row
        return self.window_targets, self.target_of_row

    @property
    def is_partial(self) -> bool:
        """Of some windows it is unknown whether they hold some class: batches have nan there."""
        return self.window_targets is not None and bool(np.isnan(self.window_targets).any())

    @property
    def n_recordings(self) -> int:
        return len(self.targets)

    @property
    def heard_by_backbone(self) -> np.ndarray:
        """(n_recordings,) bool: any backbone of these blocks was trained or selected on the recording."""
        return np.any(self.heard_by_block, axis=1)

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.reader.dims)

    @property
    def dim(self) -> int:
        return sum(self.reader.dims)

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch: every row exactly once.

        seed  None: in order. A number: blocks of neighbouring rows are shuffled, read side by side into a pool, and
              the pool's rows shuffled; the same seed gives the same order.
        Yields (X float32 (b, dim), Y float32 (b, n_labels)), b == batch_size but for the last; Y is nan where nobody
        knows. Both are views of buffers that the next batch overwrites; X may be changed in place.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1.")
        if seed is None:
            yield from self._in_order(batch_size)
        else:
            yield from self._shuffled(batch_size, np.random.default_rng(seed))

    def subset(self, keep: np.ndarray) -> LabelledRows:
        """The windows of some recordings. keep : (n_recordings,) bool."""
        keep = np.asarray(keep, dtype=bool)
        if keep.shape != (self.n_recordings,):
            raise InputError(f"a mask of shape {keep.shape} does not fit {self.n_recordings} recordings.")
        if keep.all():
            return self
        of_row = keep[self.recording_of_row]
        new_code = np.cumsum(keep, dtype=np.int32) - 1
        return replace(
            self,
            rows=self.rows[of_row],
            recording_of_row=new_code[self.recording_of_row[of_row]],
            target_of_row=None if self.target_of_row is None else self.target_of_row[of_row],
            targets=self.targets[keep],
            recordings=tuple(r for r, kept in zip(self.recordings, keep, strict=False) if kept),
            heard_by_block=self.heard_by_block[keep],
        )

    def block(self, i: int) -> LabelledRows:
        """The same windows as block number i alone has them."""
        return replace(
            self,
            reader=BlockReader(self.reader, i),
            blocks=self.blocks[i : i + 1],
            heard_by_block=self.heard_by_block[:, i : i + 1],
        ).held()

    def held(self) -> LabelledRows:
        """The same rows read into memory when they are few; these rows, still out of core, when they are many."""
        if isinstance(self.reader, ArrayReader) or 4 * self.n_rows * self.dim > _HELD_BYTES:
            return self
        vectors = ArrayReader(self.reader.read(np.asarray(self.rows)), self.reader.dims)
        return replace(self, reader=vectors, rows=np.arange(self.n_rows))

    def loudest(self, rms_dbfs: np.ndarray) -> LabelledRows:
        """Each recording's loudest window only; of equals the one with the lowest row number.

        rms_dbfs : (n_rows,) loudness of each of these rows.
        """
        rms_dbfs = np.asarray(rms_dbfs, dtype=np.float64)
        if rms_dbfs.shape != self.rows.shape:
            raise InputError(f"{rms_dbfs.shape} loudness values for {self.rows.shape} rows; give one each.")
        order = np.lexsort((self.rows, -rms_dbfs, self.recording_of_row))
        codes = self.recording_of_row[order]
        kept = np.sort(order[np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])] if len(order) else order)
        return replace(self.taken(kept), windows="loudest")

    def sample(self, n: int, seed: int) -> LabelledRows:
        """At most `n` of the windows, drawn without replacement and left in order; all when there are fewer."""
        if self.n_rows <= n:
            return self
        kept = np.sort(np.random.default_rng(seed).choice(self.n_rows, n, replace=False))
        return self.taken(kept)

    def complete(self) -> LabelledRows:
        """The windows of which every class is known to be there or not, and the recordings that have any."""
        if not self.is_partial:
            return self
        truths, truth_of_row = self.truths
        whole = ~np.isnan(truths).any(axis=1)
        truth_of_row = np.asarray(truth_of_row)
        places = np.flatnonzero(whole[truth_of_row])
        code, kind = self.recording_of_row[places], (np.cumsum(whole) - 1)[truth_of_row[places]]
        targets = np.zeros_like(self.targets)  # what was true only in windows left out is not true of these
        np.maximum.at(targets, code, truths[whole][kind])
        kept = replace(
            self,
            rows=self.rows[places],
            recording_of_row=code,
            targets=targets,
            window_targets=truths[whole],
            target_of_row=kind,
        )
        return kept.subset(np.bincount(code, minlength=self.n_recordings) > 0)

    def known_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Of how many windows each class is known, and the sum of its targets there. Float64 (n_labels,) each."""
        truths, truth_of_row = self.truths
        windows = np.bincount(truth_of_row, minlength=len(truths)).astype(np.float64)
        if not self.is_partial:
            return np.full(len(self.labels), windows.sum()), windows @ truths.astype(np.float64)
        return windows @ ~np.isnan(truths), windows @ np.nan_to_num(truths.astype(np.float64))

    def taken(self, places: np.ndarray) -> LabelledRows:
        """Some of the windows, by their places among these, in the order asked for."""
        return replace(
            self,
            rows=self.rows[places],
            recording_of_row=self.recording_of_row[places],
            target_of_row=None if self.target_of_row is None else self.target_of_row[places],
        )

    def _in_order(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        x, y = self._buffers(min(batch_size, max(self.n_rows, 1)))
        truths, truth_of_row = self.truths
        for start in range(0, self.n_rows, batch_size):
            rows = self.rows[start : start + batch_size]
            np.take(truths, truth_of_row[start : start + batch_size], axis=0, out=y[: len(rows)], mode="clip")
            yield self._read(rows, x), y[: len(rows)]

    def _shuffled(self, batch_size: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self.n_rows == 0:
            return
        starts = rng.permutation(np.arange(0, self.n_rows, _BLOCK_ROWS))
        # Row by row the order would need as much memory as the rows; by blocks it is told where each one ends.
        ends = np.cumsum(np.minimum(_BLOCK_ROWS, self.n_rows - starts))
        # A pool holds whole batches, so that only the epoch's last batch is short.
        pool_rows = batch_size * max(1, _POOL_BYTES // (4 * self.dim * batch_size))
        pool = np.empty((min(pool_rows, self.n_rows), self.dim), dtype=np.float32)
        x, y = self._buffers(min(batch_size, self.n_rows))
        truths, truth_of_row = self.truths
        for pool_start in range(0, self.n_rows, pool_rows):
            drawn = np.arange(pool_start, min(pool_start + pool_rows, self.n_rows))
            block = np.searchsorted(ends, drawn, side="right")
            places = np.sort(starts[block] + drawn - np.r_[0, ends][block])
            vectors = self._read(self.rows[places], pool)
            codes = truth_of_row[places]
            shuffled = rng.permutation(len(places))
            for start in range(0, len(places), batch_size):
                chosen = shuffled[start : start + batch_size]
                np.take(vectors, chosen, axis=0, out=x[: len(chosen)], mode="clip")
                np.take(truths, codes[chosen], axis=0, out=y[: len(chosen)], mode="clip")
                yield x[: len(chosen)], y[: len(chosen)]

    def _read(self, rows: np.ndarray, buffer: np.ndarray) -> np.ndarray:
        vectors = self.reader.read(rows, out=buffer)
        if not np.isfinite(vectors).all():
            bad = rows[~np.isfinite(vectors).all(axis=1)]
            raise InputError(f"{len(bad)} vectors hold values that are not finite (first: row {bad[0]}).")
        return vectors

    def _buffers(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        return np.empty((size, self.dim), np.float32), np.empty((size, len(self.labels)), np.float32)


def _whole_numbers(numbers: np.ndarray | RunCoded, smallest: type[np.signedinteger]) -> np.ndarray | RunCoded:
    """As the smallest integers, unless one does not fit: such a number is wrong, and is told as it is."""
    if isinstance(numbers, RunCoded):
        return numbers
    numbers = np.asarray(numbers)
    limit = np.iinfo(smallest)
    fits = not numbers.size or limit.min <= numbers.min() <= numbers.max() <= limit.max
    return numbers.astype(smallest if fits else np.int64, copy=False)


def label_rows(
    reader: RowReader,
    rows: np.ndarray,
    recording_of_row: np.ndarray,
    recordings: Sequence[RecordingLabels],
    *,
    blocks: Sequence[tuple[str, Fingerprint]],
    labels: Sequence[str] | None = None,
    heard_by_block: np.ndarray | None = None,
    windows: str = "all",
    rms_dbfs: np.ndarray | None = None,
    secondary_weight: float = 1.0,
) -> LabelledRows:
    """Make what a head fits on, from row numbers and labels.

    rows, recording_of_row  (n,) row numbers of `reader`, and for each the place of its recording in `recordings`
    labels                  classes; default the primary labels of those recordings that have windows here
    heard_by_block          (n_recordings, n_blocks) bool; default: no backbone has heard any
    windows                 "all" windows of a recording carry its label, or the "loudest" only (needs `rms_dbfs`, (n,))
    Recordings without a primary label, or without windows, are left out. Those labelled as holding no call are
    negatives for every class.
    Raises InputError when nothing labelled is left.
    """
    if windows == ANNOTATED:
        raise InputError(
            "this head was fitted on annotated windows, and recordings' labels say less: give boxes with --annotations."
        )
    if windows not in WINDOW_POLICIES:
        raise InputError(f"windows={windows!r} is not a policy; choose {', '.join(WINDOW_POLICIES)}.")
    recording_of_row = np.asarray(recording_of_row)
    present = np.zeros(len(recordings), dtype=bool)
    present[recording_of_row] = True
    usable = present & np.array([bool(r.primary_label) for r in recordings], dtype=bool)
    if not usable.any():
        raise InputError(
            f"none of {len(recordings)} recordings has both a primary label and windows; give labels with --labels."
        )
    classes = (
        tuple(labels) if labels is not None else class_set([r for r, u in zip(recordings, usable, strict=True) if u])
    )
    everything = LabelledRows(
        reader=reader,
        rows=rows,
        recording_of_row=recording_of_row,
        targets=target_matrix(recordings, classes, secondary_weight),
        labels=classes,
        blocks=tuple(blocks),
        recordings=tuple(recordings),
        heard_by_block=np.zeros((0, 0), dtype=bool) if heard_by_block is None else np.asarray(heard_by_block, bool),
        secondary_weight=secondary_weight,
    )
    if windows == "loudest":
        if rms_dbfs is None:
            raise InputError('windows="loudest" needs rms_dbfs, the loudness of each row.')
        everything = everything.loudest(rms_dbfs)
    return everything.subset(usable)
