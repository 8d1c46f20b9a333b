"""How a worker process comes by its ears: backbones that settle on an engine at their first batch, and the decoder."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from embeddings.contract import Backbone
    from embeddings.windows import WindowStream

__all__ = ["Hearing", "SettlingBackbone", "machine_name", "resolve_device_early", "usable_cores"]

_ENGINE_PACKAGES = ("torch", "onnxruntime", "openvino", "ai-edge-litert")


class SettlingBackbone:
    """A backbone that chooses its engine on the first real batch, and remembers why.

    `engine_record` is None until then: afterwards what `choose_engine` found, as plain JSON values.
    Everything else is the backbone's own.
    """

    def __init__(self, backbone: Any, asked: str, threads: int | None, record: Mapping[str, Any] | None = None) -> None:
        """record : what was found earlier, on this machine with these packages; the engine is then taken from it."""
        self._backbone, self._asked, self._threads = backbone, asked, threads
        self.engine_record = dict(record) if record else None
        if record and hasattr(backbone, "use_engine"):
            backbone.use_engine(record["engine"], threads)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        """As the backbone's own. Raises EngineError when the engine that was asked for does not pass the gate."""
        if self.engine_record is None and not hasattr(self._backbone, "use_engine"):
            self.engine_record = {"engine": "own"}  # somebody else's backbone, with one way to run
        if self.engine_record is None:
            from stage1_backbones.engines import choose_engine

            choice = choose_engine(self._backbone, waveforms, self._asked, threads=self._threads)
            self.engine_record = choice.to_json()
        return self._backbone.embed(waveforms)


@dataclass(frozen=True)
class Hearing:
    """What a worker is told, small enough to be sent to it: where each block's backbone lies, and how to run it.

    references  block name -> folder of a backbone, or the name of a frozen one
    threads     cores that each worker may use
    """

    references: Mapping[str, str]
    device: str = "auto"
    engine: str = "auto"
    threads: int = 1

    def __call__(self, names: Sequence[str], engines: Mapping[str, Any]) -> tuple[list[Backbone], WindowStream]:
        """Load the named blocks' backbones. `engines` are records of choices that were made before."""
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))  # before any library reads it
        from stage1_backbones.audio import stream_windows
        from stage1_backbones.registry import load_backbone

        loaded: list[Backbone] = []
        for name in names:
            backbone: Any = load_backbone(self.references[name], device=self.device)
            backbone.name = name
            loaded.append(SettlingBackbone(backbone, self.engine, self.threads, engines.get(name)))
        return loaded, stream_windows


def usable_cores() -> int:
    """Cores that this process may use, which a scheduler may have made fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_device_early(device: str) -> str:
    """As `resolve_device`, but torch is only loaded for it where there may be something else than a CPU."""
    has_gpu = Path("/dev/nvidiactl").exists() or (platform.system(), platform.machine()) == ("Darwin", "arm64")
    if device == "cpu" or (device == "auto" and not has_gpu):
        return "cpu"
    from stage1_backbones.trained import resolve_device

    return resolve_device(device)


def machine_name(device: str) -> str:
    """Processor, device and versions of the engines: where this is the same, a choice of engine still holds."""
    versions = []
    for package in _ENGINE_PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return "; ".join([_processor(), device, *versions])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return models[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
