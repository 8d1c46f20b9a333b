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


def interval(replicates: np.ndarray, coverage: float = 0.95) -> tuple[float, float]:
    """The central `coverage` of the replicates. replicates : (r,), none nan."""
    tail = (1 - coverage) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def rule_of_three(n: int) -> float:
    """With n trials and not one failure, failures may still be as frequent as this (95 %): 3 / n, at most 1."""
    return min(1.0, 3 / n) if n else 1.0
