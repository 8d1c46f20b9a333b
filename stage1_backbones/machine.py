"""What machine this is: its cores, its devices, its name. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["machine_name", "processor_name", "resolve_device_early", "usable_cores"]

_ENGINE_PACKAGES = ("torch", "onnxruntime", "openvino", "ai-edge-litert")


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
    return "; ".join([processor_name(), device, *versions])


def processor_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return models[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
