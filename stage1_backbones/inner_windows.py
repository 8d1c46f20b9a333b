"""How a network with windows of its own hears one of ours."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["OURS_S", "inner_starts_s", "inner_windows"]

OURS_S = 5.0


def inner_starts_s(own_s: float, ours_s: float = OURS_S) -> tuple[float, ...]:
    """Where the network's windows begin, evenly, the last ending where ours ends; the fewest that leave no gap."""
    n = max(1, math.ceil(round(ours_s / own_s, 9)))
    return tuple(float(start) for start in np.linspace(0.0, max(0.0, ours_s - own_s), n))


def inner_windows(waveform: np.ndarray, own_s: float, sample_rate_hz: int) -> list[np.ndarray]:
    """The network's windows within one of ours. waveform : (n_samples,).  Returns views, (own_s * rate,) each."""
    n_own = round(own_s * sample_rate_hz)
    ours_s = len(waveform) / sample_rate_hz
    starts = (min(round(s * sample_rate_hz), len(waveform) - n_own) for s in inner_starts_s(own_s, ours_s))
    return [waveform[start : start + n_own] for start in starts]
