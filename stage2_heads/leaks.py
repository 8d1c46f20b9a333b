"""The leak guard: no figure on recordings that a backbone or a head has heard, unless asked for and said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embeddings.contract import Heard
from embeddings.errors import InputError
from stage2_heads.labels import RecordingLabels

__all__ = ["LeakSplit", "guard", "heard_mask"]


@dataclass(frozen=True)
class LeakSplit:
    """Which recordings may be scored.

    unheard, heard, no_label  (n,) bool, exactly one true a recording; an unlabelled one counts as no_label
    include_seen              heard recordings are scored too, and every line says so
    without_unheard           classes without a labelled unheard recording
    """

    unheard: np.ndarray
    heard: np.ndarray
    no_label: np.ndarray
    include_seen: bool
    without_unheard: tuple[str, ...]

    @property
    def scored(self) -> np.ndarray:
        """(n,) bool, the recordings that a score is made of."""
        return self.unheard | self.heard if self.include_seen else self.unheard

    @property
    def n_heard_left_out(self) -> int:
        return 0 if self.include_seen else int(self.heard.sum())

    @property
    def n_seen(self) -> int:
        """Heard recordings that are scored all the same."""
        return int(self.heard.sum()) if self.include_seen else 0


def heard_mask(recordings: Sequence[RecordingLabels], heard: Heard) -> np.ndarray:
    """(n,) bool: trained or selected on, by content hash or xeno-canto id."""
    return np.array([heard.covers(r.recording, r.xeno_canto_id) for r in recordings], dtype=bool)


def guard(
    recordings: Sequence[RecordingLabels], heard: Heard, labels: Sequence[str], *, include_seen: bool = False
) -> LeakSplit:
    """Divide recordings into unheard, heard and unlabelled.

    heard   the union of what the head and its blocks' backbones have heard
    labels  the head's classes
    Raises InputError when nothing is left to score.
    """
    has_label = np.array([bool(r.primary_label) for r in recordings], dtype=bool)
    covered = heard_mask(recordings, heard)
    split_of = LeakSplit(
        unheard=has_label & ~covered,
        heard=has_label & covered,
        no_label=~has_label,
        include_seen=include_seen,
        without_unheard=_without(labels, [r for r, u in zip(recordings, has_label & ~covered, strict=True) if u]),
    )
    if not split_of.scored.any():
        n_heard, n_unlabelled = int(split_of.heard.sum()), int(split_of.no_label.sum())
        raise InputError(
            f"nothing unheard to score: of {len(recordings)} recordings {n_heard} were heard in training and "
            f"{n_unlabelled} have no label. Score other recordings, or pass --include-seen for figures that flatter."
        )
    return split_of


def _without(labels: Sequence[str], unheard: Sequence[RecordingLabels]) -> tuple[str, ...]:
    covered = {label for r in unheard for label in (r.primary_label, *r.secondary_labels)}
    return tuple(label for label in labels if label not in covered)
