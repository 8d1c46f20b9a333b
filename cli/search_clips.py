"""The sound of what a search found: read where it lies now, and written as WAV clips."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cli.search_hits import Answer, Heard, Hit
from embeddings.errors import AudioError, InputError
from embeddings.file_names import file_name, plain_word
from embeddings.files import content_hash, read_json, write_atomically, write_json

if TYPE_CHECKING:
    from embeddings.moved import AudioFinder
    from embeddings.recordings import Recording

__all__ = ["Clip", "ClipFolder", "Clips"]

_LIST, _FORMAT = "clips.json", "cisticola-clips-1"
_LABEL_BYTES = 60  # so that there is room for the recording's name


@dataclass(frozen=True, eq=False)
class Clip:
    """samples : float32 (n,), mono, in [-1, 1];  rate_hz : the recording's own sample rate."""

    samples: np.ndarray
    rate_hz: int

    def at_most(self, rate_hz: int) -> Clip:
        """Resampled when its rate is higher."""
        if self.rate_hz <= rate_hz:
            return self
        import soxr

        return Clip(_within_one(soxr.resample(self.samples, self.rate_hz, rate_hz)), rate_hz)

    def encoded(self, kind: str) -> bytes:
        """A whole file of 16-bit samples.  kind : WAV or FLAC."""
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, self.samples, self.rate_hz, format=kind, subtype="PCM_16")
        return file.getvalue()


class Clips:
    """Reads the audio of hits and of examples.

    missing  what could not be read, each once: the recording's name and why
    """

    def __init__(self, finder: AudioFinder) -> None:
        self._finder = finder
        self.missing: list[str] = []

    def of(self, one: Hit | Heard) -> Clip | None:
        """The stretch that was found or asks; None when its audio is not at hand, which is then told in `missing`."""
        path = one.path if one.recording is None else self._located(one.recording)
        if path is None:
            return None
        try:
            return _read(path, one.start_s, one.end_s)
        except AudioError as error:
            self._miss(str(error))
            return None

    def _located(self, recording: Recording) -> Path | None:
        path = self._finder.find(recording)
        if path is None:
            self._miss(f"{recording.filename}: its audio is no longer at {recording.path}")
        return path

    def _miss(self, words: str) -> None:
        if words not in self.missing:
            self.missing.append(words)


class ClipFolder:
    """A folder of clips, with a list of those that it wrote: only these, and only unchanged, are written over."""

    def __init__(self, path: Path) -> None:
        """Raises InputError when the path is a file, or its list of clips is something else."""
        if path.exists() and not path.is_dir():
            raise InputError(f"--clips {path} is a file; name a folder.")
        self.path = path
        self._own: dict[str, str] = {}
        if (path / _LIST).exists():
            listed = read_json(path / _LIST, what="list of clips")
            if listed.get("format") != _FORMAT or not isinstance(listed.get("clips"), dict):
                raise InputError(f"{path / _LIST} is not a list of clips; name another folder with --clips.")
            self._own = listed["clips"]

    def write(self, answers: Sequence[Answer], clips: Clips) -> int:
        """Write a clip a hit, at the recording's own sample rate. Returns how many could be written.

        Raises InputError, before any is written, when a file of that name is there that this folder's list lacks.
        """
        planned = list(_named(answers))
        for name, hit in planned:
            if not self._is_free(name) and not self._is_same(name, clips.of(hit)):
                raise InputError(f"{self.path / name} was not written by a search, and is left as it is. Move it away.")
        written = 0
        try:
            for name, hit in planned:
                if (clip := clips.of(hit)) is not None:
                    content = clip.encoded("WAV")
                    write_atomically(self.path / name, partial(_write, content=content))
                    self._own[name] = hashlib.sha256(content).hexdigest()[:32]
                    written += 1
        finally:
            if written:
                write_json(self.path / _LIST, {"format": _FORMAT, "clips": self._own})
        return written

    def _is_free(self, name: str) -> bool:
        path = self.path / name
        if not path.exists() and not path.is_symlink():
            return True
        return path.is_file() and not path.is_symlink() and content_hash(path) == self._own.get(name)

    def _is_same(self, name: str, clip: Clip | None) -> bool:
        """A run that was killed may have left a clip that is not on the list."""
        path = self.path / name
        return clip is not None and path.is_file() and path.read_bytes() == clip.encoded("WAV")


def _named(answers: Sequence[Answer]) -> Iterator[tuple[str, Hit]]:
    """The name of each hit's clip: rank, similarity, label, recording, start."""
    for number, answer in enumerate(answers, start=1):
        prefix = f"q{number}_" if len(answers) > 1 else ""
        for hit in answer.hits:
            content = hit.recording.recording
            label = plain_word(hit.recording.primary_label) or "unlabelled"
            label = file_name(label, n_bytes=_LABEL_BYTES)
            recording = plain_word(Path(hit.recording.filename).stem) or content
            name = f"{prefix}{hit.rank:03d}_{hit.similarity:.3f}_{label}_{recording}"
            yield file_name(name, f"_{hit.start_s:.1f}s.wav", content=content), hit


def _read(path: Path, start_s: float, end_s: float) -> Clip:
    from stage1_backbones.audio import read_audio
    from stage1_backbones.decoders import open_audio

    with open_audio(path) as source:
        rate_hz = source.rate_hz
    samples = read_audio(path, rate_hz, start_s=start_s, duration_s=end_s - start_s)
    return Clip(_within_one(samples), rate_hz)


def _within_one(samples: np.ndarray) -> np.ndarray:
    """Recordings of float samples may be louder than 16 bits can hold; they are made quieter, not clipped."""
    peak = float(np.abs(samples).max(initial=0.0))
    return samples / np.float32(peak) if peak > 1 else samples


def _write(path: Path, *, content: bytes) -> None:
    path.write_bytes(content)
