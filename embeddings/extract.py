"""Catalogue x backbones -> store: many recordings in flight, each whole or absent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embeddings.contract import Backbone, BlockSource
from embeddings.drop import drop
from embeddings.errors import AudioError, ContractError, InputError, StoreError
from embeddings.intake import Completed, Event, Judged, Sealed, ShardTask, Took, complete_shards, embed_recordings
from embeddings.pipeline import embed_all
from embeddings.recordings import Catalogue, Recording
from embeddings.shards import FLAGS, RowTable, read_rows
from embeddings.store import Store
from embeddings.windows import WindowPlan, WindowStream
from embeddings.worker_process import STALLED_S, Job, Load
from embeddings.workers import run_workers
from embeddings.writing import Sealing, row_table

__all__ = ["ExtractionSummary", "Workers", "embed_file", "extract"]


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
    startup_s: float = 0.0  # until the first windows were through: loading, and choosing engines
    startup_windows: int = 0
    interrupted: bool = False
    engines: dict[str, Any] = field(default_factory=dict)
    flagged: dict[str, list[str]] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    incomplete: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def windows_per_s(self) -> float:
        """Once the workers have started."""
        busy_s = self.elapsed_s - self.startup_s
        return (self.n_windows - self.startup_windows) / busy_s if busy_s > 0 else 0.0

    def add(self, later: ExtractionSummary) -> None:
        """Take in the summary of an extraction that followed into the same store."""
        for name in ("n_recordings", "n_embedded", "n_already", "n_windows", "audio_s", "elapsed_s"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.startup_s += later.startup_s
        self.startup_windows += later.startup_windows
        self.interrupted |= later.interrupted
        for name in ("engines", "flagged", "quarantined", "incomplete"):
            getattr(self, name).update(getattr(later, name))
        self.problems += later.problems
        self.absent += later.absent


@dataclass(frozen=True)
class Workers:
    """Embed in `n` processes. `load` builds the backbones in each; `engines` are those that were chosen before.

    A decoder that gives no window for `stalled_s` seconds counts as hung.

    A decoder that crashes or hangs then costs one file, and every core is used. A script that asks for workers needs
    the usual `if __name__ == "__main__":`, because each worker imports it.
    """

    n: int
    load: Load
    engines: Mapping[str, Any] = field(default_factory=dict)
    on_engines: Callable[[Mapping[str, Any]], None] = lambda records: None
    stalled_s: float = STALLED_S


def extract(
    catalogue: Catalogue,
    backbones: Sequence[BlockSource],
    store: Store,
    decode: WindowStream | None = None,
    *,
    workers: Workers | None = None,
    settings: Mapping[str, Any] | None = None,
    sealing: Sealing | None = None,
    retry_quarantined: bool = False,
    link_backbones: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> ExtractionSummary:
    """Embed what the store does not hold yet, and seal it.

    catalogue    recordings with their splits; those already in the store get their labels refreshed, nothing more
    backbones    one a block; a block that the store lacks is computed for the recordings it already has. With
                 `workers` a description is enough; without, each must embed, and `decode` be given
    decode       (path, plan, rates in Hz) -> windows, see `WindowStream`
    settings     what to write into the provenance of each shard besides versions, engines and times
    on_progress  called with (recordings done, windows done), increments
    Returns a summary that names every flagged and quarantined file. One bad file never stops the batch.
    Raises ContractError when the store's blocks were made by other backbones.
    """
    began = time.monotonic()
    summary = ExtractionSummary(str(store.path), n_recordings=len(catalogue) + len(catalogue.rejected))
    summary.problems.extend(catalogue.problems)
    summary.absent.extend(catalogue.absent)
    if replaced := _replaced(store, catalogue):
        drop(store, replaced)
    store.add_recordings(catalogue.recordings)
    _declare_blocks(store, backbones, link_backbones)
    if retry_quarantined:
        store.quarantine.release(e.path for e in store.quarantine.files())
    records = _Records(store, catalogue, summary, on_progress or (lambda n_recordings, n_windows: None))
    settings = {**(settings or {}), "dtype": store.dtype}

    shards = _shards_to_complete(store)
    lacking = [b.name for b in backbones if any(b.name in task.blocks for task in shards)]
    try:
        if workers is None:
            if decode is None or not all(isinstance(b, Backbone) for b in backbones):
                raise InputError("without workers, extract() needs `decode` and backbones that embed.")
            here = [b for b in backbones if isinstance(b, Backbone)]
            complete_shards(store, shards, here, decode, records.take, settings=settings)
            embed_recordings(store, records.todo(), here, decode, records.take, settings=settings, sealing=sealing)
        else:
            runs = _WorkerRuns(
                workers, Job(store.path, workers.load, settings, sealing or Sealing(), workers.stalled_s)
            )
            runs.work(shards, lacking, records.take, summary)
            runs.work(records.todo(), [b.name for b in backbones], records.take, summary)
    except KeyboardInterrupt:
        summary.interrupted = True
    store.reload()
    _name_flags(store, catalogue, summary)
    summary.elapsed_s = time.monotonic() - began
    return summary


def embed_file(
    path: Path, backbones: Sequence[Backbone], plan: WindowPlan, decode: WindowStream
) -> tuple[RowTable, np.ndarray]:
    """Embed one file that is in no store: its row table and its fused vectors float32 (n_windows, dim).

    Raises AudioError when nothing of it decodes.
    """
    windows, vectors, error = [], [], ""
    for part in embed_all([Recording("query", Path(path))], backbones, plan, decode):
        windows += part.windows
        if part.windows:
            vectors.append(np.concatenate([part.vectors[b.name] for b in backbones], axis=1))
        error = part.error
    if not windows:
        raise AudioError(error or f"{path} holds no window.")
    return row_table("query", windows, partial=bool(error)), np.concatenate(vectors)


class _Records:
    """Keeps the summary, the quarantine and the progress in step with what the writers report."""

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        summary: ExtractionSummary,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._store, self._catalogue, self._summary, self._on_progress = store, catalogue, summary, on_progress
        self._began = time.monotonic()
        self._unsealed: dict[str, Judged] = {}
        self._reported: set[str] = set()
        self._once_bad = {entry.path for entry in store.quarantine.files()}

    def todo(self) -> list[Recording]:
        """The recordings to embed: not those in the store, nor those that are known to be bad."""
        summary, known_bad, embedded = self._summary, self._store.quarantine.unchanged(), self._store.embedded
        for rejected in self._catalogue.rejected:
            if str(rejected.path) not in known_bad:
                self._store.quarantine.add(rejected.path, rejected.reason)
            summary.quarantined[str(rejected.path)] = rejected.reason
        todo = []
        for recording in self._catalogue:
            if recording.recording in embedded:
                summary.n_already += 1
                self._release(recording)
            elif (bad := known_bad.get(str(recording.path))) is not None:
                summary.quarantined[recording.filename] = bad.reason
            else:
                todo.append(recording)
        self._on_progress(summary.n_recordings - len(todo), 0)
        return todo

    def take(self, event: Event) -> None:
        match event:
            case Took(n_windows):
                if not self._summary.startup_windows:
                    self._summary.startup_s = time.monotonic() - self._began
                    self._summary.startup_windows = n_windows
                self._on_progress(0, n_windows)
            case Judged(recording, refused=reason) if reason:
                where = self._catalogue.recordings[self._catalogue.position(recording)]
                self._store.quarantine.add(where.path, reason, where.stamp)  # what changed since is tried again
                self._summary.quarantined[where.filename] = reason
                self._count(recording)
            case Judged(recording):
                self._unsealed[recording] = event
                self._count(recording)
            case Sealed(recordings):
                for recording in recordings:
                    self._keep(self._unsealed.pop(recording))
            case Completed(shard, n_windows, error):
                self._summary.n_windows += n_windows
                if error:
                    self._summary.incomplete[shard] = error

    def _keep(self, judged: Judged) -> None:
        self._summary.n_embedded += 1
        self._summary.n_windows += judged.n_windows
        self._summary.audio_s += judged.audio_s
        where = self._catalogue.recordings[self._catalogue.position(judged.recording)]
        self._release(where)
        if judged.error:
            self._summary.problems.append(f"{where.filename}: {judged.error}")

    def _release(self, recording: Recording) -> None:
        """A file that has been mended is in the store or in quarantine, never in both."""
        mended = self._once_bad & {str(path) for path in (recording.path, *recording.other_paths)}
        if mended:
            self._store.quarantine.release(mended)
            self._once_bad -= mended

    def _count(self, recording: str) -> None:
        """Advance the progress by one recording, once, even when a lost worker makes it be embedded again."""
        if recording not in self._reported:
            self._reported.add(recording)
            self._on_progress(1, 0)


@dataclass
class _WorkerRuns:
    """Workers for one kind of tasks after the other; what engine the first ones chose holds for the next."""

    workers: Workers
    job: Job

    def work(
        self,
        tasks: Sequence[Recording] | Sequence[ShardTask],
        names: Sequence[str],
        take: Callable[[Event], None],
        summary: ExtractionSummary,
    ) -> None:
        def chosen(records: Mapping[str, Any]) -> None:
            summary.engines.update(records)
            self.workers.on_engines(records)

        if not tasks:
            return
        summary.engines.update({name: r for name, r in self.workers.engines.items() if name in names})
        summary.problems += run_workers(
            self.job,
            names,
            tasks,
            take,
            n_workers=min(self.workers.n, len(tasks)),
            engines=summary.engines,
            on_engines=chosen,
        )


def _replaced(store: Store, catalogue: Catalogue) -> list[Recording]:
    """Recordings without a row whose file holds another one today: a half copied one would stay beside the whole."""
    today, embedded = {r.path: r.recording for r in catalogue}, store.embedded
    return [r for r in store.catalogue if r.recording not in embedded and today.get(r.path, r.recording) != r.recording]


def _shards_to_complete(store: Store) -> list[ShardTask]:
    lacking: dict[str, list[str]] = {}
    for name in store.blocks:
        for shard in store.missing_shards(name):
            lacking.setdefault(shard, []).append(name)
    tasks = []
    for shard, names in lacking.items():
        hashes = dict.fromkeys(read_rows(store.row_path(shard)).recording)
        if any(recording not in store.catalogue for recording in hashes):
            raise StoreError(
                f"shard {shard} of {store.path} lacks the block {', '.join(names)} and holds rows of recordings that "
                f"were dropped. Remove those for good first: embed compact {store.path}"
            )
        recordings = tuple(store.catalogue.recordings[store.catalogue.position(h)] for h in hashes)
        tasks.append(ShardTask(shard, tuple(names), recordings))
    return tasks


def _declare_blocks(store: Store, backbones: Iterable[BlockSource], link: bool) -> None:
    """Check the backbones against the store's blocks, and declare those that are new to it."""
    backbones = list(backbones)
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


def _name_flags(store: Store, catalogue: Catalogue, summary: ExtractionSummary) -> None:
    """Write down, by file, which flags its windows carry."""
    for flag in FLAGS:
        for place in np.unique(store.place_of_row[getattr(store.rows, flag)]):
            recording = store.catalogue.recordings[place]
            if recording.recording in catalogue:
                summary.flagged.setdefault(recording.filename, []).append(flag)
