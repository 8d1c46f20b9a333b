"""From a file to windows: decode block by block, mix down, resample, cut, in memory that does not grow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soxr

from embeddings.errors import AudioError, InputError
from embeddings.windows import AudioWindow, Span, WindowPlan
from stage1_backbones.decoders import open_audio

__all__ = ["duration_s", "read_audio", "stream_windows"]

_QUALITY = "HQ"
_SILENT_PEAK = 2 / 32768
_SILENCE_DBFS = -200.0
# Beyond this a sample is damage, not sound, and would overflow in a spectrum. Integers stored as floats pass.
_LARGEST_SAMPLE = 1e9


def stream_windows(
    path: Path, plan: WindowPlan, rates_hz: Sequence[int], *, start_s: float = 0.0, end_s: float | None = None
) -> Iterator[AudioWindow]:
    """Decode one recording once, window by window, at every rate asked for.

    path           : any file that libsndfile reads, any rate, any number of channels (averaged)
    plan           : window, hop and last-window policy, in seconds of what decodes
    rates_hz       : sample rates of the waveforms, in Hz
    start_s, end_s : hear only this part, None to the end: it is cut like a recording of its own, while its windows keep
                     their times in the whole one
    Yields windows in order of time; `waveforms[rate]` is float32 (round(window_s * rate),) and starts at
    sample round(start_s * rate) of the whole recording (or part) resampled at once. Samples beyond 1.0 are kept.
    Raises AudioError on a file that is empty or not audio, and, after the good windows, on one that stops
    decoding, is shorter than its header promises, or holds samples that are not finite.
    """
    path = Path(path)
    problems: list[str] = []
    with open_audio(path) as source:
        cutter = _Cutter(plan, source.rate_hz, rates_hz, start_s)
        first = round(start_s * source.rate_hz)
        n_left = math.inf if end_s is None else round(end_s * source.rate_hz) - first
        if first:
            source.seek(first)
        try:
            for block in source.blocks() if n_left > 0 else ():
                cutter.feed(block if len(block) <= n_left else block[: int(n_left)])
                yield from cutter.whole_windows()
                n_left -= len(block)
                if n_left <= 0:
                    break
        except AudioError as error:
            problems.append(str(error))
        cutter.finish()
        yield from cutter.last_windows()
    for words, n in cutter.damaged.items():
        problems.append(f"{n} of the {cutter.n_windows} windows of {path} hold samples that are {words}; left out.")
    if not cutter.n_windows and not problems:
        where = "" if not start_s and end_s is None else f" from {start_s:g} s on"
        problems.append(f"{path} is audio, but holds no samples{where}.")
    if problems:
        raise AudioError(" ".join(problems))


def read_audio(path: Path, rate_hz: int, *, start_s: float = 0.0, duration_s: float | None = None) -> np.ndarray:
    """Decode one stretch of a recording, for training and for pictures.

    rate_hz    : sample rate of the result, in Hz
    start_s    : where to begin; the file is entered there, not decoded up to there
    duration_s : how much to read; None reads to the end
    Returns mono float32 (n,), shorter than asked for where the recording ends or stops decoding.
    Raises AudioError when nothing decodes there, or a sample is not finite.
    """
    path = Path(path)
    _require_rate(rate_hz)
    with open_audio(path) as source:
        source.seek(round(start_s * source.rate_hz))
        wanted = math.inf if duration_s is None else round(duration_s * source.rate_hz)
        blocks: list[np.ndarray] = []
        n = 0
        failure: AudioError | None = None
        try:
            for block in source.blocks():
                blocks.append(block.copy())
                n += len(block)
                if n >= wanted:
                    break
        except AudioError as error:
            failure = error
        if not n:
            raise failure or AudioError(f"{path} holds no audio at {start_s:g} s.")
        samples = np.concatenate(blocks)[: n if duration_s is None else int(wanted)]
        if words := _damage(_peak(samples)):
            raise AudioError(f"{path} holds samples that are {words}.")
        if rate_hz == source.rate_hz:
            return samples
        return soxr.resample(samples, source.rate_hz, rate_hz, quality=_QUALITY)


def duration_s(path: Path) -> float:
    """Length in seconds as the header tells it: for choosing training crops, not for windows.

    Only a file whose header promises nothing (mp3 without a Xing tag, bare AAC) is decoded to its end.
    Raises AudioError when the file cannot be opened as audio.
    """
    with open_audio(Path(path)) as source:
        n = source.header_frames
        if n is None:
            n = sum(len(block) for block in source.blocks())
        return n / source.rate_hz


class _Cutter:
    """Cuts decoded blocks into windows as soon as they are complete, and forgets what no window needs."""

    def __init__(self, plan: WindowPlan, source_rate_hz: int, rates_hz: Sequence[int], offset_s: float = 0.0) -> None:
        self._plan = plan
        self._offset_s = offset_s  # where in the recording the part begins that is cut
        self._source = _Tail(source_rate_hz, plan.window_s)
        self._tails = {source_rate_hz: self._source}
        self._resamplers: dict[int, soxr.ResampleStream] = {}
        for rate_hz in rates_hz:
            _require_rate(rate_hz)
            if rate_hz not in self._tails:
                self._tails[rate_hz] = _Tail(rate_hz, plan.window_s)
                self._resamplers[rate_hz] = soxr.ResampleStream(
                    source_rate_hz, rate_hz, 1, dtype="float32", quality=_QUALITY
                )
        self._rates_hz = tuple(dict.fromkeys(rates_hz))
        self.n_windows = 0
        self.damaged: Counter[str] = Counter()  # windows that are left out, by what their samples are

    def feed(self, block: np.ndarray) -> None:
        self._source.append(block)
        if not self._resamplers:
            return
        if not _peak(block) <= _LARGEST_SAMPLE:
            # One bad sample would spread over its neighbours' windows in the resampler.
            block = np.where(np.abs(block) <= _LARGEST_SAMPLE, block, np.float32(0.0))
        for rate_hz, resampler in self._resamplers.items():
            self._tails[rate_hz].append(resampler.resample_chunk(block, last=False))

    def finish(self) -> None:
        nothing = np.zeros(0, dtype=np.float32)
        for rate_hz, resampler in self._resamplers.items():
            self._tails[rate_hz].append(resampler.resample_chunk(nothing, last=True))

    def whole_windows(self) -> Iterator[AudioWindow]:
        """Windows that end within what has been decoded, whatever follows."""
        while True:
            start_s = self.n_windows * self._plan.hop_s
            span = Span(start_s, start_s + self._plan.window_s)
            if span.end_s > self._source.seconds or any(
                tail.index(start_s) + tail.length > tail.end for tail in self._tails.values()
            ):
                break
            yield from self._window(span)
        next_s = self.n_windows * self._plan.hop_s
        for tail in self._tails.values():
            # A last window that is shifted back reaches one window length behind the end.
            tail.forget(min(tail.index(next_s), tail.end - tail.length) - 1)

    def last_windows(self) -> Iterator[AudioWindow]:
        """What remains when the end is known."""
        for span in self._plan.spans(self._source.seconds)[self.n_windows :]:
            yield from self._window(span)

    def _window(self, span: Span) -> Iterator[AudioWindow]:
        self.n_windows += 1
        own = self._source.cut(span, self._plan)
        peak = _peak(own)
        if words := _damage(peak):
            self.damaged[words] += 1
            return
        mean_square = float(np.dot(own, own)) / len(own)
        yield AudioWindow(
            span=replace(span, start_s=span.start_s + self._offset_s, end_s=span.end_s + self._offset_s),
            silent=peak <= _SILENT_PEAK,
            rms_dbfs=max(_SILENCE_DBFS, 10.0 * math.log10(mean_square)) if mean_square > 0 else _SILENCE_DBFS,
            waveforms={rate: self._tails[rate].filled(span, self._plan) for rate in self._rates_hz},
        )


class _Tail:
    """The latest samples of one recording at one rate, addressed by their index in the whole recording."""

    def __init__(self, rate_hz: int, window_s: float) -> None:
        self.rate_hz = rate_hz
        self.length = round(window_s * rate_hz)
        self._first = 0  # index of the first sample still held
        self._n = 0
        self._data = np.empty(4 * self.length, dtype=np.float32)

    @property
    def end(self) -> int:
        return self._first + self._n

    @property
    def seconds(self) -> float:
        return self.end / self.rate_hz

    def index(self, seconds: float) -> int:
        return round(seconds * self.rate_hz)

    def append(self, samples: np.ndarray) -> None:
        n = self._n + len(samples)
        if n > len(self._data):
            grown = np.empty(2 * n, dtype=np.float32)
            grown[: self._n] = self._data[: self._n]
            self._data = grown
        self._data[self._n : n] = samples
        self._n = n

    def forget(self, before: int) -> None:
        """Let go of samples before this index; they are moved only when that frees more than it moves."""
        dead = before - self._first
        if dead > self._n // 2:
            self._n -= dead
            self._first = before
            self._data[: self._n] = self._data[dead : dead + self._n].copy()

    def cut(self, span: Span, plan: WindowPlan) -> np.ndarray:
        """The recording's own samples in a window: a view, at most one window long."""
        start = self.index(span.start_s)
        if span.repeated or plan.last != "pad":
            # Rounding may place a last window one sample beyond the end.
            start = max(0, min(start, self.end - self.length))
        start -= self._first
        return self._data[start : min(start + self.length, self._n)]

    def filled(self, span: Span, plan: WindowPlan) -> np.ndarray:
        """A whole window in memory of its own: repeated when the recording is shorter, else zero-filled."""
        own = self.cut(span, plan)
        if span.repeated and len(own):
            return np.resize(own, self.length)
        window = np.zeros(self.length, dtype=np.float32)
        window[: len(own)] = own
        return window


def _peak(samples: np.ndarray) -> float:
    """Largest magnitude; not a number when any sample is not a number."""
    return max(float(samples.max()), -float(samples.min()))


def _damage(peak: float) -> str:
    """What samples of this peak are that are no sound; "" when they are."""
    if not math.isfinite(peak):
        return "not finite"
    if peak > _LARGEST_SAMPLE:
        return f"louder than any recording (beyond {_LARGEST_SAMPLE:g}; sound lies between -1 and 1)"
    return ""


def _require_rate(rate_hz: int) -> None:
    if rate_hz <= 0:
        raise InputError(f"A sample rate of {rate_hz} Hz was asked for; a positive number is needed.")
