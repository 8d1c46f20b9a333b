"""What tuning changed: calibration and detections before and after, on folds that had no say in either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stage2_heads.bootstrap import bayesian_weights, interval
from stage2_heads.metrics import f1_scores
from stage2_heads.reliability import Reliability
from stage2_heads.score_report import Figure
from stage2_heads.tuned import Tuning

__all__ = ["Agreement", "Claims", "TuningReport", "agreements"]

_REPLICATES = 1000  # behind the intervals


@dataclass(frozen=True)
class Agreement:
    """Detections beside the truth, over all classes.

    precision, recall   shares in [0, 1], None where undefined
    f1_micro, f1_macro  with 95 % intervals from reweighting recordings; n counts rows
    """

    precision: float | None
    recall: float | None
    f1_micro: Figure
    f1_macro: Figure

    @property
    def n(self) -> int:
        return self.f1_micro.n

    def to_json(self) -> dict[str, Any]:
        return {
            "precision": self.precision,
            "recall": self.recall,
            "f1_micro": self.f1_micro.to_json(),
            "f1_macro": self.f1_macro.to_json(),
        }


@dataclass(frozen=True)
class TuningReport:
    """What tuning changed. Every figure is of folds that neither calibration nor thresholds of that figure had seen.

    before, after        reliability of the scores as fitted, and as tuned
    per_class            a mapping a class: support, calibration error before and after, thresholds
    mean_class_error     mean calibration error of the classes with a positive, (before, after)
    agreement            level -> (untuned: scores of 0.5 or more, tuned)
    notes                sentences for the reader
    """

    tuning: Tuning
    before: Reliability
    after: Reliability
    per_class: tuple[dict[str, Any], ...]
    mean_class_error: tuple[float, float]
    agreement: dict[str, tuple[Agreement, Agreement]]
    notes: tuple[str, ...]

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        return {
            **self.tuning.to_json(labels),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "mean_class_calibration_error": {"before": self.mean_class_error[0], "after": self.mean_class_error[1]},
            "per_class": [dict(row) for row in self.per_class],
            "agreement": {
                level: {"before": before.to_json(), "after": after.to_json()}
                for level, (before, after) in self.agreement.items()
            },
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Claims:
    """What was detected in held-out rows, (n, c) bool each, and whose rows they are, (n,)."""

    untuned: np.ndarray
    tuned: np.ndarray
    truth: np.ndarray
    known: np.ndarray
    recordings: np.ndarray


def agreements(parts: Sequence[Claims]) -> tuple[Agreement, Agreement]:
    """How untuned and tuned detections of all folds together agree with the truth. parts : a fold each.

    A class that is nowhere known to be absent is left out: whoever claims it everywhere would be right.
    """
    known, recordings = (np.concatenate([getattr(part, name) for part in parts]) for name in ("known", "recordings"))
    truth = np.concatenate([part.truth for part in parts])
    known = known & np.any(known & ~truth, axis=0)
    truth &= known
    _, group = np.unique(recordings, return_inverse=True)
    n_groups = int(group.max()) + 1
    weights = np.hstack([np.ones((n_groups, 1)), bayesian_weights(n_groups, _REPLICATES)])
    untuned, tuned = (
        _agreement(np.concatenate([getattr(part, name) for part in parts]) & known, truth, group, weights)
        for name in ("untuned", "tuned")
    )
    return untuned, tuned


def _agreement(claimed: np.ndarray, truth: np.ndarray, group: np.ndarray, weights: np.ndarray) -> Agreement:
    """claimed, truth : (n, c) bool;  group : (n,);  weights : (n_groups, 1 + r), the first column all ones."""
    n_right, n_claimed, n_true = int((claimed & truth).sum()), int(claimed.sum()), int(truth.sum())
    micro, per_class = f1_scores(truth, claimed, group, weights)
    present = np.any(truth, axis=0)
    figures = []
    for values in (micro, per_class.T[present].mean(axis=0) if present.any() else np.full(len(micro), np.nan)):
        if np.isnan(values).any():
            figures.append(Figure(None, None, None, len(truth)))
            continue
        low, high = interval(values[1:], float(values[0]))
        figures.append(Figure(float(values[0]), max(low, 0.0), min(high, 1.0), len(truth)))
    return Agreement(n_right / n_claimed if n_claimed else None, n_right / n_true if n_true else None, *figures)
