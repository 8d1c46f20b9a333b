"""Vectors on disk: a folder of sealed shards, a catalogue, and copies of the backbones that made them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import uuid4

import numpy as np

from embeddings.contract import BlockSource
from embeddings.errors import StoreError
from embeddings.layout import HASHES, Block, StoreLayout, create_layout
from embeddings.quarantine import Quarantine
from embeddings.recordings import Catalogue, Recording, load_catalogue, save_catalogue
from embeddings.shards import RowTable, read_rows, read_vectors, shard_checksum
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
        tables = []
        for shard in sorted(p.stem for p in (self.path / "rows").glob("*.arrow")):
            try:
                tables.append(read_rows(self.row_path(shard)))
                self.shards.append(shard)
            except StoreError as error:
                self.torn[shard] = str(error)
        everything = RowTable.concatenated(tables)
        self._n_rows_of_shard = np.array([len(t) for t in tables], np.int64)
        shard_of = np.repeat(np.arange(len(tables)), [len(t) for t in tables])
        offset_in = np.concatenate([np.arange(len(t)) for t in tables]) if tables else np.zeros(0, np.int64)

        # The place in the catalogue orders rows; a recording sealed twice by racing writers counts once.
        place = np.array([self._place(r) for r in everything.recording], dtype=np.int64)
        home = _first_shard(place, shard_of)
        keep = np.flatnonzero((place >= 0) & (shard_of == home[place])) if len(place) else place
        order = keep[np.lexsort((everything.start_s[keep], place[keep]))]
        self.n_duplicate_rows = int((place >= 0).sum() - len(keep))
        self.rows: RowTable = everything.take(order)
        self.place_of_row: np.ndarray = place[order]
        self._shard_of_row: np.ndarray = shard_of[order]
        self._offset_of_row: np.ndarray = offset_in[order]

    @property
    def n_rows(self) -> int:
        return len(self.rows)

    @property
    def rows_digest(self) -> str:
        """16 hexadecimal digits that change with the recordings that have rows: for caches of what was made of them."""
        held = self.rows.recording[np.flatnonzero(np.diff(self.place_of_row, prepend=-1))]
        return hashlib.sha256("\n".join([*sorted(held), str(self.n_rows)]).encode()).hexdigest()[:16]

    @property
    def n_sealed_rows(self) -> int:
        """Rows on disk: also those of dropped recordings, and those sealed twice."""
        return int(self._n_rows_of_shard.sum())

    def n_rows_of(self, shard: str) -> int:
        """Rows that a sealed shard holds."""
        return int(self._n_rows_of_shard[self.shards.index(shard)])

    def n_live_rows(self, shard: str) -> int:
        """Rows of a sealed shard that count: of recordings in the catalogue, and not sealed twice."""
        return int(np.count_nonzero(self._shard_of_row == self.shards.index(shard)))

    def shard_of_row(self, row: int) -> str:
        return self.shards[self._shard_of_row[row]]

    @property
    def embedded(self) -> set[str]:
        """Content hashes of the recordings whose rows are sealed."""
        return {self.catalogue.recordings[i].recording for i in np.unique(self.place_of_row)}

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
        for shard in np.unique(store._shard_of_row):
            for name, fingerprint in self.blocks:
                checksum = shard_checksum(store.vector_path(name, store.shards[shard]))
                digest.update(f"{shard} {fingerprint.digest} {checksum}\n".encode())
        for where in (store._shard_of_row, store._offset_of_row):
            digest.update(np.ascontiguousarray(where, np.int64).data)
        return digest.hexdigest()[:32]

    def read(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """rows : (n,) row numbers in any order.  Returns float32 (n, dim), in `out[:n]` when `out` is given."""
        rows = np.asarray(rows)
        result = np.empty((len(rows), self.dim), np.float32) if out is None else out[: len(rows)]
        shard_of = self._store._shard_of_row[rows]
        offset_in = self._store._offset_of_row[rows]
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


def _first_shard(place: np.ndarray, shard_of: np.ndarray) -> np.ndarray:
    """For each place in the catalogue, the first shard that holds rows of it."""
    home = np.full(int(place.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    known = place >= 0
    np.minimum.at(home, place[known], shard_of[known])
    return home if len(home) else np.zeros(1, np.int64)


def _as_slice(numbers: np.ndarray) -> slice | np.ndarray:
    """Consecutive numbers as a slice, which copies several times faster than a gather."""
    if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1 and bool(np.all(np.diff(numbers) == 1)):
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers
