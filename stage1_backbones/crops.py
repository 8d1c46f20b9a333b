"""Stretches of recordings to train on: checked once, kept in memory within a budget, decoded again beyond it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch.utils.data import Dataset

from embeddings.errors import AudioError, CisticolaError
from embeddings.recordings import Recording
from embeddings.windows import WindowPlan
from stage1_backbones.audio import read_audio

__all__ = ["Crops", "FixedWindows"]

CACHE_BYTES = 1 << 30
DECODERS = 2
_LEVEL_S = 0.1  # loudness is known in steps of this


class Crops:
    """Windows anywhere in a set of recordings, at one sample rate.

    Every recording is decoded once at the start, so that a bad file is named before training and not hours into it.
    `recordings` are those that decode; `problems` name the others.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        rate_hz: int,
        window_s: float,
        *,
        cache_bytes: int = CACHE_BYTES,
        on_decoded: Callable[[int], None] | None = None,
    ) -> None:
        self.rate_hz = rate_hz
        self.window_s = window_s
        self.n_samples = round(window_s * rate_hz)
        self.recordings: list[Recording] = []
        self.durations_s: list[float] = []
        self.problems: list[str] = []
        self._kept: list[np.ndarray | None] = []
        self._energy: list[np.ndarray] = []
        free = cache_bytes
        with ThreadPoolExecutor(DECODERS) as pool:
            for start in range(0, len(recordings), 2 * DECODERS):
                chunk = recordings[start : start + 2 * DECODERS]
                for recording, result in zip(chunk, pool.map(self._decode, chunk), strict=True):
                    if on_decoded is not None:
                        on_decoded(1)
                    if isinstance(result, str):
                        self.problems.append(f"{recording.filename or recording.path}: {result}")
                        continue
                    self.recordings.append(recording)
                    self.durations_s.append(len(result) / rate_hz)
                    self._energy.append(_energy(result, round(_LEVEL_S * rate_hz)))
                    keep = result.nbytes <= free
                    free -= result.nbytes if keep else 0
                    self._kept.append(result if keep else None)

    def __len__(self) -> int:
        return len(self.recordings)

    def random(self, i: int, rng: np.random.Generator) -> np.ndarray:
        """A window of recording i that starts anywhere it fits: float32 (window_s * rate_hz,)."""
        return self.at(i, rng.uniform(0.0, max(0.0, self.durations_s[i] - self.window_s)))

    def loud(self, i: int, rng: np.random.Generator) -> np.ndarray:
        """A window of recording i around a moment that is drawn the more often the louder it is."""
        latest_s = max(0.0, self.durations_s[i] - self.window_s)
        moment_s = (rng.choice(len(self._energy[i]), p=self._energy[i]) + 0.5) * _LEVEL_S
        return self.at(i, float(np.clip(moment_s - rng.uniform(0.0, self.window_s), 0.0, latest_s)))

    def at(self, i: int, start_s: float) -> np.ndarray:
        """The window of recording i at `start_s`; a recording shorter than a window is repeated to fill it."""
        kept = self._kept[i]
        if kept is None:
            samples = read_audio(self.recordings[i].path, self.rate_hz, start_s=start_s, duration_s=self.window_s)
        else:
            first = round(start_s * self.rate_hz)
            samples = kept[first : first + self.n_samples]
        return samples if len(samples) == self.n_samples else np.resize(samples, self.n_samples)

    def fixed(self, most_per_recording: int) -> list[tuple[int, float]]:
        """(recording, start_s) of windows to judge by: each recording's windows, at most so many, spread evenly."""
        plan = WindowPlan(window_s=self.window_s, hop_s=self.window_s)
        places = []
        for i, duration_s in enumerate(self.durations_s):
            spans = plan.spans(duration_s)
            chosen = np.linspace(0, len(spans) - 1, min(most_per_recording, len(spans))).round().astype(int)
            places += [(i, spans[place].start_s) for place in chosen]
        return places

    def _decode(self, recording: Recording) -> np.ndarray | str:
        try:
            samples = read_audio(recording.path, self.rate_hz)
        except (CisticolaError, OSError) as error:
            return str(error)
        return samples if len(samples) else str(AudioError("decodes to nothing"))


def _energy(samples: np.ndarray, step: int) -> np.ndarray:
    """Share of a recording's energy in each step of time, without the hum below a few hundred Hz: differences."""
    squares = np.square(np.diff(samples, prepend=samples[:1]))
    energy = np.add.reduceat(squares, np.arange(0, len(squares), step), dtype=np.float64) + 1e-12
    return energy / energy.sum()


class FixedWindows(Dataset):
    """The windows of recordings to judge by, each with the number of its recording."""

    def __init__(self, crops: Crops, places: list[tuple[int, float]]) -> None:
        self._crops, self._places = crops, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        i, start_s = self._places[place]
        return self._crops.at(i, start_s), i
