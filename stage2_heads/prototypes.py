"""A prototype a class, the mean of its recordings: a head for a handful of examples, learnt exactly in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from embeddings.contract import Heard
from embeddings.errors import InputError
from stage2_heads.base import Head, Progress, required_array
from stage2_heads.rows import LabelledRows

__all__ = ["CENTRES", "PrototypeHead", "PrototypeSettings"]

CENTRES = ("classes", "windows")
_READ_ROWS = 4096
_BOUNDARY = 0.25  # the cosine at which an uncalibrated score is .5
_UNKNOWN = -1.0  # the cosine of a class without an example: the least there is
_VARIANCE_FLOOR = 0.1  # share of a block's mean variance that every number's is raised by: few rows estimate it badly
_NEGLIGIBLE = 1e-6  # of a unit vector
_ROUNDING = 1e-12  # of a mean square


@dataclass(frozen=True)
class PrototypeSettings:
    """How prototypes are made of unit vectors, and asked.

    centre      what is subtracted: the mean over "classes", each weighing alike, or over all "windows"
    whitening   numbers that vary much in general count less: each is divided by its deviation
    shrinkage   how many recordings' worth of doubt: a prototype of n recordings has the length n / (n + shrinkage)
                instead of 1, as if so many recordings at the general mean were among them
    negatives   how much of a window's likeness to the recordings of no class is taken off every class; 0 ignores it
    """

    centre: str = "classes"
    whitening: bool = True
    shrinkage: float = 0.0
    negatives: float = 0.5

    def __post_init__(self) -> None:
        if self.centre not in CENTRES:
            raise InputError(f"centre={self.centre!r} is not known; choose {', '.join(CENTRES)}.")
        if not isinstance(self.whitening, bool):
            raise InputError(f"whitening={self.whitening!r} must be true or false.")
        for name in ("shrinkage", "negatives"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (value >= 0 and math.isfinite(value)):
                raise InputError(f"{name}={value!r} must be 0 or a positive number.")


class PrototypeHead(Head):
    """Cosines to one prototype a class.

    Each block of a vector is brought to length one; a class's prototype is the mean over its recordings, a recording
    the mean over its windows of the class, so that a long one does not outvote a short one. The centre is subtracted
    from prototypes and windows alike, and each number divided by its deviation; a decision is the mean over blocks of
    the cosines between the two, less the cosine .25. All of it follows from sums over rows, kept in float64: one pass,
    any order of rows, and `partial_fit` ends where a `fit` on everything would.

    Classes without a recording have the cosine -1 to everything. A block that is zero has no direction: it teaches
    nothing, and its cosines are 0. With one class and no negatives there is nothing to centre by, and the centre is 0.
    centre_, scale_ : (dim,) what is subtracted, what is multiplied by;  prototypes_ : (c, dim), blocks of length
    1 / sqrt(n_blocks) or less;  negative_ : (dim,) the same of the recordings of no class, 0 without any
    Source: Snell, Swersky and Zemel 2017, Prototypical Networks for Few-shot Learning; centring before cosines as in
    Wang, Chao, Weinberger and van der Maaten 2019, SimpleShot, but after normalisation, which makes it exact.
    """

    kind = "prototypes"
    settings_type = PrototypeSettings
    default_slope = 10.0
    learns_partial_truth = True
    settings: PrototypeSettings

    def __init__(self, settings: PrototypeSettings | None = None) -> None:
        super().__init__(settings)
        self._row_weights: np.ndarray | None = None

    def partial_fit(
        self,
        X: np.ndarray,
        Y: np.ndarray,
        *,
        classes: Sequence[str] | None = None,
        heard: Heard | None = None,
        recording_of_row: np.ndarray | None = None,
    ) -> Self:
        """Add rows, as if they had been there from the start. Arguments and errors as in `Head.partial_fit`, and:

        classes           may go on after the head's own: the new ones are added, earlier rows being none of them
        recording_of_row  (n,) int, rows of one number are windows of one recording and weigh 1 together; a recording
                          comes whole in one call. Without it every row is a recording of its own.
        """
        X, Y = np.asarray(X), np.asarray(Y)
        before = self.__dict__.copy()
        try:
            self._row_weights = None if recording_of_row is None else _shares(recording_of_row, len(X))
            n_known = len(self.labels_)
            if n_known and classes is not None and tuple(classes[:n_known]) == self.labels_:
                self.add_classes(tuple(classes[n_known:]))
            return super().partial_fit(X, Y, classes=classes, heard=heard)
        except InputError:
            self.__dict__.update(before)  # a refused call leaves the head as it was
            raise
        finally:
            self._row_weights = None

    def _learn(self, rows: LabelledRows, progress: Progress) -> None:
        self._forget()
        self._learn_rows(rows, 0, progress)

    def _learn_rows(self, rows: LabelledRows, seed: int, progress: Progress) -> None:
        shares = 1.0 / np.maximum(_windows_of(rows), 1)
        done = 0
        for X, Y in rows.batches(_READ_ROWS):  # in the order of `rows`: sums have none
            self._add(X, Y, shares[rows.recording_of_row[done : done + len(X)]])
            done += len(X)
            progress(done / rows.n_rows)
        self._settle()

    def _learn_more(self, X: np.ndarray, Y: np.ndarray) -> None:
        if not hasattr(self, "_sums"):
            self._forget()
        for start in range(0, len(X), _READ_ROWS):
            rows = slice(start, start + _READ_ROWS)
            weights = np.ones(len(X[rows])) if self._row_weights is None else self._row_weights[rows]
            self._add(X[rows], Y[rows], weights[:, None])
        self._settle()

    def _decide(self, X: np.ndarray) -> np.ndarray:
        unit, directed = _unit_blocks(X, self.dims_)
        directions = self._directions(unit) * np.repeat(directed, self.dims_, axis=1)
        cosines = directions @ self.prototypes_.T
        cosines[:, ~self._known()] = _UNKNOWN
        if self.settings.negatives:
            cosines -= self.settings.negatives * np.maximum(directions @ self.negative_, 0.0)[:, None]
        return cosines - _BOUNDARY

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"sums": self._sums, "weights": self._weights, "squares": self._squares}

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        dim, n_rows = sum(self.dims_), len(self.labels_) + 2
        self._sums = required_array(arrays, "sums", (n_rows, dim), np.float64)
        self._weights = required_array(arrays, "weights", (n_rows, len(self.dims_)), np.float64)
        self._squares = required_array(arrays, "squares", (dim,), np.float64)
        if self._weights.min() < 0 or self._squares.min() < 0:
            raise InputError("the head's weights and squares must not be negative; fit the head anew.")
        self._settle()

    def _forget(self) -> None:
        # Two rows follow the classes': all recordings, and those of no class.
        self._sums = np.zeros((len(self.labels_) + 2, sum(self.dims_)))
        self._weights = np.zeros((len(self.labels_) + 2, len(self.dims_)))
        self._squares = np.zeros(sum(self.dims_))

    def _add(self, X: np.ndarray, Y: np.ndarray, weights: np.ndarray) -> None:
        """X : (n, dim), Y : (n, c);  weights : (n, c + 2) or (n, 1), what each row counts for each of the sums."""
        unit, directed = _unit_blocks(X, self.dims_)
        belongs = _belonging(Y) * weights
        self._sums = self._sums + belongs.T @ unit
        self._weights = self._weights + belongs.T @ directed
        np.square(unit, out=unit)
        self._squares = self._squares + belongs[:, -2] @ unit

    def _widen(self, n: int) -> None:
        """Room for classes behind those there are; no row so far was of them."""
        places = [len(self._sums) - 2] * n
        self._sums = np.insert(self._sums, places, 0.0, axis=0)
        self._weights = np.insert(self._weights, places, 0.0, axis=0)
        self._settle()

    def _directions(self, vectors: np.ndarray) -> np.ndarray:
        """Centred, scaled and normalised, so that inner products are the mean of the blocks' cosines. (n, dim)"""
        centred = vectors - self.centre_
        for columns in _slices(self.dims_):
            block = centred[:, columns]
            # What float32 leaves of a vector at the centre is rounding, not a direction.
            block[np.einsum("ij,ij->i", block, block) <= _NEGLIGIBLE**2] = 0.0
        return _normalised(centred * self.scale_, self.dims_) / math.sqrt(len(self.dims_))

    def _known(self) -> np.ndarray:
        """(c,) bool: the classes that have an example."""
        return np.asarray(np.any(self._weights[:-2] > 0, axis=1))

    def _settle(self) -> None:
        """Centre, scale and prototypes from the sums."""
        n_classes = len(self._sums) - 2
        weights = np.repeat(self._weights, self.dims_, axis=1)
        means = np.divide(self._sums, weights, out=np.zeros_like(self._sums), where=weights > 0)
        everything, sides = means[n_classes], [*range(n_classes), n_classes + 1]
        self.centre_, self.scale_ = np.zeros(sum(self.dims_)), np.ones(sum(self.dims_))
        for block, columns in enumerate(_slices(self.dims_)):
            known = [side for side in sides[:-1] if self._weights[side, block] > 0]
            if len(known) < 2:
                known = [side for side in sides if self._weights[side, block] > 0]
            if len(known) > 1:
                over_classes = means[known, columns].mean(axis=0)
                self.centre_[columns] = over_classes if self.settings.centre == "classes" else everything[columns]
            if self.settings.whitening and self._weights[n_classes, block] > 0:
                square = self._squares[columns] / self._weights[n_classes, block]
                variance = np.maximum(square - everything[columns] ** 2, 0.0)
                if variance.mean() > _ROUNDING * square.mean():
                    self.scale_[columns] = 1 / np.sqrt(variance + _VARIANCE_FLOOR * variance.mean())
        prototypes = self._directions(means[sides])
        n = self._weights[sides]
        kept = np.divide(n, n + self.settings.shrinkage, out=np.zeros_like(n), where=n > 0)
        kept[-1] = n[-1] > 0  # recordings of no class are no class: nothing is rare about them
        prototypes *= np.repeat(kept, self.dims_, axis=1)
        self.prototypes_, self.negative_ = prototypes[:-1], prototypes[-1]


def _belonging(targets: np.ndarray) -> np.ndarray:
    """(n, c) targets to (n, c + 2): to what extent each belongs to each class, to all rows, to those of no class."""
    of_none = np.all(targets == 0, axis=1, keepdims=True)  # a row that may be of some class is no example of none
    return np.hstack([np.nan_to_num(targets), np.ones((len(targets), 1)), of_none])


def _windows_of(rows: LabelledRows) -> np.ndarray:
    """How many windows of each recording belong to each sum: (n_recordings, c + 2), or (n_recordings, 1) if to all."""
    code = np.asarray(rows.recording_of_row)
    if rows.window_targets is None:
        return np.bincount(code, minlength=rows.n_recordings)[:, None]
    truths, truth_of_row = rows.truths
    counts = np.zeros((rows.n_recordings, len(rows.labels) + 2))
    pairs, n = np.unique(code.astype(np.int64) * len(truths) + np.asarray(truth_of_row), return_counts=True)
    np.add.at(counts, pairs // len(truths), n[:, None] * (_belonging(truths) > 0)[pairs % len(truths)])
    return counts


def _shares(recording_of_row: np.ndarray, n_rows: int) -> np.ndarray:
    """(n,) one over the number of rows of the same recording."""
    recording_of_row = np.asarray(recording_of_row)
    if recording_of_row.shape != (n_rows,) or recording_of_row.dtype.kind not in "iu":
        raise InputError(
            f"recording_of_row of {recording_of_row.dtype} {recording_of_row.shape} does not fit {n_rows} rows; "
            "give one whole number a row."
        )
    _, inverse, counts = np.unique(recording_of_row, return_inverse=True, return_counts=True)
    return 1.0 / counts[inverse.reshape(-1)]


def _unit_blocks(X: np.ndarray, dims: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Each block at length one, float64 (n, dim), and whether it had a length, bool (n, n_blocks)."""
    X = X.astype(np.float64)
    directed = np.stack([np.any(X[:, columns], axis=1) for columns in _slices(dims)], axis=1)
    return _normalised(X, dims), directed


def _normalised(vectors: np.ndarray, dims: Sequence[int]) -> np.ndarray:
    """Each block divided by its length, in place; zero stays zero."""
    for columns in _slices(dims):
        block = vectors[:, columns]
        lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
        block /= np.where(lengths > 0, lengths, 1.0)[:, None]
    return vectors


def _slices(dims: Sequence[int]) -> list[slice]:
    ends = np.cumsum(dims)
    return [slice(int(end) - dim, int(end)) for dim, end in zip(dims, ends, strict=True)]
