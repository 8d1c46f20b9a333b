"""The tables of `docs/performance*.md`, written by the benchmarks that measured them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.timing import Result

__all__ = ["EXTRACTION", "FIELD", "HEADS", "write_page"]

_DOCS = Path(__file__).resolve().parents[1] / "docs"


@dataclass(frozen=True)
class Page:
    """A page of results: where it lies, what it says above the table, whose versions it names."""

    path: Path
    title: str
    words: tuple[str, ...]
    packages: tuple[str, ...]


EXTRACTION = Page(
    _DOCS / "performance.md",
    "Performance",
    (
        "Written by `make bench ONLY=extraction`; every figure is a ratio of things measured side by side in that one",
        "run, medians of three or more. Speeds count from the first windows on: starting a worker (torch, the network,",
        "an engine) takes some four seconds, the first choice of an engine some four more. Heads, retrieval, scoring:",
        "[their own page](performance_heads.md).",
    ),
    ("torch", "timm", "openvino", "onnxruntime", "ai-edge-litert", "librosa", "soundfile", "perch-hoplite"),
)
HEADS = Page(
    _DOCS / "performance_heads.md",
    "Performance of heads, retrieval and scoring",
    (
        "Written by `make bench ONLY=heads`; every figure is a ratio of things measured side by side in one run, in",
        "processor seconds of one thread each side (memory apart). Vectors are invented where real ones are too few.",
    ),
    ("numpy", "scikit-learn", "faiss-cpu", "river", "perch-hoplite"),
)
FIELD = Page(
    _DOCS / "performance_field.md",
    "Performance in the field",
    (
        "Written by `make bench ONLY=field`. Predictions: whole commands as a user types them, clock seconds, medians",
        "of three. Searches: of vectors that are there, in a process that has searched before.",
    ),
    ("torch", "timm", "openvino", "onnxruntime", "numpy", "scikit-learn", "pyarrow"),
)


def write_page(page: Page, results: Sequence[Result]) -> None:
    """Write the results as a page: what was compared with what, the ratio, and the target."""
    from stage1_backbones.machine import processor_name, usable_cores

    versions = []
    for package in page.packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    lines = [
        f"# {page.title}",
        "",
        *page.words,
        "",
        f"{date.today():%Y-%m-%d}, {processor_name()}, {usable_cores()} cores, {platform.system()}, "
        f"Python {platform.python_version()}; {', '.join(versions)}.",
        "",
        "| what | ratio | target | compared |",
        "|---|---|---|---|",
    ]
    for r in results:
        verdict, compared = "" if r["ok"] else "**missed** ", r["compared"].replace("|", "&#124;")
        lines.append(f"| {r['name']} | {verdict}{r['ratio']:.2f} | {r['target']:g} | {compared} |")
    page.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
