"""Weights with which several heads' decisions are added up."""

from __future__ import annotations

import numpy as np

from stage2_heads.calibration import sigmoid

__all__ = ["chosen_weights", "stacking_weights"]

_RIDGE = 1e-3  # a mean log-loss; keeps weights finite where the decisions separate the classes


def stacking_weights(
    decisions: np.ndarray, targets: np.ndarray, *, allowed: np.ndarray | None = None, alike: bool = False
) -> tuple[np.ndarray, float] | None:
    """The likeliest weights >= 0 and offset of sigmoid(decisions @ weights + offset).

    decisions : (n, k) log-odds or margins;  targets : (n,) in [0, 1]
    allowed   (k,) bool, others get weight 0;  alike: every allowed column counts the same, in units of its deviation
    Returns (weights (k,), offset), or None when nothing speaks for the positives.
    """
    from scipy.optimize import minimize

    n, k = decisions.shape
    if not n:
        return None
    allowed = np.ones(k, dtype=bool) if allowed is None else np.asarray(allowed, bool)
    spread = decisions.std(axis=0)
    allowed = allowed & (spread > 0)
    if not allowed.any() or not 0 < targets.sum() < n:
        return None
    z = decisions[:, allowed] / spread[allowed]
    if alike:
        z = z.mean(axis=1, keepdims=True)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        x = z @ parameters[:-1] + parameters[-1]
        error = (sigmoid(x) - targets) / n
        value = float((np.logaddexp(0.0, x) - targets * x).mean() + 0.5 * _RIDGE * (parameters[:-1] ** 2).sum())
        return value, np.append(z.T @ error + _RIDGE * parameters[:-1], error.sum())

    base_rate = float(np.clip(targets.mean(), 1e-6, 1 - 1e-6))
    start = np.append(np.ones(z.shape[1]), np.log(base_rate / (1 - base_rate)))
    bounds = [(0.0, None)] * z.shape[1] + [(None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    fitted = found.x[:-1]
    if not np.isfinite(found.x).all() or not (fitted > 0).any():
        return None
    weights = np.zeros(k)
    weights[allowed] = (np.repeat(fitted / allowed.sum(), allowed.sum()) if alike else fitted) / spread[allowed]
    return weights, float(found.x[-1])


def chosen_weights(
    decisions: np.ndarray, targets: np.ndarray, recordings: np.ndarray
) -> tuple[np.ndarray, float] | None:
    """Weights of the best column, joined by others only as far as each is sure to help.

    A column joins when the log-loss that it takes away is more than the standard error of that sum over recordings:
    for weights chosen on the same decisions, about one chance in forty for a column of no use.
    decisions, targets : as for `stacking_weights`;  recordings : (n,) int, the recording that a row speaks of
    Returns (weights (k,), offset), or None when nothing speaks for the positives.
    Source: forward selection with the one-standard-error rule of Breiman et al. 1984.
    """
    _, group = np.unique(recordings, return_inverse=True)
    left = set(range(decisions.shape[1]))

    def joined(columns: set[int]) -> tuple[np.ndarray, float] | None:
        return stacking_weights(decisions, targets, allowed=np.isin(np.arange(decisions.shape[1]), list(columns)))

    def loss(fitted: tuple[np.ndarray, float]) -> np.ndarray:
        x = decisions @ fitted[0] + fitted[1]
        return np.bincount(group, weights=np.logaddexp(0.0, x) - targets * x)

    alone = {column: fitted for column in left if (fitted := joined({column})) is not None}
    if not alone:
        return None
    best = min(alone, key=lambda column: loss(alone[column]).sum())
    chosen, current = {best}, alone[best]
    while left := left - chosen:
        gains = {}
        for column in left:
            if (fitted := joined(chosen | {column})) is not None:
                gain = loss(current) - loss(fitted)
                if gain.sum() > gain.std() * np.sqrt(len(gain)):
                    gains[column] = (float(gain.sum()), fitted)
        if not gains:
            break
        column = max(gains, key=lambda c: gains[c][0])
        chosen, current = chosen | {column}, gains[column][1]
    return current
