"""A recording's time axis in words: the time of day where its recorder's clock is known, else minutes and seconds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

__all__ = ["TimeAxis", "elapsed"]

_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
_MOST_TICKS = 9


@dataclass(frozen=True)
class TimeAxis:
    """ticks_s  seconds from the recording's start;  labels : one each;  words : which time that is"""

    ticks_s: tuple[float, ...]
    labels: tuple[str, ...]
    words: str

    @classmethod
    def of(cls, began: datetime | None, length_s: float) -> TimeAxis:
        """began  the first moment, None where no clock is known. Ticks stand on round times of the clock."""
        step_s = next(
            (s for s in _STEPS_S if length_s / s <= _MOST_TICKS), _STEPS_S[-1] * (1 + int(length_s) // 604_800)
        )
        since_s = 0.0
        if began is not None:
            since_s = (began - began.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()
        first_s = np.ceil(since_s / step_s) * step_s - since_s
        ticks_s = tuple(np.arange(first_s, length_s + 1e-6, step_s).tolist())
        if began is None:
            return cls(ticks_s, tuple(elapsed(t, length_s) for t in ticks_s), "time from its start")
        clock = "%H:%M:%S" if step_s < 60 else "%H:%M"
        zone = f" {began:%Z}" if began.tzinfo is not None else " by the recorder's clock"
        labels = tuple((began + timedelta(seconds=t)).strftime(clock) for t in ticks_s)
        return cls(ticks_s, labels, f"{began:%Y-%m-%d}, from {began:%H:%M:%S}{zone}")


def elapsed(seconds: float, length_s: float | None = None) -> str:
    """1:05, or 0:01:05 where `length_s`, the longest on the axis, is an hour or more."""
    minutes, rest = divmod(round(seconds), 60)
    if (seconds if length_s is None else length_s) < 3600:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
