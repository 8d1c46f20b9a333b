"""Fitted heads that answer together: the union of their classes, the weighted mean of what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embeddings.contract import Heard
from embeddings.errors import InputError
from stage2_heads.base import Head, Progress, required_array
from stage2_heads.calibration import HEARD, NOTHING, UNHEARD, Calibration
from stage2_heads.rows import LabelledRows

__all__ = ["CombinedHead", "combine_heads"]


_FLOOR = 1e-6  # a vote of nobody would silence every other member


@dataclass(frozen=True)
class CombinedSettings:
    """A combined head has none: what it is stands in its members."""


class CombinedHead(Head):
    """A class's decision is the weighted mean of the log-odds of the scores of those members that know it.

    members_ : the heads;  weights_ : (n_members,) > 0
    A member reads its own blocks only, wherever they stand; members may differ in blocks, classes and kinds. It learns
    nothing itself: update its members, and combine them again.
    """

    kind = "combined"
    settings_type = CombinedSettings

    def __init__(self, settings: CombinedSettings | None = None) -> None:
        super().__init__(settings)
        self.weights_: np.ndarray = np.zeros(0)

    def _learn(self, rows: LabelledRows, progress: Progress) -> np.ndarray | None:
        raise InputError("a combined head is made of fitted heads: heads combine HEAD... --out DIR.")

    def _learn_more(self, X: np.ndarray, Y: np.ndarray) -> None:
        raise InputError("a combined head does not learn: update its members, and combine them again.")

    def _decide(self, X: np.ndarray) -> np.ndarray:
        column = {label: i for i, label in enumerate(self.labels_)}
        start = dict(zip([f.digest for _, f in self.blocks_], np.cumsum((0, *self.dims_[:-1])), strict=True))
        total, weight_of = np.zeros((len(X), len(self.labels_))), np.zeros(len(self.labels_))
        for member, weight in zip(self.members_, self.weights_, strict=True):
            parts = [
                X[:, start[fingerprint.digest] : start[fingerprint.digest] + dim]
                for (_, fingerprint), dim in zip(member.blocks_, member.dims_, strict=True)
            ]
            columns = [column[label] for label in member.labels_]
            scores = np.clip(member.scores(np.hstack(parts)), _FLOOR, 1 - _FLOOR)
            total[:, columns] += weight * np.log(scores / (1 - scores))
            weight_of[columns] += weight
        return total / weight_of

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"member_weights": self.weights_}

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.weights_ = required_array(arrays, "member_weights", (len(self.members_),), np.float64)
        known = {fingerprint.digest for _, fingerprint in self.blocks_}
        for i, member in enumerate(self.members_):
            if not set(member.labels_) <= set(self.labels_) or not {f.digest for _, f in member.blocks_} <= known:
                raise InputError(f"member {i} knows classes or blocks that the combined head does not; combine anew.")

    def facts(self) -> dict[str, Any]:
        shares = self.weights_ / self.weights_.sum()
        return {
            f"member {i}": f"{m.kind} on {' + '.join(n for n, _ in m.blocks_)}, {len(m.labels_)} classes, {share:.2f}"
            for i, (m, share) in enumerate(zip(self.members_, shares, strict=True))
        }


def combine_heads(heads: Sequence[Head], weights: Sequence[float] | None = None) -> CombinedHead:
    """One head of several fitted ones.

    weights : (n_heads,) > 0, default all alike
    What any of them has heard counts as heard; scores rest on the members' own calibration.
    Raises InputError for fewer than two heads, for weights that do not fit, and for heads whose blocks are not known.
    """
    if len(heads) < 2:
        raise InputError(f"{len(heads)} heads to combine; name at least two.")
    chosen = np.ones(len(heads)) if weights is None else np.asarray(weights, dtype=np.float64)
    if chosen.shape != (len(heads),) or not (np.isfinite(chosen) & (chosen > 0)).all():
        raise InputError(f"weights {chosen.tolist()} do not fit {len(heads)} heads; give a number above 0 for each.")
    if any(not head.labels_ or len(head.blocks_) != len(head.dims_) for head in heads):
        raise InputError("every head must be fitted, and say which blocks it reads; fit it with `heads fit`.")
    blocks = {
        f.digest: ((name, f), dim) for head in heads for (name, f), dim in zip(head.blocks_, head.dims_, strict=True)
    }
    combined = CombinedHead()
    combined._begin(
        tuple(sorted({label for head in heads for label in head.labels_})), tuple(d for _, d in blocks.values())
    )
    combined.blocks_ = tuple(block for block, _ in blocks.values())
    combined.members_, combined.weights_ = tuple(heads), chosen
    for head in reversed(heads):  # of two names for a label the first head's stays
        combined.names_ |= head.names_
    combined.heard_ = Heard().union(*(head.heard_ for head in heads))
    combined.tuned_on_ = frozenset().union(*(head.tuned_on_ for head in heads))
    # The most doubtful of what the members' scores rest on.
    told = {head.calibrated_on_ for head in heads if head.calibrated_on_}
    worst = next((what for what in (NOTHING, HEARD, UNHEARD) if what in told), " and ".join(sorted(told)) or NOTHING)
    combined.calibration_ = Calibration(1.0, 0.0, worst)
    return combined
