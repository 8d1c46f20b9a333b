"""An epoch of our linear SVM beside scikit-learn's, one class against the rest."""

from __future__ import annotations

import numpy as np

from benchmarks.timing import Result, compared, one_thread, ratio_of

NAME = "svm"
_ROWS, _DIM, _CLASSES = 20_000, 1152, 60
_BATCH = 256


def run() -> list[Result]:
    """One pass of partial_fit over 20,000 windows, one thread each side.

    scikit-learn, which has no multi-label partial_fit, learns a classifier a class. It is given all rows in one call,
    which suits it best, and averages no weights; ours goes through batches of 256 and averages. Twelve of the sixty
    classes are timed for scikit-learn, and five times that is counted.
    """
    from sklearn.linear_model import SGDClassifier

    from stage2_heads.heads import create_head

    rng = np.random.default_rng(0)
    label_of = rng.integers(_CLASSES, size=_ROWS)
    centres = rng.standard_normal((_CLASSES, _DIM))
    vectors = (0.5 * centres[label_of] + rng.standard_normal((_ROWS, _DIM))).astype(np.float32)
    targets = np.eye(_CLASSES, dtype=np.float32)[label_of]
    labels = [f"species{i:02d}" for i in range(_CLASSES)]
    batches = [slice(start, start + _BATCH) for start in range(0, _ROWS, _BATCH)]
    timed = _CLASSES // 5

    def theirs() -> None:
        for label in range(timed):
            model = SGDClassifier(loss="hinge", alpha=1e-5, random_state=0)
            model.partial_fit(vectors, (label_of == label).astype(int), classes=[0, 1])

    def ours() -> None:
        head = create_head("svm")
        for batch in batches:
            head.partial_fit(vectors[batch], targets[batch], classes=labels)

    with one_thread():
        timed_s, ours_s = ratio_of(theirs, ours, repeats=3)
    what = (
        f"svm head's partial_fit with scikit-learn SGDClassifier one class against the rest ({timed} of {_CLASSES} "
        f"classes timed), an epoch of {_ROWS} x {_DIM} x {_CLASSES}, 1 thread"
    )
    return [compared(NAME, timed_s * _CLASSES / timed, ours_s, 10.0, what, threads=1)]
