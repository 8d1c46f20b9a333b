"""One ranking of every (row, class) cell, without holding the cells: average precision over all of them at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stage2_heads.metrics import RankCurve

__all__ = ["all_cells"]

_COUNTS = 1 << 22  # bins times groups that replicates are counted in: 32 MB, twice, up to 16,384 groups
_FEWEST_BINS, _MOST_BINS = 256, 8192

Column = Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray | None]]


def all_cells(
    column: Column, n_classes: int, group: np.ndarray, weights: np.ndarray, light_weight: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Average precision, and 11-point interpolated average precision, of all cells in one ranking, (r,) each.

    column         c -> (n,) truth, scores, and which cells weigh `light_weight` (None: no cell does) of class c
    group          (n,) whose weight each row takes;  weights : (n_groups, r), of which the first is all ones
    The first of r is exact. The others are, too, while the positives' scores take no more values than there are bins:
    2^22 / n_groups, within 256 and 8192. With more, near scores of positives share a bin and tie there; single
    replicates then move by some 1e-4.
    """
    positives = [np.zeros(0)]
    for c in range(n_classes):
        true, scores, light = column(c)
        counted = true if light is None or light_weight else true & ~light
        positives.append(np.unique(scores[counted]))
    cuts = np.unique(np.concatenate(positives))
    n_replicates = weights.shape[1]
    if not len(cuts):
        return np.full(n_replicates, np.nan), np.full(n_replicates, np.nan)

    n_groups = len(weights)
    n_bins = min(len(cuts), max(_FEWEST_BINS, min(_MOST_BINS, _COUNTS // n_groups)))
    first_of_bin = np.unique(np.linspace(0, len(cuts), n_bins, endpoint=False).astype(np.int64))
    bin_of_cut = np.searchsorted(first_of_bin, np.arange(len(cuts)), side="right") - 1
    exact = np.zeros((2, len(cuts) + 1))  # of all cells, of the true ones; the last counts cells below every positive
    binned = np.zeros((2, len(first_of_bin) * n_groups)) if n_replicates > 1 else None
    for c in range(n_classes):
        true, scores, light = column(c)
        place = np.searchsorted(cuts, scores, side="right") - 1
        counted = np.ones(len(scores)) if light is None or light_weight is None else np.where(light, light_weight, 1.0)
        exact[0] += np.bincount(place % len(exact[0]), counted, len(exact[0]))
        exact[1] += np.bincount(place[true], counted[true], len(exact[0]))
        if binned is not None:
            for counts, rows in zip(binned, (place >= 0, true), strict=True):
                np.add.at(counts, bin_of_cut[place[rows]] * n_groups + group[rows], counted[rows])
    curve = _curve(exact[1, :-1, None], exact[0, :-1, None])
    precision, eleven = curve.average_precision(), curve.ap11()
    if binned is None:
        return precision, eleven
    every, positive = (counts.reshape(-1, n_groups) @ weights[:, 1:] for counts in binned)
    curve = _curve(positive, every)
    return np.r_[precision, curve.average_precision()], np.r_[eleven, curve.ap11()]


def _curve(true: np.ndarray, every: np.ndarray) -> RankCurve:
    """true, every : (bins, r) weight of positives and of all cells in each bin, lowest scores first.

    What scores below every positive is in no bin, and neither average precision asks for it.
    """
    true_through, all_through = (np.cumsum(part[::-1], axis=0) for part in (true, every))
    return RankCurve(
        true_above=true_through - true[::-1],
        all_above=all_through - every[::-1],
        true_through=true_through,
        all_through=all_through,
        n_true=true_through[-1],
        n_all=all_through[-1],
    )
