"""Where nearest windows are looked up: all of them in a small set, the nearest lists in a large one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from embeddings.clusters import lists_for, nearest_lists, sample_size, train_centroids
from embeddings.errors import InputError
from stage2_heads.base import required_array

__all__ = ["VoteIndex"]

_QUERIES = 256  # windows that recall is measured with
_CHUNK_ROWS = 8192


class VoteIndex:
    """Normalised vectors in a faiss index: flat, or an inverted file once `gather` was called; 4 bytes a number.

    n_lists, n_probed   lists of the inverted file and how many a search looks into; 0 when flat
    recall_             share of the true nearest that it finds, and recall_rows_, how many windows it was measured
                        among; 1.0 when flat
    """

    def __init__(self, dim: int) -> None:
        faiss = _faiss()
        self.dim = dim
        self._index: Any = faiss.IndexFlatIP(dim)
        self.n_lists = self.n_probed = 0
        self.recall_, self.recall_rows_ = 1.0, 0

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, vectors: np.ndarray) -> None:
        """Add normalised vectors, float32 (n, dim); nothing that is there moves."""
        if self.n_lists:
            self._add_to_lists(vectors, nearest_lists(vectors, self._centroids)[:, 0])
        else:
            self._index.add(vectors)

    def gather(self, seed: int) -> None:
        """Turn the flat index into an inverted file of about sqrt(n) lists; one is looked into until `probe` says more.

        Centroids are trained on at most 256 MB of the vectors, drawn by the seed.
        """
        n, whole, flat = len(self), self._index, self._flat_vectors()
        chosen = np.sort(np.random.default_rng(seed).choice(n, sample_size(n, self.dim), replace=False))
        centroids = train_centroids(flat[chosen], lists_for(n), seed)
        lists = nearest_lists(flat, centroids)[:, 0]
        self._make_lists(centroids, 1)
        for start in range(0, n, _CHUNK_ROWS):
            self._add_to_lists(flat[start : start + _CHUNK_ROWS], lists[start : start + _CHUNK_ROWS])
        del whole  # the flat index had to live until now: `flat` is its memory

    def measure(self, k: int, floor: float, groups: np.ndarray | None, seed: int) -> None:
        """Measure recall@k against exact search, and look into twice as many lists until it is `floor` or all are.

        groups : (n,) int, the recording of each window: neighbours from a window's own recording are left out on both
        sides, as they would be for a recording not heard before; None leaves out only the window itself.
        """
        n = len(self)
        groups = np.arange(n) if groups is None else groups
        asked = np.sort(np.random.default_rng(seed).choice(n, min(_QUERIES, n), replace=False))
        queries = self.vectors(asked)
        exact = self._exact(queries, groups, groups[asked], k)
        self.probe(max(1, self.n_lists // 64))
        while True:
            shares = []
            for query, own, (true, kth) in zip(queries, groups[asked], exact, strict=True):
                if not len(true):
                    continue
                found = self._search_without(query, np.flatnonzero(groups == own), k)
                similarity = self.vectors(found) @ query
                # A neighbour that ties with the k-th is as good as the one that exact search happened to name.
                shares.append(min(1.0, np.count_nonzero(similarity >= kth - 1e-5) / len(true)))
            self.recall_, self.recall_rows_ = float(np.mean(shares)) if shares else 1.0, n
            if self.recall_ >= floor or self.n_probed >= self.n_lists:
                return
            self.probe(2 * self.n_probed)

    def probe(self, n_lists: int) -> None:
        """Look into so many lists from now on."""
        self.n_probed = min(n_lists, self.n_lists)
        self._index.nprobe = self.n_probed

    def search(self, queries: np.ndarray, n: int) -> np.ndarray:
        """The numbers of each query's n nearest vectors, int64 (q, n); -1 where the lists looked into hold fewer."""
        return self._index.search(queries, n)[1]

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """Vectors by number (any shape), float32 (..., dim); those of -1 are zero."""
        numbers = np.asarray(numbers)
        if not self.n_lists:
            return self._flat_vectors()[numbers]
        found = np.zeros((*numbers.shape, self.dim), np.float32)
        there = numbers >= 0
        if there.any():
            found[there] = self._index.reconstruct_batch(numbers[there])
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, by name."""
        if not self.n_lists:
            return {"vectors": self._flat_vectors()}
        return {
            "vectors": self._index.reconstruct_n(0, len(self)),
            "centroids": self._centroids,
            "lists": self._lists(),
            "n_probed": np.array([self.n_probed], np.int64),
            "recall": np.array([self.recall_], np.float64),
            "recall_rows": np.array([self.recall_rows_], np.int64),
        }

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], dim: int) -> VoteIndex:
        """What `arrays` gave; faiss's own files are not read, so that nothing sent by others reaches its parser.

        Raises InputError when they do not fit.
        """
        vectors = required_array(arrays, "vectors", (None, dim), np.float32)
        if len(vectors) == 0:
            raise InputError("the head holds no vectors; fit the head anew.")
        index = cls(dim)
        if "centroids" not in arrays:
            index.add(vectors)
            return index
        centroids = required_array(arrays, "centroids", (None, dim), np.float32)
        lists = required_array(arrays, "lists", (len(vectors),), np.int32)
        n_probed = int(required_array(arrays, "n_probed", (1,), np.int64)[0])
        if not 0 <= lists.min() <= lists.max() < len(centroids) or not 1 <= n_probed <= len(centroids):
            raise InputError("the head's lists do not belong to its vectors; fit the head anew.")
        index._make_lists(centroids, n_probed)
        index._add_to_lists(vectors, lists)
        index.recall_ = float(required_array(arrays, "recall", (1,), np.float64)[0])
        index.recall_rows_ = int(required_array(arrays, "recall_rows", (1,), np.int64)[0])
        return index

    def _make_lists(self, centroids: np.ndarray, n_probed: int) -> None:
        faiss = _faiss()
        quantizer = faiss.IndexFlatIP(self.dim)
        quantizer.add(centroids)
        index = faiss.IndexIVFFlat(quantizer, self.dim, len(centroids), faiss.METRIC_INNER_PRODUCT)
        index.set_direct_map_type(faiss.DirectMap.Array)
        self._index, self._quantizer, self._centroids = index, quantizer, np.array(centroids)
        self.n_lists = len(centroids)
        self.probe(n_probed)

    def _add_to_lists(self, vectors: np.ndarray, lists: np.ndarray) -> None:
        faiss = _faiss()
        vectors = np.ascontiguousarray(vectors, np.float32)
        lists = np.ascontiguousarray(lists, np.int64)
        # Lists are found by our own products, several times as fast as those of the BLAS that comes with faiss.
        self._index.add_core(len(vectors), faiss.swig_ptr(vectors), None, faiss.swig_ptr(lists))

    def _lists(self) -> np.ndarray:
        """The list of each vector, (n,) int32."""
        faiss = _faiss()
        lists = np.empty(len(self), np.int32)
        for label in range(self.n_lists):
            size = self._index.invlists.list_size(label)
            if size:
                lists[faiss.rev_swig_ptr(self._index.invlists.get_ids(label), size)] = label
        return lists

    def _exact(
        self, queries: np.ndarray, groups: np.ndarray, own: np.ndarray, k: int
    ) -> list[tuple[np.ndarray, float]]:
        """The similarities of each query's true k nearest outside its own group, and the least of them."""
        best = np.full((len(queries), k), -np.inf, np.float32)
        for start in range(0, len(self), _CHUNK_ROWS):
            part = np.arange(start, min(start + _CHUNK_ROWS, len(self)))
            similarity = queries @ self.vectors(part).T
            similarity[groups[part][None, :] == own[:, None]] = -np.inf
            best = -np.partition(-np.hstack([best, similarity]), k - 1, axis=1)[:, :k]
        found = [row[np.isfinite(row)] for row in best]
        return [(row, float(row.min(initial=np.inf))) for row in found]

    def _search_without(self, query: np.ndarray, left_out: np.ndarray, k: int) -> np.ndarray:
        """The numbers of at most k neighbours, those that are left out passed over."""
        faiss = _faiss()
        batch = faiss.IDSelectorBatch(left_out.astype(np.int64))
        selector = faiss.IDSelectorNot(batch)
        settings = faiss.SearchParametersIVF(sel=selector, nprobe=self.n_probed)
        found = self._index.search(query[None], k, params=settings)[1][0]
        return found[found >= 0]

    def _flat_vectors(self) -> np.ndarray:
        """(n, dim) float32, the flat index's own memory."""
        faiss = _faiss()
        n = len(self)
        return faiss.rev_swig_ptr(self._index.get_xb(), n * self.dim).reshape(n, self.dim)


def _faiss() -> Any:
    """faiss, whose own annotations do not know all of its names."""
    import faiss

    return faiss
