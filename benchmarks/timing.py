"""Fair timing: both sides in turn, several times, and the medians.

Processor seconds are counted, not those of the clock: a busy machine then troubles one-thread comparisons less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Result", "compared", "one_thread", "ratio_of"]

Result = dict[str, Any]
"""name, ratio, target, ok and compared, and whatever else a benchmark wants to tell."""


def ratio_of(other: Callable[[], object], ours: Callable[[], object], *, repeats: int = 5) -> tuple[float, float]:
    """Processor seconds of `other` and `ours`: medians of interleaved runs, after one run of each to warm up."""
    other()
    ours()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for spent, run in zip(seconds, (other, ours), strict=True):
            began = time.process_time()
            run()
            spent.append(time.process_time() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def compared(name: str, other_s: float, ours_s: float, target: float, what: str, **more: Any) -> Result:
    """A result: how many times as fast as the other side ours is, and whether that reaches the target."""
    ratio = other_s / ours_s
    return {
        "name": name,
        "ratio": round(ratio, 3),
        "target": target,
        "ok": ratio >= target,
        "compared": what,
        "ours_s": round(ours_s, 5),
        "other_s": round(other_s, 5),
        **more,
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch and every BLAS and OpenMP library in this process to one thread."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
