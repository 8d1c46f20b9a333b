"""Average precision and AUROC of every class beside scikit-learn's, and a bootstrap of them."""

from __future__ import annotations

import numpy as np

from benchmarks.timing import Result, compared, one_thread, ratio_of

NAME, GROUP = "scoring", "heads"
_ROWS, _CLASSES = 200_000, 264
_TIMED_CLASSES = 24
_REPLICATES = 20


def run() -> list[Result]:
    """200,000 windows of 264 classes, one label each; AP and AUROC once, then once for each of 20 reweightings."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    from stage2_heads.metrics import Ranking

    rng = np.random.default_rng(0)
    label_of = rng.integers(_CLASSES, size=_ROWS)
    truth = [label_of == c for c in range(_TIMED_CLASSES)]
    scores = [1 / (1 + np.exp(3 - 2 * true - rng.standard_normal(_ROWS))) for true in truth]
    recording = np.repeat(np.arange(_ROWS // 100), 100)
    weights = rng.standard_exponential((_ROWS // 100, _REPLICATES))

    def ours(weights: np.ndarray) -> np.ndarray:
        figures = []
        for true, score in zip(truth, scores, strict=True):
            curve = Ranking.of(true, score, recording if len(weights) > 1 else zeros, len(weights)).curve(weights)
            figures.append([curve.average_precision(), curve.auroc()])
        return np.moveaxis(figures, 2, 0)

    def theirs(weights: np.ndarray) -> np.ndarray:
        of_row = weights[recording if len(weights) > 1 else zeros]
        return np.array(
            [
                [
                    [metric(true, score, sample_weight=w) for metric in (average_precision_score, roc_auc_score)]
                    for true, score in zip(truth, scores, strict=True)
                ]
                for w in of_row.T
            ]
        )

    zeros, alike = np.zeros(_ROWS, np.int64), np.ones((1, 1))
    size = f"{_ROWS:,} windows, {_TIMED_CLASSES} of {_CLASSES} classes"
    results = []
    with one_thread():
        for how, w, repeats, target in (("once", alike, 3, 2.0), (f"{_REPLICATES} reweightings", weights, 1, 2.0)):
            difference = float(np.abs(ours(w) - theirs(w)).max())
            assert difference < 1e-12, f"figures differ from scikit-learn's by {difference}"
            theirs_s, ours_s = ratio_of(lambda w=w: theirs(w), lambda w=w: ours(w), repeats=repeats)
            what = (
                f"average precision and AUROC of {size}, {how}, with sklearn's average_precision_score and "
                f"roc_auc_score, processor time, 1 thread; the largest difference is {difference:.0e}"
            )
            results.append(compared(f"{NAME}: {how}", theirs_s, ours_s, target, what, threads=1))
    return results
