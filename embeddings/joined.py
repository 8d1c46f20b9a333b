"""Several stores searched as if they were one: their rows one after the other, each recording once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from embeddings.catalogue_sources import united
from embeddings.contract import Fingerprint
from embeddings.errors import ContractError, InputError
from embeddings.recordings import Catalogue, Recording
from embeddings.shards import RowTable
from embeddings.store import Store, StoreReader

__all__ = ["JoinedReader", "JoinedStores"]


class JoinedStores:
    """A view of stores that have the same blocks; nothing is copied.

    Rows are those of the first store, then those of the next. A recording that an earlier store has is left out of the
    later ones, and its labels are united, so that the view numbers rows as a merge of the stores would.

    plan          the first store's;  `catalogue` holds each recording once
    place_of_row  (n_rows,) int32, the place of each row's recording in that catalogue
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        """Raises InputError when there is no store, one is named twice, or one holds no rows."""
        if not stores:
            raise InputError("no store to search; name at least one.")
        paths = [store.path.resolve() for store in stores]
        if len(set(paths)) < len(paths):
            raise InputError(f"a store is named twice among {', '.join(str(store.path) for store in stores)}.")
        for store in stores:
            if store.n_rows == 0:
                raise InputError(f"{store.path} holds no rows yet. Extract recordings into it first.")
        self.stores = tuple(stores)
        self.path, self.plan = stores[0].path, stores[0].plan
        recordings: dict[str, Recording] = {}
        for recording in (r for store in stores for r in store.catalogue):
            known = recordings.get(recording.recording)
            recordings[recording.recording] = recording if known is None else united(known, recording)
        self.catalogue = Catalogue(tuple(recordings.values()))

        taken: set[str] = set()
        self._kept: list[np.ndarray | None] = []  # rows of each store that count; None: all of them
        places = []
        for store in stores:
            of_store = np.array([self.catalogue.position(r.recording) for r in store.catalogue], np.int32)
            is_new = np.array([r.recording not in taken for r in store.catalogue], bool)[store.place_of_row]
            self._kept.append(None if is_new.all() else np.flatnonzero(is_new))
            places.append(of_store[store.place_of_row][is_new])
            taken |= store.embedded
        self.place_of_row = np.concatenate(places)
        self._first_row = np.cumsum([0, *(len(part) for part in places)])
        self._rows: RowTable | None = None

    @property
    def n_rows(self) -> int:
        return len(self.place_of_row)

    @property
    def rows(self) -> RowTable:
        """Every row's window, in order; read when first asked for."""
        if self._rows is None:
            parts = zip(self.stores, self._kept, strict=True)
            tables = [store.rows if kept is None else store.rows.take(kept) for store, kept in parts]
            self._rows = tables[0] if len(tables) == 1 else RowTable.concatenated(tables)
        return self._rows

    @property
    def cache_name(self) -> str:
        """What to add to the name of a cache in the first store's folder: it depends on which stores are joined."""
        if len(self.stores) == 1:
            return ""
        paths = "\n".join(str(store.path.resolve()) for store in self.stores)
        return f"-joined-{hashlib.sha256(paths.encode()).hexdigest()[:12]}"

    def origin(self, row: int) -> tuple[Store, int]:
        """The store that a row comes from, and the row's number there."""
        which = int(np.searchsorted(self._first_row, row, side="right")) - 1
        own, kept = row - int(self._first_row[which]), self._kept[which]
        return self.stores[which], own if kept is None else int(kept[own])

    def reader(self, names: Iterable[str] | None = None) -> StoreReader | JoinedReader:
        """Fused embeddings of the named blocks (default: all of the first store), in that order.

        Blocks of the other stores are found by fingerprint, whatever they are called there.
        Raises InputError for an unknown name, ContractError that names the differing fields when a store has no block
        of that fingerprint, StoreError when a block is not complete.
        """
        readers = [self.stores[0].reader(names)]
        for store in self.stores[1:]:
            readers.append(store.reader(_same_blocks(self.stores[0], readers[0].blocks, store)))
        return readers[0] if len(readers) == 1 else JoinedReader(readers, self._kept, self._first_row)


class JoinedReader:
    """Reads fused embeddings of joined stores by row number; a `RowReader`."""

    def __init__(
        self, readers: Sequence[StoreReader], kept: Sequence[np.ndarray | None], first_row: np.ndarray
    ) -> None:
        self.blocks, self.dims, self.dim = readers[0].blocks, readers[0].dims, readers[0].dim
        self._readers, self._kept, self._first_row = tuple(readers), tuple(kept), first_row

    @property
    def n_rows(self) -> int:
        return int(self._first_row[-1])

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that change with any vector, with the order of rows, and with what is left out."""
        digest = hashlib.sha256()
        for reader, kept in zip(self._readers, self._kept, strict=True):
            digest.update(reader.digest.encode())
            digest.update(b"all" if kept is None else np.ascontiguousarray(kept, np.int64).tobytes())
        return digest.hexdigest()[:32]

    def read(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """rows : (n,) row numbers in any order.  Returns float32 (n, dim), in `out[:n]` when `out` is given."""
        rows = np.asarray(rows)
        result = np.empty((len(rows), self.dim), np.float32) if out is None else out[: len(rows)]
        which = np.searchsorted(self._first_row, rows, side="right") - 1
        for i in np.unique(which):
            here = np.flatnonzero(which == i)
            own, kept = rows[here] - self._first_row[i], self._kept[i]
            result[here] = self._readers[i].read(own if kept is None else kept[own])
        return result


def _same_blocks(first: Store, blocks: Sequence[tuple[str, Fingerprint]], other: Store) -> list[str]:
    """The other store's names of the first one's blocks."""
    by_digest = {block.fingerprint.digest: block.name for block in other.blocks.values()}
    names = []
    for name, fingerprint in blocks:
        if fingerprint.digest in by_digest:
            names.append(by_digest[fingerprint.digest])
            continue
        if namesake := other.blocks.get(name):
            detail = f"their blocks {name!r} differ in {'; '.join(fingerprint.differences(namesake.fingerprint))}"
        else:
            detail = f"the second has {', '.join(other.blocks)}, but no block {name!r} ({fingerprint.digest[:8]})"
        raise ContractError(
            f"{first.path} and {other.path} cannot be searched together: {detail}. Search each by itself, name blocks "
            f"that both have with --blocks, or extract one of them with the other's backbone."
        )
    return names
