"""`embed search` among 100,000 windows: how long one question takes once its vectors are there."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.retrieval import filled_store
from benchmarks.timing import Result, one_thread

__all__ = ["NAME", "measure", "run"]

NAME, GROUP = "search", "field"
_ROWS, _DIM, _K = 100_000, 1024, 10
_TARGET_MS = 200.0
_REPEATS = 15


def run() -> list[Result]:
    """Each kind of question against the target, in milliseconds of the processor, one thread."""
    facts = measure()
    what = f"the target of {_TARGET_MS:g} ms, exact top {_K} of {_ROWS:,} x {_DIM}, a recording once, 1 thread"
    return [
        {
            "name": f"{NAME}: {kind}",
            "ratio": round(_TARGET_MS / median_ms, 3),
            "target": 1.0,
            "ok": median_ms <= _TARGET_MS,
            "compared": f"{median_ms:.0f} ms of processor time, {facts['clock_ms'][kind]:.0f} of the clock (medians of "
            f"{_REPEATS}), once the query's vector is there, with {what}",
            "median_ms": round(median_ms, 1),
            "clock_ms": round(facts["clock_ms"][kind], 1),
        }
        for kind, median_ms in facts["median_ms"].items()
    ]


def measure() -> dict[str, Any]:
    """Median milliseconds of a search, by kind of question; what was searched, and how long preparing it took.

    median_ms counts those of the processor, which a busy machine troubles less; clock_ms is what passed meanwhile.

    Windows are clouds about recordings of a thousand windows, which are clouds about species. Queries are stored
    windows with noise on them. The cache of rounded vectors is made before.
    """
    from embeddings.joined import JoinedStores
    from embeddings.neighbours import NeighbourSearch

    with tempfile.TemporaryDirectory() as scratch, one_thread():
        halves = [
            filled_store(Path(scratch) / name, _ROWS // 2, _DIM, first=i * _ROWS // 1000) for i, name in enumerate("ab")
        ]
        stores = JoinedStores(halves)
        began = time.perf_counter()
        searcher = NeighbourSearch(stores)
        made_s = time.perf_counter() - began
        began = time.perf_counter()
        NeighbourSearch(JoinedStores(halves))
        opened_s = time.perf_counter() - began
        rng = np.random.default_rng(1)
        vectors = searcher.reader.read(np.sort(rng.choice(stores.n_rows, 64, replace=False)))
        noisy = (vectors + 0.5 * rng.standard_normal(vectors.shape)).astype(np.float32)
        one, two, three = noisy[:1], noisy[1:2], noisy[2:3]
        asked = {
            "one window": _medians(lambda: searcher.search(one, _K)),
            "one window, all windows": _medians(lambda: searcher.search(one, _K, one_per_recording=False)),
            "two examples, one counterexample": _medians(lambda: searcher.search_by_examples([one, two], [three], _K)),
            "two recordings of 12 windows": _medians(
                lambda: searcher.search_by_examples([noisy[3:15], noisy[15:27]], [], _K)
            ),
        }
    return {"rows": _ROWS, "dim": _DIM, "k": _K, "index_s": made_s, "open_s": opened_s} | {
        "median_ms": {kind: processor for kind, (processor, _) in asked.items()},
        "clock_ms": {kind: clock for kind, (_, clock) in asked.items()},
    }


def _medians(search: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of the processor and of the clock, after one run to warm up."""
    search()
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPEATS):
        began = (time.process_time(), time.perf_counter())
        search()
        ended = (time.process_time(), time.perf_counter())
        for kind, start, end in zip(spent, began, ended, strict=True):
            kind.append(1000 * (end - start))
    return statistics.median(spent[0]), statistics.median(spent[1])


def main() -> None:
    """Print what was measured."""
    facts = measure()
    for kind, median_ms in facts["median_ms"].items():
        clock_ms = facts["clock_ms"][kind]
        print(
            f"search, {kind}: {median_ms:.0f} ms of the processor, {clock_ms:.0f} of the clock, medians of {_REPEATS}"
        )
    print(
        f"{facts['rows']:,} windows of {facts['dim']} numbers in two stores, top {facts['k']}; rounded vectors made in "
        f"{facts['index_s']:.0f} s, opened again in {1000 * facts['open_s']:.0f} ms"
    )


if __name__ == "__main__":
    main()
