"""All metrics of one table of scores (recordings or windows), once as they are and once for each reweighting."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stage2_heads.all_cells import all_cells
from stage2_heads.metrics import CONFIDENCE_THRESHOLDS, Ranking, f1_of
from stage2_heads.score_table import ScoreTable, UniformScores

__all__ = ["METRICS", "Level", "LevelFigures", "random_baseline"]

METRICS = (
    "top_1",
    "top_3",
    "cmap_present",
    "cmap_padded_5",
    "cmap_padded_3",
    "ap_micro",
    "ap11",
    "ap11_confidence",
    "auroc",
    "f1_micro",
    "f1_macro",
)
_CHUNK_VALUES = 1 << 22  # weights gathered at a time: 32 MB
_PER_CLASS = ("ap", "cmap_padded_5", "cmap_padded_3", "auroc")


@dataclass(frozen=True)
class LevelFigures:
    """metrics: name -> (r,), nan where undefined;  ap, auroc, f1: (c,) of the first weighting.

    right, claimed, true   (c,) how many detections are right, how many there are, how much there is to detect
    """

    metrics: dict[str, np.ndarray]
    ap: np.ndarray
    auroc: np.ndarray
    f1: np.ndarray
    right: np.ndarray
    claimed: np.ndarray
    true: np.ndarray


@dataclass(frozen=True)
class Level:
    """Scores with their truth, at the level of recordings or of windows; gone through class by class.

    truth    (n_groups, c) bool, of each recording: primary and secondary labels among the classes
    scores   (n, c) in [0, 1)
    primary  (n_groups,) column of the primary label, -1 when it is not among the classes
    group    (n,) which recording each row belongs to
    threshold, top_k   where a score is a detection: one threshold for all classes or (c,), and at most so many a row
    secondary          (n_groups, c) bool, cells of secondary labels;  secondary_weight: what such a cell counts in all
                       but top-k, 0 (left out, then not in `truth`) to 1 (like any other)
    """

    truth: np.ndarray
    scores: ScoreTable | UniformScores
    primary: np.ndarray
    group: np.ndarray
    threshold: float | np.ndarray = 0.5
    top_k: int | None = None
    secondary: np.ndarray | None = None
    secondary_weight: float = 1.0

    def figures(self, weights: np.ndarray) -> LevelFigures:
        """weights : (n_groups, r) positive, mean 1 a column, the first all ones; padding rows of cmAP weigh 1."""
        n_groups, n_classes = self.truth.shape
        curves = {name: np.full((n_classes, weights.shape[1]), np.nan) for name in _PER_CLASS}
        detections = np.zeros((3, n_groups, n_classes))  # right, claimed, true
        confident = np.zeros((2, n_groups, len(CONFIDENCE_THRESHOLDS)))  # claimed, right
        cell_weights, thresholds = self._for_cells(weights), np.broadcast_to(self.threshold, n_classes)
        lowest = self._lowest_in_top_k()
        for c in range(n_classes):
            true, scores, light = self._column(c)
            ranking = self._ranking(true, scores, light)
            for columns in _chunks(weights.shape[1], len(ranking.groups)):
                curve = ranking.curve(cell_weights[:, columns])
                curves["ap"][c, columns] = curve.average_precision()
                curves["cmap_padded_5"][c, columns] = curve.average_precision(5)
                curves["cmap_padded_3"][c, columns] = curve.average_precision(3)
                curves["auroc"][c, columns] = curve.auroc()
            counted = None if light is None else np.where(light, self.secondary_weight, 1.0)
            claimed = scores >= np.maximum(thresholds[c], lowest)
            detections[:, :, c] = [self._by_group(m, counted) for m in (true & claimed, claimed, true)]
            confident += self._by_confidence(true, scores, counted)

        metrics = self._top_k(weights)
        present = np.any(self.truth, axis=0)
        metrics["cmap_present"] = _mean_over(curves["ap"], present)
        metrics["cmap_padded_5"] = curves["cmap_padded_5"].mean(axis=0)
        metrics["cmap_padded_3"] = curves["cmap_padded_3"].mean(axis=0)
        metrics["auroc"] = _mean_over(curves["auroc"], np.isfinite(curves["auroc"][:, 0]))
        metrics["ap_micro"], metrics["ap11"] = all_cells(
            self._column, n_classes, self.group, weights, self._light_weight
        )
        n_claimed, n_right = (counts.T @ weights for counts in confident)
        precision = np.divide(n_right, n_claimed, out=np.ones_like(n_right), where=n_claimed > 0)
        metrics["ap11_confidence"] = precision.mean(axis=0)
        right, claimed_by_class, true_by_class = (weights.T @ counts for counts in detections)
        metrics["f1_micro"], per_class = f1_of(right, claimed_by_class + true_by_class)
        metrics["f1_macro"] = _mean_over(per_class.T, present)
        return LevelFigures(
            metrics={name: metrics[name] for name in METRICS},
            ap=curves["ap"][:, 0],
            auroc=curves["auroc"][:, 0],
            f1=per_class[0],
            right=right[0],
            claimed=claimed_by_class[0],
            true=true_by_class[0],
        )

    @property
    def _light_weight(self) -> float | None:
        """What the cells of secondary labels count, where that is not what others do."""
        return self.secondary_weight if self.secondary is not None and self.secondary_weight < 1 else None

    def _column(self, c: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """(n,) truth and scores of a class, and which of its cells count by their own weight, if any may."""
        light = None
        if self._light_weight is not None:
            assert self.secondary is not None
            light = self.secondary[:, c][self.group]
        return self.truth[:, c][self.group], self.scores.column(c), light

    def _ranking(self, true: np.ndarray, scores: np.ndarray, light: np.ndarray | None) -> Ranking:
        """Ranked rows, to be weighed by `_for_cells`: light cells take their weight from its second half."""
        n_groups = len(self.truth)
        if light is None:
            return Ranking.of(true, scores, self.group, n_groups)
        if self.secondary_weight == 0:
            return Ranking.of(true[~light], scores[~light], self.group[~light], n_groups)
        return Ranking.of(true, scores, self.group + n_groups * light, 2 * n_groups)

    def _for_cells(self, weights: np.ndarray) -> np.ndarray:
        return np.vstack([weights, self._light_weight * weights]) if self._light_weight else weights

    def _by_group(self, mask: np.ndarray, counted: np.ndarray | None) -> np.ndarray:
        """How many rows of each group a mask holds, each as what it counts."""
        return np.bincount(self.group, mask if counted is None else mask * counted, len(self.truth))

    def _by_confidence(self, true: np.ndarray, scores: np.ndarray, counted: np.ndarray | None) -> np.ndarray:
        """(2, n_groups, 11): rows at or above each threshold, and the true ones among them."""
        n_groups, n_steps = len(self.truth), len(CONFIDENCE_THRESHOLDS)
        step = np.searchsorted(CONFIDENCE_THRESHOLDS, scores, side="right") - 1  # the first threshold is 0
        cell = self.group * n_steps + step
        counts = [
            np.bincount(cell, mask if counted is None else mask * counted, n_groups * n_steps)
            for mask in (np.ones(len(true)), true)
        ]
        return np.cumsum(np.reshape(counts, (2, n_groups, n_steps))[:, :, ::-1], axis=2)[:, :, ::-1]

    def _lowest_in_top_k(self) -> np.ndarray | float:
        """(n,) each row's K-th highest score; what no score is below when any number may be detected."""
        n_rows, n_classes = self.scores.shape
        if self.top_k is None or self.top_k >= n_classes:
            return 0.0
        best = np.full((self.top_k, n_rows), -np.inf)
        for c in range(n_classes):
            scores = self.scores.column(c)
            for place in best:
                scores, place[:] = np.minimum(place, scores), np.maximum(place, scores)
        return best[-1]

    def _top_k(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Share of rows whose primary label is among the k highest scores, ties counting as in `top_k_hits`."""
        primary = self.primary[self.group]
        ranked = np.flatnonzero(primary >= 0)
        if len(ranked) == 0:
            nothing = np.full(weights.shape[1], np.nan)
            return {"top_1": nothing, "top_3": nothing}
        primary, group = primary[ranked], self.group[ranked]
        own, n_above, n_tied = (np.zeros(len(ranked)) for _ in range(3))
        for c in np.unique(primary):
            own[primary == c] = self.scores.column(c)[ranked[primary == c]]
        for c in range(self.scores.shape[1]):
            scores = self.scores.column(c)[ranked]
            n_above += scores > own
            n_tied += scores == own
        n_groups = len(self.truth)
        everyone = np.bincount(group, minlength=n_groups) @ weights
        hits = {k: np.bincount(group, np.clip((k - n_above) / n_tied, 0.0, 1.0), n_groups) for k in (1, 3)}
        return {f"top_{k}": (by_group @ weights) / everyone for k, by_group in hits.items()}


def random_baseline(level: Level, n_draws: int, seed: int) -> dict[str, float]:
    """The mean of every metric over `n_draws` tables of uniform scores for the same truth."""
    everyone = np.ones((len(level.truth), 1))
    totals = dict.fromkeys(METRICS, 0.0)
    for draw in range(n_draws):
        drawn = replace(level, scores=UniformScores(level.scores.shape, (seed, draw)))
        for name, values in drawn.figures(everyone).metrics.items():
            totals[name] += float(values[0]) / n_draws
    return totals


def _mean_over(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Mean over some classes. values : (c, r).  Returns (r,), nan when no class is asked for."""
    return values[classes].mean(axis=0) if classes.any() else np.full(values.shape[1], np.nan)


def _chunks(n_replicates: int, n_items: int) -> list[slice]:
    size = max(1, _CHUNK_VALUES // max(1, n_items))
    return [slice(start, min(start + size, n_replicates)) for start in range(0, n_replicates, size)]
