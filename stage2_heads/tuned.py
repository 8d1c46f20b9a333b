"""What tuning leaves in a head: a calibration, thresholds, the top K, and what they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embeddings.errors import InputError
from stage2_heads.calibrators import METHODS, Calibrator
from stage2_heads.thresholds import Thresholds, detected

__all__ = ["Tuning"]

_PREFIX = "tuning."  # of its arrays among the head's weights


@dataclass(frozen=True)
class Tuning:
    """How a head's decisions become scores and detections.

    calibrator     decisions to scores, a class at a time
    window, recording  thresholds of a window's scores, and of a recording's, pooled from its windows' by `pool`
    rule           how the thresholds were chosen, in words;  top_k: at most so many classes a row, None: any number
    calibrated_on  what all this rests on, as tables say it, with the numbers of recordings and windows
    calibration_error  cross-fitted, (as fitted, as tuned)
    """

    calibrator: Calibrator
    window: Thresholds
    recording: Thresholds
    pool: str
    rule: str
    top_k: int | None
    calibrated_on: str
    n_recordings: int
    n_windows: int
    calibration_error: tuple[float, float]

    def detected(self, scores: np.ndarray) -> np.ndarray:
        """Windows' scores, (n, c), to detections, (n, c) bool."""
        return detected(scores, self.window.values, self.top_k)

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        return {
            "calibration": self.calibrator.method,
            "calibrated_on": self.calibrated_on,
            "n_recordings": self.n_recordings,
            "n_windows": self.n_windows,
            "calibration_error": {"as_fitted": self.calibration_error[0], "tuned": self.calibration_error[1]},
            "rule": self.rule,
            "top_k": self.top_k,
            "pool": self.pool,
            "thresholds": {"window": self.window.to_json(labels), "recording": self.recording.to_json(labels)},
        }

    def arrays(self) -> dict[str, np.ndarray]:
        return {_PREFIX + name: array for name, array in self.calibrator.arrays().items()}

    @staticmethod
    def take_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Take the tuning's arrays out of a head's, named as `from_json` wants them."""
        return {name.removeprefix(_PREFIX): arrays.pop(name) for name in list(arrays) if name.startswith(_PREFIX)}

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], arrays: Mapping[str, np.ndarray], labels: Sequence[str], where: str
    ) -> Tuning:
        """where : the file, for errors. Raises InputError that names what was edited, KeyError for what is absent."""
        method, top_k = value["calibration"], value["top_k"]
        if method not in METHODS:
            raise InputError(f"{where}: calibration {method!r} is not known; there are {', '.join(METHODS)}.")
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise InputError(f"{where}: top_k is {top_k!r}; a whole number of 1 or more was expected, or null for any.")
        levels = value["thresholds"]
        return cls(
            calibrator=Calibrator.from_arrays(method, arrays, len(labels)),
            window=Thresholds.from_json(levels["window"], labels, f"{where}, per window"),
            recording=Thresholds.from_json(levels["recording"], labels, f"{where}, per recording"),
            pool=str(value["pool"]),
            rule=str(value["rule"]),
            top_k=top_k,
            calibrated_on=str(value["calibrated_on"]),
            n_recordings=int(value["n_recordings"]),
            n_windows=int(value["n_windows"]),
            calibration_error=(
                float(value["calibration_error"]["as_fitted"]),
                float(value["calibration_error"]["tuned"]),
            ),
        )
