"""Recordings in, vectors out: decoding runs ahead in a thread, and the networks get full batches."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from embeddings.contract import Backbone
from embeddings.errors import AudioError
from embeddings.recordings import Recording
from embeddings.windows import AudioWindow, WindowPlan, WindowStream

__all__ = ["BATCH_WINDOWS", "EmbeddedPart", "embed_all"]

BATCH_WINDOWS = 32  # windows that go to the networks at once; a multiple of every backbone's own batch
_WINDOWS_AHEAD = 64  # decoded windows that may wait, of however many recordings: memory is bounded by windows alone


@dataclass(frozen=True)
class EmbeddedPart:
    """Consecutive windows of one recording with their vectors; parts come in order of time.

    windows  without their waveforms      vectors  block name -> float32 (len(windows), dim)
    is_last  nothing of this recording follows, and `error` says why it ended early, "" when it did not
    """

    recording: Recording
    windows: list[AudioWindow]
    vectors: Mapping[str, np.ndarray]
    is_last: bool
    error: str = ""


@dataclass
class _Open:
    """A recording that has been begun: its windows in the batch that is gathering, and how it ended."""

    recording: Recording
    windows: list[AudioWindow] = field(default_factory=list)
    ended: bool = False
    error: str = ""


def embed_all(
    recordings: Iterable[Recording],
    backbones: Sequence[Backbone],
    plan: WindowPlan,
    decode: WindowStream,
    *,
    pulse: Callable[[bool], None] = lambda decoding: None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[EmbeddedPart]:
    """Embed recordings in order; batches are filled across recordings, long recordings come out in parts.

    recordings  may be endless or slow: each is asked for when the one before it is decoded
    pulse       called from the decoding thread: True whenever a window is begun, False when it waits for something
    stop        when it turns true, nothing more is decoded or yielded
    """
    rates = sorted({b.sample_rate_hz for b in backbones})
    opened: deque[_Open] = deque()
    n_waiting = 0
    waveforms: list[dict[int, np.ndarray]] = []

    def through_the_networks() -> Iterator[EmbeddedPart]:
        nonlocal n_waiting
        vectors = {b.name: b.embed(np.stack([w[b.sample_rate_hz] for w in waveforms])) for b in backbones if waveforms}
        start = 0
        for one in opened:
            end = start + len(one.windows)
            if end > start or one.ended:
                part = {name: block[start:end] for name, block in vectors.items()}
                yield EmbeddedPart(one.recording, one.windows, part, one.ended, one.error)
            one.windows = []
            start = end
        while opened and opened[0].ended:
            opened.popleft()
        waveforms.clear()
        n_waiting = 0

    with _DecodingAhead(recordings, plan, rates, decode, pulse, stop) as decoded:
        for recording, window, error in decoded:
            if stop():
                return
            if not opened or opened[-1].ended:
                opened.append(_Open(recording))
            if window is None:
                opened[-1].ended, opened[-1].error = True, error
                if not n_waiting:  # nothing to wait for: an unreadable file, or one that ended with the last batch
                    yield from through_the_networks()
                continue
            # The samples go to the networks and are forgotten; the part keeps the window's place.
            opened[-1].windows.append(replace(window, waveforms={}))
            waveforms.append(window.waveforms)
            n_waiting += 1
            if n_waiting == BATCH_WINDOWS:
                yield from through_the_networks()
        if opened and not stop():
            yield from through_the_networks()


class _DecodingAhead:
    """Decodes in a thread of its own, one recording after the other.

    Gives (recording, window, "") for each window, then (recording, None, why it ended early or "").
    """

    def __init__(
        self,
        recordings: Iterable[Recording],
        plan: WindowPlan,
        rates: Sequence[int],
        decode: WindowStream,
        pulse: Callable[[bool], None],
        stop: Callable[[], bool],
    ) -> None:
        self._recordings, self._plan, self._rates, self._decode = recordings, plan, rates, decode
        self._pulse, self._stop = pulse, stop
        self._channel: queue.Queue[Any] = queue.Queue(_WINDOWS_AHEAD)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._work, name="decode", daemon=True)

    def __enter__(self) -> _DecodingAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def __iter__(self) -> Iterator[tuple[Recording, AudioWindow | None, str]]:
        while (item := self._channel.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self) -> None:
        end: BaseException | None = None
        try:
            for recording in self._recordings:
                if not self._decode_one(recording):
                    return
        except BaseException as error:  # whoever hands out the recordings failed; the main thread must know
            end = error
        self._send(end)

    def _decode_one(self, recording: Recording) -> bool:
        """Send every window, then how it ended. A file of any kind of badness ends with a sentence, not a crash."""
        path = recording.path
        error = ""
        try:
            self._pulse(True)
            for window in self._decode(path, self._plan, self._rates):
                if not self._send((recording, window, "")):
                    return False
                self._pulse(True)
        except AudioError as caught:
            error = str(caught)
        except Exception as caught:
            error = f"{path} cannot be decoded ({type(caught).__name__}: {caught})"
        return self._send((recording, None, error))

    def _send(self, item: Any) -> bool:
        self._pulse(False)
        while not self._left.is_set() and not self._stop():
            try:
                self._channel.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        self._channel_closed()
        return False

    def _channel_closed(self) -> None:
        """Wake a reader that waits for a window that will not come."""
        while True:
            try:
                self._channel.put_nowait(None)
                return
            except queue.Full:
                try:
                    self._channel.get_nowait()
                except queue.Empty:
                    continue
