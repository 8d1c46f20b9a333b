"""A whole recording's spectrogram in at most so many columns: heard once, in memory that does not grow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["MOST_COLUMNS", "Overview", "overview_of"]

MOST_COLUMNS = 2048
_HIGHEST_HZ = 12_000.0
_FRAME_S = 0.032
_FRAMES_PER_S = 128
_QUIET_SHARE, _LOUD_SHARE = 30, 99.8  # percentiles: in a day a call is a few columns
_LEAST_RANGE_DB = 20.0  # noise alone stays dark
_FAINTEST = 1e-9
_LARGEST_SAMPLE = 1e9  # beyond it is damage, which would overflow in a spectrum


@dataclass(frozen=True, eq=False)
class Overview:
    """What a recording looks like.

    power       float32 (bins from 0 to highest_hz, columns), each the loudest moment of its stretch
    column_s    seconds a column;  duration_s : what decodes
    problem     why no more decodes, or ""
    """

    power: np.ndarray
    column_s: float
    duration_s: float
    highest_hz: float
    problem: str

    def levels(self, range_db: float) -> np.ndarray:
        """Where each bin stands between its own quiet moments, -range_db, and the loudest ones, 0.  (bins, columns)"""
        if not self.power.any():
            return np.full(self.power.shape, -range_db)
        decibels = 10 * np.log10(np.maximum(self.power, self.power.max() * _FAINTEST))
        decibels -= np.percentile(decibels, _QUIET_SHARE, axis=1, keepdims=True)
        loudest = max(_LEAST_RANGE_DB, float(np.percentile(decibels, _LOUD_SHARE)))
        return range_db * (np.clip(decibels / loudest, 0, 1) - 1)


def overview_of(path: Path) -> Overview:
    """Hear a recording from its beginning to its end. Raises AudioError when nothing of it decodes."""
    from embeddings.errors import AudioError
    from stage1_backbones.decoders import open_audio

    problem, n_samples = "", 0
    with open_audio(path) as source:
        columns = _Columns(source.rate_hz)
        try:
            for block in source.blocks():
                columns.feed(block)
                n_samples += len(block)
        except AudioError as error:
            problem = str(error)
        if not n_samples:
            raise AudioError(problem or f"{path} is audio, but holds no samples.")
        columns.feed(np.zeros(columns.n_fft // 2, np.float32))
        return Overview(columns.filled(), columns.column_s, n_samples / source.rate_hz, columns.highest_hz, problem)


class _Columns:
    """Takes samples as they come. When the columns are full, every two become one, and each takes twice as long."""

    def __init__(self, rate_hz: int) -> None:
        self.n_fft = 1 << max(5, round(np.log2(_FRAME_S * rate_hz)))
        self.highest_hz = min(_HIGHEST_HZ, rate_hz / 2)
        self._rate_hz = rate_hz
        self._hop = max(1, rate_hz // _FRAMES_PER_S)
        self._n_bins = round(self.highest_hz * self.n_fft / rate_hz) + 1
        self._window = np.hanning(self.n_fft + 1)[:-1].astype(np.float32)
        self._rest = np.zeros(self.n_fft // 2, np.float32)  # frames are centred on multiples of the hop
        self._power = np.zeros((MOST_COLUMNS, self._n_bins), np.float32)
        self._n_frames = 0
        self._each = 1  # frames a column

    @property
    def column_s(self) -> float:
        return self._each * self._hop / self._rate_hz

    def filled(self) -> np.ndarray:
        return self._power[: -(-self._n_frames // self._each)].T

    def feed(self, block: np.ndarray) -> None:
        from scipy.fft import rfft

        samples = np.concatenate([self._rest, np.where(np.abs(block) <= _LARGEST_SAMPLE, block, np.float32(0))])
        n = 1 + (len(samples) - self.n_fft) // self._hop if len(samples) >= self.n_fft else 0
        if n:
            frames = np.lib.stride_tricks.sliding_window_view(samples, self.n_fft)[: n * self._hop : self._hop]
            spectrum = rfft(frames * self._window)[:, : self._n_bins]
            self._take(spectrum.real**2 + spectrum.imag**2)
        self._rest = samples[n * self._hop :].copy()

    def _take(self, power: np.ndarray) -> None:
        """power : (frames, bins), those that follow."""
        stop = self._n_frames + len(power)
        while stop > self._each * MOST_COLUMNS:
            half = MOST_COLUMNS // 2
            self._power[:half] = np.maximum(self._power[::2], self._power[1::2])
            self._power[half:] = 0
            self._each *= 2
        column = np.arange(self._n_frames, stop) // self._each
        starts = np.flatnonzero(np.diff(column, prepend=-1))
        louder = np.maximum.reduceat(power, starts, axis=0)
        place = slice(int(column[0]), int(column[-1]) + 1)
        self._power[place] = np.maximum(self._power[place], louder)
        self._n_frames = stop
