"""Similar calls: exact and approximate search beside bare faiss, and beside perch-hoplite's brute-force search.

    python -m benchmarks.retrieval STORE

measures recall@100 of approximate search, and both rates, on a store of one's own.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.timing import Result, compared, one_thread, ratio_of

if TYPE_CHECKING:
    from embeddings.neighbours import NeighbourSearch
    from embeddings.store import Store

__all__ = ["NAME", "filled_store", "main", "run"]

NAME, GROUP = "retrieval", "heads"
_K, _BATCH = 100, 64
_ROWS, _DIM = 1_000_000, 256
_PEER_ROWS, _PEER_DIM = 100_000, 1024
_WINDOWS = 1000  # of a recording
_SPECIES = 200


def run() -> list[Result]:
    """The 100 nearest of a million windows of 256 numbers, and of 100,000 of 1024; one thread each side.

    A store of float16 is searched, its rounded vectors mapped from the page cache, against faiss's flat index of the
    same normalised vectors as float32 in memory. Processor seconds are counted. Windows are clouds about recordings,
    which are clouds about 200 species: a dense hop in numbers. Queries are stored windows with noise on them.
    """
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        results = _beside_faiss(Path(scratch) / "million")
        return results + _beside_hoplite(Path(scratch))


def _beside_faiss(path: Path) -> list[Result]:
    import faiss

    from embeddings.neighbours import NeighbourSearch

    faiss.omp_set_num_threads(1)
    store = filled_store(path, _ROWS, _DIM)
    began = time.process_time()
    exact = NeighbourSearch(store)
    made_s = time.process_time() - began
    queries = _queries(store)
    flat = faiss.IndexFlatIP(_DIM)
    for start in range(0, _ROWS, 10_000):
        flat.add(exact.normaliser.apply(exact.reader.read(np.arange(start, start + 10_000))))
    normalised = exact.normaliser.apply(queries)
    size = f"{_ROWS:,} x {_DIM}"
    results = []
    for n, repeats in ((1, 7), (_BATCH, 3)):
        found = exact.nearest(queries[:n], _K)[1]
        true = flat.search(normalised[:n], _K)[0]
        assert np.allclose(found, true, atol=1e-5), "the two do not find equally similar windows"
        flat_s, ours_s = ratio_of(
            lambda n=n: flat.search(normalised[:n], _K), lambda n=n: exact.nearest(queries[:n], _K), repeats=repeats
        )
        what = (
            f"exact top {_K} of {size}, {n} queries at once, from a float16 store (cache made in {made_s:.0f} s) with "
            f"faiss.IndexFlatIP of float32 in memory, 1 thread, processor time ({n / ours_s:.1f} and "
            f"{n / flat_s:.1f} queries/s)"
        )
        results.append(compared(f"{NAME}: exact, batches of {n}", flat_s, ours_s, 0.9, what, threads=1))
    flat.reset()
    began = time.process_time()
    near = NeighbourSearch(store, approximate=True)
    made_s = time.process_time() - began
    recall, exact_s, ours_s = _approximate(exact, near, queries)
    facts = near.facts
    told = (
        f"approximate with exact search, top {_K} of {size}, one query at a time, 1 thread, processor time "
        f"({1 / ours_s:.0f} and {1 / exact_s:.1f} queries/s); {facts['n_probed']} of {facts['n_lists']} lists, made in "
        f"{made_s:.0f} s"
    )
    results.append(compared(f"{NAME}: approximate", exact_s, ours_s, 5.0, told, threads=1, recall=round(recall, 4)))
    results.append(_reached(f"{NAME}: recall@{_K}", recall, 0.95, f"approximate against exact search, {size}"))
    return results


def _beside_hoplite(folder: Path) -> list[Result]:
    try:
        from perch_hoplite.db import brutalism, score_functions, sqlite_usearch_impl
    except ImportError as error:
        sys.stderr.write(f"perch-hoplite is left out ({error}); `make bench` installs it.\n")
        return []
    from embeddings.neighbours import NeighbourSearch

    store = filled_store(folder / "ours", _PEER_ROWS, _PEER_DIM)
    exact, queries = NeighbourSearch(store), _queries(store)
    database = sqlite_usearch_impl.SQLiteUSearchDB.create(
        str(folder / "hoplite"), usearch_cfg=sqlite_usearch_impl.get_default_usearch_config(_PEER_DIM)
    )
    deployment = database.insert_deployment("deployment", "project")
    per_recording = 100  # its insertion slows down as a recording grows
    for start in range(0, _PEER_ROWS, per_recording):
        vectors = exact.normaliser.apply(exact.reader.read(np.arange(start, start + per_recording)))
        recording = database.insert_recording(str(start), deployment_id=deployment)
        windows: list[dict[str, Any]] = [
            {"recording_id": recording, "offsets": [5.0 * w, 5.0 * w + 5.0]} for w in range(per_recording)
        ]
        database.insert_windows_batch(windows, vectors, handle_duplicates="allow")
    database.commit()
    normalised, score = exact.normaliser.apply(queries), score_functions.get_score_fn("dot")
    theirs_s, ours_s = ratio_of(
        lambda: brutalism.brute_search(database, normalised[0], _K, score),
        lambda: exact.nearest(queries[:1], _K),
        repeats=3,
    )
    what = (
        f"exact top {_K} of {_PEER_ROWS:,} x {_PEER_DIM}, one query, with perch-hoplite's brutalism.brute_search over "
        f"SQLiteUSearchDB, 1 thread, processor time ({1 / ours_s:.1f} and {1 / theirs_s:.2f} queries/s)"
    )
    return [compared(f"{NAME}: beside hoplite", theirs_s, ours_s, 15.0, what, threads=1)]


def _approximate(exact: NeighbourSearch, near: NeighbourSearch, queries: np.ndarray) -> tuple[float, float, float]:
    """Recall@100 over the queries, and seconds of exact and of approximate search for one query."""
    true, found = exact.nearest(queries, _K)[0], near.nearest(queries, _K)[0]
    recall = float(np.mean([len(set(t) & set(f)) / _K for t, f in zip(true, found, strict=True)]))
    asked = iter(np.tile(np.arange(len(queries)), 100))

    def one_of(searcher: NeighbourSearch) -> Callable[[], object]:
        return lambda: [searcher.nearest(queries[i : i + 1], _K) for i in (next(asked), next(asked))]

    exact_s, near_s = ratio_of(one_of(exact), one_of(near), repeats=9)
    return recall, exact_s / 2, near_s / 2


def _reached(name: str, value: float, target: float, what: str) -> Result:
    return {"name": name, "ratio": round(value, 4), "target": target, "ok": value >= target, "compared": what}


def _queries(store: Store) -> np.ndarray:
    """Stored windows with noise on them, half as strong as the windows of a recording differ."""
    rng = np.random.default_rng(1)
    vectors = store.reader().read(np.sort(rng.choice(store.n_rows, _BATCH, replace=False)))
    return (vectors + 0.5 * rng.standard_normal(vectors.shape)).astype(np.float32)


def filled_store(path: Path, n_rows: int, dim: int, *, first: int = 0) -> Store:
    """A store of clouds: recordings of a thousand windows about one of 200 species; `first` numbers the first one."""
    from embeddings.contract import Fingerprint, Heard
    from embeddings.files import write_json
    from embeddings.pipeline import EmbeddedPart
    from embeddings.recordings import Recording
    from embeddings.splits import Split
    from embeddings.store import Store
    from embeddings.windows import AudioWindow, WindowPlan
    from embeddings.writing import ShardWriter

    class Clouds:
        name, sample_rate_hz, window_s = "clouds", 32_000, 5.0
        heard, fingerprint = Heard(), Fingerprint({"kind": "clouds", "dim": dim})

        def __init__(self) -> None:
            self.dim = dim

        def save(self, folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "heard.json", self.heard.to_json())

    plan = WindowPlan()
    store = Store.create(path, [Clouds()], plan, dtype="float16", split=Split("all", 0, "", {}), link=False)
    numbers = range(first, first + n_rows // _WINDOWS)
    recordings = [Recording(f"{i:032x}", path / str(i), filename=str(i)) for i in numbers]
    store.add_recordings(recordings)
    windows = [AudioWindow(span, False, -30.0, {}) for span in plan.spans(_WINDOWS * plan.hop_s)]
    rng = np.random.default_rng(first)
    species = rng.standard_normal((_SPECIES, dim), dtype=np.float32)
    writer = ShardWriter(store, dict)
    for recording in recordings:
        vectors = rng.standard_normal((_WINDOWS, dim), dtype=np.float32)
        vectors += species[rng.integers(_SPECIES)] + rng.standard_normal(dim, dtype=np.float32)
        writer.add(EmbeddedPart(recording, windows, {Clouds.name: vectors}, is_last=True))
        writer.finish(partial=False)
        if writer.is_full:
            writer.seal()
    writer.seal()
    return Store(path)


def main(path: Path) -> None:
    """Search a store for its own windows, approximately and exactly, and print what was found of the true nearest."""
    from embeddings.neighbours import NeighbourSearch
    from embeddings.store import Store

    store = Store(path)
    with one_thread():
        exact, near = NeighbourSearch(store), NeighbourSearch(store, approximate=True)
        rng = np.random.default_rng(1)
        queries = store.reader().read(np.sort(rng.choice(store.n_rows, _BATCH, replace=False)))
        recall, exact_s, near_s = _approximate(exact, near, queries)
    print(
        f"{store.n_rows} windows of {near.reader.dim} numbers: recall@{_K} {recall:.3f} of {_BATCH} windows; "
        f"{1 / near_s:.0f} queries/s and, exactly, {1 / exact_s:.0f}, 1 thread, processor time; {near.facts}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
