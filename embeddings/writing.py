"""Appends whole recordings to a store, sealing a shard at a time, in memory that does not grow with any of them."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from embeddings.errors import InputError, StoreError
from embeddings.layout import StoreLayout
from embeddings.pipeline import EmbeddedPart
from embeddings.shards import RowTable, write_rows, write_vectors
from embeddings.windows import AudioWindow

__all__ = ["Sealing", "ShardWriter", "VectorSpool", "row_table", "to_stored"]


@dataclass(frozen=True)
class Sealing:
    """When a shard is full: at so many bytes of vectors, or so many seconds after its first window.

    The seconds are also what a crash may lose of each writer's work.
    """

    n_bytes: int = 64 << 20
    after_s: float = 60.0

    def __post_init__(self) -> None:
        if self.n_bytes < 1 or not self.after_s >= 0:
            raise InputError(f"a shard of {self.n_bytes} bytes or {self.after_s} s cannot be sealed; give more.")


def row_table(recording: str, windows: list[AudioWindow], *, partial: bool) -> RowTable:
    """The index rows of one recording's windows."""
    return RowTable(
        recording=np.array([recording] * len(windows), object),
        start_s=np.array([w.span.start_s for w in windows], np.float64),
        end_s=np.array([w.span.end_s for w in windows], np.float64),
        rms_dbfs=np.array([w.rms_dbfs for w in windows], np.float32),
        silent=np.array([w.silent for w in windows], bool),
        repeated=np.array([w.span.repeated for w in windows], bool),
        partial=np.full(len(windows), partial, bool),
    )


def to_stored(vectors: np.ndarray, dtype: str, block: str) -> np.ndarray:
    """Cast to the stored dtype. Raises StoreError when a value is not finite before or after the cast."""
    with np.errstate(over="ignore"):
        stored = vectors.astype(dtype)
    if not np.isfinite(stored).all():
        largest = float(np.abs(vectors).max())
        remedy = "extract with --dtype float32" if np.isfinite(largest) else "the network cannot embed this audio"
        raise StoreError(f"block {block!r} gave values that {dtype} cannot hold (largest {largest:g}); {remedy}")
    return stored


class VectorSpool:
    """Vectors of one block that wait to be sealed, in a file without a name: it goes when the process goes.

    On disk rather than in memory, so that a recording of a day needs no more memory than one of a minute.
    """

    def __init__(self, folder: Path, dim: int, dtype: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the object
        self._dim, self._dtype = dim, np.dtype(dtype)
        self._first = 0  # rows before this one are sealed
        self._n = 0

    def __len__(self) -> int:
        return self._n - self._first

    @property
    def n_bytes(self) -> int:
        return len(self) * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self._dim * self._dtype.itemsize

    def append(self, vectors: np.ndarray) -> None:
        """vectors : (n, dim) in the spool's dtype."""
        self._file.seek(self._n * self._row_bytes)
        self._file.write(np.ascontiguousarray(vectors).data)
        self._n += len(vectors)

    def rows(self, n: int) -> np.ndarray:
        """The first n rows (n, dim), mapped; valid until the next change."""
        if not n:
            return np.empty((0, self._dim), self._dtype)
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r", self._first * self._row_bytes, (n, self._dim))

    def keep(self, n: int) -> None:
        """Forget all but the first n rows."""
        self._n = self._first + n

    def drop(self, n: int) -> None:
        """Forget the first n rows; the file shrinks when nothing is left in it."""
        self._first += n
        if self._first == self._n:
            self._first = self._n = 0
            os.ftruncate(self._file.fileno(), 0)


class ShardWriter:
    """Gathers whole recordings and seals them as a shard.

    The vectors are sealed before the rows: until the rows are there, nothing of the shard is in the store. A kill
    loses at most what is not sealed, and the next run embeds that again. Writers need no lock: each names its shards.
    """

    def __init__(
        self,
        layout: StoreLayout,
        provenance: Callable[[], Mapping[str, Any]],
        sealing: Sealing | None = None,
        *,
        blocks: Iterable[str] | None = None,
    ) -> None:
        """provenance : called at each sealing for what is to be written into the shard.

        blocks : those that come; the shards will lack the others. None is all of the store's.
        """
        self._layout = layout
        self._blocks = layout.choose_blocks(blocks)
        self._provenance = provenance
        self._sealing = sealing or Sealing()
        self._spools = {b.name: VectorSpool(layout.path, b.dim, layout.dtype) for b in self._blocks}
        self._whole: list[RowTable] = []
        self._n_whole = 0
        self._recordings: list[str] = []
        self._open: list[RowTable] = []
        self._n_sealed = 0
        self._name = uuid4().hex[:12]
        self._since = time.monotonic()

    def add(self, part: EmbeddedPart) -> None:
        """Take windows of the recording that is open. Raises StoreError when the store cannot hold a vector."""
        if not part.windows:
            return
        stored = {name: to_stored(part.vectors[name], self._layout.dtype, name) for name in self._spools}
        self.add_rows(row_table(part.recording.recording, part.windows, partial=False), stored)

    def add_rows(self, rows: RowTable, vectors: Mapping[str, np.ndarray]) -> None:
        """Take rows of the recording that is open, with their vectors in the store's dtype, as they are."""
        if not self._whole and not self._open:
            self._since = time.monotonic()
        for name, spool in self._spools.items():
            spool.append(vectors[name])
        self._open.append(rows)

    def finish(self, *, partial: bool) -> int:
        """The open recording is whole, or as whole as it gets (`partial`). Returns its number of windows."""
        if not self._open:
            return 0
        rows = RowTable.concatenated(self._open)
        if partial:
            rows = replace(rows, partial=np.ones(len(rows), bool))
        self._whole.append(rows)
        self._n_whole += len(rows)
        self._recordings.append(rows.recording[0])
        self._open = []
        return len(rows)

    def forget(self) -> None:
        """Drop what was added of the open recording."""
        for spool in self._spools.values():
            spool.keep(self._n_whole)
        self._open = []

    @property
    def is_full(self) -> bool:
        """Whether it is time to seal."""
        if not self._whole:
            return False
        n_bytes = sum(spool.n_bytes for spool in self._spools.values())
        return n_bytes >= self._sealing.n_bytes or time.monotonic() - self._since >= self._sealing.after_s

    def seal(self) -> list[str]:
        """Write the whole recordings as one shard. Returns their content hashes; an open recording stays open."""
        if not self._whole:
            return []
        shard = f"{self._name}-{self._n_sealed:05d}"
        provenance = self._provenance()
        for block in self._blocks:
            metadata = {"block": block.name, "fingerprint": block.fingerprint.digest, **provenance}
            vectors = self._spools[block.name].rows(self._n_whole)
            write_vectors(self._layout.vector_path(block.name, shard), vectors, metadata)
        write_rows(self._layout.row_path(shard), RowTable.concatenated(self._whole), provenance)
        for spool in self._spools.values():
            spool.drop(self._n_whole)
        sealed, self._recordings = self._recordings, []
        self._whole, self._n_whole = [], 0
        self._n_sealed += 1
        self._since = time.monotonic()
        return sealed
