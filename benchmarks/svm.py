"""The linear SVM beside scikit-learn's, out of core beside in memory, and its memory as the store grows tenfold."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measured_runs import peak_anonymous_bytes
from benchmarks.store import fill_store
from benchmarks.timing import Result, compared, one_thread, ratio_of

NAME, GROUP = "svm", "heads"
_ROWS, _DIM, _CLASSES = 200_000, 1152, 264
_TIMED_CLASSES = 4  # of scikit-learn's, whose time is the same for each
_JUDGED_CLASSES = 24  # classes on which both are scored
_WINDOWS = 100  # a recording's, in the stores
_MEMORY_RECORDINGS = 2_000
_LIMIT = 1.10


def run() -> list[Result]:
    """200,000 windows of 1152 numbers in 264 classes, one thread each side; memory at that size and at ten times it."""
    return [*_beside_scikit_learn(), _out_of_core(), _memory()]


def _invented(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, their class, and the classes' centres: near enough to one another that ranking them is hard."""
    label_of = rng.integers(_CLASSES, size=_ROWS)
    centres = rng.standard_normal((_CLASSES, _DIM)).astype(np.float32)
    vectors = rng.standard_normal((_ROWS, _DIM), dtype=np.float32)
    vectors += 0.12 * centres[label_of]
    return vectors, label_of, centres


def _beside_scikit_learn() -> list[Result]:
    from sklearn.linear_model import SGDClassifier

    from stage2_heads.heads import create_head
    from stage2_heads.metrics import present_cmap

    rng = np.random.default_rng(0)
    vectors, label_of, centres = _invented(rng)
    targets = np.eye(_CLASSES, dtype=np.float32)
    labels = [f"species{i:03d}" for i in range(_CLASSES)]
    new_of = np.repeat(np.arange(_CLASSES), 10)
    new = rng.standard_normal((len(new_of), _DIM), dtype=np.float32) + 0.12 * centres[new_of]
    batch = 256

    def epoch_of(model: SGDClassifier, label: int) -> SGDClassifier:
        return model.partial_fit(vectors, (label_of == label).astype(int), classes=[0, 1])

    def ours() -> None:
        head = create_head("svm")
        for start in range(0, _ROWS, batch):
            part = slice(start, start + batch)
            head.partial_fit(vectors[part], targets[label_of[part]], classes=labels)
        nonlocal fitted
        fitted = head

    def theirs() -> None:
        for label in range(_TIMED_CLASSES):
            epoch_of(SGDClassifier(loss="hinge", alpha=1e-5, random_state=0), label)

    fitted = create_head("svm")
    with one_thread():
        timed_s, ours_s = ratio_of(theirs, ours, repeats=1)
        judged = [
            epoch_of(SGDClassifier(loss="hinge", alpha=1e-5, random_state=0), label).decision_function(new)
            for label in range(_JUDGED_CLASSES)
        ]
    truth = np.eye(_CLASSES, dtype=int)[new_of][:, :_JUDGED_CLASSES]
    cmaps = (
        present_cmap(truth, fitted.decision(new)[:, :_JUDGED_CLASSES]),
        present_cmap(truth, np.stack(judged, axis=1)),
    )
    size = f"{_ROWS:,} x {_DIM} x {_CLASSES}, 1 thread"
    what = (
        f"svm head's partial_fit in batches of {batch} with scikit-learn SGDClassifier.partial_fit, one class against "
        f"the rest ({_TIMED_CLASSES} of {_CLASSES} classes timed), an epoch of {size}"
    )
    quality = {
        "name": "svm: cmAP after one epoch, beside scikit-learn's",
        "ratio": round(cmaps[0] / cmaps[1], 3),
        "target": 1.0,
        "ok": cmaps[0] >= cmaps[1],
        "compared": f"{cmaps[0]:.3f} with {cmaps[1]:.3f} on {len(new)} new windows, {_JUDGED_CLASSES} classes",
    }
    return [compared("svm: epoch", timed_s * _CLASSES / _TIMED_CLASSES, ours_s, 20.0, what, threads=1), quality]


def _out_of_core() -> Result:
    """An epoch's batches and steps from a store on disk, beside the same vectors in memory."""
    from embeddings.store import Store
    from stage2_heads.rows import ArrayReader, LabelledRows

    n_recordings = 400
    n_rows = n_recordings * _WINDOWS
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        fill_store(Path(scratch) / "store", n_recordings)
        store = Store(Path(scratch) / "store")
        stored = _labelled(store)
        held = LabelledRows(
            ArrayReader(stored.reader.read(np.arange(n_rows)), stored.dims),
            stored.rows,
            stored.recording_of_row,
            stored.targets,
            stored.labels,
            stored.blocks,
        )
        memory_s, store_s = ratio_of(lambda: _epoch(held), lambda: _epoch(stored), repeats=3)
    what = f"an svm epoch over {n_rows:,} x {_DIM} x {_CLASSES} from the store with the same from memory, 1 thread"
    return compared("svm: out of core", memory_s, store_s, 0.8, what, threads=1)


def _labelled(store):  # type: ignore[no-untyped-def]
    from stage2_heads.rows import LabelledRows

    rows = np.arange(store.n_rows)
    places, of_row = store.index.recordings_of(rows)
    targets = np.eye(_CLASSES, dtype=np.float32)[np.arange(len(places)) % _CLASSES]
    labels = tuple(f"species{i:03d}" for i in range(_CLASSES))
    reader = store.reader()
    return LabelledRows(reader, rows, of_row, targets, labels, reader.blocks)


def _epoch(rows) -> None:  # type: ignore[no-untyped-def]
    """What one epoch of a fit does, statistics included, and nothing twice."""
    from stage2_heads.heads import create_head

    head = create_head("svm", epochs=1, min_updates=1)
    head._begin(rows.labels, rows.dims)
    head._learn(rows, lambda share: None)


def _memory() -> Result:
    """Peak memory of an epoch as recordings get ten times as long, and as there are ten times as many."""
    sizes = ((_MEMORY_RECORDINGS, _WINDOWS), (_MEMORY_RECORDINGS, 10 * _WINDOWS), (10 * _MEMORY_RECORDINGS, _WINDOWS))
    peaks = []
    for n_recordings, n_windows in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "store"
            fill_store(path, n_recordings, n_windows)
            command = [sys.executable, "-m", "benchmarks.svm", str(path)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peaks.append(int(done.stdout))
    growth = peaks[1] / peaks[0]
    few, many = (f"{n * windows:,}" for n, windows in sizes[:2])
    return {
        "name": "svm: memory, ten times the rows",
        "ratio": round(growth, 3),
        "target": _LIMIT,
        "ok": growth <= _LIMIT,
        "compared": f"peak anonymous memory of an epoch over {many} rows on disk, {peaks[1] >> 20} MB, with {few} "
        f"rows, {peaks[0] >> 20} MB, both of {_MEMORY_RECORDINGS:,} recordings (at most the target is wanted); {many} "
        f"rows of {sizes[2][0]:,} recordings, whose names and {_CLASSES} labels each are held: {peaks[2] >> 20} MB",
    }


def main(path: Path) -> None:
    """One epoch over a store; prints the peak of this process's anonymous memory, in bytes."""
    from embeddings.store import Store

    def work() -> None:
        _epoch(_labelled(Store(path)))

    print(peak_anonymous_bytes(work))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
