"""Vectors gathered into lists about centroids, so that a search need only look into the nearest lists."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["SAMPLE_BYTES", "lists_for", "nearest_lists", "sample_size", "train_centroids"]

SAMPLE_BYTES = 256 << 20  # vectors that centroids are trained on, at most
_PER_LIST = 64  # training vectors a centroid; more moved recall by less than its own error
_ROUNDS = 8
_CHUNK_VALUES = 1 << 22  # similarities to centroids held together: 16 MB


def lists_for(n_rows: int) -> int:
    """How many lists so many vectors are gathered into: about the root of their number."""
    return max(1, round(math.sqrt(n_rows)))


def sample_size(n_rows: int, dim: int) -> int:
    """How many vectors to train centroids on: 64 a list, but no more than 256 MB, and at least one a list."""
    n_lists = lists_for(n_rows)
    return min(n_rows, max(n_lists, min(_PER_LIST * n_lists, SAMPLE_BYTES // (4 * dim))))


def train_centroids(sample: np.ndarray, n_lists: int, seed: int) -> np.ndarray:
    """Spherical k-means: centroids of length one that the sample's vectors point to.

    sample : (n, dim) float32, n >= n_lists.  Returns float32 (n_lists, dim); the same seed gives the same.
    A centroid that no vector is nearest to is put on a vector drawn at random.
    Source: Dhillon and Modha, Concept decompositions for large sparse text data using clustering, 2001.
    """
    rng = np.random.default_rng(seed)
    centroids = sample[np.sort(rng.choice(len(sample), n_lists, replace=False))].astype(np.float32)
    for _ in range(_ROUNDS):
        nearest = nearest_lists(sample, centroids)[:, 0]
        order = np.argsort(nearest, kind="stable")
        there, starts = np.unique(nearest[order], return_index=True)
        ends = np.append(starts[1:], len(order))
        centroids = sample[rng.choice(len(sample), n_lists)].astype(np.float32)
        for label, start, end in zip(there, starts, ends, strict=True):
            centroids[label] = sample[order[start:end]].sum(axis=0, dtype=np.float64)
        lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
        centroids /= np.where(lengths > 0, lengths, 1)
    return centroids


def nearest_lists(vectors: np.ndarray, centroids: np.ndarray, n: int = 1) -> np.ndarray:
    """The n centroids with the largest inner products. Returns int32 (len(vectors), n), in no order when n > 1."""
    n = min(n, len(centroids))
    found = np.empty((len(vectors), n), np.int32)
    chunk = max(1, _CHUNK_VALUES // len(centroids))
    for start in range(0, len(vectors), chunk):
        similarity = vectors[start : start + chunk] @ centroids.T
        if n == 1:
            found[start : start + chunk, 0] = similarity.argmax(axis=1)
        else:
            found[start : start + chunk] = np.argpartition(-similarity, n - 1, axis=1)[:, :n]
    return found
