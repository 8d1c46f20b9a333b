"""The rows that may be among a query's k best, held by bounds on similarities that are only roughly known yet."""

from __future__ import annotations

import numpy as np

__all__ = ["Candidates"]

_ROUNDING = 1e-6  # floors are float32: what is known exactly must still reach its own


class Candidates:
    """For each query, every row whose similarity may still be among its k largest.

    A row is offered with a rough similarity and the most by which that may be wrong. The k-th largest of the least that
    similarities can be is a floor: what cannot reach it is dropped.

    n_queries, k   how many queries there are, and how many rows each wants
    group_of_row   (n_rows,) int, or None: only the best row of a group counts among the k
    floor          (n_queries,) float32, below which nothing is taken
    """

    def __init__(self, n_queries: int, k: int, group_of_row: np.ndarray | None = None) -> None:
        self.k, self._groups = k, group_of_row
        self.floor = np.full(n_queries, -np.inf, np.float32)
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._size = 0
        self._prune_at = 2 * k * n_queries + 4096

    def __len__(self) -> int:
        return self._size

    def offer(
        self,
        queries: np.ndarray,
        rows: np.ndarray,
        scores: np.ndarray,
        errors: np.ndarray,
        allowed: np.ndarray | None = None,
    ) -> None:
        """queries : (m,) numbers;  rows, errors : (n,);  scores : (n, m) rough similarities;  allowed : (n, m) bool."""
        hits = np.flatnonzero(scores >= self.floor[queries] - errors[:, None])
        if allowed is not None:
            hits = hits[allowed.ravel()[hits]]
        if len(hits) == 0:
            return
        row, query = np.divmod(hits, scores.shape[1])
        self._parts.append((queries[query], rows[row], scores.ravel()[hits], errors[row]))
        self._size += len(hits)
        if self._size > self._prune_at:
            self.prune()

    def prune(self) -> None:
        """Raise the floors by what is held, and drop what cannot reach them."""
        queries, rows, scores, errors = self.held()
        least = scores - errors
        if self._groups is None:
            leaders = np.lexsort((-least, queries))
        else:
            leaders, best = self._leaders(queries, rows, least)
        ordered = queries[leaders]
        starts = np.searchsorted(ordered, np.arange(len(self.floor)))
        full = np.bincount(ordered, minlength=len(self.floor)) >= self.k
        kth = least[leaders[starts[full] + self.k - 1]]
        self.floor[full] = np.maximum(self.floor[full], kth)
        reach = scores + errors
        keep = reach >= self.floor[queries]
        if self._groups is not None:
            keep &= reach >= best
        self._take(queries[keep], rows[keep], scores[keep], errors[keep])

    def settle(self, queries: np.ndarray, rows: np.ndarray, similarity: np.ndarray) -> None:
        """Hold the k best of each query, by query and falling similarity, now that similarities are known: (n,) each.

        Of equal ones the lower row goes first.
        """
        if self._groups is None:
            leaders = np.lexsort((rows, -similarity, queries))
        else:
            leaders, _ = self._leaders(queries, rows, similarity)
        ordered = queries[leaders]
        rank = np.arange(len(leaders)) - np.searchsorted(ordered, ordered)
        leaders = leaders[rank < self.k]
        errors = np.full(len(leaders), _ROUNDING, np.float32)
        self._take(queries[leaders], rows[leaders], similarity[leaders], errors)

    def held(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Queries, rows, rough similarities and errors of all that is held, each (n,)."""
        if not self._parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32)
        queries, rows, scores, errors = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        return queries, rows, scores, errors

    def _leaders(self, queries: np.ndarray, rows: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best of each query and group, by query and falling value; and for each entry its group's best value."""
        assert self._groups is not None
        groups = self._groups[rows]
        order = np.lexsort((rows, -value, groups, queries))
        new = np.ones(len(order), bool)
        new[1:] = (np.diff(queries[order]) != 0) | (np.diff(groups[order]) != 0)
        best = np.empty(len(order), value.dtype)
        best[order] = value[order[new]][np.cumsum(new) - 1]
        first = order[new]
        return first[np.lexsort((rows[first], -value[first], queries[first]))], best

    def _take(self, *part: np.ndarray) -> None:
        self._parts = [part]
        self._size = len(part[0])
        self._prune_at = 2 * self._size + 2 * self.k * len(self.floor) + 4096
