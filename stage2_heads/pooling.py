"""A recording's scores from its windows': mean, log-mean-exp or maximum."""

from __future__ import annotations

import numpy as np

from stage2_heads.calibration import BELOW_ONE

__all__ = ["POOLS", "pool_windows"]

POOLS = ("mean", "lme", "max")
_LME_SHARPNESS = 5.0  # of log-mean-exp: 0 would be the mean, infinity the maximum


def pool_windows(scores: np.ndarray, group: np.ndarray, n_recordings: int, pool: str) -> np.ndarray:
    """A recording's scores from its windows', by "mean", "max", or "lme" (log-mean-exp) between the two.

    scores : (n, c) in [0, 1);  group : (n,) recording of each window, all of 0 .. n_recordings - 1 occurring.
    Returns float64 (n_recordings, c) in [0, 1).
    """
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(n_recordings))
    if pool == "max":
        return np.maximum.reduceat(scores[order], starts, axis=0)
    counts = np.bincount(group, minlength=n_recordings)[:, None]
    if pool == "lme":
        sums = np.add.reduceat(np.exp(_LME_SHARPNESS * scores[order]), starts, axis=0)
        pooled = np.log(sums / counts) / _LME_SHARPNESS
    else:
        pooled = np.add.reduceat(scores[order], starts, axis=0) / counts
    # The mean of numbers just below 1 may round to 1, which padded cmAP could not rank.
    return np.clip(pooled, 0.0, BELOW_ONE)
