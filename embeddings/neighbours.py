"""Similar calls: the nearest windows of a store, exactly, or nearly so at a fraction of the cost."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embeddings.errors import InputError
from embeddings.index_scan import Asked, nearest_rows
from embeddings.joined import JoinedReader, JoinedStores
from embeddings.search_index import SearchIndex, make_index, open_index
from embeddings.store import Store, StoreReader

__all__ = ["Neighbour", "NeighbourSearch"]

_RECALL_FLOOR, _RECALL_K, _RECALL_QUERIES = 0.95, 100, 128


@dataclass(frozen=True)
class Neighbour:
    """A stored window and its similarity to the query: the mean over blocks of centred cosines, in [-1, 1].

    query_window  which of the query's windows it is most similar to; of several examples, counted through all of them
    """

    row: int
    similarity: float
    query_window: int


class NeighbourSearch:
    """Nearest neighbours over any subset of a store's blocks.

    Each block is centred by the store's mean, L2-normalised and weighed equally. Vectors rounded to a byte a number are
    kept beside the store and made anew whenever its vectors change; they say which rows can be among the nearest, and
    the similarities of those are taken from the store's own vectors. So an exact search misses nothing, while memory
    hardly grows with the store (16 bytes a row). In a store that cannot be written to, the rounded vectors go to a
    temporary folder.

    store : a store, or several joined; those share one mean, that of all their rows, so that similarities compare.
    approximate : gather the vectors in about sqrt(n) lists, of which a search looks into the nearest. How many those
                  are is settled when the lists are made, by recall@100 of 128 stored windows against exact search,
                  neighbours from a window's own recording left out: doubled until it is .95 or all lists are searched.
    """

    def __init__(
        self, store: Store | JoinedStores, blocks: Iterable[str] | None = None, *, approximate: bool = False
    ) -> None:
        self.store, self.approximate = store, approximate
        self.reader: StoreReader | JoinedReader = store.reader(blocks)
        if store.n_rows == 0:
            raise InputError(f"{store.path} holds no rows yet. Extract recordings into it first.")
        self._index = self._opened_index()
        self.normaliser = self._index.normaliser

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of the index: n_lists, and when approximate n_probed and recall."""
        return {"approximate": self.approximate, **self._index.facts}

    def search(
        self, queries: np.ndarray, k: int = 10, *, exclude: Iterable[str] = (), one_per_recording: bool = True
    ) -> list[Neighbour]:
        """The k stored windows most similar to any of the query windows.

        queries            (n, dim) float32, raw fused vectors in the order of the blocks
        exclude            content hashes of recordings to leave out, such as the query's own
        one_per_recording  only the best window of each recording
        Returns at most k neighbours, most similar first; equal similarities in the order of rows.
        """
        return self.search_by_examples([queries], (), k, exclude=exclude, one_per_recording=one_per_recording)

    def search_by_examples(
        self,
        positives: Sequence[np.ndarray],
        negatives: Sequence[np.ndarray] = (),
        k: int = 10,
        *,
        exclude: Iterable[str] = (),
        one_per_recording: bool = True,
    ) -> list[Neighbour]:
        """The k stored windows that are most like some examples, and least like others.

        positives, negatives  examples, each the raw fused vectors (n, dim) float32 of its windows
        The similarity of a stored window x, all vectors centred and normalised, is

            mean over positives of max over an example's windows w of <x, w>
            - mean over negatives of mean over an example's windows w of <x, w>

        in [-2, 2] with negatives, in [-1, 1] without. Examples of one window each make it one inner product, with the
        mean of the positives minus the mean of the negatives. Exact as `search` is, equal ones in the order of rows.
        Raises InputError as `nearest` does, and when there are no positives.
        Source: J. J. Rocchio, Relevance feedback in information retrieval, in G. Salton (ed.), The SMART retrieval
        system, 1971, pages 313-323; with equal weights of both sides, and no original query.
        """
        _require_k(k)
        k = min(k, self.store.n_rows)  # room is made for all that are asked for
        if not positives:
            raise InputError("no positive example to search by; negatives only say what to keep away from.")
        liked = [self._normalised(example) for example in positives]
        vectors, begins = np.concatenate(liked), np.cumsum([0, *(len(example) for example in liked)])[:-1]
        if len(vectors) == len(liked):
            vectors, begins = vectors.mean(axis=0, keepdims=True), begins[:1]
        if negatives:
            away = [self._normalised(example).mean(axis=0) for example in negatives]
            vectors = vectors - np.mean(away, axis=0)
        # Bounds of rough similarities are those of vectors of length 1; a difference may be twice as long.
        scale = 1.0
        if negatives and (longest := float(np.linalg.norm(vectors, axis=1).max())) > 1.0:
            vectors, scale = vectors / np.float32(longest), float(np.float32(longest))
        asked = Asked(vectors, begins if len(begins) > 1 else None)
        rows, similarity = self._found(asked, k, exclude, one_per_recording)
        if len(positives) == 1:
            return self._best_of(rows, scale * similarity, k, one_per_recording)
        rows, similarity = rows[0][rows[0] >= 0], similarity[0][rows[0] >= 0]
        window = self.similarities(rows, np.concatenate(list(positives))).argmax(axis=1)
        found = zip(rows.tolist(), (scale * similarity).tolist(), window.tolist(), strict=True)
        return [Neighbour(*neighbour) for neighbour in found]

    def similarities(self, rows: np.ndarray, windows: np.ndarray) -> np.ndarray:
        """Similarity of each stored window to each given one.

        rows : (n,) row numbers;  windows : (m, dim) float32, raw fused vectors.  Returns float64 (n, m) in [-1, 1].
        """
        stored = self.normaliser.apply(self.reader.read(rows)).astype(np.float64)
        return stored @ self._normalised(windows).astype(np.float64).T

    def _best_of(self, rows: np.ndarray, similarity: np.ndarray, k: int, one_per_recording: bool) -> list[Neighbour]:
        """The k best of what several query windows found."""
        window, rank = np.nonzero(rows >= 0)
        rows, similarity = rows[window, rank], similarity[window, rank]
        best = np.lexsort((window, rows, -similarity))
        # A window that several queries find counts once, and so does a recording when only its best may stay.
        groups = self.store.place_of_row[rows] if one_per_recording else rows
        _, first = np.unique(groups[best], return_index=True)
        best = best[np.sort(first)][:k]
        found = zip(rows[best].tolist(), similarity[best].tolist(), window[best].tolist(), strict=True)
        return [Neighbour(*neighbour) for neighbour in found]

    def nearest(
        self, queries: np.ndarray, k: int = 100, *, exclude: Iterable[str] = (), one_per_recording: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k stored windows most similar to each query window; arguments as for `search`.

        Returns rows, int64 (n, k), and similarities, float64 (n, k), most similar first, equal ones in the order of
        rows; -1 and -inf where there are fewer than k. They do not depend on which queries are asked together.
        Raises InputError when k or a query does not fit, or a query is not finite.
        """
        _require_k(k)
        return self._found(Asked(self._normalised(queries)), k, exclude, one_per_recording)

    def _normalised(self, queries: np.ndarray) -> np.ndarray:
        if queries.ndim != 2 or queries.shape[1] != self.reader.dim:
            raise InputError(f"queries have shape {queries.shape}; (n, {self.reader.dim}) was expected.")
        return self.normaliser.apply(queries)

    def _found(
        self, asked: Asked, k: int, exclude: Iterable[str], one_per_recording: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        left_out = [self.store.catalogue.position(r) for r in exclude if r in self.store.catalogue]
        allowed = ~np.isin(self.store.place_of_row, left_out) if left_out else None
        probed = self._index.facts["n_probed"] if self.approximate else None
        groups = self.store.place_of_row if one_per_recording else None
        return nearest_rows(self.reader, self._index, asked, k, probed, groups, allowed)

    def _opened_index(self) -> SearchIndex:
        name = "-".join(f.digest[:12] for _, f in self.reader.blocks)
        if isinstance(self.store, JoinedStores):
            name += self.store.cache_name
        folder, digest = self.store.path / "search" / name, self.reader.digest
        found = open_index(folder, self.reader, digest, lists=self.approximate)
        if found is not None:
            return found
        measure = self._measured if self.approximate else None
        try:
            return make_index(folder, self.reader, digest, measure)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self._temporary = tempfile.TemporaryDirectory(prefix="cisticola-search-")
            return make_index(Path(self._temporary.name) / name, self.reader, digest, measure)

    def _measured(self, index: SearchIndex) -> dict[str, Any]:
        """How many lists have to be looked into, and the recall that this gave."""
        n = self.store.n_rows
        rows = np.sort(np.random.default_rng(0).choice(n, min(_RECALL_QUERIES, n), replace=False))
        queries = index.normaliser.apply(self.reader.read(rows))
        own = self.store.place_of_row[rows]

        def found(probed: int | None) -> list[set[int]]:
            nearest = nearest_rows(
                self.reader, index, Asked(queries), _RECALL_K, probed, None, None, own, self.store.place_of_row
            )
            return [set(row[row >= 0].tolist()) for row in nearest[0]]

        exact, probed = found(None), max(1, index.n_lists // 128)
        while True:
            shares = [len(a & e) / len(e) for a, e in zip(found(probed), exact, strict=True) if e]
            recall = float(np.mean(shares)) if shares else 1.0
            if recall >= _RECALL_FLOOR or probed >= index.n_lists:
                return {"n_probed": probed, "recall": recall, "recall_k": _RECALL_K, "recall_queries": len(shares)}
            probed = min(2 * probed, index.n_lists)


def _require_k(k: int) -> None:
    if k < 1:
        raise InputError(f"k={k} must be at least 1.")
