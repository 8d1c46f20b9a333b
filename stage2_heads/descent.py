"""Minibatch gradient descent of one weight matrix for many classes at once: losses, steps, schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["LOSSES", "SCHEDULES", "BestWeights", "Descent", "Hold", "MeanWeights"]

_MOMENTUM = 0.9

_Gradient = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""decisions (b, c), targets (b, c), weight of a positive and of a negative (c,) -> d loss / d decisions, (b, c).

`decisions` may be overwritten. Nearly all targets are 0, so negatives are done at once and the others put right one by
one. A fractional target t counts as t of a positive and 1 - t of a negative."""


def _squared_hinge(decisions: np.ndarray, Y: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    at = np.nonzero(Y > 0)
    target, there = Y[at], decisions[at]
    decisions += 1
    np.maximum(decisions, 0, out=decisions)
    decisions *= 2 * negative
    decisions[at] *= 1 - target
    decisions[at] -= 2 * target * positive[at[1]] * np.maximum(1 - there, 0)
    return decisions


def _hinge(decisions: np.ndarray, Y: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    at = np.nonzero(Y > 0)
    target, there = Y[at], decisions[at]
    decisions[...] = (decisions > -1) * negative
    decisions[at] *= 1 - target
    decisions[at] -= target * positive[at[1]] * (there < 1)
    return decisions


def _log(decisions: np.ndarray, Y: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    at = np.nonzero(Y > 0)
    target = Y[at]
    expit(decisions, out=decisions)
    missing = 1 - decisions[at]
    decisions *= negative
    decisions[at] *= 1 - target
    decisions[at] -= target * positive[at[1]] * missing
    return decisions


LOSSES: dict[str, _Gradient] = {"squared_hinge": _squared_hinge, "hinge": _hinge, "log": _log}

SCHEDULES: dict[str, Callable[[float], float]] = {
    "late": lambda done: min(1.0, 2 * (1 - done)),
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
}
"""Share of the learning rate at a share of the updates; `late` stays whole for the first half, then falls to 0."""


@dataclass(frozen=True)
class Hold:
    """Where weights are held while they learn more: each minimises (1 - f) * mean loss + f * (w - held)^2 / 2.

    weights : (dim, c), offsets : (c,), float32;  firmness : (c,) float32, f in [0, 1) of each class's weights;
    offset_firmness : of all offsets
    """

    weights: np.ndarray
    offsets: np.ndarray
    firmness: np.ndarray
    offset_firmness: float


class Descent:
    """Steps with momentum on weights (dim, c) and offsets (c,), float32, in place.

    loss             one of `LOSSES`
    decay            pulls weights to 0: the l2 penalty of the mean loss, 1 / (c * n_rows) in an SVM's terms
    positive_weight, negative_weight : (c,) float32
    squared_length   of a row on average, by which steps are scaled
    hold             for weights that go on from fitted ones
    """

    def __init__(
        self,
        weights: np.ndarray,
        offsets: np.ndarray,
        *,
        loss: str,
        decay: float,
        positive_weight: np.ndarray,
        negative_weight: np.ndarray,
        squared_length: float,
        hold: Hold | None = None,
    ) -> None:
        self._w, self._b = weights, offsets
        self._velocity, self._velocity_b = np.zeros_like(weights), np.zeros_like(offsets)
        self._step = np.empty_like(weights)
        self._gradient = LOSSES[loss]
        self._positive_weight, self._negative_weight = positive_weight, negative_weight
        self._decay, self._squared_length, self._hold = decay, squared_length, hold

    def __call__(self, X: np.ndarray, Y: np.ndarray, learning_rate: float) -> None:
        """One update. X : (b, dim) float32, Y : (b, c) in [0, 1], or nan: such a cell teaches nothing."""
        rate = learning_rate / self._squared_length
        gradient = self._gradient(X @ self._w + self._b, Y, self._positive_weight, self._negative_weight)
        gradient[np.isnan(Y)] = 0
        gradient *= np.float32(rate / len(X))
        np.matmul(X.T, gradient, out=self._step)
        self._velocity *= np.float32(_MOMENTUM)
        self._velocity_b *= np.float32(_MOMENTUM)
        offset_gradient = gradient.sum(axis=0)
        if (hold := self._hold) is not None:
            self._step *= 1 - hold.firmness
            self._velocity -= np.float32(rate) * hold.firmness * (self._w - hold.weights)
            offset_gradient *= np.float32(1 - hold.offset_firmness)
            offset_gradient += np.float32(rate * hold.offset_firmness) * (self._b - hold.offsets)
        self._velocity -= self._step
        np.multiply(self._w, np.float32(rate * self._decay), out=self._step)
        self._velocity -= self._step
        self._w += self._velocity
        self._velocity_b -= offset_gradient
        self._b += self._velocity_b


class MeanWeights:
    """The mean of weights that go on changing in place; the weights as they are while none was added."""

    def __init__(self, weights: np.ndarray, offsets: np.ndarray) -> None:
        self._now = (weights, offsets)
        self._totals = (np.zeros(weights.shape), np.zeros(offsets.shape))
        self._n = 0

    def add(self) -> None:
        """Count the weights as they are now."""
        for total, now in zip(self._totals, self._now, strict=True):
            total += now
        self._n += 1

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Copies, float64."""
        if not self._n:
            return self._now[0].astype(np.float64), self._now[1].astype(np.float64)
        return self._totals[0] / self._n, self._totals[1] / self._n


class BestWeights:
    """The weights of the best look, and whether there were too many looks in vain since."""

    def __init__(self, patience: int) -> None:
        self.weights: tuple[np.ndarray, np.ndarray] | None = None
        self._merit, self._patience, self._in_vain = -math.inf, patience, 0

    @property
    def is_over(self) -> bool:
        """Patience is at its end."""
        return self._patience > 0 and self._in_vain >= self._patience

    def look(self, merit: float, coef: np.ndarray, intercept: np.ndarray) -> None:
        """merit : of these weights; more is better."""
        if merit > self._merit:
            self._merit, self.weights, self._in_vain = merit, (coef, intercept), 0
        else:
            self._in_vain += 1
