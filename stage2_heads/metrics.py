"""Exact scores of a ranking or a decision: average precision and its relatives, AUROC, top-k, F1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embeddings.errors import InputError, ScoreRangeError

__all__ = [
    "RankCurve",
    "Ranking",
    "ap11",
    "ap11_confidence",
    "auroc",
    "average_precision",
    "check_scores",
    "f1_of",
    "f1_scores",
    "known_cmap",
    "padded_cmap",
    "present_cmap",
    "rank_curve",
    "sum_by_group",
    "top_k_hits",
]

CONFIDENCE_THRESHOLDS = np.arange(11) / 10
_FLOAT32_TOP = 1 - 2.0**-23  # between here and 1 float32 has one step left: sigmoids crowd there
_ROUNDING = 1e-12


@dataclass(frozen=True)
class RankCurve:
    """A class's ranking, cut where its positives stand; the weights of r replicates side by side.

    true_above, all_above    (g, r) weight of positives, of everything, ranked strictly above each positive tie group
    true_through, all_through  (g, r) the same including the tie group itself
    n_true, n_all            (r,) weight of all positives, of everything
    """

    true_above: np.ndarray
    all_above: np.ndarray
    true_through: np.ndarray
    all_through: np.ndarray
    n_true: np.ndarray
    n_all: np.ndarray

    def average_precision(self, padding: int = 0) -> np.ndarray:
        """(r,) step-sum average precision below `padding` rows of ones that weigh 1 each; nan without positives."""
        gained = self.true_through - self.true_above
        area = padding + (gained * (self.true_through + padding) / (self.all_through + padding)).sum(axis=0)
        positives = self.n_true + padding
        return np.divide(area, positives, out=np.full(len(positives), np.nan), where=positives > 0)

    def auroc(self) -> np.ndarray:
        """(r,) probability that a positive stands above a negative, ties counting half; nan when either is missing."""
        gained = self.true_through - self.true_above
        false_above = self.all_above - self.true_above
        false_through = self.all_through - self.true_through
        n_false = self.n_all - self.n_true
        pairs = self.n_true * n_false
        lost = (gained * (false_above + false_through) / 2).sum(axis=0)
        defined = (self.n_true > 0) & (n_false > _ROUNDING * self.n_all)
        return 1 - np.divide(lost, pairs, out=np.full(len(pairs), np.nan), where=defined)

    def ap11(self) -> np.ndarray:
        """(r,) mean over recall 0, .1 ... 1 of the highest precision there or beyond; nan without positives."""
        if len(self.true_through) == 0:
            return np.full(len(self.n_true), np.nan)
        precision = self.true_through / self.all_through
        recall = self.true_through / self.n_true
        best_beyond = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        total = np.zeros(len(self.n_true))
        for level in np.arange(11) / 10:
            first = (recall < level - _ROUNDING).sum(axis=0)  # recall grows along the ranking
            first = np.minimum(first, len(recall) - 1)
            total += np.take_along_axis(best_beyond, first[None], axis=0)[0]
        return total / 11


@dataclass(frozen=True)
class Ranking:
    """One class sorted once, so that any number of weightings can be read off it.

    groups, true_groups  whose weight each ranked item, each ranked positive takes, best score first
    cuts, true_cuts      how many items, how many positives stand above each boundary of a positive tie group
    at_start, at_end     which boundary opens and which closes each positive tie group
    group_sizes          items of each group, ranked or not
    """

    groups: np.ndarray
    true_groups: np.ndarray
    cuts: np.ndarray
    true_cuts: np.ndarray
    at_start: np.ndarray
    at_end: np.ndarray
    group_sizes: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, scores: np.ndarray, group: np.ndarray, n_groups: int) -> Ranking:
        """truth : (n,) of {0, 1};  scores : (n,);  group : (n,) in 0 .. n_groups - 1."""
        positive = truth > 0
        sizes = np.bincount(group, minlength=n_groups).astype(np.float64)
        if not positive.any():
            nobody, top = np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
            return cls(nobody, nobody, top, top, nobody, nobody, sizes)
        # Nothing below the lowest positive matters: sort only what stands at or above it.
        above = np.flatnonzero(scores >= scores[positive].min())
        order = above[np.argsort(-scores[above], kind="stable")]
        ranked, is_true = scores[order], positive[order]
        tie_starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        tie_ends = np.r_[tie_starts[1:], len(order)]
        with_positives = np.add.reduceat(is_true, tie_starts, dtype=np.int64) > 0
        starts, ends = tie_starts[with_positives], tie_ends[with_positives]
        cuts = np.unique(np.r_[0, starts, ends])
        return cls(
            groups=group[order],
            true_groups=group[order[is_true]],
            cuts=cuts,
            true_cuts=np.r_[0, np.cumsum(is_true)][cuts],
            at_start=np.searchsorted(cuts, starts),
            at_end=np.searchsorted(cuts, ends),
            group_sizes=sizes,
        )

    def curve(self, weights: np.ndarray) -> RankCurve:
        """weights : (n_groups, r) positive, one column a replicate."""
        every = _running_sums(weights, self.groups, self.cuts)
        true = _running_sums(weights, self.true_groups, self.true_cuts)
        return RankCurve(
            true_above=true[self.at_start],
            all_above=every[self.at_start],
            true_through=true[self.at_end],
            all_through=every[self.at_end],
            n_true=true[-1],
            n_all=self.group_sizes @ weights,
        )


def rank_curve(truth: np.ndarray, scores: np.ndarray) -> RankCurve:
    """The unweighted curve of one class. truth : (n,) of {0, 1};  scores : (n,)."""
    everyone = np.zeros(len(truth), dtype=np.int64)
    return Ranking.of(np.asarray(truth), np.asarray(scores), everyone, 1).curve(np.ones((1, 1)))


def average_precision(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each class, ties taken together (the step sum of scikit-learn and torchmetrics).

    truth : (n, c) of {0, 1};  scores : (n, c) float, any finite scale.  Returns float64 (c,), nan without positives.
    Source: checked against sklearn.metrics.average_precision_score to 1e-12.
    """
    truth, scores = _pair(truth, scores)
    return np.array([rank_curve(truth[:, c], scores[:, c]).average_precision()[0] for c in range(truth.shape[1])])


def auroc(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class, ties counting half.

    truth : (n, c) of {0, 1};  scores : (n, c).  Returns float64 (c,), nan where positives or negatives are missing.
    """
    truth, scores = _pair(truth, scores)
    return np.array([rank_curve(truth[:, c], scores[:, c]).auroc()[0] for c in range(truth.shape[1])])


def padded_cmap(truth: np.ndarray, scores: np.ndarray, *, padding: int = 5) -> float:
    """Class-mean average precision with padding rows, as scored in BirdCLEF 2023.

    truth : (n, c) of {0, 1};  scores : (n, c) float, finite, in [0, 1)
    Returns a float in [0, 1]. Classes without positives score 1 by construction: report their number beside it.
    Raises ScoreRangeError when a score is >= 1, below 0 or not finite (padding rows would tie with it).
    Source: BirdCLEF 2023 evaluation; checked against sklearn.metrics.average_precision_score.

    >>> padded_cmap(np.array([[1], [0], [0]]), np.array([[0.1], [0.5], [0.9]]))
    0.9583333333333334
    """
    if padding < 1:
        raise InputError(f"padding={padding} must be 1 or more; `present_cmap` is the score without padding.")
    truth, scores = _pair(truth, scores)
    check_scores(scores)
    curves = (rank_curve(truth[:, c], scores[:, c]) for c in range(truth.shape[1]))
    return float(np.mean([curve.average_precision(padding)[0] for curve in curves]))


def present_cmap(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean average precision over the classes that have positives; nan when none has.

    truth : (n, c) of {0, 1};  scores : (n, c) float.
    """
    values = average_precision(truth, scores)
    present = ~np.isnan(values)
    return float(values[present].mean()) if present.any() else float("nan")


def known_cmap(targets: np.ndarray, scores: np.ndarray) -> float:
    """`present_cmap` of targets above 0, each class over the items of which it is known.

    targets : (n, c) in [0, 1], nan where nobody knows;  scores : (n, c) float.
    """
    curves = (rank_curve(targets[known, c] > 0, scores[known, c]) for c, known in enumerate(~np.isnan(targets).T))
    values = np.array([curve.average_precision()[0] for curve in curves])
    present = ~np.isnan(values)
    return float(values[present].mean()) if present.any() else float("nan")


def ap11(truth: np.ndarray, scores: np.ndarray) -> float:
    """Eleven-point interpolated average precision over all (row, class) pairs in one ranking.

    The mean, over recall levels 0, .1 ... 1, of the highest precision at that recall or beyond. nan without positives.
    truth : (n, c) or (n,) of {0, 1};  scores : the same shape.
    """
    return float(rank_curve(np.ravel(truth), np.ravel(np.asarray(scores, dtype=np.float64))).ap11()[0])


def ap11_confidence(truth: np.ndarray, scores: np.ndarray) -> float:
    """The reference system's eleven-point reading: the mean precision at score thresholds 0, .1 ... 1.

    A pair counts as predicted when its score reaches the threshold; where nothing is predicted precision is 1, so a
    head that says little is flattered: read it beside `ap11`. All (row, class) pairs are taken together.
    truth : (n, c) or (n,) of {0, 1};  scores : the same shape.
    """
    truth, scores = np.ravel(truth) > 0, np.ravel(np.asarray(scores, dtype=np.float64))
    precisions = []
    for threshold in CONFIDENCE_THRESHOLDS:
        predicted = scores >= threshold
        precisions.append(truth[predicted].mean() if predicted.any() else 1.0)
    return float(np.mean(precisions))


def top_k_hits(scores: np.ndarray, primary: np.ndarray, k: int) -> np.ndarray:
    """How surely each row's primary label is among its k highest scores, float64 (n,) in [0, 1].

    scores : (n, c);  primary : (n,) column of the primary label
    Ties count fractionally: the share of random orders of equal scores in which the label makes it. So nothing
    depends on the order of columns, and a head that says nothing gets exactly k / c.
    """
    own = np.take_along_axis(scores, primary[:, None], axis=1)
    n_above = (scores > own).sum(axis=1)
    n_tied = (scores == own).sum(axis=1)
    return np.clip((k - n_above) / n_tied, 0.0, 1.0)


def f1_scores(
    truth: np.ndarray, predicted: np.ndarray, group: np.ndarray | None = None, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Micro F1, (r,), and F1 of each class, (r, c): 2 TP / (2 TP + FP + FN), 0 when all three are 0.

    truth, predicted : (n, c) of {0, 1};  group, weights : (n,) row of `weights` that each item takes, and (m, r)
    replicates; without them all items weigh 1 and r is 1.
    """
    truth, predicted = np.asarray(truth) > 0, np.asarray(predicted) > 0
    if weights is None or group is None:
        weights, group = np.ones((1, 1)), np.zeros(len(truth), dtype=np.int64)
    agreed = weights.T @ sum_by_group(truth & predicted, group, len(weights))
    claimed = weights.T @ sum_by_group(truth.astype(np.int8) + predicted, group, len(weights))
    return f1_of(agreed, claimed)


def f1_of(agreed: np.ndarray, claimed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `f1_scores`, from (r, c) weight of true positives, and of true plus predicted ones."""
    per_class = np.divide(2 * agreed, claimed, out=np.zeros_like(agreed), where=claimed > 0)
    total = claimed.sum(axis=1)
    micro = np.divide(2 * agreed.sum(axis=1), total, out=np.zeros(len(total)), where=total > 0)
    return micro, per_class


def check_scores(scores: np.ndarray) -> None:
    """Refuse scores that padded cmAP cannot rank.

    Raises ScoreRangeError that says what was found and how to make scores that work.
    """
    scores = np.asarray(scores)
    if not np.issubdtype(scores.dtype, np.number):
        raise ScoreRangeError(f"scores of type {scores.dtype} are not numbers; give probabilities as float64.")
    if not np.isfinite(scores).all():
        raise ScoreRangeError(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores are not finite.")
    if scores.size == 0:
        return
    advice = "Give probabilities: a sigmoid computed in float64 and clipped to 1 - 2**-53, as a head's `scores` does."
    if scores.min() < 0:
        raise ScoreRangeError(
            f"scores run from {scores.min():.6g}: below 0, so they look like margins or logits. {advice}"
        )
    if scores.max() >= 1:
        n_top = int((scores >= 1).sum())
        raise ScoreRangeError(
            f"{n_top} of {scores.size} scores are 1 or more (highest {scores.max():.9g}), where padding rows stand: "
            f"logits, or a sigmoid saturated in float32. {advice}"
        )
    crowded = scores[scores >= _FLOAT32_TOP]
    steps, counts = np.unique(crowded[crowded == crowded.astype(np.float32)], return_counts=True)
    if len(steps) and counts.max() > 1:
        raise ScoreRangeError(
            f"{counts.max()} scores are exactly {steps[counts.argmax()]:.9g}, the last steps of float32 before 1: a "
            f"saturated sigmoid, whose ranks are lost. {advice}"
        )


def sum_by_group(values: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Sums of rows that share a group. values : (n, c);  group : (n,) int.  Returns float64 (n_groups, c)."""
    sums = np.zeros((n_groups, values.shape[1]))
    if len(values):
        order = np.argsort(group, kind="stable")
        ordered = group[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        sums[ordered[starts]] = np.add.reduceat(values[order], starts, axis=0, dtype=np.float64)
    return sums


def _running_sums(weights: np.ndarray, group: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Weight of the first `cut` items for every cut, (len(cuts), r). cuts ascend from 0 to len(group), may repeat."""
    if len(weights) == 1:  # one weight for all: counting is exact and needs no gathering
        return cuts[:, None] * weights
    sums = np.zeros((len(cuts), weights.shape[1]))
    filled = np.flatnonzero(np.diff(cuts) > 0)
    if len(filled):
        sums[filled + 1] = np.add.reduceat(weights[group], cuts[filled], axis=0)
    return np.cumsum(sums, axis=0)


def _pair(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, scores = np.asarray(truth), np.asarray(scores)
    if truth.shape != scores.shape or truth.ndim != 2:
        raise InputError(f"truth {truth.shape} and scores {scores.shape} must have one shape (n rows, c classes).")
    if not ((truth == 0) | (truth == 1)).all():
        raise InputError("truth must hold 0 and 1 only; threshold fractional targets first.")
    if scores.dtype != np.float64:
        scores = scores.astype(np.float64)
    return truth, scores
