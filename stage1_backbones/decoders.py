"""Decoders: one open recording, read block by block as mono float32, whatever its container."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

from embeddings.errors import AudioError
from stage1_backbones.mp3 import MPG123_REMARKS, EndlessFile, Mp3Header
from stage1_backbones.quiet import without_remarks

__all__ = ["Decoder", "open_audio"]

_BLOCK_FRAMES, _BLOCK_SAMPLES = 1 << 16, 1 << 17
# A rate outside is a damaged header; it would ask for absurd amounts of memory.
_RATES_HZ = (100, 4_000_000)
_UNKNOWN_FRAMES = 1 << 62
# What a codec may rightly lack at the end of a file: encoder delay and padding of mp3 and AAC, four frames.
# Vorbis and Opus count to the sample, and a lost page costs more than this.
_SLACK_FRAMES = {"MP3": 4 * 1152, "M4A": 4 * 1152, "OGG": 512}
_FFMPEG_SUFFIXES = {".m4a", ".m4b", ".mp4", ".aac", ".3gp", ".mov"}
# How libsndfile logs a wav or aiff, a W64, an RF64 that promises more bytes than there are.
_CUT_CHUNK = re.compile(r"^\s*(?:data|SSND|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)


class Decoder(Protocol):
    """One open recording. Use it in a `with` block and from one thread."""

    rate_hz: int

    @property
    def header_frames(self) -> int | None:
        """Frames that the header promises; None when it promises nothing."""
        ...

    def seek(self, frame: int) -> None:
        """Let `blocks` start at this frame, counted in the file's own rate."""
        ...

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield mono float32 blocks, channels averaged; a block is valid until the next one is asked for.

        Raises AudioError after the last good block when decoding fails, or ends before the header says.
        """
        ...

    def __enter__(self) -> Decoder: ...

    def __exit__(self, *_: object) -> None: ...


def open_audio(path: Path) -> Decoder:
    """Open a recording with the decoder that understands it.

    path : wav, flac, ogg (Vorbis, Opus), mp3, aiff and all that libsndfile reads; m4a, mp4, aac through PyAV
    Raises AudioError, in the decoder's words, when it is missing, empty, or not audio.
    """
    try:
        if path.stat().st_size == 0:
            raise AudioError(f"{path} is empty (0 bytes).")
        with open(path, "rb") as handle:
            head = handle.read(12)
    except OSError as error:
        raise AudioError(f"{path} cannot be opened: {error.strerror or error}.") from None
    decoder: Decoder
    if path.suffix.lower() in _FFMPEG_SUFFIXES or head[4:8] == b"ftyp":
        decoder = _FfmpegDecoder(path)
    else:
        decoder = _SoundfileDecoder(path)
    low, high = _RATES_HZ
    if not low <= decoder.rate_hz <= high:
        raise AudioError(
            f"{path} claims a sample rate of {decoder.rate_hz} Hz; {low} to {high} Hz can be heard. "
            "Its header is damaged."
        )
    return decoder


class _SoundfileDecoder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._mp3 = Mp3Header.read(path)
        self._file = self._open()
        self.rate_hz: int = self._file.samplerate
        self._start = 0

    @property
    def header_frames(self) -> int | None:
        is_guess = self._mp3 is not None and not self._mp3.promises_length
        return None if is_guess or self._file.frames >= _UNKNOWN_FRAMES else self._file.frames

    def seek(self, frame: int) -> None:
        self._start = frame

    def blocks(self) -> Iterator[np.ndarray]:
        position = self._start
        n_frames = min(_BLOCK_FRAMES, max(1024, _BLOCK_SAMPLES // self._file.channels))
        buffer = np.full((n_frames, self._file.channels), np.nan, dtype=np.float32)
        if not self._is_entered_at(position):
            return
        try:
            while True:
                # libsndfile decodes good samples before it fails, without saying how many: they are those
                # that are written.
                buffer.fill(np.nan)
                n = self._file.buffer_read_into(buffer, dtype="float32")
                if n == 0:
                    break
                position += n
                yield _mixed_down(buffer[:n])
        except soundfile.SoundFileError as error:
            unwritten = np.flatnonzero(np.isnan(buffer).any(axis=1))
            n = int(unwritten[0]) if len(unwritten) else n_frames
            position += n
            if n:
                yield _mixed_down(buffer[:n])
            # A flac that was written into a pipe has no length; libsndfile stumbles over its end.
            if self.header_frames is not None or "psf_fseek" not in str(error):
                raise AudioError(
                    f"{self._path} stops decoding after {position / self.rate_hz:.2f} s: {_words(error)}"
                ) from None
        self._require_end(position)

    def _is_entered_at(self, frame: int) -> bool:
        """Move to a frame.  Returns False when the recording ends before it."""
        try:
            return frame == 0 or self._file.seek(frame) == frame
        except soundfile.SoundFileError:
            return False

    def _require_end(self, position: int) -> None:
        if position == self._start > 0:
            return  # nothing decodes from there on, which tells nothing of the length
        decoded = f"{self._path} is cut short: {position / self.rate_hz:.2f} s decode"
        promised = self.header_frames
        if promised is not None and position < promised - _SLACK_FRAMES.get(self._file.format, 0):
            raise AudioError(f"{decoded}, its header promises {promised / self.rate_hz:.2f} s.")
        # libsndfile corrects a header that promises too much, and says so only in its log.
        log = self._file.extra_info
        if (cut := _CUT_CHUNK.search(log)) and int(cut[2]) < int(cut[1]) and not _is_unknown(int(cut[1])):
            raise AudioError(f"{decoded}, {cut[2]} of the {cut[1]} bytes that its header promises.")
        if "Last page lacks an end-of-stream bit" in log:
            raise AudioError(f"{decoded}, then the Ogg stream breaks off without its last page.")

    def _open(self) -> soundfile.SoundFile:
        source: Any = os.fsencode(self._path) if os.name == "posix" else str(self._path)
        if self._mp3 is not None and not self._mp3.promises_length:
            source = EndlessFile(self._path)
        hushed = (
            contextlib.nullcontext() if self._mp3 is None or self._mp3.is_sound else without_remarks(MPG123_REMARKS)
        )
        try:
            with hushed:
                return soundfile.SoundFile(source)
        except (soundfile.SoundFileError, TypeError, OSError) as error:
            raise AudioError(f"{self._path} cannot be decoded as audio: {_words(error)}") from None

    def __enter__(self) -> _SoundfileDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _FfmpegDecoder:
    def __init__(self, path: Path) -> None:
        try:
            import av
        except ImportError:
            raise AudioError(
                f"{path} is m4a, mp4 or aac, which needs FFmpeg's libraries: pip install 'cisticola[m4a]'"
            ) from None
        self._av = av
        self._path = path
        self._start = 0
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, ValueError, OSError) as error:
            raise AudioError(f"{path} cannot be decoded as audio: {_words(error)}") from None
        tracks = self._container.streams.audio
        # A track of a codec that FFmpeg does not know has no rate.
        if not tracks or not getattr(tracks[0], "rate", 0):
            self._container.close()
            raise AudioError(f"{path} holds no audio track that can be decoded.")
        self._stream = tracks[0]
        self.rate_hz: int = self._stream.rate

    @property
    def header_frames(self) -> int | None:
        # A bare AAC stream has no header of its own; FFmpeg guesses its length from the bit rate.
        duration, unit = self._stream.duration, self._stream.time_base
        if duration is None or unit is None or self._container.format.name == "aac":
            return None
        return round(duration * unit * self.rate_hz)

    def seek(self, frame: int) -> None:
        self._start = frame

    def blocks(self) -> Iterator[np.ndarray]:
        position = 0
        try:
            for block in self._decoded():
                skipped = max(0, self._start - position)
                position += len(block)
                if skipped < len(block):
                    yield _mixed_down(block[skipped:])
        except (self._av.FFmpegError, ValueError, OSError) as error:
            raise AudioError(
                f"{self._path} stops decoding after {position / self.rate_hz:.2f} s: {_words(error)}"
            ) from None
        promised = self.header_frames
        if promised is not None and position < promised - _SLACK_FRAMES["M4A"]:
            raise AudioError(
                f"{self._path} is cut short: {position / self.rate_hz:.2f} s decode, "
                f"its header promises {promised / self.rate_hz:.2f} s."
            )

    def _decoded(self) -> Iterator[np.ndarray]:
        """Blocks (frames, channels) of float32, in the layout and at the rate of the stream."""
        to_float = self._av.AudioResampler(format="fltp", rate=self.rate_hz)
        for frame in self._container.decode(self._stream):
            yield from (part.to_ndarray().T for part in to_float.resample(frame))
        yield from (part.to_ndarray().T for part in to_float.resample(None))

    def __enter__(self) -> _FfmpegDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


def _mixed_down(block: np.ndarray) -> np.ndarray:
    """(n, channels) -> (n,), summed channel by channel: the result does not depend on the block's size."""
    if block.shape[1] == 1:
        return block[:, 0]
    mono = block[:, 0] + block[:, 1]
    for channel in range(2, block.shape[1]):
        mono += block[:, channel]
    mono *= np.float32(1.0 / block.shape[1])
    return mono


def _is_unknown(n_bytes: int) -> bool:
    """Whether a header's length was written by a program that could not know it: a number just below 2 or 4 GiB."""
    return n_bytes <= 0xFFFF_FFFF and n_bytes & 0x7FFF_0000 == 0x7FFF_0000


def _words(error: Exception) -> str:
    text = str(getattr(error, "error_string", "") or getattr(error, "strerror", "") or error).strip().rstrip(".")
    if "not a regular file" in text or "samplerate" in text:
        # libsndfile's words for "named .mp3 but no mp3", and soundfile's for headerless formats.
        text = "Format not recognised"
    return f"{text}."
