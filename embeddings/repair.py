"""Damage taken out of a store, so that the next extraction computes exactly that again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from embeddings.errors import StoreError
from embeddings.layout import CATALOGUE
from embeddings.recordings import load_catalogue, save_catalogue
from embeddings.shards import check_shard, read_rows, read_vectors
from embeddings.store import Store

__all__ = ["RepairReport", "take_out_catalogue", "take_out_damage"]


@dataclass
class RepairReport:
    """What was moved to `kept_in`: nothing is deleted.

    shards  shards whose rows were damaged: their recordings will be embedded again
    blocks  (block, shard) whose vectors were damaged: only that block will be computed again
    """

    kept_in: str = ""
    n_recordings: int = 0
    shards: list[str] = field(default_factory=list)
    blocks: list[tuple[str, str]] = field(default_factory=list)
    leftovers: int = 0

    @property
    def found_any(self) -> bool:
        return bool(self.shards or self.blocks)


def take_out_catalogue(path: Path) -> bool:
    """Move a store's catalogue aside when it cannot be read, and put an empty one in its place.

    Rows stay: they count again as soon as an extraction names their recordings. Returns whether it was damaged.
    """
    catalogue = path / CATALOGUE
    try:
        load_catalogue(catalogue)
    except StoreError:
        place = _damaged(path)
        place.mkdir(parents=True, exist_ok=True)
        if catalogue.is_file():
            catalogue.rename(place / CATALOGUE)
        save_catalogue(catalogue, [])
        return True
    return False


def take_out_damage(store: Store, *, on_shard: Callable[[int], None] = lambda n: None) -> RepairReport:
    """Move torn, altered and left-over files of a store into its folder `damaged/<time>`.

    Reads the whole store. Nobody may write meanwhile. A kill leaves a store with less damage; run it again.
    """
    report = RepairReport()
    place = _damaged(store.path)

    def move(path: Path) -> None:
        if path.is_file():
            target = place / path.relative_to(store.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
            report.kept_in = str(place)

    n_before = len(store.embedded)
    for shard in [*store.shards, *store.torn]:
        if check_shard(store.row_path(shard)):
            report.shards.append(shard)
            move(store.row_path(shard))
            for block in store.blocks:
                move(store.vector_path(block, shard))
        else:
            n_rows = len(read_rows(store.row_path(shard)))
            for block in store.blocks.values():
                path = store.vector_path(block.name, shard)
                if path.is_file() and (check_shard(path) or _shape(path) != (n_rows, block.dim)):
                    report.blocks.append((block.name, shard))
                    move(path)
        on_shard(1)
    sealed = {path.stem for path in (store.path / "rows").glob("*.arrow")}
    for name in store.blocks:
        for path in (store.path / "blocks" / name).glob("*.arrow"):
            if path.stem not in sealed:
                move(path)
                report.leftovers += 1
    for path in list(store.path.rglob("*.tmp")):
        if place.parent not in path.parents:  # what an earlier repair took out stays where it lies
            move(path)
            report.leftovers += 1
    store.reload()
    report.n_recordings = n_before - len(store.embedded)
    return report


def _damaged(store: Path) -> Path:
    return store / "damaged" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S")


def _shape(path: Path) -> tuple[int, ...]:
    try:
        return read_vectors(path).shape
    except StoreError:
        return ()
