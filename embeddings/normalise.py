"""Vectors made comparable by cosine: each block centred and brought to length one, all blocks weighing alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embeddings.contract import RowReader
from embeddings.errors import ContractError, InputError

__all__ = ["BlockNormaliser"]

_CHUNK_ROWS = 8192
_NEGLIGIBLE = 1e-6  # a centred block shorter than this share of its own and the mean's length is rounding, not sound


class BlockNormaliser:
    """Centres and L2-normalises each block, so that an inner product is the mean of the blocks' cosines.

    means : (sum(dims),) the vector that is subtracted;  dims : length of each block, in order
    A block that equals its mean has no direction: it stays zero, and is as far from everything as from nothing.

    >>> normaliser = BlockNormaliser(np.zeros(3), (2, 1))
    >>> a, b = normaliser.apply(np.array([[3.0, 4.0, 5.0], [4.0, 3.0, -7.0]], dtype=np.float32))
    >>> round(float(a @ b), 4)  # the mean of cosines .96 and -1
    -0.02
    """

    def __init__(self, means: np.ndarray, dims: Sequence[int]) -> None:
        self.dims = tuple(int(d) for d in dims)
        self.means = np.ascontiguousarray(means, dtype=np.float32)
        if not self.dims or min(self.dims) < 1:
            raise InputError(f"dims={self.dims} must name at least one block, each of length 1 or more.")
        if self.means.shape != (self.dim,):
            raise ContractError(
                f"means of shape {self.means.shape} do not fit blocks of {self.dims}: {self.dim} values."
            )
        if not np.isfinite(self.means).all():
            raise InputError("means hold values that are not finite; fit the normaliser on finite vectors.")
        self._mean_lengths = [float(np.linalg.norm(self.means[s].astype(np.float64))) for s in self._slices()]

    @property
    def dim(self) -> int:
        """Length of a fused vector."""
        return sum(self.dims)

    @classmethod
    def fit(cls, reader: RowReader, rows: np.ndarray | None = None) -> BlockNormaliser:
        """Take the mean of `rows` (default: all of the reader's), read in chunks and summed in float64."""
        rows = np.arange(reader.n_rows, dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
        if len(rows) == 0:
            raise InputError("no rows to take the mean of; give at least one window.")
        dim = sum(reader.dims)
        buffer = np.empty((min(_CHUNK_ROWS, len(rows)), dim), dtype=np.float32)
        total = np.zeros(dim)
        for start in range(0, len(rows), _CHUNK_ROWS):
            total += reader.read(rows[start : start + _CHUNK_ROWS], out=buffer).sum(axis=0, dtype=np.float64)
        return cls(total / len(rows), reader.dims)

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Normalise raw fused vectors.

        vectors : (n, dim) float.  Returns float32 (n, dim), each row of length at most 1; the input is left alone.
        Raises ContractError when the width differs, InputError when a value is not finite.
        """
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ContractError(f"vectors of shape {vectors.shape} do not fit blocks of {self.dims}: (n, {self.dim}).")
        out = np.subtract(vectors, self.means, dtype=np.float32)
        for columns, mean_length in zip(self._slices(), self._mean_lengths, strict=True):
            block = out[:, columns]
            lengths = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))
            if not np.isfinite(lengths).all():
                bad = np.flatnonzero(~np.isfinite(lengths))
                raise InputError(
                    f"{len(bad)} of {len(out)} vectors hold values that are not finite (first: row {bad[0]})."
                )
            directionless = lengths <= _NEGLIGIBLE * mean_length
            lengths[directionless] = 1.0
            lengths[lengths == 0] = 1.0
            block /= (lengths * np.sqrt(len(self.dims)))[:, None].astype(np.float32)
            block[directionless] = 0.0
        return out

    def to_json(self) -> dict[str, Any]:
        return {"dims": list(self.dims), "means": [float(m) for m in self.means]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BlockNormaliser:
        return cls(np.asarray(value["means"], dtype=np.float32), value["dims"])

    def _slices(self) -> list[slice]:
        ends = np.cumsum(self.dims)
        return [slice(int(end) - dim, int(end)) for dim, end in zip(self.dims, ends, strict=True)]
