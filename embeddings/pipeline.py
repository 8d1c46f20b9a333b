"""Many recordings in flight: decoding runs ahead in threads, and the networks get full batches."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from embeddings.contract import Backbone
from embeddings.errors import AudioError
from embeddings.recordings import Recording
from embeddings.windows import AudioWindow, WindowPlan, WindowStream

__all__ = ["InFlight", "embed_all"]

BATCH_WINDOWS = 64  # windows that wait for the networks; a multiple of every backbone's own batch
DECODERS = 2
_QUEUED_WINDOWS = 32  # per recording in flight; bounds memory whatever a recording's length


@dataclass
class InFlight:
    """A recording on its way: windows that are decoded and vectors that have come back, in order of time."""

    recording: Recording
    windows: list[AudioWindow] = field(default_factory=list)
    vectors: dict[str, list[np.ndarray]] = field(default_factory=dict)
    n_embedded: int = 0
    decoded: bool = False
    error: str = ""

    @property
    def complete(self) -> bool:
        return self.decoded and self.n_embedded == len(self.windows)


def embed_all(
    recordings: Sequence[Recording], backbones: Sequence[Backbone], plan: WindowPlan, decode: WindowStream
) -> Iterator[InFlight]:
    """Embed recordings in order; batches are filled across recordings, and each comes out when it is whole."""
    rates = sorted({b.sample_rate_hz for b in backbones})
    in_flight: deque[InFlight] = deque()
    waiting: list[tuple[InFlight, AudioWindow]] = []

    def through_the_networks() -> None:
        for backbone in backbones:
            batch = np.stack([window.waveforms[backbone.sample_rate_hz] for _, window in waiting])
            for (owner, _), vector in zip(waiting, backbone.embed(batch), strict=True):
                owner.vectors[backbone.name].append(vector)
        for owner, _ in waiting:
            owner.n_embedded += 1
        waiting.clear()

    with _Decoding(recordings, plan, rates, decode) as decoding:
        for recording, windows in decoding:
            current = InFlight(recording, vectors={b.name: [] for b in backbones})
            in_flight.append(current)
            try:
                for window in windows:
                    # The samples go to the networks and are forgotten; the row keeps the window's place.
                    current.windows.append(replace(window, waveforms={}))
                    waiting.append((current, window))
                    if len(waiting) == BATCH_WINDOWS:
                        through_the_networks()
            except AudioError as error:
                current.error = str(error)
            current.decoded = True
            while in_flight and in_flight[0].complete:
                yield in_flight.popleft()
        if waiting:
            through_the_networks()
        yield from in_flight


class _Decoding:
    """Decodes a few recordings ahead in threads, and hands their windows over in the order of the recordings."""

    def __init__(
        self, recordings: Sequence[Recording], plan: WindowPlan, rates: Sequence[int], decode: WindowStream
    ) -> None:
        self._recordings = recordings
        self._plan, self._rates, self._decode = plan, rates, decode
        self._pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._stop = threading.Event()

    def __enter__(self) -> _Decoding:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[Recording, Iterator[AudioWindow]]]:
        ahead: deque[tuple[Recording, queue.Queue[Any]]] = deque()
        for recording in self._recordings:
            ahead.append((recording, self._start(recording)))
            if len(ahead) > 2 * DECODERS:
                first, channel = ahead.popleft()
                yield first, self._windows(channel)
        while ahead:
            first, channel = ahead.popleft()
            yield first, self._windows(channel)

    def _start(self, recording: Recording) -> queue.Queue[Any]:
        channel: queue.Queue[Any] = queue.Queue(_QUEUED_WINDOWS)
        self._pool.submit(self._work, recording.path, channel)
        return channel

    def _work(self, path: Path, channel: queue.Queue[Any]) -> None:
        """Send every window, then None or the error. A file of any kind of badness ends as an AudioError."""
        end: AudioError | None = None
        try:
            for window in self._decode(path, self._plan, self._rates):
                if not self._send(channel, window):
                    return
        except AudioError as error:
            end = error
        except Exception as error:
            end = AudioError(f"{path} cannot be decoded ({type(error).__name__}: {error})")
        self._send(channel, end)

    def _send(self, channel: queue.Queue[Any], item: Any) -> bool:
        while not self._stop.is_set():
            try:
                channel.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    @staticmethod
    def _windows(channel: queue.Queue[Any]) -> Iterator[AudioWindow]:
        while (item := channel.get()) is not None:
            if isinstance(item, AudioError):
                raise item
            yield item
