"""Vectors on disk: a folder of sealed shards, a catalogue, and copies of the backbones that made them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from uuid import uuid4

import numpy as np

from embeddings.contract import BlockSource
from embeddings.errors import StoreError
from embeddings.layout import HASHES, Block, StoreLayout, create_layout
from embeddings.quarantine import Quarantine
from embeddings.recordings import Catalogue, Recording, load_catalogue, save_catalogue
from embeddings.row_index import RowIndex
from embeddings.shards import RowTable, read_rows, read_runs, read_vectors, shard_checksum
from embeddings.splits import Split
from embeddings.windows import WindowPlan

__all__ = ["HASHES", "Block", "Store", "StoreReader"]


class Store(StoreLayout):
    """A store opened for reading, or for appending through `ShardWriter`.

    Rows are numbered in the order of the catalogue, then of time, whatever order they were written in; so a resumed
    store reads like an uninterrupted one.
    """

    def __init__(self, path: Path) -> None:
        """Open an existing store. Raises StoreError when there is none or it is damaged."""
        super().__init__(path)
        self.quarantine = Quarantine(self.path / "quarantine", uuid4().hex[:12])
        self.reload()

    @classmethod
    def create(
        cls, path: Path, backbones: Sequence[BlockSource], plan: WindowPlan, *, dtype: str, split: Split, link: bool
    ) -> Store:
        """Make an empty store for these blocks, with a copy of (or a link to) each backbone."""
        create_layout(path, backbones, plan, dtype=dtype, split=split, link=link)
        return cls(path)

    def reload(self) -> None:
        """Read the catalogue and the row index again, to see what other writers have sealed since."""
        self.catalogue: Catalogue = load_catalogue(self.path / "catalogue.arrow")
        self.shards: list[str] = []
        self.torn: dict[str, str] = {}  # shards whose rows cannot be read: their recordings count as not embedded
        runs = []
        for shard in sorted(p.stem for p in (self.path / "rows").glob("*.arrow")):
            try:
                runs.append(read_runs(self.row_path(shard)))
                self.shards.append(shard)
            except StoreError as error:
                self.torn[shard] = str(error)
        self._n_rows_of_shard = np.array([r.n_rows for r in runs], np.int64)
        self.index = RowIndex.of(runs, self._place)
        for name in ("rows", "place_of_row"):
            self.__dict__.pop(name, None)

    @property
    def n_rows(self) -> int:
        return self.index.n_rows

    @property
    def n_duplicate_rows(self) -> int:
        """Rows of recordings that racing writers have sealed twice: they count once."""
        return self.index.n_duplicates

    @cached_property
    def rows(self) -> RowTable:
        """Every row's window, in order: some 40 bytes a row, read from the shards when they are first asked for."""
        everything = RowTable.concatenated([read_rows(self.row_path(shard)) for shard in self.shards])
        shard, offset = self.index.locate(np.arange(self.n_rows))
        first_of_shard = np.cumsum(self._n_rows_of_shard) - self._n_rows_of_shard
        return everything.take(first_of_shard[shard] + offset if self.n_rows else np.zeros(0, np.int64))

    @cached_property
    def place_of_row(self) -> np.ndarray:
        """(n_rows,) int32, the place of each row's recording in the catalogue."""
        return np.repeat(self.index.place, self.index.lengths)

    @property
    def rows_digest(self) -> str:
        """16 hexadecimal digits that change with the recordings that have rows: for caches of what was made of them."""
        return hashlib.sha256("\n".join([*sorted(self.embedded), str(self.n_rows)]).encode()).hexdigest()[:16]

    @property
    def n_sealed_rows(self) -> int:
        """Rows on disk: also those of dropped recordings, and those sealed twice."""
        return int(self._n_rows_of_shard.sum())

    def n_rows_of(self, shard: str) -> int:
        """Rows that a sealed shard holds."""
        return int(self._n_rows_of_shard[self.shards.index(shard)])

    def n_live_rows(self, shard: str) -> int:
        """Rows of a sealed shard that count: of recordings in the catalogue, and not sealed twice."""
        return int(self.index.lengths[self.index.shard == self.shards.index(shard)].sum())

    def shard_of_row(self, row: int) -> str:
        return self.shards[self.index.locate(np.array([row]))[0][0]]

    @property
    def embedded(self) -> set[str]:
        """Content hashes of the recordings whose rows are sealed."""
        return {self.catalogue.recordings[i].recording for i in np.unique(self.index.place)}

    def missing_shards(self, block: str) -> list[str]:
        """Sealed shards that have no vectors of this block yet."""
        return [shard for shard in self.shards if not self.vector_path(block, shard).is_file()]

    def reader(self, names: Iterable[str] | None = None, *, shards: Iterable[str] | None = None) -> StoreReader:
        """Fused embeddings of the named blocks (default: all), side by side in that order.

        shards : those that will be read from (default: all); only they must have the blocks.
        """
        return StoreReader(self, self.choose_blocks(names), shards)

    def add_recordings(self, recordings: Iterable[Recording]) -> None:
        """Bring recordings into the catalogue, or their labels and splits up to date; rows stay as they are."""
        self.catalogue = self.catalogue.joined(recordings)
        save_catalogue(self.path / "catalogue.arrow", self.catalogue.recordings)
        if self.n_sealed_rows > self.n_rows:
            self.reload()  # rows of recordings that had been dropped may count again

    def _place(self, recording: str) -> int:
        return self.catalogue.position(recording) if recording in self.catalogue else -1


class StoreReader:
    """Reads fused embeddings by row number from mapped shards; a `RowReader`.

    >>> reader = Store(path).reader(["efficientnet", "birdnet"])  # doctest: +SKIP
    >>> reader.read(np.arange(1000)).shape                        # doctest: +SKIP
    (1000, 2304)
    """

    def __init__(self, store: Store, blocks: Sequence[Block], shards: Iterable[str] | None = None) -> None:
        needed = set(store.shards if shards is None else shards)
        self.blocks = tuple((block.name, block.fingerprint) for block in blocks)
        self.dims = tuple(block.dim for block in blocks)
        self.dim = sum(self.dims)
        self._store = store
        self._maps: dict[tuple[int, int], np.ndarray] = {}
        for block in blocks:
            if missing := needed & set(store.missing_shards(block.name)):
                raise StoreError(
                    f"block {block.name!r} is not complete in {store.path}: {len(missing)} of "
                    f"{len(store.shards)} shards lack it. Run the `embed extract` that adds it again; it goes on "
                    f"where it stopped."
                )

    @property
    def n_rows(self) -> int:
        return self._store.n_rows

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that change with any vector and with the order of rows: for caches made of them."""
        store, digest = self._store, hashlib.sha256()
        for shard in np.unique(store.index.shard):
            for name, fingerprint in self.blocks:
                checksum = shard_checksum(store.vector_path(name, store.shards[shard]))
                digest.update(f"{shard} {fingerprint.digest} {checksum}\n".encode())
        for part in store.index.digest_parts():
            digest.update(part)
        return digest.hexdigest()[:32]

    def read(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """rows : (n,) row numbers in any order.  Returns float32 (n, dim), in `out[:n]` when `out` is given."""
        rows = np.asarray(rows)
        result = np.empty((len(rows), self.dim), np.float32) if out is None else out[: len(rows)]
        shard_of, offset_in = self._store.index.locate(rows)
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            offsets = offset_in[here]
            target = _as_slice(here)
            wanted = _as_slice(offsets)
            start = 0
            for i, dim in enumerate(self.dims):
                result[target, start : start + dim] = self._map(i, int(shard))[wanted]
                start += dim
        return result

    def _map(self, block: int, shard: int) -> np.ndarray:
        key = (block, shard)
        if key not in self._maps:
            path = self._store.vector_path(self.blocks[block][0], self._store.shards[shard])
            self._maps[key] = read_vectors(path)
        return self._maps[key]


def _as_slice(numbers: np.ndarray) -> slice | np.ndarray:
    """Consecutive numbers as a slice, which copies several times faster than a gather."""
    if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1 and bool(np.all(np.diff(numbers) == 1)):
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers
