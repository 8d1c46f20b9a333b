"""A class's decisions to its probability: shared or own sigmoids, a temperature, isotonic steps made strict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from embeddings.errors import InputError
from stage2_heads.calibration import BELOW_ONE, Calibration, fit_sigmoid, sigmoid
from stage2_heads.crossfit import HeldOut

__all__ = ["METHODS", "Calibrator", "fit_calibrator", "fit_class_sigmoid", "fit_temperature", "vote_log_odds"]

METHODS = ("shared", "platt", "isotonic", "temperature")
_VOTE_FLOOR = 1e-3  # votes of nobody are taken for odds of one to a thousand
_SLOPE_DEVIATION, _OFFSET_DEVIATION = 0.5, 1.0  # how far classes are expected to lie from the shared log-odds
_LEAST_SLOPE = 0.05  # times the shared slope: a class whose decisions mislead still keeps their order
_ISOTONIC_RECORDINGS = 5  # recordings of a class with which its own steps and the shared sigmoid weigh alike


@dataclass(frozen=True)
class Calibrator:
    """score = sigmoid(slope * decision + offset + steps(decision)), each class with its own numbers.

    method   one of `METHODS`
    slopes   (c,) float64 > 0;  offsets: (c,) float64
    own      (c,) bool: the class had recordings enough to have a say in its own numbers
    knots, values  (k,) float64 each: the steps' corners, class after class, straight lines between them, level beyond
    starts   (c + 1,) int64: where in `knots` each class begins
    Slopes are positive and steps never fall, so the scores of a class rank its windows exactly as its decisions do.
    """

    method: str
    slopes: np.ndarray
    offsets: np.ndarray
    own: np.ndarray
    knots: np.ndarray
    values: np.ndarray
    starts: np.ndarray

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"calibration {self.method!r} is not known; choose {', '.join(METHODS)}.")
        n = len(self.slopes)
        lengths = (len(self.offsets), len(self.own), len(self.starts) - 1)
        if lengths != (n, n, n) or len(self.knots) != len(self.values):
            raise InputError(
                f"a calibration of {n} slopes, but {lengths} offsets, classes and steps; give one a class."
            )
        if not (np.isfinite(self.slopes).all() and (self.slopes > 0).all() and np.isfinite(self.offsets).all()):
            raise InputError(f"the least slope of a calibration is {self.slopes.min()}; all must be positive numbers.")
        if self.starts[0] != 0 or self.starts[-1] != len(self.knots) or (np.diff(self.starts) < 0).any():
            raise InputError(f"a calibration's {len(self.knots)} corners are not divided among its {n} classes.")
        for start, stop in zip(self.starts[:-1], self.starts[1:], strict=True):
            if (np.diff(self.knots[start:stop]) <= 0).any() or (np.diff(self.values[start:stop]) < 0).any():
                raise InputError("a calibration's steps must rise from corner to corner.")

    @classmethod
    def of_sigmoids(cls, method: str, slopes: np.ndarray, offsets: np.ndarray, own: np.ndarray) -> Calibrator:
        """Without steps. slopes, offsets, own : (c,)."""
        nothing = np.zeros(0)
        return cls(method, slopes, offsets, own, nothing, nothing, np.zeros(len(slopes) + 1, dtype=np.int64))

    def log_odds(self, decisions: np.ndarray) -> np.ndarray:
        """decisions : (n, c) float64.  Returns float64 (n, c), strictly rising with the decision."""
        found = self.slopes * decisions + self.offsets
        for c in np.flatnonzero(np.diff(self.starts)):
            span = slice(self.starts[c], self.starts[c + 1])
            found[:, c] += np.interp(decisions[:, c], self.knots[span], self.values[span])
        return found

    def apply(self, decisions: np.ndarray) -> np.ndarray:
        """decisions : (n, c) float64.  Returns float64 (n, c), finite, in [0, 1)."""
        return np.minimum(sigmoid(self.log_odds(decisions)), BELOW_ONE)

    def arrays(self) -> dict[str, np.ndarray]:
        """What is saved beside the head's weights."""
        return {name: getattr(self, name) for name in ("slopes", "offsets", "own", "knots", "values", "starts")}

    @classmethod
    def from_arrays(cls, method: str, arrays: Mapping[str, np.ndarray], n_classes: int) -> Calibrator:
        """Raises InputError when arrays are missing or do not fit `n_classes`."""
        from stage2_heads.base import required_array

        shapes = {
            "slopes": ((n_classes,), np.float64),
            "offsets": ((n_classes,), np.float64),
            "own": ((n_classes,), np.bool_),
            "knots": ((None,), np.float64),
            "values": ((None,), np.float64),
            "starts": ((n_classes + 1,), np.int64),
        }
        return cls(
            method, **{name: required_array(arrays, name, shape, dtype) for name, (shape, dtype) in shapes.items()}
        )


def fit_calibrator(method: str, held: HeldOut, base: Calibration) -> Calibrator:
    """Fit one of `METHODS` on held-out decisions.

    base  the sigmoid that the head has: what a temperature is relative to, and what is kept when nothing can be fitted
    shared       one slope and one offset
    temperature  one slope upon the base's log-odds
    platt        a slope and an offset a class upon the shared sigmoid's log-odds, expected near 1 and 0
                 (`fit_class_sigmoid`): the fewer recordings a class has, the nearer it stays to the shared sigmoid
    isotonic     a class's isotonic regression in log-odds, weighed n / (n + 5) for n recordings with the class, plus
                 the shared log-odds for the rest, which also makes level steps rise
    A class without a held-out positive keeps the shared sigmoid: its decisions say nothing of what it is like.
    """
    n_classes = held.decisions.shape[1]
    nobody, everybody = np.zeros(n_classes, dtype=bool), np.ones(n_classes)
    if method == "temperature":
        decisions, targets = held.cells()
        t = fit_temperature(base.slope * decisions + base.offset, targets)
        return Calibrator.of_sigmoids(method, t * base.slope * everybody, t * base.offset * everybody, nobody)
    slope, offset = fit_sigmoid(*held.cells()) or (base.slope, base.offset)
    slopes, offsets = slope * everybody, offset * everybody
    if method == "shared":
        return Calibrator.of_sigmoids(method, slopes, offsets, nobody)
    own = np.zeros(n_classes, dtype=bool)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for c in range(n_classes):
        known = held.known[:, c]
        decisions, targets = held.decisions[known, c], held.targets[known, c].astype(np.float64)
        positive = targets > 0
        n_recordings = len(np.unique(held.recordings[known][positive]))
        own[c] = n_recordings > 0 and targets.sum() < len(targets)
        if not own[c]:
            steps.append((np.zeros(0), np.zeros(0)))
        elif method == "platt":
            # Windows of one recording are alike: together they are one witness.
            evidence = n_recordings / int(positive.sum())
            factor, shift = fit_class_sigmoid(slope * decisions + offset, targets, evidence=evidence)
            slopes[c], offsets[c] = factor * slope, factor * offset + shift
        else:
            share = n_recordings / (n_recordings + _ISOTONIC_RECORDINGS)
            knots, values = isotonic_log_odds(decisions, targets)
            steps.append((knots, share * values))
            slopes[c], offsets[c] = (1 - share) * slope, (1 - share) * offset
    if method == "platt":
        return Calibrator.of_sigmoids(method, slopes, offsets, own)
    starts = np.concatenate([[0], np.cumsum([len(knots) for knots, _ in steps])]).astype(np.int64)
    knots, values = (np.concatenate(parts) for parts in zip(*steps, strict=True))
    return Calibrator(method, slopes, offsets, own, knots, values, starts)


def fit_class_sigmoid(
    log_odds: np.ndarray,
    targets: np.ndarray,
    *,
    evidence: float = 1.0,
    slope_deviation: float = _SLOPE_DEVIATION,
    offset_deviation: float = _OFFSET_DEVIATION,
) -> tuple[float, float]:
    """Slope and offset upon log-odds, the likeliest given that they are expected near 1 and 0.

    log_odds, targets : (n,), targets in [0, 1]
    evidence          what a window counts beside that expectation: positive recordings a positive window
    slope_deviation, offset_deviation  standard deviations of the (Gaussian) expectations; infinite: none
    Returns (slope >= 0.05, offset), by Newton's method.
    Source: Platt 1999, with the maximum a posteriori in place of smoothed targets.
    """
    expected = np.array([1.0, 0.0])
    strength = np.array([slope_deviation**-2.0, offset_deviation**-2.0]) / (evidence * len(targets))
    x = np.stack([log_odds, np.ones(len(log_odds))], axis=1)
    found = _most_likely(x, targets, expected, expected, strength)
    if found[0] < _LEAST_SLOPE:
        fixed = _LEAST_SLOPE * log_odds
        found = np.append(
            _LEAST_SLOPE, _most_likely(x[:, 1:], targets, expected[1:], expected[1:], strength[1:], fixed)
        )
    return float(found[0]), float(found[1])


def fit_temperature(log_odds: np.ndarray, targets: np.ndarray) -> float:
    """The likeliest factor of log-odds, the inverse of the temperature; 1 where larger log-odds are not likelier.

    log_odds, targets : (n,), targets in [0, 1].
    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, with a sigmoid a class instead of a softmax.
    """
    if not 0 < targets.sum() < len(targets):
        return 1.0
    one, none = np.ones(1), np.full(1, 1e-6)  # keeps decisions that separate all from growing without end
    found = float(_most_likely(log_odds[:, None], targets, one, one, none)[0])
    return found if found > 0 else 1.0


def isotonic_log_odds(decisions: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (k,) and log-odds (k,) of the isotonic regression of targets on decisions.

    Shares of 0 and 1 become 1 / (negatives + 2) and (positives + 1) / (positives + 2), as Platt's smoothed targets.
    """
    from sklearn.isotonic import isotonic_regression

    knots, place, counts = np.unique(decisions, return_inverse=True, return_counts=True)
    shares = isotonic_regression(np.bincount(place, weights=targets) / counts, sample_weight=counts.astype(np.float64))
    n_true = float(targets.sum())
    shares = np.clip(shares, 1 / (len(targets) - n_true + 2), (n_true + 1) / (n_true + 2))
    same_as_last = np.append(False, np.diff(shares) == 0)
    corner = ~(same_as_last & np.append(same_as_last[1:], False))  # the inside of a step needs no corners
    values = np.log(shares[corner] / (1 - shares[corner]))
    return knots[corner], np.maximum.accumulate(values)


def vote_log_odds(votes: np.ndarray) -> np.ndarray:
    """Votes in [0, 1] on the scale of log-odds, strictly rising, finite at 0 and 1."""
    return np.log((votes + _VOTE_FLOOR) / (1 - votes + _VOTE_FLOOR))


def _most_likely(
    x: np.ndarray,
    targets: np.ndarray,
    start: np.ndarray,
    expected: np.ndarray,
    strength: np.ndarray,
    fixed: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Parameters (k,) of sigmoid(x @ parameters + fixed) that minimise mean log-loss + strength * squares / 2."""

    def loss(parameters: np.ndarray) -> float:
        z = x @ parameters + fixed
        return float(
            (np.logaddexp(0.0, z) - targets * z).mean() + 0.5 * (strength * (parameters - expected) ** 2).sum()
        )

    parameters, current = start.astype(np.float64), loss(start)
    for _ in range(100):
        p = sigmoid(x @ parameters + fixed)
        gradient = x.T @ (p - targets) / len(targets) + strength * (parameters - expected)
        if np.abs(gradient).max() < 1e-10:
            break
        hessian = (x.T * (p * (1 - p))) @ x / len(targets) + np.diag(strength) + 1e-12 * np.eye(len(parameters))
        step, scale = np.linalg.solve(hessian, gradient), 1.0
        while scale > 1e-10 and (candidate := loss(parameters - scale * step)) >= current:
            scale /= 2
        if scale <= 1e-10:
            break
        parameters, current = parameters - scale * step, candidate
    return parameters
