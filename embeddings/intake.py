"""What a writer does with recordings: embed them and judge each, or complete a shard that lacks a block."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from embeddings.contract import Backbone
from embeddings.errors import StoreError
from embeddings.identity import is_as_hashed
from embeddings.layout import StoreLayout
from embeddings.pipeline import embed_all
from embeddings.recordings import Recording
from embeddings.shards import read_rows, write_vectors
from embeddings.windows import WindowPlan, WindowStream
from embeddings.writing import Sealing, ShardWriter, VectorSpool, to_stored

__all__ = [
    "Completed",
    "Event",
    "Judged",
    "Sealed",
    "ShardTask",
    "Took",
    "complete_shards",
    "embed_recordings",
    "make_provenance",
]

_PACKAGES = ("cisticola", "torch", "timm", "onnxruntime", "openvino", "ai-edge-litert", "numpy", "soundfile", "soxr")


@dataclass(frozen=True)
class Took:
    """Windows that have gone through the networks: for progress."""

    n_windows: int


@dataclass(frozen=True)
class Judged:
    """A recording is whole, partial (`error`), or refused (`refused` says why): then it gives no row."""

    recording: str
    n_windows: int
    audio_s: float
    error: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Sealed:
    """Recordings that are on disk and will survive anything."""

    recordings: tuple[str, ...]


@dataclass(frozen=True)
class ShardTask:
    """A sealed shard that lacks blocks, with its recordings in the order of its rows."""

    shard: str
    blocks: tuple[str, ...]
    recordings: tuple[Recording, ...]


@dataclass(frozen=True)
class Completed:
    """A shard has got its missing blocks; or not, and `error` says why."""

    shard: str
    n_windows: int
    error: str = ""


Event = Took | Judged | Sealed | Completed


def embed_recordings(
    layout: StoreLayout,
    recordings: Iterable[Recording],
    backbones: Sequence[Backbone],
    decode: WindowStream,
    report: Callable[[Event], None],
    *,
    settings: Mapping[str, Any] | None = None,
    sealing: Sealing | None = None,
    pulse: Callable[[bool], None] = lambda decoding: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Embed recordings into shards of the store, and report what became of each.

    settings  what to write into each shard besides versions, engines and times
    pulse, stop  as in `embed_all`
    What is whole is sealed in the end, also when an error ends it.
    """
    provenance = make_provenance(layout.plan, backbones, settings or {})
    writer = ShardWriter(layout, provenance, sealing)
    refused, audio_s = "", 0.0
    try:
        for part in embed_all(recordings, backbones, layout.plan, decode, pulse=pulse, stop=stop):
            if part.windows:
                audio_s = max(audio_s, part.windows[-1].span.end_s)
                report(Took(len(part.windows)))
            if not refused:
                try:
                    writer.add(part)
                except StoreError as error:
                    refused = str(error)
            if part.is_last:
                if not is_as_hashed(part.recording):
                    refused = f"{part.recording.path} changed while it was read; run the same command again."
                n_windows = 0 if refused else writer.finish(partial=bool(part.error))
                if not n_windows:
                    writer.forget()
                    refused = refused or part.error or f"{part.recording.path} gave no window."
                report(Judged(part.recording.recording, n_windows, audio_s, part.error, refused))
                refused, audio_s = "", 0.0
            if writer.is_full:
                report(Sealed(tuple(writer.seal())))
    finally:
        if sealed := writer.seal():
            report(Sealed(tuple(sealed)))


def complete_shards(
    layout: StoreLayout,
    tasks: Iterable[ShardTask],
    backbones: Sequence[Backbone],
    decode: WindowStream,
    report: Callable[[Event], None],
    *,
    settings: Mapping[str, Any] | None = None,
    pulse: Callable[[bool], None] = lambda decoding: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Compute the blocks that sealed shards lack; the blocks that they have are not touched."""
    for task in tasks:
        wanted = [b for b in backbones if b.name in task.blocks]
        provenance = make_provenance(layout.plan, wanted, settings or {})
        try:
            n_windows = _complete_shard(layout, task, wanted, decode, report, provenance, pulse, stop)
        except StoreError as error:
            report(Completed(task.shard, 0, str(error)))
            continue
        if stop():
            return
        report(Completed(task.shard, n_windows))


def _complete_shard(
    layout: StoreLayout,
    task: ShardTask,
    backbones: Sequence[Backbone],
    decode: WindowStream,
    report: Callable[[Event], None],
    provenance: Callable[[], Mapping[str, Any]],
    pulse: Callable[[bool], None],
    stop: Callable[[], bool],
) -> int:
    rows = read_rows(layout.row_path(task.shard))
    spools = {b.name: VectorSpool(layout.path, b.dim, layout.dtype) for b in backbones}
    n_done = n_before = 0
    for part in embed_all(task.recordings, backbones, layout.plan, decode, pulse=pulse, stop=stop):
        here = slice(n_done, n_done + len(part.windows))
        n_done += len(part.windows)
        is_same = np.array_equal(rows.recording[here], [part.recording.recording] * len(part.windows)) and np.allclose(
            rows.start_s[here], [w.span.start_s for w in part.windows]
        )
        if part.is_last:
            is_same &= n_done - n_before == np.count_nonzero(rows.recording == part.recording.recording)
            n_before = n_done
            if not is_as_hashed(part.recording):
                raise StoreError(
                    f"{part.recording.path} is not the recording that was stored, or changed while it was read. Put "
                    "that one back and run the same command again, or take it out of the store with `embed drop`."
                )
        if not is_same:
            raise StoreError(
                f"{part.recording.path} does not give the windows today that it gave when it was stored"
                f"{': ' + part.error if part.error else ''}. Put the audio back where it was and run the same command "
                f"again, or take the recording out of the store with `embed drop`."
            )
        if part.windows:
            for name, spool in spools.items():
                spool.append(to_stored(part.vectors[name], layout.dtype, name))
            report(Took(len(part.windows)))
    if stop():
        return 0
    for backbone in backbones:
        metadata = {"block": backbone.name, "fingerprint": backbone.fingerprint.digest, **provenance()}
        vectors = spools[backbone.name].rows(n_done)
        write_vectors(layout.vector_path(backbone.name, task.shard), vectors, metadata)
    return n_done


def make_provenance(
    plan: WindowPlan, backbones: Sequence[Backbone], settings: Mapping[str, Any]
) -> Callable[[], dict[str, Any]]:
    """What every shard says of its making. The engines are asked for late: they are chosen on the first batch."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    started = _now()

    def provenance() -> dict[str, Any]:
        return {
            "engines": {b.name: getattr(b, "engine_record", None) or {"engine": "own"} for b in backbones},
            "windows": plan.to_json(),
            "versions": versions,
            "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
            "settings": dict(settings),
            "started": started,
            "created": _now(),
        }

    return provenance


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
