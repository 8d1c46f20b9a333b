"""Progressive validation: every row is predicted before it is learnt, and a detector watches the errors for drift."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import numpy as np

from embeddings.errors import InputError
from stage2_heads.base import required_array
from stage2_heads.river_models import create_detector

__all__ = ["Drift", "ProgressiveScore"]

_RECENT_ROWS = 2000  # outcomes kept: a detector that is read back is shown them again
_AFTER_ROWS = 50  # the last rows before an alarm, whose errors stand for what the stream has become
_MOST_DRIFTS = 1000  # the latest are kept
_TOLD_DRIFTS = 3


@dataclass(frozen=True)
class Drift:
    """An alarm of a drift detector.

    row           how many rows had been learnt when it came, this one among them;  time_s  seconds since 1970, UTC
    error_before  share of wrong predictions since the last alarm, without the rows counted below
    error_after   the same over the last 50 rows (over half the rows since the last alarm where those are fewer)
    """

    row: int
    time_s: float
    detector: str
    error_before: float
    error_after: float

    @property
    def got_worse(self) -> bool:
        """Detectors also tell of errors that fall, as they do while a head learns its first rows."""
        return self.error_after > self.error_before

    def to_json(self) -> dict[str, Any]:
        when = datetime.fromtimestamp(self.time_s, UTC).isoformat(timespec="seconds")
        return {
            "row": self.row,
            "time": when,
            "detector": self.detector,
            "error_before": round(self.error_before, 4),
            "error_after": round(self.error_after, 4),
            "got_worse": self.got_worse,
        }


class ProgressiveScore:
    """Counts of right predictions, each made before its row was learnt.

    n_rows, n_hits              all rows
    n_new, n_new_hits           rows that came from a recording of which no window had been learnt: the fairer figure,
                                because windows of one recording resemble each other
    drifts                      alarms, oldest first
    detector : a name of `river_models.detector_names()`;  settings : arguments of its constructor
    Raises InputError for a detector or argument that river does not have.
    """

    def __init__(self, detector: str = "ADWIN", settings: Mapping[str, Any] | None = None) -> None:
        self.detector_name, self._settings = detector, dict(settings or {})
        self._detector = create_detector(detector, self._settings)
        self.n_rows = self.n_hits = self.n_new = self.n_new_hits = 0
        self.drifts: list[Drift] = []
        self._recent: deque[bool] = deque(maxlen=_RECENT_ROWS)  # True where a prediction was wrong
        self._n_since = self._n_wrong_since = 0

    @property
    def top_1(self) -> float | None:
        """Share of right predictions, None before the first."""
        return self.n_hits / self.n_rows if self.n_rows else None

    @property
    def top_1_new(self) -> float | None:
        """The same over rows of recordings that were new."""
        return self.n_new_hits / self.n_new if self.n_new else None

    def record(self, hit: bool, *, new_recording: bool = False) -> Drift | None:
        """Count a prediction. Returns the alarm that it set off, if any."""
        self.n_rows += 1
        self.n_hits += hit
        self.n_new += new_recording
        self.n_new_hits += hit and new_recording
        self._recent.append(not hit)
        self._n_since += 1
        self._n_wrong_since += not hit
        if not self._detector.feed(not hit):
            return None
        n_after = max(1, min(_AFTER_ROWS, self._n_since // 2))
        wrong_after = sum(islice(reversed(self._recent), n_after))
        n_before = self._n_since - n_after
        before = (self._n_wrong_since - wrong_after) / n_before if n_before else 0.0
        drift = Drift(self.n_rows, time.time(), self.detector_name, before, wrong_after / n_after)
        self.drifts = [*self.drifts, drift][-_MOST_DRIFTS:]
        self._n_since = self._n_wrong_since = 0
        return drift

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it but the detector's own state, which is found again by showing it the latest outcomes."""
        counts = (self.n_rows, self.n_hits, self.n_new, self.n_new_hits, self._n_since, self._n_wrong_since)
        arrays: dict[str, np.ndarray] = {
            "progressive_counts": np.array(counts, np.int64),
            "recent_errors": np.array(self._recent, np.uint8),
        }
        if self.drifts:
            arrays["drift_rows"] = np.array([d.row for d in self.drifts], np.int64)
            arrays["drift_values"] = np.array([(d.time_s, d.error_before, d.error_after) for d in self.drifts])
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `to_arrays` gave. Raises InputError when it does not fit together."""
        counts = [int(v) for v in required_array(arrays, "progressive_counts", (6,), np.int64)]
        self.n_rows, self.n_hits, self.n_new, self.n_new_hits, self._n_since, self._n_wrong_since = counts
        recent = required_array(arrays, "recent_errors", (None,), np.uint8)
        if min(counts) < 0 or self.n_hits > self.n_rows or len(recent) > _RECENT_ROWS:
            raise InputError("the head's progressive counts do not belong together; fit the head anew.")
        self._recent.extend(bool(wrong) for wrong in recent)
        for wrong in self._recent:
            self._detector.feed(wrong)
        if "drift_rows" in arrays:
            rows = required_array(arrays, "drift_rows", (None,), np.int64)
            values = required_array(arrays, "drift_values", (len(rows), 3), np.float64)
            self.drifts = [
                Drift(int(row), float(t), self.detector_name, float(before), float(after))
                for row, (t, before, after) in zip(rows, values, strict=True)
            ]

    def to_json(self) -> dict[str, Any]:
        """Counts, shares and the latest alarms, as heads keep them in their provenance."""
        return {
            "rows": self.n_rows,
            "top_1": _rounded(self.top_1),
            "recordings": self.n_new,
            "top_1_new_recordings": _rounded(self.top_1_new),
            "n_drifts": len(self.drifts),
            "latest_drifts": [drift.to_json() for drift in self.drifts[-_TOLD_DRIFTS:]],
        }


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
