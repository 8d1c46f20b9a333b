"""Linear support vectors for many species at once: one weight matrix, fitted out of core by minibatches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from embeddings.errors import InputError
from stage2_heads.base import Head, Progress, required_array
from stage2_heads.rows import LabelledRows
from stage2_heads.standardise import Standardiser

__all__ = ["SvmHead", "SvmSettings"]

_MOMENTUM = 0.9
_SMALL_STEP = 30_000_000  # multiplications of a step below which threads cost more than they bring
_STATISTICS_ROWS = 4096  # rows read at a time for means and deviations
_RECENT_UPDATES = 100  # partial_fit averages the weights of about so many updates
_SLOWING_UPDATES = 100  # partial_fit's steps shrink as (1 + updates / this) ** -0.5


@dataclass(frozen=True)
class SvmSettings:
    """How the SVM learns.

    loss            "squared_hinge" or "hinge"
    c               weight of a row's loss against the weights' length, as scikit-learn's C: the objective is
                    |w|^2 / 2 + c * sum of losses, so more rows regularise less
    class_balanced  positives and negatives of a class weigh alike in sum
    epochs          passes over the rows, more when `min_updates` needs them
    min_updates     updates at least, so that a few hundred rows converge
    learning_rate   of vectors of mean squared length 1; falls to 0 over the second half, whose weights are averaged
    """

    loss: str = "squared_hinge"
    c: float = 3.0
    class_balanced: bool = False
    epochs: int = 4
    min_updates: int = 2000
    batch_size: int = 256
    learning_rate: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in ("squared_hinge", "hinge"):
            raise InputError(f"loss={self.loss!r} is not one of squared_hinge, hinge.")
        for name in ("c", "learning_rate"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"{name}={getattr(self, name)} must be a positive number.")
        for name in ("epochs", "min_updates", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be 1 or more.")


class SvmHead(Head):
    """One-against-the-rest linear SVM over standardised blocks; decisions are signed margins.

    A fractional target t counts as t of a positive and 1 - t of a negative.
    coef_ : (dim, c), intercept_ : (c,) float64, on standardised vectors;  standardiser_ : what makes those
    """

    kind = "svm"
    settings_type = SvmSettings
    default_slope = 3.0  # puts the margins -1 and 1 at .05 and .95
    settings: SvmSettings

    def __init__(self, settings: SvmSettings | None = None) -> None:
        super().__init__(settings)
        self._n_rows = self._n_updates = self._n_averaged = 0
        self._positives: np.ndarray = np.zeros(0)

    def _learn(self, rows: LabelledRows, progress: Progress) -> None:
        # Steps this small are over before a second thread has woken up.
        small = min(self.settings.batch_size, rows.n_rows) * rows.dim * len(rows.labels) < _SMALL_STEP
        with threadpool_limits(1 if small else None, user_api="blas"):
            self._descend(rows, progress)

    def _descend(self, rows: LabelledRows, progress: Progress) -> None:
        settings = self.settings
        self.standardiser_ = Standardiser.fit((X for X, _ in rows.batches(_STATISTICS_ROWS)), rows.dims)
        self._reset_weights()
        self._n_rows = rows.n_rows
        row_counts = np.bincount(rows.recording_of_row, minlength=rows.n_recordings)
        self._positives = row_counts @ rows.targets.astype(np.float64)

        batch_size = min(settings.batch_size, rows.n_rows)
        per_epoch = math.ceil(rows.n_rows / batch_size)
        n_updates = max(settings.epochs * per_epoch, settings.min_updates)
        tail = n_updates // 2
        update = _Updates(self)
        total, total_bias = np.zeros(self._w.shape), np.zeros(self._b.shape)
        done = 0
        while done < n_updates:
            for X, Y in rows.batches(batch_size, seed=_epoch_seed(settings.seed, done)):
                left = (n_updates - done) / (n_updates - tail)
                update(self.standardiser_.apply(X, out=X), Y, settings.learning_rate * min(1.0, left))
                done += 1
                if done > tail:
                    total += self._w
                    total_bias += self._b
                if done == n_updates:
                    break
            progress(done / n_updates)
        self._n_updates = n_updates
        self._average_over(total / (n_updates - tail), total_bias / (n_updates - tail))

    def _learn_more(self, X: np.ndarray, Y: np.ndarray) -> None:
        if not hasattr(self, "standardiser_"):
            self.standardiser_ = Standardiser.fit([X], self.dims_)
            self._reset_weights()
        self._n_rows += len(X)
        self._positives = self._positives + Y.sum(axis=0, dtype=np.float64)
        settings = self.settings
        order = np.random.default_rng((settings.seed, self._n_updates)).permutation(len(X))
        update = _Updates(self)
        for start in range(0, len(X), settings.batch_size):
            chosen = order[start : start + settings.batch_size]
            rate = settings.learning_rate / math.sqrt(1 + self._n_updates / _SLOWING_UPDATES)
            update(self.standardiser_.apply(X[chosen]), Y[chosen], rate)
            self._n_updates += 1
            self._n_averaged = min(self._n_averaged + 1, _RECENT_UPDATES)
            self.coef_ += (self._w - self.coef_) / self._n_averaged
            self.intercept_ += (self._b - self.intercept_) / self._n_averaged

    def _decide(self, X: np.ndarray) -> np.ndarray:
        return self.standardiser_.apply(X).astype(np.float64) @ self.coef_ + self.intercept_

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "coef": self.coef_,
            "intercept": self.intercept_,
            "mean": self.standardiser_.mean,
            "scale": self.standardiser_.scale,
            "positives": self._positives,
            "counts": np.array([self._n_rows, self._n_updates], dtype=np.int64),
        }

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        dim, n_classes = sum(self.dims_), len(self.labels_)
        self.standardiser_ = Standardiser(
            required_array(arrays, "mean", (dim,), np.float32),
            required_array(arrays, "scale", (dim,), np.float32),
            self.dims_,
        )
        self._reset_weights()
        self._positives = required_array(arrays, "positives", (n_classes,), np.float64)
        self._n_rows, self._n_updates = (int(v) for v in required_array(arrays, "counts", (2,), np.int64))
        self._average_over(
            required_array(arrays, "coef", (dim, n_classes), np.float64),
            required_array(arrays, "intercept", (n_classes,), np.float64),
        )

    def _reset_weights(self) -> None:
        dim, n_classes = sum(self.dims_), len(self.labels_)
        self._w, self._b = np.zeros((dim, n_classes), np.float32), np.full(n_classes, -1.0, np.float32)
        self.coef_, self.intercept_ = self._w.astype(np.float64), self._b.astype(np.float64)
        self._n_rows = self._n_updates = self._n_averaged = 0
        self._positives = np.zeros(n_classes)

    def _widen(self, n: int) -> None:
        def wider(array: np.ndarray, value: float) -> np.ndarray:
            fresh = np.full((*array.shape[:-1], n), value, array.dtype)
            return np.concatenate([array, fresh], axis=-1)

        self._w, self._b = wider(self._w, 0.0), wider(self._b, -1.0)
        self.coef_, self.intercept_ = wider(self.coef_, 0.0), wider(self.intercept_, -1.0)
        self._positives = wider(self._positives, 0.0)

    def _average_over(self, coef: np.ndarray, intercept: np.ndarray) -> None:
        """Take averaged weights as the fitted ones; later updates start from them."""
        self.coef_, self.intercept_ = coef, intercept
        self._w, self._b = coef.astype(np.float32), intercept.astype(np.float32)
        self._n_averaged = 0

    def _class_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight of a positive and of a negative of each class, float32 (c,)."""
        if not self.settings.class_balanced:
            ones = np.ones(len(self.labels_), np.float32)
            return ones, ones
        half = self._n_rows / 2
        positives = np.clip(self._positives, 1.0, max(self._n_rows - 1.0, 1.0))
        return (half / positives).astype(np.float32), (half / (self._n_rows - positives + 1e-9)).astype(np.float32)


class _Updates:
    """Steps of minibatch gradient descent with momentum on a head's weight matrix, in place."""

    def __init__(self, head: SvmHead) -> None:
        self._head = head
        self._velocity, self._velocity_b = np.zeros_like(head._w), np.zeros_like(head._b)
        self._step = np.empty_like(head._w)
        self._positive_weight, self._negative_weight = head._class_weights()
        self._squared = head.settings.loss == "squared_hinge"
        self._l2 = 1.0 / (head.settings.c * head._n_rows)
        self._n_blocks = len(head.dims_)  # standardised vectors have this squared length on average

    def __call__(self, X: np.ndarray, Y: np.ndarray, learning_rate: float) -> None:
        """X : (b, dim) standardised, Y : (b, c)."""
        head, rate = self._head, learning_rate / self._n_blocks
        gradient = self._gradient(X @ head._w + head._b, Y)
        gradient *= np.float32(rate / len(X))
        np.matmul(X.T, gradient, out=self._step)
        self._velocity *= np.float32(_MOMENTUM)
        self._velocity -= self._step
        np.multiply(head._w, np.float32(rate * self._l2), out=self._step)
        self._velocity -= self._step
        head._w += self._velocity
        self._velocity_b *= np.float32(_MOMENTUM)
        self._velocity_b -= gradient.sum(axis=0)
        head._b += self._velocity_b

    def _gradient(self, decisions: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """Of the loss by the decisions, (b, c). Nearly all targets are 0, so the others are put right one by one."""
        at = np.nonzero(Y)
        target, there = Y[at], decisions[at]
        if self._squared:
            decisions += 1
            np.maximum(decisions, 0, out=decisions)
            decisions *= 2 * self._negative_weight
            decisions[at] *= 1 - target
            decisions[at] -= 2 * target * self._positive_weight[at[1]] * np.maximum(1 - there, 0)
        else:
            decisions[...] = (decisions > -1) * self._negative_weight
            decisions[at] *= 1 - target
            decisions[at] -= target * self._positive_weight[at[1]] * (there < 1)
        return decisions


def _epoch_seed(seed: int, n_done: int) -> int:
    return int(np.random.SeedSequence((seed, n_done)).generate_state(1)[0])
