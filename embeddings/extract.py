"""Catalogue x backbones -> store: many recordings in flight, each whole or absent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from embeddings.contract import Backbone
from embeddings.errors import AudioError, ContractError, InputError, StoreError
from embeddings.pipeline import embed_all
from embeddings.recordings import Catalogue, Recording
from embeddings.shards import FLAGS, read_rows, write_vectors
from embeddings.store import Store
from embeddings.windows import WindowPlan, WindowStream
from embeddings.writing import EmbeddedRecording, ShardWriter, row_table, to_stored

__all__ = ["ExtractionSummary", "embed_file", "extract"]


@dataclass
class ExtractionSummary:
    """What an extraction did, for the screen and for `--json`."""

    store: str
    n_recordings: int = 0
    n_embedded: int = 0
    n_already: int = 0
    n_windows: int = 0
    audio_s: float = 0.0
    elapsed_s: float = 0.0
    interrupted: bool = False
    flagged: dict[str, list[str]] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def windows_per_s(self) -> float:
        return self.n_windows / self.elapsed_s if self.elapsed_s else 0.0


def extract(
    catalogue: Catalogue,
    backbones: Sequence[Backbone],
    store: Store,
    decode: WindowStream,
    *,
    engine: str = "torch",
    retry_quarantined: bool = False,
    link_backbones: bool = False,
    on_progress: Callable[[int, float], None] | None = None,
) -> ExtractionSummary:
    """Embed what the store does not hold yet, and seal it.

    catalogue    recordings with their splits; those already in the store get their labels refreshed, nothing more
    backbones    one a block; a block that the store lacks is computed for the recordings it already has
    decode       (path, plan, rates in Hz) -> windows, see `WindowStream`
    on_progress  called with (recordings done, seconds of audio done), increments
    Returns a summary that names every flagged and quarantined file. One bad file never stops the batch.
    Raises ContractError when the store's blocks were made by other backbones.
    """
    began = time.monotonic()
    summary = ExtractionSummary(str(store.path), n_recordings=len(catalogue) + len(catalogue.rejected))
    summary.problems.extend(catalogue.problems)
    report = on_progress or (lambda n_recordings, audio_s: None)
    store.add_recordings(catalogue.recordings)
    _declare_blocks(store, backbones, link_backbones)
    provenance = _provenance(engine, store.plan)
    if retry_quarantined:
        store.quarantine.release(e.path for e in store.quarantine.files())

    try:
        for block in backbones:
            _complete_block(store, block, decode, provenance, summary, report)
        known_bad = store.quarantine.unchanged()
        for rejected in catalogue.rejected:
            if str(rejected.path) not in known_bad:
                store.quarantine.add(rejected.path, rejected.reason)
            summary.quarantined[str(rejected.path)] = rejected.reason
            report(1, 0.0)
        embedded = store.embedded
        todo = []
        for recording in catalogue:
            if recording.recording in embedded:
                summary.n_already += 1
                report(1, 0.0)
            elif (bad := known_bad.get(str(recording.path))) is not None:
                summary.quarantined[recording.filename] = bad.reason
                report(1, 0.0)
            else:
                todo.append(recording)
        _embed_new(store, backbones, todo, decode, provenance, summary, report)
    except KeyboardInterrupt:
        summary.interrupted = True
    store.reload()
    _name_flags(store, catalogue, summary)
    summary.elapsed_s = time.monotonic() - began
    return summary


def embed_file(
    path: Path, backbones: Sequence[Backbone], plan: WindowPlan, decode: WindowStream
) -> tuple[Any, np.ndarray]:
    """Embed one file that is in no store: its row table and its fused vectors float32 (n_windows, dim).

    Raises AudioError when nothing of it decodes.
    """
    recording = Recording("query", Path(path))
    for done in embed_all([recording], backbones, plan, decode):
        if done.windows:
            fused = np.concatenate([np.stack(done.vectors[b.name]) for b in backbones], axis=1)
            return row_table("query", done.windows, partial=bool(done.error)), fused
        raise AudioError(done.error or f"{path} holds no window.")
    raise AudioError(f"{path} holds no window.")


def _embed_new(
    store: Store,
    backbones: Sequence[Backbone],
    todo: Sequence[Recording],
    decode: WindowStream,
    provenance: dict[str, Any],
    summary: ExtractionSummary,
    report: Callable[[int, float], None],
) -> None:
    writer = ShardWriter(store, provenance)
    try:
        for done in embed_all(todo, backbones, store.plan, decode):
            audio_s = max((w.span.end_s for w in done.windows), default=0.0)
            try:
                if not done.windows:
                    raise AudioError(done.error or f"{done.recording.path} gave no window.")
                writer.add(
                    EmbeddedRecording(
                        done.recording.recording,
                        row_table(done.recording.recording, done.windows, partial=bool(done.error)),
                        {b.name: to_stored(np.stack(done.vectors[b.name]), store.dtype, b.name) for b in backbones},
                    )
                )
            except (AudioError, StoreError) as error:
                store.quarantine.add(done.recording.path, str(error))
                summary.quarantined[done.recording.filename] = str(error)
            else:
                summary.n_embedded += 1
                summary.n_windows += len(done.windows)
                summary.audio_s += audio_s
                if done.error:
                    summary.problems.append(f"{done.recording.filename}: {done.error}")
            report(1, audio_s)
    finally:
        writer.seal()  # also on Ctrl-C: what is whole is kept


def _complete_block(
    store: Store,
    backbone: Backbone,
    decode: WindowStream,
    provenance: dict[str, Any],
    summary: ExtractionSummary,
    report: Callable[[int, float], None],
) -> None:
    """Compute one block for the sealed shards that lack it; the other blocks are not touched."""
    for shard in store.missing_shards(backbone.name):
        rows = read_rows(store.row_path(shard))
        hashes = list(dict.fromkeys(rows.recording))
        recordings = [store.catalogue.recordings[store.catalogue.position(h)] for h in hashes]
        vectors = []
        for done in embed_all(recordings, [backbone], store.plan, decode):
            expected = rows.start_s[rows.recording == done.recording.recording]
            if len(expected) != len(done.windows) or not np.allclose(expected, [w.span.start_s for w in done.windows]):
                raise StoreError(
                    f"{done.recording.path} gives {len(done.windows)} windows today and {len(expected)} in the store"
                    f"{': ' + done.error if done.error else ''}. Put the audio back where it was "
                    f"to add block {backbone.name!r}, or extract into a new store."
                )
            vectors.append(to_stored(np.stack(done.vectors[backbone.name]), store.dtype, backbone.name))
            summary.n_windows += len(done.windows)
        metadata = {"block": backbone.name, "fingerprint": backbone.fingerprint.digest, **provenance}
        write_vectors(store.vector_path(backbone.name, shard), np.concatenate(vectors), metadata)


def _declare_blocks(store: Store, backbones: Sequence[Backbone], link: bool) -> None:
    """Check the backbones against the store's blocks, and declare those that are new to it."""
    given = {b.name: b for b in backbones}
    if len(given) != len(backbones):
        raise InputError("two backbones have the same name; give one a name of its own: --backbone NAME=FOLDER.")
    for name, backbone in given.items():
        if backbone.window_s != store.plan.window_s:
            raise ContractError(
                f"backbone {name!r} hears windows of {backbone.window_s} s; "
                f"those of {store.path} are {store.plan.window_s} s long."
            )
        block = store.blocks.get(name)
        if block is not None and block.fingerprint.digest != backbone.fingerprint.digest:
            raise ContractError(
                f"{store.path} has a block {name!r} made by another backbone; they differ in "
                f"{'; '.join(block.fingerprint.differences(backbone.fingerprint))}. Extract into a new store."
            )
    absent = [name for name in store.blocks if name not in given]
    if absent:
        raise ContractError(
            f"{store.path} has the blocks {', '.join(store.blocks)}; name all of them (missing: {', '.join(absent)}), "
            f"so that new recordings get every block."
        )
    for name, backbone in given.items():
        if name not in store.blocks:
            store.add_block(backbone, link=link)


def _provenance(engine: str, plan: WindowPlan) -> dict[str, Any]:
    versions = {}
    for package in ("cisticola", "torch", "timm", "numpy", "soundfile", "soxr"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"engine": engine, "windows": plan.to_json(), "versions": versions, "created": created}


def _name_flags(store: Store, catalogue: Catalogue, summary: ExtractionSummary) -> None:
    """Write down, by file, which flags its windows carry."""
    for flag in FLAGS:
        for place in np.unique(store.place_of_row[getattr(store.rows, flag)]):
            recording = store.catalogue.recordings[place]
            if recording.recording in catalogue:
                summary.flagged.setdefault(recording.filename, []).append(flag)
