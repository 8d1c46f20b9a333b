"""What a head scored: figures with their intervals, and all that a reader must know with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Figure", "ScoreReport"]


@dataclass(frozen=True)
class Figure:
    """A metric with its 95 % interval; None where it is undefined. n counts recordings, or windows."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True)
class ScoreReport:
    """What a head scored, on what, how sure that is, and what a reader must know with it.

    recording, window  metric -> Figure;  random_baseline: metric -> value per recording, and "window" -> the same
    left_out           how many recordings were not scored, and why;  n_seen: heard ones scored all the same
    per_class          a mapping a class, with support
    secondary_weight   what secondary labels counted, 0 (left out) to 1
    threshold, top_k   where a score counts as a detection; None: at the thresholds in `per_class`, at any number
    replicates         metric -> (n_bootstrap,) per recording, for paired comparison; `recordings` fixes the weights
    """

    labels: tuple[str, ...]
    recording: dict[str, Figure]
    window: dict[str, Figure]
    left_out: dict[str, int]
    absent_classes: int
    random_baseline: dict[str, Any]
    pool: str
    per_class: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    n_seen: int
    calibrated_on: str
    secondary_weight: float
    threshold: float | None
    top_k: int | None
    n_bootstrap: int
    seed: int
    recordings: tuple[str, ...] = field(repr=False)
    replicates: dict[str, np.ndarray] = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "recording": {name: figure.to_json() for name, figure in self.recording.items()},
            "window": {name: figure.to_json() for name, figure in self.window.items()},
            "left_out": dict(self.left_out),
            "seen_included": self.n_seen,
            "absent_classes": self.absent_classes,
            "random_baseline": self.random_baseline,
            "pool": self.pool,
            "per_class": [dict(row) for row in self.per_class],
            "notes": list(self.notes),
            "calibrated_on": self.calibrated_on,
            "secondary_weight": self.secondary_weight,
            "threshold": self.threshold,
            "top_k": self.top_k,
            "bootstrap": {"kind": "Bayesian, over recordings", "replicates": self.n_bootstrap, "seed": self.seed},
        }
