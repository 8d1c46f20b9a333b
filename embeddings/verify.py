"""Reads a whole store and says what is wrong with it, if anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from embeddings.errors import CisticolaError
from embeddings.files import read_json
from embeddings.shards import check_shard, read_rows, read_vectors, shard_metadata
from embeddings.store import Store

__all__ = ["VerifyReport", "verify_store"]


@dataclass
class VerifyReport:
    """What `embed verify` found. `problems` are damage; `notes` are harmless leftovers and facts."""

    store: str
    n_recordings: int = 0
    n_rows: int = 0
    n_shards: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_store(store: Store, *, on_shard: Callable[[int], None] | None = None) -> VerifyReport:
    """Read every byte of every shard: checksums, row counts, fingerprints, and both ends of every reference."""
    report = VerifyReport(str(store.path), len(store.embedded), store.n_rows, len(store.shards))
    remedy = "`embed repair` takes it out; the next `embed extract` embeds its recordings again."
    report.problems.extend(f"{why} {remedy}" for why in store.torn.values())
    for shard in store.shards:
        if wrong := check_shard(store.row_path(shard)):
            report.problems.append(f"rows/{shard}.arrow {wrong}")
            continue
        n_rows = len(read_rows(store.row_path(shard)))
        for name, block in store.blocks.items():
            path = store.vector_path(name, shard)
            place = f"blocks/{name}/{shard}.arrow"
            if not path.is_file():
                report.problems.append(f"{place} is missing; the `embed extract` that adds block {name!r} makes it")
                continue
            if wrong := check_shard(path):
                report.problems.append(f"{place} {wrong}")
                continue
            shape = read_vectors(path).shape
            if shape != (n_rows, block.dim):
                report.problems.append(f"{place} holds {shape}; its rows and block need {(n_rows, block.dim)}")
            if shard_metadata(path).get("fingerprint") != block.fingerprint.digest:
                report.problems.append(f"{place} was made by another backbone than block {name!r}")
        if on_shard is not None:
            on_shard(1)
    _check_references(store, report)
    return report


def _check_references(store: Store, report: VerifyReport) -> None:
    sealed = set(store.shards)
    for name, block in store.blocks.items():
        orphans = [p.name for p in (store.path / "blocks" / name).glob("*.arrow") if p.stem not in sealed]
        if orphans:
            report.notes.append(
                f"block {name!r}: {len(orphans)} unsealed shards of an interrupted run, not in the store"
            )
        try:
            folder = store.backbone_path(block)
            described = read_json(folder / "backbone.json", what=f"backbone of block {name!r}")
            if described.get("fingerprint") != dict(block.fingerprint.fields):
                report.problems.append(f"{folder} is not the backbone that made block {name!r}")
        except CisticolaError as error:
            report.problems.append(str(error))
    leftovers = list(store.path.rglob("*.tmp"))
    if leftovers:
        report.notes.append(f"{len(leftovers)} temporary files of an interrupted run; `embed compact` removes them")
    if store.n_duplicate_rows:
        report.notes.append(f"{store.n_duplicate_rows} rows sealed twice by racing writers; the first counts")
    waiting = len(store.catalogue) - len(store.embedded)
    if waiting:
        report.notes.append(f"{waiting} recordings of the catalogue have no rows: quarantined, or not embedded yet")
