"""Readers of vectors that are in memory, or of some columns of another reader's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embeddings.contract import RowReader
from embeddings.errors import ContractError

__all__ = ["ArrayReader", "BlockReader"]


class ArrayReader:
    """A RowReader over vectors in memory.

    vectors : (n, sum(dims)) float;  dims : length of each block
    """

    def __init__(self, vectors: np.ndarray, dims: Sequence[int]) -> None:
        self.dims = tuple(int(d) for d in dims)
        self._vectors = np.asarray(vectors, dtype=np.float32)
        if self._vectors.ndim != 2 or self._vectors.shape[1] != sum(self.dims):
            raise ContractError(f"vectors of shape {self._vectors.shape} do not fit blocks of {self.dims}.")

    @property
    def n_rows(self) -> int:
        return len(self._vectors)

    def read(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """rows : (n,) int64.  Returns float32 (n, dim), in `out[:n]` when `out` is given."""
        if out is None:
            return self._vectors[rows]
        np.take(self._vectors, rows, axis=0, out=out[: len(rows)], mode="clip")
        return out[: len(rows)]


class BlockReader:
    """One block's columns of another reader's rows."""

    def __init__(self, reader: RowReader, i: int) -> None:
        start = sum(reader.dims[:i])
        self.dims: tuple[int, ...] = (reader.dims[i],)
        self._reader, self._columns = reader, slice(start, start + reader.dims[i])

    @property
    def n_rows(self) -> int:
        return self._reader.n_rows

    def read(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        vectors = self._reader.read(rows)[:, self._columns]
        if out is None:
            return np.ascontiguousarray(vectors)
        out[: len(rows)] = vectors
        return out[: len(rows)]
