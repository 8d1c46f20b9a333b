"""Decisions to probabilities: one shared sigmoid, fitted on decisions about recordings that were held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from embeddings.errors import InputError

__all__ = ["BELOW_ONE", "Calibration", "calibration_error", "fit_sigmoid", "sigmoid"]

BELOW_ONE = 1 - 2.0**-53  # the largest float64 below 1: padding rows of cmAP must stand above every score
HEARD = "heard recordings"
UNHEARD = "unheard recordings, cross-fitted"
NOTHING = "nothing (too few recordings; default sigmoid)"
_BINS = 15


@dataclass(frozen=True)
class Calibration:
    """score = sigmoid(slope * decision + offset), for all classes alike, so ranks stay within and across species.

    slope          > 0
    calibrated_on  what the sigmoid was fitted on, as every table says it
    n_recordings, n_decisions  how much that was
    calibration_error          expected calibration error on the same, None when nothing was fitted
    """

    slope: float
    offset: float
    calibrated_on: str
    n_recordings: int = 0
    n_decisions: int = 0
    calibration_error: float | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.slope) and self.slope > 0 and np.isfinite(self.offset)):
            raise InputError(f"a sigmoid of slope {self.slope}, offset {self.offset}: the slope must be positive.")

    def apply(self, decisions: np.ndarray) -> np.ndarray:
        """decisions : (n, c) float64.  Returns float64 (n, c), finite, in [0, 1)."""
        return np.minimum(sigmoid(self.slope * decisions + self.offset), BELOW_ONE)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        return cls(**{name: value[name] for name in cls.__dataclass_fields__})


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float64, without overflow."""
    x = np.asarray(x, dtype=np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def fit_sigmoid(decisions: np.ndarray, targets: np.ndarray, *, max_steps: int = 100) -> tuple[float, float] | None:
    """Slope and offset of the likeliest sigmoid, by Newton's method with Platt's smoothed targets.

    decisions : (n,) float;  targets : (n,) in [0, 1], fractions counting partly for each side
    Returns None when there are no positives or no negatives, or when larger decisions are not likelier.
    Source: Platt 1999; Lin, Lin and Weng 2007, A Note on Platt's Probabilistic Outputs for Support Vector Machines.
    """
    decisions, targets = np.asarray(decisions, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    n_true, n_false = float(targets.sum()), float((1 - targets).sum())
    if n_true <= 0 or n_false <= 0:
        return None
    spread = float(decisions.std())
    if spread == 0:
        return None
    middle = float(decisions.mean())
    z = (decisions - middle) / spread  # Newton's steps then have one size whatever the head's margins are
    smoothed = targets * (n_true + 1) / (n_true + 2) + (1 - targets) / (n_false + 2)

    def loss(slope: float, offset: float) -> float:
        x = slope * z + offset
        return float((np.logaddexp(0.0, x) - smoothed * x).sum())

    slope, offset = 0.0, float(np.log((n_true + 1) / (n_false + 1)))
    current = loss(slope, offset)
    for _ in range(max_steps):
        p = sigmoid(slope * z + offset)
        error, curvature = p - smoothed, p * (1 - p)
        gradient = np.array([error @ z, error.sum()])
        if np.abs(gradient).max() < 1e-9 * len(z):
            break
        mixed = curvature @ z
        hessian = np.array([[curvature @ z**2, mixed], [mixed, curvature.sum()]]) + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        while scale > 1e-10:
            candidate = loss(slope - scale * step[0], offset - scale * step[1])
            if candidate < current:
                break
            scale /= 2
        else:
            break
        slope, offset, current = slope - scale * step[0], offset - scale * step[1], candidate
    if slope <= 0:
        return None
    return slope / spread, offset - slope * middle / spread


def calibration_error(scores: np.ndarray, targets: np.ndarray, n_bins: int = _BINS) -> float:
    """Expected calibration error: |mean score - share of positives| over equal bins of scores, weighted by size.

    scores, targets : (n,) in [0, 1].
    """
    bins = np.minimum((scores * n_bins).astype(np.int64), n_bins - 1)
    score_sums = np.bincount(bins, weights=scores, minlength=n_bins)
    target_sums = np.bincount(bins, weights=targets, minlength=n_bins)
    return float(np.abs(score_sums - target_sums).sum() / max(len(scores), 1))
