"""Runs of `embed extract` as a user types them, timed and weighed from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "Run",
    "anonymous_bytes",
    "extract_command",
    "peak_anonymous_bytes",
    "run_measured",
    "saved_network",
    "write_long_recordings",
    "write_short_recordings",
]

_SAMPLE_EVERY_S = 0.02


@dataclass(frozen=True)
class Run:
    """One run of a command: its clock seconds, the peak of its anonymous memory, and the summary that it wrote.

    peak_bytes counts what only this process tree holds: not mapped files, which the system takes back at will.
    """

    elapsed_s: float
    peak_bytes: int
    summary: dict[str, Any]

    @property
    def steady_windows_per_s(self) -> float:
        """Windows a second once the workers have started."""
        return self.summary["windows_per_s"]


def peak_anonymous_bytes(work: Callable[[], object]) -> int:
    """The peak of this process's anonymous memory while it works."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], anonymous_bytes(os.getpid()))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak[0]


def extract_command(audio: Path, backbone: str, store: Path, *options: str) -> list[str]:
    return ["embed", "extract", str(audio), "--backbone", backbone, "--out", str(store), *options]


def run_measured(command: Sequence[str], *, cores: int | None = None) -> Run:
    """Run a command of ours, on `cores` cores only when that is given. Raises RuntimeError when it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        summary_path = Path(scratch) / "summary.json"
        name, *arguments = command
        words = [sys.executable, "-m", f"cli.{name}", *arguments, "--json", str(summary_path)]
        began = time.perf_counter()
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, range(cores)),
        )
        peaks = [0]
        watcher = threading.Thread(target=_watch, args=(process, peaks))
        watcher.start()
        said, _ = process.communicate()
        elapsed_s = time.perf_counter() - began
        watcher.join()
        if process.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}:\n{said}")
        return Run(elapsed_s, peaks[0], json.loads(summary_path.read_text(encoding="utf-8")))


def _watch(process: subprocess.Popen[str], peaks: list[int]) -> None:
    while process.poll() is None:
        peaks[0] = max(peaks[0], anonymous_bytes(process.pid))
        time.sleep(_SAMPLE_EVERY_S)


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process and all below it, from Linux' /proc."""
    total = 0
    pids = [pid]
    while pids:
        one = pids.pop()
        try:
            for line in Path(f"/proc/{one}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total += 1024 * int(line.split()[1])
            for task in Path(f"/proc/{one}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        except (OSError, ValueError):
            continue  # it has ended meanwhile
    return total


def saved_network(kind: str, settings: dict[str, Any], folder: Path, *, n_labels: int = 20) -> str:
    """A backbone with ImageNet weights, or random ones where a model is named: as fast as a trained one."""
    import torch

    from embeddings.contract import Heard
    from stage1_backbones.registry import create_network
    from stage1_backbones.trained import TrainedBackbone

    torch.manual_seed(0)
    weights = "none" if settings.get("model") else "auto"
    network = create_network(kind, settings, n_labels, weights)
    if weights == "none":  # what untrained networks make of a window vanishes through the layers
        with torch.no_grad():
            for _ in range(4):
                network.train()(0.1 * torch.randn(8, round(network.window_s * network.sample_rate_hz)))
    backbone = TrainedBackbone(
        network, name=kind, labels=[f"s{i}" for i in range(n_labels)], heard=Heard(), split=None, provenance={}
    )
    backbone.save(folder)
    return str(folder)


def write_long_recordings(
    folder: Path, n: int, duration_s: float, *, rate_hz: int = 32_000, suffix: str = ".ogg"
) -> Path:
    """Compressed recordings of chirps over noise, each different. Written in pieces, as recorders do."""
    import soundfile

    folder.mkdir(parents=True)
    for i in range(n):
        rng = np.random.default_rng(i)
        with soundfile.SoundFile(folder / f"r{i:05d}{suffix}", "w", rate_hz, 1) as sink:
            left = round(duration_s * rate_hz)
            while left:
                n_samples = min(left, 10 * rate_hz)
                t = np.arange(n_samples) / rate_hz
                glide = np.sin(2 * np.pi * (2000 + 900 * rng.random() + 300 * np.sin(6 * np.pi * t)) * t)
                samples = 0.02 * rng.standard_normal(n_samples) + 0.2 * glide * (np.sin(4.4 * t) > 0.6)
                sink.write(samples.astype(np.float32))
                left -= n_samples
    return folder


def write_short_recordings(folder: Path, n: int) -> Path:
    """Recordings of one second of noise, each different."""
    import soundfile

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        soundfile.write(folder / f"r{i:05d}.wav", 0.05 * rng.standard_normal(16_000), 16_000)
    return folder
