"""All metrics of one table of scores (recordings or windows), once as they are and once for each reweighting."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stage2_heads.metrics import CONFIDENCE_THRESHOLDS, Ranking, f1_scores, sum_by_group, top_k_hits
from stage2_heads.thresholds import detected

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
    """metrics: name -> (r,), nan where undefined;  ap, auroc, f1: (c,) of the first weighting."""

    metrics: dict[str, np.ndarray]
    ap: np.ndarray
    auroc: np.ndarray
    f1: np.ndarray


@dataclass(frozen=True)
class Level:
    """Scores with their truth, at the level of recordings or of windows.

    truth    (n, c) bool, primary and secondary labels among the classes
    scores   (n, c) float64 in [0, 1)
    primary  (n,) column of the primary label, -1 when it is not among the classes
    group    (n,) which recording each row belongs to, 0 .. n_groups - 1
    threshold, top_k   where a score is a detection: one threshold for all classes or (c,), and at most so many a row
    secondary          (n, c) bool, cells of secondary labels;  secondary_weight: what such a cell counts in all but
                       top-k, 0 (left out, then not in `truth`) to 1 (like any other)
    """

    truth: np.ndarray
    scores: np.ndarray
    primary: np.ndarray
    group: np.ndarray
    n_groups: int
    threshold: float | np.ndarray = 0.5
    top_k: int | None = None
    secondary: np.ndarray | None = None
    secondary_weight: float = 1.0

    @property
    def claimed(self) -> np.ndarray:
        """(n, c) bool, the detections."""
        return detected(self.scores, self.threshold, self.top_k)

    @property
    def cell_weights(self) -> np.ndarray | float:
        """What each cell counts, (n, c), or one number where all count alike."""
        return 1.0 if self._light is None else np.where(self._light, self.secondary_weight, 1.0)

    @property
    def _light(self) -> np.ndarray | None:
        return self.secondary if self.secondary_weight < 1 else None

    def figures(self, weights: np.ndarray) -> LevelFigures:
        """weights : (n_groups, r) positive, mean 1 a column; padding rows of cmAP weigh 1."""
        n_classes, cell_weights = self.truth.shape[1], self._for_cells(weights)
        curves = {name: np.full((n_classes, weights.shape[1]), np.nan) for name in _PER_CLASS}
        for c in range(n_classes):
            light = None if self._light is None else self._light[:, c]
            ranking = self._ranking(self.truth[:, c], self.scores[:, c], self.group, light)
            for columns in _chunks(weights.shape[1], len(ranking.groups)):
                curve = ranking.curve(cell_weights[:, columns])
                curves["ap"][c, columns] = curve.average_precision()
                curves["cmap_padded_5"][c, columns] = curve.average_precision(5)
                curves["cmap_padded_3"][c, columns] = curve.average_precision(3)
                curves["auroc"][c, columns] = curve.auroc()

        metrics = self._top_k(weights)
        present = np.any(self.truth, axis=0)
        metrics["cmap_present"] = _mean_over(curves["ap"], present)
        metrics["cmap_padded_5"] = curves["cmap_padded_5"].mean(axis=0)
        metrics["cmap_padded_3"] = curves["cmap_padded_3"].mean(axis=0)
        metrics["auroc"] = _mean_over(curves["auroc"], present & ~np.all(self.truth, axis=0))
        metrics |= self._micro(weights)
        micro, per_class = f1_scores(self.truth, self.claimed, self.group, weights, self.cell_weights)
        metrics["f1_micro"], metrics["f1_macro"] = micro, _mean_over(per_class.T, present)
        return LevelFigures(
            metrics={name: metrics[name] for name in METRICS},
            ap=curves["ap"][:, 0],
            auroc=curves["auroc"][:, 0],
            f1=per_class[0],
        )

    def _ranking(self, truth: np.ndarray, scores: np.ndarray, group: np.ndarray, light: np.ndarray | None) -> Ranking:
        """Ranked cells, to be weighed by `_for_cells`: light ones take their weight from its second half."""
        if light is None:
            return Ranking.of(truth, scores, group, self.n_groups)
        if self.secondary_weight == 0:
            return Ranking.of(truth[~light], scores[~light], group[~light], self.n_groups)
        return Ranking.of(truth, scores, group + self.n_groups * light, 2 * self.n_groups)

    def _for_cells(self, weights: np.ndarray) -> np.ndarray:
        if self._light is None or self.secondary_weight == 0:
            return weights
        return np.vstack([weights, self.secondary_weight * weights])

    def _top_k(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        ranked = np.flatnonzero(self.primary >= 0)
        if len(ranked) == 0:
            nothing = np.full(weights.shape[1], np.nan)
            return {"top_1": nothing, "top_3": nothing}
        hits = np.stack([top_k_hits(self.scores[ranked], self.primary[ranked], k) for k in (1, 3)], axis=1)
        groups = self.group[ranked]
        counts = np.bincount(groups, minlength=self.n_groups)
        shares = (sum_by_group(hits, groups, self.n_groups).T @ weights) / (counts @ weights)
        return {"top_1": shares[0], "top_3": shares[1]}

    def _micro(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        n_classes, n_replicates = self.truth.shape[1], weights.shape[1]
        light = None if self._light is None else self._light.ravel()
        ranking = self._ranking(self.truth.ravel(), self.scores.ravel(), np.repeat(self.group, n_classes), light)
        cell_weights = self._for_cells(weights)
        ap, eleven = np.empty(n_replicates), np.empty(n_replicates)
        for columns in _chunks(n_replicates, len(ranking.groups)):
            curve = ranking.curve(cell_weights[:, columns])
            ap[columns], eleven[columns] = curve.average_precision(), curve.ap11()

        claims = [(self.scores >= t) * self.cell_weights for t in CONFIDENCE_THRESHOLDS]
        claimed = np.stack([claim.sum(axis=1) for claim in claims], axis=1)
        right = np.stack([(claim * self.truth).sum(axis=1) for claim in claims], axis=1)
        n_claimed = sum_by_group(claimed, self.group, self.n_groups).T @ weights
        n_right = sum_by_group(right, self.group, self.n_groups).T @ weights
        precision = np.divide(n_right, n_claimed, out=np.ones_like(n_right), where=n_claimed > 0)
        return {"ap_micro": ap, "ap11": eleven, "ap11_confidence": precision.mean(axis=0)}


def random_baseline(level: Level, n_draws: int, seed: int) -> dict[str, float]:
    """The mean of every metric over `n_draws` tables of uniform scores for the same truth."""
    rng = np.random.default_rng(seed)
    everyone = np.ones((level.n_groups, 1))
    totals = dict.fromkeys(METRICS, 0.0)
    for _ in range(n_draws):
        drawn = replace(level, scores=rng.random(level.truth.shape))
        for name, values in drawn.figures(everyone).metrics.items():
            totals[name] += float(values[0]) / n_draws
    return totals


def _mean_over(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Mean over some classes. values : (c, r).  Returns (r,), nan when no class is asked for."""
    return values[classes].mean(axis=0) if classes.any() else np.full(values.shape[1], np.nan)


def _chunks(n_replicates: int, n_items: int) -> list[slice]:
    size = max(1, _CHUNK_VALUES // max(1, n_items))
    return [slice(start, min(start + size, n_replicates)) for start in range(0, n_replicates, size)]
