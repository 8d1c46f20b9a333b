"""The rows of a search index that are nearest to some vectors: rough similarities first, exact ones of what is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from embeddings.candidates import Candidates
from embeddings.clusters import nearest_lists
from embeddings.joined import JoinedReader
from embeddings.search_index import SearchIndex
from embeddings.store import StoreReader

__all__ = ["Asked", "nearest_rows"]

_FIRST_ROWS, _MOST_ROWS = 1024, 16_384  # looked at together: few at first, to learn how similar similar is
_MOST_SCORES = 1 << 22  # rough similarities held together: 16 MB
_MOST_QUERIES = 256
_MOST_CANDIDATES = 1 << 21  # about 64 MB; more are read from the store at once and thinned to k a query
_EXACT_ROWS = 4096


@dataclass(frozen=True)
class Asked:
    """Vectors that are asked for together.

    vectors  (m, dim) float32, each of length at most 1
    begins   None: each vector is a question of its own. Else (n_examples,), where the vectors of each example begin:
             all are one question, and a row's similarity is the mean over examples of that to an example's best vector
    """

    vectors: np.ndarray
    begins: np.ndarray | None = None

    @property
    def n_questions(self) -> int:
        return len(self.vectors) if self.begins is None else 1

    def combined(self, scores: np.ndarray) -> np.ndarray:
        """(n, m) similarities to the vectors -> (n, n_questions). It is never more wrong than its worst part."""
        if self.begins is None:
            return scores
        best = np.maximum.reduceat(scores, self.begins, axis=1)
        return best.mean(axis=1, dtype=np.float64, keepdims=True)


def nearest_rows(
    reader: StoreReader | JoinedReader,
    index: SearchIndex,
    asked: Asked,
    k: int,
    probed: int | None,
    groups: np.ndarray | None,
    allowed: np.ndarray | None,
    own: np.ndarray | None = None,
    place_of_row: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`NeighbourSearch.nearest` of normalised queries: rows and similarities, each (n_questions, k).

    probed : lists looked into, None for all rows;  groups : (n_rows,) of which only the best row counts
    allowed : (n_rows,) bool;  own, place_of_row : (m,), (n_rows,) leave out rows of a query's own place
    """
    n = asked.n_questions
    rows, similarity = np.full((n, k), -1, np.int64), np.full((n, k), -np.inf)
    for start in range(0, n, _MOST_QUERIES):
        chosen = slice(start, start + _MOST_QUERIES)
        part = asked if asked.begins is not None else Asked(asked.vectors[chosen])
        barred = None if own is None else own[chosen]
        candidates = Candidates(part.n_questions, k, groups)
        if probed is None and index.n_lists > 1:
            # A first glance at each query's nearest list, to know what need not be taken up from all others.
            glance = Candidates(part.n_questions, k, groups)
            _look(reader, index, part, glance, 1, allowed, barred, place_of_row)
            glance.prune()
            candidates.floor = glance.floor
        _look(reader, index, part, candidates, probed, allowed, barred, place_of_row)
        _settle(reader, index, part, candidates)
        who, found, exact, _ = candidates.held()
        rank = np.arange(len(who)) - np.searchsorted(who, who)
        rows[start + who, rank], similarity[start + who, rank] = found, exact
    return rows, similarity


def _look(
    reader: StoreReader | JoinedReader,
    index: SearchIndex,
    asked: Asked,
    candidates: Candidates,
    probed: int | None,
    allowed: np.ndarray | None,
    own: np.ndarray | None,
    place_of_row: np.ndarray | None,
) -> None:
    """Offer the rows of the nearest lists, or of all, by their rough similarities."""
    vectors = asked.vectors
    for low, high, numbers in _ranges(index, vectors, probed):
        here = index.rows[low:high]
        if asked.begins is not None:
            numbers = None  # one question: a list that is near to any of its vectors is compared with all of them
        scores = asked.combined(index.scores(low, high, vectors if numbers is None else vectors[numbers]))
        who = np.arange(asked.n_questions) if numbers is None else numbers
        may = None if allowed is None else np.broadcast_to(allowed[here][:, None], scores.shape)
        if own is not None and place_of_row is not None:
            may = place_of_row[here][:, None] != own[who][None, :]
        candidates.offer(who, here, scores, index.errors[low:high], may)
        if len(candidates) > _MOST_CANDIDATES:
            _settle(reader, index, asked, candidates)


def _ranges(
    index: SearchIndex, queries: np.ndarray, probed: int | None
) -> Iterator[tuple[int, int, np.ndarray | None]]:
    """Places to look at together, and the numbers of the queries that ask for them, None for all."""
    if probed is not None and probed < index.n_lists:
        lists = nearest_lists(queries, index.centroids, probed)
        asking = np.repeat(np.arange(len(queries)), lists.shape[1])[np.argsort(lists, axis=None, kind="stable")]
        wanted, first = np.unique(np.sort(lists, axis=None), return_index=True)
        for label, numbers in zip(wanted, np.split(asking, first[1:]), strict=True):
            for low in range(index.starts[label], index.starts[label + 1], _MOST_ROWS):
                yield low, min(low + _MOST_ROWS, int(index.starts[label + 1])), numbers
        return
    n, low, size = len(index.rows), 0, _FIRST_ROWS
    most = max(_FIRST_ROWS, min(_MOST_ROWS, _MOST_SCORES // len(queries)))
    while low < n:
        yield low, min(low + size, n), None
        low, size = low + size, min(2 * size, most)


def _settle(reader: StoreReader | JoinedReader, index: SearchIndex, asked: Asked, candidates: Candidates) -> None:
    """Put the similarities of the store's own vectors in the place of rough ones, and keep k a query."""
    candidates.prune()
    who, rows, _, _ = candidates.held()
    order = np.argsort(rows, kind="stable")
    who, rows = who[order], rows[order]
    unique, place = np.unique(rows, return_inverse=True)
    exact = np.empty(len(rows))
    columns = asked.vectors.astype(np.float64).T
    step = max(64, min(_EXACT_ROWS, _MOST_SCORES // len(asked.vectors)))
    for start in range(0, len(unique), step):
        part = unique[start : start + step]
        vectors = index.normaliser.apply(reader.read(part)).astype(np.float64)
        low, high = np.searchsorted(place, [start, start + len(part)])
        exact[low:high] = asked.combined(vectors @ columns)[place[low:high] - start, who[low:high]]
    # Equal vectors are equally similar, though sums in another order differ in the last digits.
    candidates.settle(who, rows, np.round(exact, 9))
