"""Stores into one, and many small shards into few large ones: rows are copied bit for bit, nothing is embedded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from embeddings.catalogue_sources import united
from embeddings.contract import require_same_blocks
from embeddings.errors import ContractError, InputError, StoreError
from embeddings.files import sync_folder
from embeddings.layout import write_header
from embeddings.recordings import Recording, save_catalogue
from embeddings.shards import check_shard, shard_metadata
from embeddings.store import Store
from embeddings.writing import Sealing, ShardWriter

__all__ = ["CompactReport", "MergeReport", "compact", "merge"]

_NEVER_BY_TIME = Sealing(after_s=float("inf"))
_COPIED_ROWS = 8192  # at a time; bounds memory whatever a recording's length


@dataclass
class MergeReport:
    """What a merge took from where. `twice` names recordings that several stores had; they are in the new one once."""

    store: str
    n_recordings: int = 0
    n_rows: int = 0
    n_shards: int = 0
    twice: tuple[str, ...] = ()


@dataclass
class CompactReport:
    """Shards before and after, and what went for good."""

    n_shards_before: int
    n_shards: int = 0
    n_rows: int = 0
    n_rows_removed: int = 0
    n_leftovers: int = 0


def merge(
    paths: Sequence[Path],
    out: Path,
    *,
    mix_splits: bool = False,
    sealing: Sealing = _NEVER_BY_TIME,
    on_recordings: Callable[[int], None] = lambda n: None,
) -> MergeReport:
    """Make one store of several that have the same blocks and the same windows.

    Blocks are matched by fingerprint, whatever their names and order; the first store's names are kept. A recording
    that several stores hold is taken from the first, with the labels of all. The new store appears when it is whole:
    a merge that was killed leaves nothing but a hidden folder beside it, which the next one removes.
    Raises ContractError when windows, dtype, blocks or a recording's splits differ, StoreError when a block is not
    complete, InputError when `out` exists.
    """
    if out.exists():
        raise InputError(
            f"{out} exists. Name a new folder with --out; to compact a store in place use `embed compact`."
        )
    stores = [Store(path) for path in paths]
    names = [_matching_blocks(stores[0], store) for store in stores]
    recordings, twice = _one_catalogue(stores, mix_splits)
    hidden = f".{out.name}.merging."
    for leftover in out.parent.glob(f"{hidden}*"):
        shutil.rmtree(leftover)
    unfinished = out.with_name(f"{hidden}{uuid4().hex[:8]}")
    unfinished.mkdir(parents=True)
    try:
        first = stores[0]
        save_catalogue(unfinished / "catalogue.arrow", recordings)
        if (first.path / "backbones").is_dir():
            shutil.copytree(first.path / "backbones", unfinished / "backbones")
        write_header(unfinished, first.plan, first.dtype, list(first.blocks.values()), first.split_settings)
        merged = Store(unfinished)
        taken: set[str] = set()
        copier = _Copier(merged, sealing, list(merged.blocks))
        for store, blocks in zip(stores, names, strict=True):
            _require_sound(store, store.shards)
            held = [r.recording for r in store.catalogue if r.recording not in taken]
            copier.copy(store, blocks, set(held), on_recordings)
            taken |= store.embedded
            for entry in store.quarantine.files():
                merged.quarantine.keep(entry)
        copier.finish()
        merged.reload()
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync_folder(out.parent)
    return MergeReport(str(out), len(merged.embedded), merged.n_rows, len(merged.shards), tuple(twice))


def compact(
    store: Store, *, sealing: Sealing = _NEVER_BY_TIME, on_recordings: Callable[[int], None] = lambda n: None
) -> CompactReport:
    """Rewrite small shards, and those with rows of dropped recordings, into large ones; in place.

    New shards are sealed before old ones go. A recording in both counts once, and both hold the same bits, so that
    a kill at any instant leaves a store that reads the same; the next compact goes on. Nobody may write meanwhile.
    """
    report = CompactReport(len(store.shards), n_rows=store.n_rows)
    rows_before = store.n_sealed_rows
    for blocks, old in _shards_to_rewrite(store, sealing):
        _require_sound(store, old)
        copier = _Copier(store, sealing, blocks)
        copier.copy(store, blocks, {r.recording for r in store.catalogue}, on_recordings, only=set(old))
        copier.finish()
        # Last names first: of a recording sealed twice the first shard's rows count, until the very end.
        for shard in sorted(old, reverse=True):
            store.row_path(shard).unlink()  # rows first: without them a shard's vectors are leftovers
            for block in blocks:
                store.vector_path(block, shard).unlink(missing_ok=True)
        store.reload()
    report.n_leftovers = _remove_leftovers(store)
    store.reload()
    report.n_shards, report.n_rows_removed = len(store.shards), rows_before - store.n_sealed_rows
    if store.n_rows != report.n_rows:
        raise StoreError(
            f"{store.path} had {report.n_rows} rows before and has {store.n_rows} now: something else wrote to it "
            f"meanwhile. Run `embed verify {store.path}`."
        )
    return report


class _Copier:
    """Copies whole recordings from stores into new shards, which remember where they came from."""

    def __init__(self, target: Store, sealing: Sealing, blocks: Sequence[str]) -> None:
        self._sources: dict[str, dict[str, Any]] = {}
        self._writer = ShardWriter(target, self._provenance, sealing, blocks=blocks)
        self._dtype = target.dtype
        self._names = blocks

    def copy(
        self,
        store: Store,
        blocks: Sequence[str],
        recordings: set[str],
        on_recordings: Callable[[int], None],
        *,
        only: set[str] | None = None,
    ) -> None:
        """blocks : the source's names of the target's blocks, in order.  only : shards to copy from; None is all."""
        readers = {name: store.reader([block], shards=only) for name, block in zip(self._names, blocks, strict=True)}
        for recording, rows, shard in _recordings_of(store):
            if recording not in recordings or (only is not None and shard not in only):
                continue
            metadata = shard_metadata(store.row_path(shard))
            for one in metadata.get("merged") or [metadata]:
                self._sources.setdefault(repr({**one, "created": "", "started": ""}), one)
            for start in range(0, len(rows), _COPIED_ROWS):
                part = rows[start : start + _COPIED_ROWS]
                # float16 -> float32 -> float16 gives the same bits
                vectors = {name: reader.read(part).astype(self._dtype) for name, reader in readers.items()}
                self._writer.add_rows(store.rows.take(part), vectors)
            self._writer.finish(partial=False)
            if self._writer.is_full:
                self._seal()
            on_recordings(1)

    def finish(self) -> None:
        self._seal()

    def _seal(self) -> None:
        self._writer.seal()
        self._sources.clear()

    def _provenance(self) -> Mapping[str, Any]:
        """That of the first source, and all that differ in anything but their times."""
        sources = list(self._sources.values())
        first = sources[0] if sources else {}
        return {**first, "merged": sources, "created": datetime.now(UTC).isoformat(timespec="seconds")}


def _recordings_of(store: Store) -> Iterator[tuple[str, np.ndarray, str]]:
    """Each recording's hash, its row numbers in order of time, and the shard that holds them."""
    if not store.n_rows:
        return
    index = store.index
    borders = index.first_row[1:-1][np.diff(index.place) != 0]
    for rows in np.split(np.arange(store.n_rows), borders):
        place = index.place[np.searchsorted(index.first_row, rows[0], side="right") - 1]
        yield store.catalogue.recordings[place].recording, rows, store.shard_of_row(int(rows[0]))


def _matching_blocks(first: Store, other: Store) -> list[str]:
    """The other store's names of the first one's blocks. Raises ContractError when the stores do not fit together."""
    if other.plan != first.plan or other.dtype != first.dtype:
        raise ContractError(
            f"{other.path} has windows {other.plan.to_json()} in {other.dtype}, {first.path} {first.plan.to_json()} in "
            f"{first.dtype}; only stores made alike can be merged. Extract one of them anew."
        )
    expected = [(block.name, block.fingerprint) for block in first.blocks.values()]
    available = {block.name: block.fingerprint for block in other.blocks.values()}
    names = require_same_blocks(expected, available, who=str(first.path), where=str(other.path))
    if extra := [name for name in other.blocks if name not in names]:
        raise ContractError(
            f"{other.path} has the block {', '.join(extra)}, which {first.path} lacks. Add it to {first.path} first: "
            f"embed extract SOURCE --backbone ... --out {first.path}"
        )
    return names


def _one_catalogue(stores: Sequence[Store], mix_splits: bool) -> tuple[list[Recording], list[str]]:
    merged: dict[str, Recording] = {}
    twice = []
    for store in stores:
        for recording in store.catalogue:
            known = merged.get(recording.recording)
            if known is None:
                merged[recording.recording] = recording
                continue
            if known.split and recording.split and known.split != recording.split and not mix_splits:
                raise ContractError(
                    f"{recording.filename} is on side {known.split!r} in one store and {recording.split!r} in "
                    f"{store.path}: scores of the merged store could count what was trained on. Give --mix-splits to "
                    f"take the first store's word."
                )
            merged[recording.recording] = united(known, recording)
            twice.append(recording.filename)
    return list(merged.values()), twice


def _shards_to_rewrite(store: Store, sealing: Sealing) -> list[tuple[list[str], list[str]]]:
    """Groups of shards that have the same blocks: (blocks, shards).

    Those below half the size of a full one, when there are several, and those with rows that no longer count.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for shard in store.shards:
        present = tuple(block for block in store.blocks if store.vector_path(block, shard).is_file())
        n_bytes = sum(store.vector_path(block, shard).stat().st_size for block in present)
        if n_bytes < sealing.n_bytes / 2 or store.n_live_rows(shard) < store.n_rows_of(shard):
            groups.setdefault(present, []).append(shard)
    return [
        (list(blocks), shards)
        for blocks, shards in groups.items()
        if len(shards) > 1 or store.n_live_rows(shards[0]) < store.n_rows_of(shards[0])
    ]


def _require_sound(store: Store, shards: Sequence[str]) -> None:
    """A copy would give damage a checksum of its own. Raises StoreError that names the first damaged file."""
    for shard in shards:
        files = [store.row_path(shard), *(store.vector_path(block, shard) for block in store.blocks)]
        for path in files:
            if path.is_file() and (wrong := check_shard(path)):
                raise StoreError(f"{path} {wrong}. Take it out first: embed repair {store.path}")


def _remove_leftovers(store: Store) -> int:
    """What interrupted runs left: temporary files, and vectors without rows."""
    sealed = set(store.shards) | set(store.torn)
    leftovers = [path for path in store.path.rglob("*.tmp") if path.is_file()]
    for block in store.blocks:
        leftovers += [p for p in (store.path / "blocks" / block).glob("*.arrow") if p.stem not in sealed]
    for path in leftovers:
        path.unlink()
    return len(leftovers)
