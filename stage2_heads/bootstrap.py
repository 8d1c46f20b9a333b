"""How sure a figure is: Bayesian bootstrap over recordings, which keeps every recording and so every class."""

from __future__ import annotations

import numpy as np

from embeddings.errors import InputError

__all__ = ["bayesian_weights", "interval", "rule_of_three"]


def bayesian_weights(n_recordings: int, n_replicates: int, seed: int = 0) -> np.ndarray:
    """Weights of recordings in each replicate: Dirichlet(1, ..., 1), scaled to a mean of 1.

    Every weight is positive, so no replicate loses a recording: the set of classes is frozen by construction, where
    drawing with replacement would drop rare species from some replicates.
    Returns float64 (n_recordings, n_replicates).
    Source: Rubin 1981, The Bayesian Bootstrap.
    """
    if n_recordings < 1 or n_replicates < 1:
        raise InputError(f"{n_recordings} recordings and {n_replicates} replicates; both must be 1 or more.")
    draws = np.random.default_rng(seed).standard_exponential((n_recordings, n_replicates))
    draws = np.maximum(draws, np.finfo(np.float64).tiny)
    return draws * (n_recordings / draws.sum(axis=0))


def interval(replicates: np.ndarray, value: float, coverage: float = 0.95) -> tuple[float, float]:
    """The central `coverage` of the replicates, shifted so that their mean is `value`.

    replicates : (r,), none nan;  value : the figure itself
    Reweighting alone moves some figures: padding rows weigh 1 whatever the classes weigh, so padded cmAP rises on
    average by several hundredths. Without the shift its interval may miss the figure, and covered the truth in 67 %
    of simulated sets of 25 recordings in 10 classes; with it in 82-85 %.
    """
    tail = (1 - coverage) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail]) + (value - replicates.mean())
    return float(min(low, value)), float(max(high, value))


def rule_of_three(n: int) -> float:
    """With n trials and not one failure, failures may still be as frequent as this (95 %): 3 / n, at most 1."""
    return min(1.0, 3 / n) if n else 1.0
