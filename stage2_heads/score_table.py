"""Scores of many windows, read class by class: in memory, or on disk when they are many."""

from __future__ import annotations

import os
import tempfile
from typing import IO

import numpy as np

from embeddings.errors import InputError
from stage2_heads.metrics import check_scores

__all__ = ["ScoreTable", "UniformScores"]

_HELD_BYTES = 256 << 20  # above it the scores lie in a file without a name, which goes when the table goes
_BLOCK_CLASSES = 8


class ScoreTable:
    """(n, c) float64 scores in [0, 1), a class's side by side. Metrics go through them class by class."""

    def __init__(self, n_rows: int, n_classes: int) -> None:
        self.shape = (n_rows, n_classes)
        if 8 * n_rows * n_classes <= _HELD_BYTES:
            self._columns = np.empty((n_classes, n_rows))
        else:
            file = _file_of(8 * n_rows * n_classes)
            self._columns = np.memmap(file, np.float64, "w+", shape=(n_classes, n_rows))

    @classmethod
    def of(cls, scores: np.ndarray) -> ScoreTable:
        """scores : (n, c).  Raises as `write` does."""
        table = cls(*scores.shape)
        table.write(0, scores)
        return table

    def write(self, start: int, scores: np.ndarray) -> None:
        """Take the rows from number `start`. Raises ScoreRangeError for scores that padded cmAP cannot rank."""
        check_scores(scores)
        self._columns[:, start : start + len(scores)] = scores.T

    def column(self, c: int) -> np.ndarray:
        """(n,) a class's scores."""
        return np.asarray(self._columns[c])

    def blocks(self) -> list[tuple[int, np.ndarray]]:
        """The number of the first class of each block of classes, and their scores (n, few)."""
        return [(c, self._columns[c : c + _BLOCK_CLASSES].T) for c in range(0, self.shape[1], _BLOCK_CLASSES)]


def _file_of(n_bytes: int) -> IO[bytes]:
    """A file without a name whose room is taken now: a disk that fills up under a mapped file kills the process."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as it is mapped
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
    except OSError as error:
        file.close()
        raise InputError(
            f"scores need {n_bytes / 1e9:.1f} GB in {tempfile.gettempdir()}, which has not so much room "
            f"({error.strerror}); set TMPDIR to a folder on a larger disk."
        ) from None
    return file


class UniformScores:
    """Scores drawn from U(0, 1), of any size without room: what metrics make of chance."""

    def __init__(self, shape: tuple[int, int], seed: tuple[int, ...]) -> None:
        self.shape, self._seed = shape, seed

    def column(self, c: int) -> np.ndarray:
        """(n,) a class's scores, the same each time."""
        return np.random.default_rng([*self._seed, c]).random(self.shape[0])
