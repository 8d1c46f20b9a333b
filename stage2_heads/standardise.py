"""Vectors as linear heads want them: every dimension to mean 0 and deviation 1, every block to the same weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from embeddings.errors import ContractError, InputError

__all__ = ["RunningMoments", "Standardiser"]

_CONSTANT = 1e-6  # a deviation below this share of the mean's size is float32 rounding, not variation


class RunningMoments:
    """Mean and variance of a stream in one pass: chunks merged as in Chan, Golub and LeVeque 1979, in float64."""

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.mean = np.zeros(dim)
        self._squares = np.zeros(dim)

    def add(self, chunk: np.ndarray) -> None:
        """chunk : (n, dim) float."""
        n = len(chunk)
        if n == 0:
            return
        chunk = chunk.astype(np.float64)
        mean = chunk.mean(axis=0)
        chunk -= mean
        squares = np.einsum("ij,ij->j", chunk, chunk)
        total = self.n + n
        shift = mean - self.mean
        self._squares += squares + shift**2 * (self.n * n / total)
        self.mean = self.mean + shift * (n / total)
        self.n = total

    @property
    def std(self) -> np.ndarray:
        """(dim,) population standard deviation."""
        return np.sqrt(self._squares / max(self.n, 1))


class Standardiser:
    """x -> (x - mean) * scale, where scale is 1 / (deviation * sqrt(the block's dim)).

    So a block's squared length is 1 on average, and blocks weigh equally however long they are. A dimension that
    never varied in training says nothing of species: its scale is 0, whatever it holds later.
    mean, scale : (sum(dims),) float32;  dims : length of each block
    """

    def __init__(self, mean: np.ndarray, scale: np.ndarray, dims: Sequence[int]) -> None:
        self.mean = np.ascontiguousarray(mean, dtype=np.float32)
        self.scale = np.ascontiguousarray(scale, dtype=np.float32)
        self.dims = tuple(int(d) for d in dims)
        if self.mean.shape != (sum(self.dims),) or self.scale.shape != self.mean.shape:
            raise ContractError(
                f"mean {self.mean.shape} and scale {self.scale.shape} do not fit blocks of {self.dims}."
            )

    @classmethod
    def fit(cls, chunks: Iterable[np.ndarray], dims: Sequence[int]) -> Standardiser:
        """chunks : arrays (n, sum(dims)) of training rows, in any order."""
        moments = RunningMoments(sum(dims))
        for chunk in chunks:
            moments.add(chunk)
        if moments.n == 0:
            raise InputError("no rows to standardise by; give at least one window.")
        varies = moments.std > _CONSTANT * np.abs(moments.mean)
        lengths = np.sqrt(np.repeat(dims, dims))
        scale = np.divide(1.0, moments.std * lengths, out=np.zeros(len(varies)), where=varies)
        return cls(moments.mean, scale, dims)

    def apply(self, vectors: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """vectors : (n, dim) float32.  Returns float32 (n, dim), in `out` when given (it may be `vectors`)."""
        out = np.subtract(vectors, self.mean, out=out, dtype=np.float32)
        np.multiply(out, self.scale, out=out)
        return out
