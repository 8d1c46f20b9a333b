"""The table of `docs/performance.md`, written by the benchmark that measured it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.timing import Result

__all__ = ["write_page"]

_PACKAGES = ("torch", "timm", "openvino", "onnxruntime", "ai-edge-litert", "librosa", "soundfile", "perch-hoplite")


def write_page(path: Path, results: Sequence[Result]) -> None:
    """Write the results as a page: what was compared with what, the ratio, and the target."""
    from stage1_backbones.machine import processor_name, usable_cores

    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    lines = [
        "# Performance",
        "",
        "Written by `make bench ONLY=extraction`; every figure is a ratio of things measured side by side in that one",
        "run, medians of three or more. Speeds count from the first windows on: starting a worker (torch, the network,",
        "an engine) takes some four seconds, the first choice of an engine some four more.",
        "",
        f"{date.today():%Y-%m-%d}, {processor_name()}, {usable_cores()} cores, {platform.system()}, "
        f"Python {platform.python_version()}; {', '.join(versions)}.",
        "",
        "| what | ratio | target | compared |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['name']} | {'' if r['ok'] else '**missed** '}{r['ratio']:.2f} | {r['target']:g} | {r['compared']} |"
        for r in results
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
