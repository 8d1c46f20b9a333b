"""Where a score becomes a detection: thresholds a class chosen on held-out recordings, and the top K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embeddings.errors import InputError
from stage2_heads.calibration import BELOW_ONE

__all__ = ["DEFAULT_THRESHOLD", "Rule", "Thresholds", "choose_thresholds", "detected"]

DEFAULT_THRESHOLD = 0.5
_LOWEST = 1e-9  # a threshold is above 0, which every score reaches


@dataclass(frozen=True)
class Rule:
    """How thresholds are chosen.

    precision          None: the threshold with the best F1; a share in (0, 1]: the lowest one with that precision
    fewest_recordings  a class with fewer positive recordings gets the threshold shared by all
    """

    precision: float | None = None
    fewest_recordings: int = 10

    def __post_init__(self) -> None:
        if self.precision is not None and not 0 < self.precision <= 1:
            raise InputError(f"precision={self.precision} must be a share above 0 and at most 1, such as 0.9.")
        if self.fewest_recordings < 1:
            raise InputError(f"min-recordings={self.fewest_recordings} must be 1 or more.")

    @property
    def words(self) -> str:
        return "best F1" if self.precision is None else f"precision {self.precision:g}"


@dataclass(frozen=True)
class Thresholds:
    """A threshold a class.

    values   (c,) float64 above 0 and below 1;  shared: the one for all classes together
    own      (c,) bool: the class had recordings enough for one of its own
    reached  (c,) bool: the rule could be kept; False: no threshold has the precision, and this one is above every score
    """

    values: np.ndarray
    shared: float
    own: np.ndarray
    reached: np.ndarray

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        return {
            "shared": self.shared,
            "classes": {label: float(value) for label, value in zip(labels, self.values, strict=True)},
            "sharing": [label for label, own in zip(labels, self.own, strict=True) if not own],
            "unreached": [label for label, reached in zip(labels, self.reached, strict=True) if not reached],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], labels: Sequence[str], where: str) -> Thresholds:
        """where : the file and field, for errors. Raises InputError that names the class whose threshold is wrong."""
        classes = value["classes"]
        if not isinstance(classes, dict) or set(classes) != set(labels):
            given = set(classes) if isinstance(classes, dict) else set()
            lacking, unknown = sorted(set(labels) - given), sorted(given - set(labels))
            raise InputError(
                f"{where} has thresholds of {len(given)} classes, but the head has {len(labels)} (without one: "
                f"{', '.join(lacking[:3]) or 'none'}; unknown: {', '.join(unknown[:3]) or 'none'}). "
                "Give one a class, or run `heads tune` again."
            )
        for name, threshold in (*classes.items(), ("shared by classes", value["shared"])):
            if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 < threshold < 1:
                raise InputError(
                    f"{where}: the threshold {name} is {threshold!r}; a number above 0 and below 1 was expected. "
                    "Correct it, or run `heads tune` again."
                )
        for field in ("sharing", "unreached"):
            if unknown := sorted(set(map(str, value[field])) - set(labels)):
                raise InputError(f"{where}: {field} names {unknown[0]!r}, which is not a class of the head.")
        return cls(
            np.array([classes[label] for label in labels], dtype=np.float64),
            float(value["shared"]),
            np.array([label not in value["sharing"] for label in labels], dtype=bool),
            np.array([label not in value["unreached"] for label in labels], dtype=bool),
        )


def detected(scores: np.ndarray, thresholds: np.ndarray | float, top_k: int | None = None) -> np.ndarray:
    """Which classes are detected in each row: at or above their threshold, and among the row's top K.

    scores : (n, c);  thresholds : (c,) or one for all
    top_k   None: any number of classes. All that tie with the K-th place stay, so columns' order decides nothing
    Returns (n, c) bool.
    """
    found = scores >= thresholds
    if top_k is not None and top_k < scores.shape[1]:
        found &= scores >= -np.partition(-scores, top_k - 1, axis=1)[:, top_k - 1 : top_k]
    return found


def choose_thresholds(
    scores: np.ndarray,
    truth: np.ndarray,
    known: np.ndarray,
    recordings: np.ndarray,
    rule: Rule,
    top_k: int | None = None,
) -> Thresholds:
    """Choose by what held-out rows show.

    scores      (n, c) in [0, 1);  truth: (n, c) bool;  known: (n, c) bool, which cells count at all
    recordings  (n,) whose row it is: support is counted in recordings
    top_k       detections are judged after the top K of each row are kept
    Thresholds lie halfway between the last score that they let in and the next one below it. Where nothing is true, or
    nothing is false, nothing can be chosen: such a class has no threshold of its own, and the shared one is 0.5.
    """
    n_classes = scores.shape[1]
    reachable = detected(scores, 0.0, top_k)
    shared, shared_reached = _choose(scores[known], truth[known], reachable[known], rule)
    values, reached = np.full(n_classes, shared), np.full(n_classes, shared_reached)
    own = np.zeros(n_classes, dtype=bool)
    for c in range(n_classes):
        rows = known[:, c]
        if truth[rows, c].all() or len(np.unique(recordings[rows & truth[:, c]])) < rule.fewest_recordings:
            continue
        own[c] = True
        values[c], reached[c] = _choose(scores[rows, c], truth[rows, c], reachable[rows, c], rule)
    return Thresholds(values, shared, own, reached)


def _choose(scores: np.ndarray, truth: np.ndarray, reachable: np.ndarray, rule: Rule) -> tuple[float, bool]:
    """One threshold, and whether it keeps the rule. scores, truth, reachable : (m,)."""
    n_true = int(truth.sum())
    if n_true in (0, len(truth)):
        return DEFAULT_THRESHOLD, rule.precision is None
    candidates, hits = scores[reachable], truth[reachable]
    order = np.argsort(-candidates, kind="stable")
    candidates, n_right = candidates[order], np.cumsum(hits[order])
    last = np.flatnonzero(np.append(np.diff(candidates) < 0, True))  # equal scores are let in together
    n_claimed, n_right = last + 1, n_right[last]
    if rule.precision is None:
        best = int(np.argmax(2 * n_right / (n_claimed + n_true)))
    else:
        good = np.flatnonzero(n_right >= rule.precision * n_claimed)
        if len(good) == 0:
            return _between(1.0, float(candidates[0])), False
        best = int(good[-1])
    place = last[best]
    below = float(candidates[place + 1]) if place + 1 < len(candidates) else 0.0
    return _between(float(candidates[place]), below), True


def _between(above: float, below: float) -> float:
    return float(np.clip((above + below) / 2, _LOWEST, BELOW_ONE))
