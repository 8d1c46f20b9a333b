"""Similar calls: the nearest windows of a store, exactly, read out of core."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from embeddings.errors import CisticolaError, InputError
from embeddings.files import read_json, write_json
from embeddings.normalise import BlockNormaliser
from embeddings.store import Store, StoreReader

__all__ = ["Neighbour", "NeighbourSearch"]

_CHUNK_ROWS = 16_384


@dataclass(frozen=True)
class Neighbour:
    """A stored window and its similarity to the query: the mean over blocks of centred cosines, in [-1, 1]."""

    row: int
    similarity: float
    query_window: int


class NeighbourSearch:
    """Exact nearest neighbours by faiss over any subset of a store's blocks.

    Each block is centred by the store's mean, L2-normalised and weighed equally. The means are kept beside the
    store's rows and made anew when there are other rows. Memory does not grow with the store.
    """

    def __init__(self, store: Store, blocks: Iterable[str] | None = None) -> None:
        self.store = store
        self.reader: StoreReader = store.reader(blocks)
        if store.n_rows == 0:
            raise InputError(f"{store.path} holds no rows yet. Extract recordings into it first.")
        self.normaliser = self._stored_normaliser()

    def search(
        self, queries: np.ndarray, k: int = 10, *, exclude: Iterable[str] = (), one_per_recording: bool = False
    ) -> list[Neighbour]:
        """The k stored windows most similar to any of the query windows.

        queries            (n, dim) float32, raw fused vectors in the order of the blocks
        exclude            content hashes of recordings to leave out, such as the query's own
        one_per_recording  only the best window of each recording
        Returns at most k neighbours, most similar first; equal similarities in the order of rows.
        """
        if k < 1:
            raise InputError(f"k={k} must be at least 1.")
        if queries.ndim != 2 or queries.shape[1] != self.reader.dim:
            raise InputError(f"queries have shape {queries.shape}; (n, {self.reader.dim}) was expected.")
        left_out = {self.store.catalogue.position(r) for r in exclude if r in self.store.catalogue}
        rows, similarity, window = self._nearest(self.normaliser.apply(queries), k, left_out, one_per_recording)
        return [Neighbour(*found) for found in zip(rows.tolist(), similarity.tolist(), window.tolist(), strict=True)]

    def _nearest(
        self, queries: np.ndarray, k: int, left_out: set[int], one_per_recording: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import faiss

        allowed = np.flatnonzero(~np.isin(self.store.place_of_row, list(left_out)))
        best_rows = np.zeros(0, np.int64)
        best_similarity = np.zeros(0, np.float32)
        best_window = np.zeros(0, np.int64)
        buffer = np.empty((_CHUNK_ROWS, self.reader.dim), np.float32)
        for start in range(0, len(allowed), _CHUNK_ROWS):
            rows = allowed[start : start + _CHUNK_ROWS]
            vectors = self.normaliser.apply(self.reader.read(rows, buffer))
            # Every stored window asks for its nearest query window: one answer a row, however many queries.
            similarity, window = faiss.knn(vectors, queries, 1, metric=faiss.METRIC_INNER_PRODUCT)
            best_rows = np.concatenate([best_rows, rows])
            best_similarity = np.concatenate([best_similarity, similarity[:, 0]])
            best_window = np.concatenate([best_window, window[:, 0]])
            keep = np.lexsort((best_rows, -best_similarity))
            if one_per_recording:
                _, first = np.unique(self.store.place_of_row[best_rows[keep]], return_index=True)
                keep = keep[np.sort(first)]
            keep = keep[:k]
            best_rows, best_similarity, best_window = best_rows[keep], best_similarity[keep], best_window[keep]
        return best_rows, best_similarity, best_window

    def _stored_normaliser(self) -> BlockNormaliser:
        """The store's means, from its small cache when that was made of the same rows and blocks."""
        path = self.store.path / "search" / f"{'-'.join(f.digest[:12] for _, f in self.reader.blocks)}.json"
        try:
            cached = read_json(path, what="search means")
            if cached["rows"] == self.store.rows_digest and cached["dims"] == list(self.reader.dims):
                return BlockNormaliser.from_json(cached["normaliser"])
        except (CisticolaError, KeyError, TypeError, ValueError):
            pass  # a cache: absent, old or damaged, it is made anew
        normaliser = BlockNormaliser.fit(self.reader, np.arange(self.store.n_rows))
        write_json(
            path,
            {"rows": self.store.rows_digest, "dims": list(self.reader.dims), "normaliser": normaliser.to_json()},
        )
        return normaliser
