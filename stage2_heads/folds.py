"""Divides fitting recordings for cross-fitting and early stopping, keeping relatives together."""

from __future__ import annotations

import hashlib

import numpy as np

from stage2_heads.rows import LabelledRows

__all__ = ["inner_slice", "recording_folds"]

_INNER_FOLDS = 7  # one of seven recordings is held out for early stopping


def recording_folds(rows: LabelledRows, n_folds: int, seed: int) -> np.ndarray:
    """Fold of each recording, int64 (n_recordings,), each class spread evenly over folds.

    Recordings with one `source` or one xeno-canto id share a fold. Where the rows name their recordings the division
    depends on their contents and the seed only, not on their order.
    """
    groups = _groups(rows)
    first_of_group: dict[int, int] = {}
    for i, group in enumerate(groups):
        first_of_group.setdefault(group, i)
    main_class = rows.targets.argmax(axis=1) if rows.targets.shape[1] else np.zeros(rows.n_recordings, dtype=np.int64)
    drawn = sorted(first_of_group, key=lambda g: (main_class[first_of_group[g]], _draw(rows, first_of_group[g], seed)))
    fold_of_group = {group: place % n_folds for place, group in enumerate(drawn)}
    return np.array([fold_of_group[g] for g in groups], dtype=np.int64)


def inner_slice(rows: LabelledRows, seed: int) -> np.ndarray:
    """(n_recordings,) bool: the seventh of the recordings that early stopping looks at.

    A class never loses all its recordings to it. All false when there are too few recordings to spare any.
    """
    held_out = recording_folds(rows, _INNER_FOLDS, seed) == 0
    targets = rows.targets > 0
    orphans = targets.any(axis=0) & ~targets[~held_out].any(axis=0)
    for c in np.flatnonzero(orphans):
        held_out &= ~targets[:, c]
    return held_out


def _groups(rows: LabelledRows) -> list[int]:
    """A number per recording, shared by recordings of one source or one xeno-canto id."""
    parent = list(range(rows.n_recordings))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[tuple[str, str], int] = {}
    for i, recording in enumerate(rows.recordings):
        for key in (("source", recording.source), ("xeno-canto", recording.xeno_canto_id)):
            if key[1]:
                parent[root(i)] = root(seen.setdefault(key, i))
    return [root(i) for i in range(rows.n_recordings)]


def _draw(rows: LabelledRows, i: int, seed: int) -> str:
    name = rows.recordings[i].recording if rows.recordings else str(i)
    return hashlib.sha256(f"folds/{seed}/{name}".encode()).hexdigest()
