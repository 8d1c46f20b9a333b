"""Appends whole recordings to a store, sealing a shard at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np

from embeddings.errors import StoreError
from embeddings.shards import RowTable, write_rows, write_vectors
from embeddings.store import Store
from embeddings.windows import AudioWindow

__all__ = ["EmbeddedRecording", "ShardWriter", "row_table", "to_stored"]

SEAL_BYTES = 64 << 20
SEAL_AFTER_S = 60.0


@dataclass(frozen=True)
class EmbeddedRecording:
    """Every window of one recording with its vectors: block name -> (n_windows, dim), in the store's dtype."""

    recording: str
    rows: RowTable
    vectors: Mapping[str, np.ndarray]


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


class ShardWriter:
    """Gathers whole recordings and seals them as a shard at about 64 MB or 60 s.

    The vectors are sealed before the rows: until the rows are there, nothing of the shard is in the store. A kill
    loses at most what is not sealed, and the next run embeds that again.
    """

    def __init__(self, store: Store, provenance: Mapping[str, Any]) -> None:
        self._store = store
        self._provenance = dict(provenance)
        self._waiting: list[EmbeddedRecording] = []
        self._n_bytes = 0
        self._n_sealed = 0
        self._name = uuid4().hex[:12]  # a name of its own, so that writers need no lock
        self._since = time.monotonic()

    def add(self, embedded: EmbeddedRecording) -> None:
        """Take one recording; seals when enough has gathered."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append(embedded)
        self._n_bytes += sum(v.nbytes for v in embedded.vectors.values())
        if self._n_bytes >= SEAL_BYTES or time.monotonic() - self._since >= SEAL_AFTER_S:
            self.seal()

    def seal(self) -> None:
        """Write what has gathered as one shard; nothing happens when there is nothing."""
        if not self._waiting:
            return
        shard = f"{self._name}-{self._n_sealed:05d}"
        rows = RowTable.concatenated([e.rows for e in self._waiting])
        for name, block in self._store.blocks.items():
            vectors = np.concatenate([e.vectors[name] for e in self._waiting])
            metadata = {"block": name, "fingerprint": block.fingerprint.digest, **self._provenance}
            write_vectors(self._store.vector_path(name, shard), vectors, metadata)
        write_rows(self._store.row_path(shard), rows, self._provenance)
        self._waiting = []
        self._n_bytes = 0
        self._n_sealed += 1
