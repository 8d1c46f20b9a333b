"""Stand-ins that follow the contract: a backbone whose vectors can be worked out by hand, and a decoder of arrays."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embeddings.contract import Fingerprint, Heard
from embeddings.errors import AudioError
from embeddings.files import write_json
from embeddings.recordings import Catalogue, Recording
from embeddings.windows import AudioWindow, WindowPlan


class FakeBackbone:
    """Vector of a window: its mean times 1, 2, ... dim. Counts the windows that it was asked for."""

    window_s = 5.0

    def __init__(self, name: str = "fake", dim: int = 4, sample_rate_hz: int = 100, weights: str = "a") -> None:
        self.name, self.dim, self.sample_rate_hz, self.weights = name, dim, sample_rate_hz, weights
        self.n_embedded = 0

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint({"kind": "fake", "weights": self.weights, "dim": self.dim, "rate": self.sample_rate_hz})

    @property
    def heard(self) -> Heard:
        return Heard()

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        self.n_embedded += len(waveforms)
        return waveforms.mean(axis=1, keepdims=True) * np.arange(1, self.dim + 1, dtype=np.float32)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "backbone.json", {"name": self.name, "fingerprint": dict(self.fingerprint.fields)})
        write_json(folder / "heard.json", self.heard.to_json())


def fake_decode(path: Path, plan: WindowPlan, rates_hz: Sequence[int]) -> Iterator[AudioWindow]:
    """Files hold `<seconds> <level> [bad|crash|hang]`: that many seconds of that level, and what happens then."""
    words = path.read_text().split()
    if len(words) < 2:
        raise AudioError(f"{path} is not audio")
    for span in plan.spans(float(words[0])):
        level = np.float32(float(words[1]) + span.start_s)
        waveforms = {rate: np.full(round(plan.window_s * rate), level, np.float32) for rate in rates_hz}
        yield AudioWindow(span, silent=level == 0, rms_dbfs=-20.0, waveforms=waveforms)
    if "bad" in words:
        raise AudioError(f"{path} stops early")
    if "crash" in words:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in words:
        time.sleep(60)


def load_fakes(names: Sequence[str], engines: Mapping[str, Any]) -> tuple[list[FakeBackbone], Any]:
    """What a worker is given: a fake backbone a name, and the decoder above."""
    return [FakeBackbone(name) for name in names], fake_decode


def fake_catalogue(folder: Path, contents: Sequence[str]) -> Catalogue:
    """A recording a line of `contents`, two labels in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    recordings = []
    for i, content in enumerate(contents):
        path = folder / f"r{i:03d}.wav"
        path.write_text(content)
        identity = hashlib.sha256(f"{i} {content}".encode()).hexdigest()[:32]
        recordings.append(Recording(identity, path, filename=path.name, primary_label="ab"[i % 2]))
    return Catalogue(tuple(recordings))
