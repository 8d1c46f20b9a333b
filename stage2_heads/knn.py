"""Similarity-weighted votes of the nearest windows, with all that tie for the last place."""

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
from stage2_heads.vote_index import VoteIndex

__all__ = ["KnnHead", "KnnSettings"]

_TIE = 1e-6  # similarities this close are equal: float32 cannot tell them apart
_SPARE = 16  # neighbours asked for beyond k, so that ties are seldom asked for twice
_READ_ROWS = 8192
_ASK_VALUES = 1 << 24  # neighbours' vectors looked at together: 64 MB


@dataclass(frozen=True)
class KnnSettings:
    """How windows vote.

    k            neighbours that vote, and all that tie with the k-th
    prior        weight that votes for no species
    power        a neighbour's weight is its similarity to this power: 0 counts heads, large ones hear the nearest only
    class_prior  0 leaves votes as they are; 1 takes out that some species have more windows than others; or between
    ivf_above    windows above which only the nearest lists are looked into, not all vectors
    recall       what looking into lists must find of the k nearest, measured when they are made
    seed         draws the windows that lists are made by and measured with
    """

    k: int = 5
    prior: float = 0.1
    power: float = 1.0
    class_prior: float = 0.0
    ivf_above: int = 100_000
    recall: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k={self.k} must be 1 or more.")
        if not (self.prior >= 1e-6 and math.isfinite(self.prior)):
            raise InputError(f"prior={self.prior} must be at least 1e-6, so that scores stay below 1.")
        if not 0 <= self.power <= 100:
            raise InputError(f"power={self.power} must lie between 0 and 100.")
        if not 0 <= self.class_prior <= 1:
            raise InputError(f"class_prior={self.class_prior} must lie between 0 (as heard) and 1 (all species alike).")
        if self.ivf_above < 1:
            raise InputError(f"ivf_above={self.ivf_above} must be 1 or more windows.")
        if not 0 < self.recall <= 1:
            raise InputError(f"recall={self.recall} must lie above 0 and be at most 1.")


class KnnHead(Head):
    """Votes of the k nearest training windows by the mean of their blocks' centred cosines.

    A neighbour's weight w is its similarity to the power of `power`, 0 if the similarity is negative; a class scores
    p = sum(w * target) / (sum(w) + prior), targets being anything from 0 to 1. So a window unlike anything heard scores
    near 0 for all, and no votes at all give 0. `decision` and `scores` are one.
    With `class_prior` = a, the odds p / (1 - p) of class c are multiplied by (o / o_c) ** a, where o_c is the odds of
    its share of the training windows (with half a window more for and against) and o the geometric mean over classes.
    All neighbours within 1e-6 of the k-th vote, so nothing depends on the order of rows. A vector without direction
    (one that equals the mean) has similarity 0 to all: as a query it gets no votes, as a neighbour it gives none.
    normaliser_ : what centres and normalises;  n_samples_fit_ : windows that may vote
    Source of the prior's correction: Saerens, Latinne and Decaestecker, Adjusting the outputs of a classifier to new a
    priori probabilities, 2002.
    """

    kind = "knn"
    settings_type = KnnSettings
    needs_calibration = False
    settings: KnnSettings

    @property
    def n_samples_fit_(self) -> int:
        return len(self._index)

    def facts(self) -> dict[str, Any]:
        """Of lists, how many there are and are looked into, and the recall that was measured; else that all are."""
        index = self._index
        if not index.n_lists:
            return {"search": f"exact, among {len(index)} windows"}
        return {
            "search": f"the nearest {index.n_probed} of {index.n_lists} lists, of {len(index)} windows",
            "recall": round(index.recall_, 4),
            "recall_measured": f"@{self.settings.k} against exact search, among {index.recall_rows_} windows, those of "
            "the same recording left out where known",
        }

    def _learn(self, rows: LabelledRows, progress: Progress) -> None:
        self.normaliser_ = BlockNormaliser.fit(rows.reader, np.asarray(rows.rows))
        self._index = VoteIndex(rows.dim)
        gathers = rows.n_rows > self.settings.ivf_above
        done = 0
        for X, _ in rows.batches(_READ_ROWS):
            self._index.add(self.normaliser_.apply(X))
            done += len(X)
            progress((0.2 if gathers else 1.0) * done / rows.n_rows)
        # Windows share their recording's targets and recordings share label sets: each is kept once.
        truths, truth_of_row = rows.truths
        self._targets, code_of_truth = np.unique(truths, axis=0, return_inverse=True)
        self._codes = code_of_truth.reshape(-1)[truth_of_row].astype(np.int32)
        if gathers:
            self._gather(np.asarray(rows.recording_of_row))
            progress(1.0)

    def _learn_more(self, X: np.ndarray, Y: np.ndarray) -> None:
        if not hasattr(self, "normaliser_"):
            self.normaliser_ = BlockNormaliser.fit(ArrayReader(X, self.dims_))
            self._index = VoteIndex(sum(self.dims_))
            self._targets, self._codes = np.zeros((0, len(self.labels_)), np.float32), np.zeros(0, np.int32)
        self._index.add(self.normaliser_.apply(X))
        targets, codes = np.unique(np.vstack([self._targets, Y]), axis=0, return_inverse=True)
        codes = codes.reshape(-1).astype(np.int32)
        self._codes = np.concatenate([codes[: len(self._targets)][self._codes], codes[len(self._targets) :]])
        self._targets = targets
        if not self._index.n_lists and len(self._index) > self.settings.ivf_above:
            self._gather(None)

    def _gather(self, recordings: np.ndarray | None) -> None:
        settings = self.settings
        self._index.gather(settings.seed)
        self._index.measure(settings.k, settings.recall, recordings, settings.seed)

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
        shares = votes / (weights + self.settings.prior)[:, None]
        if not self.settings.class_prior:
            return shares
        factor = self._odds_factor() ** self.settings.class_prior
        return shares * factor / (1 - shares + shares * factor)

    def _odds_factor(self) -> np.ndarray:
        """(n_classes,) what the odds of each class are multiplied by to make all classes equally likely beforehand."""
        for_it = np.bincount(self._codes, minlength=len(self._targets)) @ self._targets.astype(np.float64) + 0.5
        odds = for_it / (len(self._codes) + 1 - for_it)
        return np.exp(np.log(odds).mean()) / odds

    def _vote(
        self, queries: np.ndarray, asked: np.ndarray, n_asked: int, votes: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """Fill in the votes of the queries `asked`. Returns those whose ties may go on beyond `n_asked` neighbours."""
        neighbours = self._index.search(queries[asked], n_asked)
        # Faiss's sums differ in the last digits with the size of the batch; these do not.
        similarity = np.einsum("qd,qnd->qn", queries[asked].astype(np.float64), self._index.vectors(neighbours))
        similarity[neighbours < 0] = -np.inf  # the lists looked into hold no more, so ties end
        k = min(self.settings.k, n_asked)
        kth = -np.partition(-similarity, k - 1, axis=1)[:, k - 1]
        # One tie's width of slack, since faiss's own order is only good to float32.
        open_ended = (similarity.min(axis=1) >= kth - 2 * _TIE) & (n_asked < self.n_samples_fit_)
        open_ended &= (neighbours >= 0).all(axis=1)
        votes_for = (similarity >= (kth - _TIE)[:, None]) & (similarity > 0)
        w = np.where(votes_for, np.maximum(similarity, 0.0) ** self.settings.power, 0.0)
        settled = ~open_ended
        chosen = asked[settled]
        targets = self._targets[self._codes[neighbours[settled]]]
        votes[chosen] = np.einsum("qn,qnc->qc", w[settled], targets)
        weights[chosen] = w[settled].sum(axis=1)
        return asked[open_ended]

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            **self._index.arrays(),
            "codes": self._codes,
            "targets": self._targets,
            "means": self.normaliser_.means,
        }

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        dim, n_classes = sum(self.dims_), len(self.labels_)
        self.normaliser_ = BlockNormaliser(required_array(arrays, "means", (dim,), np.float32), self.dims_)
        self._targets = required_array(arrays, "targets", (None, n_classes), np.float32)
        self._index = VoteIndex.restored(arrays, dim)
        self._codes = required_array(arrays, "codes", (len(self._index),), np.int32)
        if not 0 <= self._codes.min() <= self._codes.max() < len(self._targets):
            raise InputError("the head's vectors and targets do not belong together; fit the head anew.")
