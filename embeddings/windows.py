"""How a recording is cut into windows, and what a window carries on its way to the networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embeddings.errors import InputError

__all__ = ["LAST_WINDOW_POLICIES", "AudioWindow", "Span", "WindowPlan", "WindowStream"]

LAST_WINDOW_POLICIES = ("shift", "pad", "drop")
_TOLERANCE_S = 1e-6
_SHORTEST_HOP_S = 0.01  # below this a slip, not a plan: an hour would be 360,000 windows and more


@dataclass(frozen=True)
class Span:
    """One window's place in its recording, in seconds of what decodes. `end_s` never lies beyond the recording."""

    start_s: float
    end_s: float
    repeated: bool = False


@dataclass(frozen=True)
class WindowPlan:
    """Window length, hop and the policy for a recording's last, incomplete window.

    shift : the last window ends where the recording ends (default)
    pad   : the last window starts on the hop and is filled with zeros
    drop  : the incomplete window is left out
    A recording shorter than one window is repeated to fill it, under every policy.
    """

    window_s: float = 5.0
    hop_s: float = 5.0
    last: str = "shift"

    def __post_init__(self) -> None:
        if not self.window_s > 0:
            raise InputError(f"window_s={self.window_s} must be a positive number of seconds.")
        if not self.hop_s >= _SHORTEST_HOP_S:
            raise InputError(f"hop_s={self.hop_s} must be {_SHORTEST_HOP_S} s or more: a window every so often.")
        if self.last not in LAST_WINDOW_POLICIES:
            raise InputError(f"last={self.last!r} is not a policy; choose {', '.join(LAST_WINDOW_POLICIES)}.")

    def spans(self, duration_s: float) -> list[Span]:
        """Every window of a recording of `duration_s` seconds, in order of time; empty when nothing decodes."""
        if duration_s <= 0:
            return []
        if duration_s < self.window_s - _TOLERANCE_S:
            return [Span(0.0, duration_s, repeated=True)]
        n_whole = int((duration_s - self.window_s + _TOLERANCE_S) // self.hop_s) + 1
        spans = [Span(i * self.hop_s, i * self.hop_s + self.window_s) for i in range(n_whole)]
        if duration_s - spans[-1].end_s > _TOLERANCE_S:
            if self.last == "shift":
                spans.append(Span(duration_s - self.window_s, duration_s))
            elif self.last == "pad" and n_whole * self.hop_s < duration_s - _TOLERANCE_S:
                spans.append(Span(n_whole * self.hop_s, duration_s))
        return spans

    def to_json(self) -> dict[str, Any]:
        return {"window_s": self.window_s, "hop_s": self.hop_s, "last": self.last}


@dataclass(frozen=True)
class AudioWindow:
    """One decoded window.

    waveforms  : sample rate in Hz -> float32 (window_s * rate,), mono, in [-1, 1]
    rms_dbfs   : loudness of the window's own samples; -inf never occurs, digital silence is -200
    silent     : nothing above two steps of a 16-bit recorder
    """

    span: Span
    silent: bool
    rms_dbfs: float
    waveforms: dict[int, np.ndarray]


WindowStream = Callable[[Path, WindowPlan, Sequence[int]], Iterator[AudioWindow]]
"""Decodes one recording window by window: (path, plan, sample rates in Hz) -> windows in order of time.

Raises AudioError when the recording cannot be decoded to its end; windows that came before the error are good.
"""
