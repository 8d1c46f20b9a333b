"""Similarity-weighted votes of the nearest windows, exact, with all that tie for the last place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from embeddings.errors import InputError
from embeddings.normalise import BlockNormaliser
from stage2_heads.base import Head, Progress, required_array
from stage2_heads.rows import ArrayReader, LabelledRows

__all__ = ["KnnHead", "KnnSettings"]

_TIE = 1e-6  # similarities this close are equal: float32 cannot tell them apart
_SPARE = 16  # neighbours asked for beyond k, so that ties are seldom asked for twice
_READ_ROWS = 8192
_ASK_VALUES = 1 << 24  # neighbours' vectors looked at together: 64 MB


@dataclass(frozen=True)
class KnnSettings:
    """k : neighbours that vote, and all that tie with the k-th.  prior : similarity that votes for no species."""

    k: int = 5
    prior: float = 0.1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k={self.k} must be 1 or more.")
        if not (self.prior >= 1e-6 and math.isfinite(self.prior)):
            raise InputError(f"prior={self.prior} must be at least 1e-6, so that scores stay below 1.")


class KnnHead(Head):
    """Votes of the k nearest training windows by the mean of their blocks' centred cosines.

    A neighbour's weight w is its similarity, 0 if negative; a class scores sum(w * target) / (sum(w) + prior). So a
    window unlike anything heard scores near 0 for all, and no votes at all give 0. `decision` and `scores` are one.
    All neighbours within 1e-6 of the k-th vote, so nothing depends on the order of rows.
    normaliser_ : what centres and normalises;  n_samples_fit_ : windows that may vote
    """

    kind = "knn"
    settings_type = KnnSettings
    needs_calibration = False
    settings: KnnSettings

    @property
    def n_samples_fit_(self) -> int:
        return int(self._index.ntotal)

    def _learn(self, rows: LabelledRows, progress: Progress) -> None:
        self.normaliser_ = BlockNormaliser.fit(rows.reader, rows.rows)
        self._index = _new_index(rows.dim)
        done = 0
        for X, _ in rows.batches(_READ_ROWS):
            self._index.add(self.normaliser_.apply(X))
            done += len(X)
            progress(done / rows.n_rows)
        # Windows share their recording's targets and recordings share label sets: each is kept once.
        self._targets, code_of_recording = np.unique(rows.targets, axis=0, return_inverse=True)
        self._codes = code_of_recording.reshape(-1)[rows.recording_of_row].astype(np.int32)

    def _learn_more(self, X: np.ndarray, Y: np.ndarray) -> None:
        if not hasattr(self, "normaliser_"):
            self.normaliser_ = BlockNormaliser.fit(ArrayReader(X, self.dims_))
            self._index = _new_index(sum(self.dims_))
            self._targets, self._codes = np.zeros((0, len(self.labels_)), np.float32), np.zeros(0, np.int32)
        self._index.add(self.normaliser_.apply(X))
        targets, codes = np.unique(np.vstack([self._targets, Y]), axis=0, return_inverse=True)
        codes = codes.reshape(-1).astype(np.int32)
        self._codes = np.concatenate([codes[: len(self._targets)][self._codes], codes[len(self._targets) :]])
        self._targets = targets

    def _widen(self, n: int) -> None:
        self._targets = np.pad(self._targets, ((0, 0), (0, n)))

    def _decide(self, X: np.ndarray) -> np.ndarray:
        queries = self.normaliser_.apply(X)
        votes = np.zeros((len(X), len(self.labels_)))
        weights = np.zeros(len(X))
        n_asked = min(self.settings.k + _SPARE, self.n_samples_fit_)
        waiting = np.arange(len(X))
        while len(waiting):
            chunk = max(1, _ASK_VALUES // (n_asked * queries.shape[1]))
            unsettled = []
            for start in range(0, len(waiting), chunk):
                asked = waiting[start : start + chunk]
                unsettled.append(self._vote(queries, asked, n_asked, votes, weights))
            waiting = np.concatenate(unsettled)
            n_asked = min(4 * n_asked, self.n_samples_fit_)
        return votes / (weights + self.settings.prior)[:, None]

    def _vote(
        self, queries: np.ndarray, asked: np.ndarray, n_asked: int, votes: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """Fill in the votes of the queries `asked`. Returns those whose ties may go on beyond `n_asked` neighbours."""
        _, neighbours = self._index.search(queries[asked], n_asked)
        # Faiss's sums differ in the last digits with the size of the batch; these do not.
        similarity = np.einsum("qd,qnd->qn", queries[asked].astype(np.float64), self._vectors()[neighbours])
        k = min(self.settings.k, n_asked)
        kth = -np.partition(-similarity, k - 1, axis=1)[:, k - 1]
        # One tie's width of slack, since faiss's own order is only good to float32.
        open_ended = (similarity.min(axis=1) >= kth - 2 * _TIE) & (n_asked < self.n_samples_fit_)
        w = np.where(similarity >= (kth - _TIE)[:, None], np.maximum(similarity, 0.0), 0.0)
        settled = ~open_ended
        chosen = asked[settled]
        targets = self._targets[self._codes[neighbours[settled]]]
        votes[chosen] = np.einsum("qn,qnc->qc", w[settled], targets)
        weights[chosen] = w[settled].sum(axis=1)
        return asked[open_ended]

    def _vectors(self) -> np.ndarray:
        """(n, dim) float32, the index's own memory."""
        import faiss

        n, dim = self._index.ntotal, self._index.d
        return faiss.rev_swig_ptr(self._index.get_xb(), n * dim).reshape(n, dim)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "vectors": self._vectors(),
            "codes": self._codes,
            "targets": self._targets,
            "means": self.normaliser_.means,
        }

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        dim, n_classes = sum(self.dims_), len(self.labels_)
        self.normaliser_ = BlockNormaliser(required_array(arrays, "means", (dim,), np.float32), self.dims_)
        self._targets = required_array(arrays, "targets", (None, n_classes), np.float32)
        vectors = required_array(arrays, "vectors", (None, dim), np.float32)
        self._codes = required_array(arrays, "codes", (len(vectors),), np.int32)
        if len(vectors) == 0 or not 0 <= self._codes.min() <= self._codes.max() < len(self._targets):
            raise InputError("the head's vectors and targets do not belong together; fit the head anew.")
        self._index = _new_index(dim)
        self._index.add(vectors)


def _new_index(dim: int) -> Any:
    import faiss

    return faiss.IndexFlatIP(dim)
