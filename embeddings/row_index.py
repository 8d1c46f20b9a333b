"""Where each row of a store lies, kept by runs of rows rather than row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from embeddings.errors import StoreError
from embeddings.shards import ShardRuns

__all__ = ["RowIndex"]


@dataclass(frozen=True)
class RowIndex:
    """Rows ordered by their recording's place in the catalogue, then by time.

    A run is consecutive rows of one recording that lie side by side in one shard: nearly always the whole recording, so
    the index grows with recordings, not with windows.

    place, shard  (n_runs,) int32     offset     (n_runs,) int64, of the run's first row in its shard
    first_row     (n_runs + 1,) int64, the last is the number of rows
    n_duplicates  rows left out because their recording was sealed twice
    """

    place: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    first_row: np.ndarray
    n_duplicates: int

    def __post_init__(self) -> None:
        # Runs that go on where the one before ends, in one shard: what a reader may take in one piece.
        lengths = np.diff(self.first_row)
        goes_on = (np.diff(self.shard) == 0) & (np.diff(self.offset) == lengths[:-1])
        starts = np.flatnonzero(np.r_[True, ~goes_on]) if len(lengths) else np.zeros(0, np.int64)
        object.__setattr__(self, "_extents", (self.first_row[starts], self.shard[starts], self.offset[starts]))

    @classmethod
    def of(cls, shards: Sequence[ShardRuns], place_of: Callable[[str], int]) -> RowIndex:
        """shards : in the order of their numbers;  place_of : place of a recording in the catalogue, -1 if not there.

        A recording that racing writers have sealed twice counts in the first of its shards.
        """
        place = _joined(
            [np.array([place_of(r) for r in s.recordings], np.int32)[s.recording] for s in shards], np.int32
        )
        shard = _joined([np.full(len(s.recording), i) for i, s in enumerate(shards)], np.int32)
        offset, length = (_joined([getattr(s, name) for s in shards], np.int64) for name in ("offset", "length"))
        start_s = _joined([s.start_s for s in shards], np.float64)
        known = np.flatnonzero(place >= 0)
        home = np.full(int(place.max(initial=-1)) + 1, len(shards), np.int32)
        np.minimum.at(home, place[known], shard[known])
        kept = known[shard[known] == home[place[known]]]
        order = kept[np.lexsort((offset[kept], start_s[kept], place[kept]))]
        first_row = np.concatenate([[0], np.cumsum(length[order])])
        return cls(place[order], shard[order], offset[order], first_row, int(length[known].sum() - first_row[-1]))

    @property
    def n_rows(self) -> int:
        return int(self.first_row[-1])

    @property
    def lengths(self) -> np.ndarray:
        """(n_runs,) rows of each run."""
        return np.diff(self.first_row)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the shard and offset within it, for each of (n,) row numbers.

        Raises StoreError for a row that there is not.
        """
        rows = np.asarray(rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < self.n_rows:
            raise StoreError(f"rows {rows.min()} to {rows.max()} were asked for; there are {self.n_rows}, from 0 on.")
        first, shard, offset = self._extents  # type: ignore[attr-defined]
        extent = np.searchsorted(first, rows, side="right") - 1
        return shard[extent], offset[extent] + (rows - first[extent])

    def digest_parts(self) -> list[bytes]:
        """What changes with the place on disk of any row."""
        parts = (*self._extents, self.first_row[-1:])  # type: ignore[attr-defined]
        return [np.ascontiguousarray(part, np.int64).tobytes() for part in parts]

    def rows_of(self, wanted: np.ndarray | Sequence[bool]) -> np.ndarray:
        """Numbers of the rows of some recordings, in order. wanted : bool by place in the catalogue."""
        rows = np.flatnonzero(np.repeat(np.asarray(wanted)[self.place], self.lengths))
        return rows.astype(self.row_dtype)

    @property
    def row_dtype(self) -> type[np.signedinteger]:
        """The smallest integers that number all rows."""
        return np.int32 if self.n_rows <= np.iinfo(np.int32).max else np.int64

    def recordings_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of the recordings that some rows are of, ascending, and for each row the number among them, int32."""
        rows = np.asarray(rows)
        if bool(np.all(rows[1:] >= rows[:-1])):
            counts = np.diff(np.searchsorted(rows, self.first_row))
            places, code = np.unique(self.place[counts > 0], return_inverse=True)
            return places, np.repeat(code.astype(np.int32), counts[counts > 0])
        places, code = np.unique(
            self.place[np.searchsorted(self.first_row, rows, side="right") - 1], return_inverse=True
        )
        return places, code.astype(np.int32)


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)
