"""How blocks arrange recordings by themselves: do those of one species lie together, before any head is fitted?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embeddings.contract import RowReader
from embeddings.normalise import BlockNormaliser
from stage2_heads.bootstrap import bayesian_weights, interval
from stage2_heads.score_report import Figure

__all__ = ["Arrangement", "arrangement_of", "mean_vectors"]

_MOST_RECORDINGS = 2000  # a map and all distances between more take minutes
_STARTS = 10


@dataclass(frozen=True)
class Arrangement:
    """blocks           that stand side by side
    silhouette       mean over recordings of (b - a) / max(a, b): a is the mean cosine distance to recordings of one's
                     own species, b to those of the nearest other; from -1 (among others) to 1 (among its own)
    mutual           adjusted mutual information between species and k-means clusters, as many as species: 0 by
                     chance, 1 the same; mean over ten starts, and their standard deviation
    places : (n, 2) a map of the recordings;  labels : (n,) their species
    Source: Rousseeuw 1987; Vinh, Epps and Bailey 2010; van der Maaten and Hinton 2008 (t-SNE).
    """

    blocks: tuple[str, ...]
    silhouette: Figure
    mutual: float
    mutual_sd: float
    places: np.ndarray
    labels: tuple[str, ...]


def mean_vectors(reader: RowReader, rows: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """(n_groups, dim) mean of each recording's windows, each block centred and of length 1, as search sees them.

    rows, group : (n,) row numbers, and whose each is. Every group has rows.
    """
    normaliser = BlockNormaliser.fit(reader, rows)
    sums = np.zeros((n_groups, sum(reader.dims)))
    for start in range(0, len(rows), 4096):
        part = slice(start, start + 4096)
        np.add.at(sums, group[part], normaliser.apply(reader.read(rows[part])))
    return sums / np.bincount(group, minlength=n_groups)[:, None]


def arrangement_of(
    blocks: Sequence[str], vectors: np.ndarray, labels: Sequence[str], seed: int = 0
) -> Arrangement | None:
    """Measure and map recordings. vectors : (n, dim), one a recording;  labels : (n,) their species.

    Species with one recording are left out: they have nothing to lie beside. None when fewer than two species are left.
    At most 2000 recordings are taken, drawn by `seed`.
    """
    from sklearn.cluster import KMeans
    from sklearn.manifold import TSNE
    from sklearn.metrics import adjusted_mutual_info_score, silhouette_samples

    names = np.array(labels)
    known, counts = np.unique(names, return_counts=True)
    kept = np.flatnonzero(np.isin(names, known[counts > 1]))
    if len(kept) > _MOST_RECORDINGS:
        kept = np.sort(np.random.default_rng(seed).choice(kept, _MOST_RECORDINGS, replace=False))
        known, counts = np.unique(names[kept], return_counts=True)
        kept = kept[np.isin(names[kept], known[counts > 1])]
    names, vectors = names[kept], vectors[kept]
    n_species = len(np.unique(names))
    if n_species < 2 or len(names) <= n_species:
        return None
    each = silhouette_samples(vectors, names, metric="cosine")
    value = float(each.mean())
    low, high = interval(each @ bayesian_weights(len(each), 1000, seed) / len(each), value)
    clusters = [KMeans(n_species, n_init=1, random_state=seed + i).fit_predict(vectors) for i in range(_STARTS)]
    mutual = [adjusted_mutual_info_score(names, found) for found in clusters]
    perplexity = min(30.0, (len(names) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=seed, metric="cosine").fit_transform(vectors)
    return Arrangement(
        tuple(blocks),
        Figure(value, low, high, len(each)),
        float(np.mean(mutual)),
        float(np.std(mutual)),
        places,
        tuple(names),
    )
