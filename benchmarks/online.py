"""The online head beside river's logistic regression, one class against the rest, on the same stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import Result, compared, one_thread

NAME, GROUP = "online", "heads"
_ROWS, _DIM, _CLASSES = 1_200, 1152, 60
_CHUNK = 100  # rows that each side takes in turn, so that a busy machine troubles both alike
_RATES = (0.1, 0.01, 0.001, 0.0001)  # river's default is .01
_RATE_ROWS = 200


def run() -> list[Result]:
    """A single-label stream of 1,200 windows, each predicted, then learnt; one thread each side, processor seconds.

    Both sides begin with nothing and see the same rows. River is given the best of four learning rates, tried on the
    first 200 rows; its dictionaries are made outside the clock. Its rows are standardised by its own scaler.
    """
    from stage2_heads.heads import create_head

    rng = np.random.default_rng(0)
    label_of = rng.integers(_CLASSES, size=_ROWS)
    centres = rng.standard_normal((_CLASSES, _DIM))
    vectors = (0.5 * centres[label_of] + rng.standard_normal((_ROWS, _DIM))).astype(np.float32)
    targets = np.eye(_CLASSES, dtype=np.float32)[label_of]
    labels = [f"species{i:02d}" for i in range(_CLASSES)]
    rows = [dict(enumerate(vector)) for vector in vectors.tolist()]
    names = [labels[label] for label in label_of]

    with one_thread():
        tried = {rate: _river_hits(_river(rate), rows[:_RATE_ROWS], names[:_RATE_ROWS]) for rate in _RATES}
        rate = max(_RATES, key=lambda rate: tried[rate])
        river, head = _river(rate), create_head("online")
        river_s = ours_s = 0.0
        river_hits = 0
        for start in range(0, _ROWS, _CHUNK):
            part = slice(start, start + _CHUNK)
            spent, hits = _timed(lambda part=part: _river_hits(river, rows[part], names[part]))
            river_s, river_hits = river_s + spent, river_hits + hits
            ours_s += _timed(lambda part=part: head.partial_fit(vectors[part], targets[part], classes=labels))[0]
    ours, theirs = head.progressive_.n_hits / _ROWS, river_hits / _ROWS
    what = (
        f"online head's partial_fit, {1e3 * ours_s / _ROWS:.2f} ms a row, with river's StandardScaler | "
        f"OneVsRestClassifier(LogisticRegression(SGD({rate:g}))), {1e3 * river_s / _ROWS:.1f} ms, predicted and "
        f"learnt, {_ROWS} x {_DIM} x {_CLASSES}, 1 thread; progressive accuracy {ours:.3f} with {theirs:.3f}"
    )
    result = compared(NAME, river_s, ours_s, 50.0, what, threads=1, accuracy=round(ours, 4), river=round(theirs, 4))
    return [{**result, "ok": result["ok"] and ours >= theirs}]


def _river(rate: float) -> Any:
    from river import linear_model, multiclass, optim, preprocessing

    logistic = linear_model.LogisticRegression(optim.SGD(rate))
    return preprocessing.StandardScaler() | multiclass.OneVsRestClassifier(logistic)


def _river_hits(model: Any, rows: list[dict[int, float]], labels: list[str]) -> int:
    """How many of the rows were predicted rightly before they were learnt."""
    hits = 0
    for row, label in zip(rows, labels, strict=True):
        hits += model.predict_one(row) == label
        model.learn_one(row, label)
    return hits


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    found = work()
    return time.process_time() - began, found
