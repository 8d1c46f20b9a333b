"""Decisions about recordings that were held out: what calibration and thresholds may honestly rest on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stage2_heads.folds import recording_folds
from stage2_heads.progress import Progress, part_of
from stage2_heads.rows import LabelledRows

__all__ = ["DecisionFunction", "HeldOut", "cross_fitted", "held_out_of"]

DecisionFunction = Callable[[np.ndarray], np.ndarray]
"""(n, dim) raw vectors to (n, c) decisions."""

_FEWEST_UNHEARD = 20  # below this held-out recordings count whether a backbone has heard them or not
_DECISIONS = 4_000_000  # a few numbers a class need no more
_BATCH_ROWS = 4096


@dataclass(frozen=True)
class HeldOut:
    """Decisions about windows by heads that were not fitted on them, and what was true.

    decisions   (n, c) float64, on the head's own scale;  targets: (n, c) float32 in [0, 1]
    known       (n, c) bool: the truth is known, and the head that decided had a recording of the class to learn it from
    recordings  (n,) int64, whose window it is;  folds: (n,) int64, by recording
    unheard     no backbone has heard these recordings either
    n_recordings  how many were asked about; those whose windows were not drawn count too
    """

    decisions: np.ndarray
    targets: np.ndarray
    known: np.ndarray
    recordings: np.ndarray
    folds: np.ndarray
    unheard: bool
    n_recordings: int

    def of(self, rows: np.ndarray) -> HeldOut:
        """Some of the windows. rows : (n,) bool."""
        return HeldOut(
            self.decisions[rows],
            self.targets[rows],
            self.known[rows],
            self.recordings[rows],
            self.folds[rows],
            self.unheard,
            len(np.unique(self.recordings[rows])),
        )

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Decisions and targets, float64 (m,) each, of every window for every class that was known."""
        return self.decisions[self.known], self.targets[self.known].astype(np.float64)


def cross_fitted(
    learn: Callable[[LabelledRows, Progress], DecisionFunction],
    rows: LabelledRows,
    *,
    to_learn: Callable[[LabelledRows], LabelledRows],
    n_folds: int,
    seed: int,
    progress: Progress,
) -> HeldOut | None:
    """Decisions about each fold's windows by a copy of the head that was fitted on the other folds.

    learn     fits a new copy on rows, reporting progress from 0 to 1, and gives its decisions
    to_learn  those of some rows that the head can learn
    At most some 4 million decisions are kept, drawn from all folds alike, so memory does not grow with the rows.
    Only recordings that no backbone has heard are asked about where there are 20 of them, else all.
    Returns None when no fold can be both fitted without and asked about.
    """
    folds = recording_folds(rows, n_folds, seed)
    unheard = ~rows.heard_by_backbone
    on_unheard = int(unheard.sum()) >= _FEWEST_UNHEARD or bool(unheard.all())
    usable = unheard if on_unheard else np.ones(rows.n_recordings, dtype=bool)
    parts = []
    for fold in range(n_folds):
        asked = (folds == fold) & usable
        fitting, asking = to_learn(rows.subset(folds != fold)), rows.subset(asked)
        if fitting.n_rows == 0 or asking.n_rows == 0:
            continue
        decide = learn(fitting, part_of(progress, fold / n_folds, 1 / n_folds))
        known = np.any(fitting.targets > 0, axis=0)  # a class without a recording here has nothing to decide by
        parts.append(_asked(decide, asking, np.flatnonzero(asked), fold, known, n_folds, seed, on_unheard))
    if not parts:
        return None
    return HeldOut(
        decisions=np.concatenate([part.decisions for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
        known=np.concatenate([part.known for part in parts]),
        recordings=np.concatenate([part.recordings for part in parts]),
        folds=np.concatenate([part.folds for part in parts]),
        unheard=on_unheard,
        n_recordings=sum(part.n_recordings for part in parts),
    )


def held_out_of(decide: DecisionFunction, rows: LabelledRows, *, n_folds: int, seed: int) -> HeldOut:
    """Decisions of one fitted head about windows of recordings that it was not fitted on, divided into folds.

    Every class counts as learnt. At most some 4 million decisions are kept, as in `cross_fitted`.
    """
    everyone = np.ones(len(rows.labels), dtype=bool)
    found = _asked(decide, rows, np.arange(rows.n_recordings), 0, everyone, 1, seed, True)
    folds = recording_folds(rows, n_folds, seed)[found.recordings]
    unheard = not rows.heard_by_backbone.any()
    return HeldOut(found.decisions, found.targets, found.known, found.recordings, folds, unheard, found.n_recordings)


def _asked(
    decide: DecisionFunction,
    asking: LabelledRows,
    recordings: np.ndarray,
    fold: int,
    known: np.ndarray,
    n_shares: int,
    seed: int,
    unheard: bool,
) -> HeldOut:
    drawn = asking.sample(max(1, _DECISIONS // (n_shares * len(asking.labels))), seed)
    shape = (drawn.n_rows, len(asking.labels))
    decisions, targets = np.empty(shape), np.empty(shape, dtype=np.float32)
    done = 0
    for X, Y in drawn.batches(_BATCH_ROWS):
        decisions[done : done + len(X)], targets[done : done + len(X)] = decide(X), Y
        done += len(X)
    told = ~np.isnan(targets)
    return HeldOut(
        decisions,
        np.where(told, targets, np.float32(0)),
        known & told,
        recordings[drawn.recording_of_row],
        np.full(len(decisions), fold),
        unheard,
        asking.n_recordings,
    )
