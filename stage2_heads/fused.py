"""One head a block, weighed by what each says of recordings that no backbone was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from embeddings.errors import InputError
from stage2_heads.base import Head, Progress, part_of, required_array
from stage2_heads.calibration import HEARD, UNHEARD, Calibration, calibration_error
from stage2_heads.folds import recording_folds
from stage2_heads.rows import LabelledRows
from stage2_heads.stacking import chosen_weights, stacking_weights

__all__ = ["FusedHead", "FusedSettings"]

WEIGHTS = ("chosen", "equal")
_FOLDS = 3
_FEWEST_UNHEARD = 8  # recordings below which weights cannot be chosen
_ALIKE = 1e-9  # shares of recordings heard that differ by no more are the same
_DECISIONS = 4_000_000  # a few weights need no more
_VOTE_FLOOR = 1e-3  # votes of nobody are taken for odds of one to a thousand


@dataclass(frozen=True)
class _Unfitted:
    """What the blocks' heads say of windows and classes that they were not fitted on, held out in turn.

    decisions : (n, n_blocks) log-odds;  targets : (n,);  recordings : (n,) int, whose window it is
    unheard  no backbone has heard those recordings either
    """

    decisions: np.ndarray
    targets: np.ndarray
    recordings: np.ndarray
    unheard: bool

    @property
    def n_recordings(self) -> int:
        return len(np.unique(self.recordings))


@dataclass(frozen=True)
class FusedSettings:
    """head, settings  which kind of head each block gets, and how it learns
    weights         chosen: by the unheard recordings among those fitted on; equal: all blocks alike
    """

    head: str = "svm"
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "chosen"

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise InputError(f"weights={self.weights!r} is not known; choose {', '.join(WEIGHTS)}.")
        if self.head == FusedHead.kind:
            raise InputError("a fused head cannot be made of fused heads; name the head that each block gets.")
        self.unfitted()  # wrong names are told where they are given

    @property
    def seed(self) -> int:
        return int(self.settings.get("seed", 0))

    def unfitted(self) -> Head:
        from stage2_heads.heads import create_head

        return create_head(self.head, **self.settings)


class FusedHead(Head):
    """Late fusion that does not trust what a backbone remembers.

    A network's vectors of the recordings that it was trained on look better than those of any other recording, so one
    head over all blocks leans on them, and fails on new recordings. Here each block has a head of its own, and the
    decisions are added with weights chosen by cross-fitting, on recordings that no backbone of any block has heard.
    Where some backbones have heard the others and some have not, the best block is joined only by those that are sure
    to help beside it. A head that is left with one block is that block's head, calibration and all.
    Where there are too few of those, blocks whose backbones have heard the fitting recordings get no weight beside
    blocks that have not; blocks that are alike in this weigh alike.

    heads_ : one fitted head a block;  weights_ : (n_blocks,) >= 0;  weighed_on_ : what the weights rest on,
    in words, after a fit (a saved head keeps `calibrated_on_`, and its maker's provenance)
    Decisions are log-odds: those of a head that votes are turned into odds first.
    Source: stacked generalisation with weights that are not negative (Wolpert 1992; Breiman 1996).
    """

    kind = "fused"
    settings_type = FusedSettings
    settings: FusedSettings

    def __init__(self, settings: FusedSettings | None = None) -> None:
        super().__init__(settings)
        self.heads_: list[Head] = []
        self.weights_: np.ndarray = np.zeros(0)
        self.weighed_on_ = ""
        self._fitted_calibration: Calibration | None = None

    @property
    def learns_partial_truth(self) -> bool:  # type: ignore[override]
        return self.settings.unfitted().learns_partial_truth

    def facts(self) -> dict[str, Any]:
        """What each block's head tells of itself."""
        names = [name for name, _ in self.blocks_] or [f"block {i}" for i in range(len(self.heads_))]
        told = zip(names, self.heads_, strict=True)
        return {f"{block} {name}": value for block, head in told for name, value in head.facts().items()}

    def _learn(self, rows: LabelledRows, progress: Progress) -> np.ndarray | None:
        blocks = [rows.block(i) for i in range(len(rows.dims))]
        self._weigh(rows, self._cross_fitted_decisions(rows, blocks))
        self.heads_ = []
        selected: np.ndarray | None = None
        for i, block in enumerate(blocks):
            head = self._started(rows.labels, block.dims)
            held_out = head._learn(block, part_of(progress, i / len(blocks), 1 / len(blocks)))
            selected = held_out if held_out is not None else selected
            self.heads_.append(head)
        return selected

    def _cross_fitted(self, rows: LabelledRows, progress: Progress) -> Calibration:
        chosen = np.flatnonzero(self.weights_)
        if (
            len(chosen) == 1
        ):  # this head is that block's, and may be calibrated on all that its own backbone did not hear
            block = rows.block(int(chosen[0]))
            return self._started(rows.labels, block.dims)._cross_fitted(block, progress)
        # The weights were fitted on cross-fitted decisions, and the offset with them: that is the calibration.
        return self._fitted_calibration or super()._cross_fitted(rows, progress)

    def _learn_more(self, X: np.ndarray, Y: np.ndarray) -> None:
        if not self.heads_:
            self.heads_ = [self._started(self.labels_, (dim,)) for dim in self.dims_]
            self.weights_ = np.full(len(self.dims_), 1 / len(self.dims_))
            self.weighed_on_ = "alike: learnt piece by piece"
        for head, part in zip(self.heads_, self._parts(X), strict=True):
            head._learn_more(part, Y)

    def _learn_rows(self, rows: LabelledRows, seed: int, progress: Progress) -> None:
        for i, head in enumerate(self.heads_):
            head._learn_rows(rows.block(i), seed, part_of(progress, i / len(self.heads_), 1 / len(self.heads_)))

    def _widen(self, n: int) -> None:
        for head in self.heads_:
            head._widen(n)
            head.labels_ = (*head.labels_, *(f"new {i}" for i in range(n)))  # the names are this head's own affair

    def _decide(self, X: np.ndarray) -> np.ndarray:
        total = np.zeros((len(X), len(self.labels_)))
        for head, weight, part in zip(self.heads_, self.weights_, self._parts(X), strict=True):
            if weight:
                total += weight * _log_odds(head, part)
        return total

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"block_weights": self.weights_}
        for i, head in enumerate(self.heads_):
            arrays |= {f"{i}.{name}": array for name, array in head._arrays().items()}
        return arrays

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.weights_ = required_array(arrays, "block_weights", (len(self.dims_),), np.float64)
        self.heads_ = []
        for i, dim in enumerate(self.dims_):
            head = self._started(self.labels_, (dim,))
            own = {name.partition(".")[2]: a for name, a in arrays.items() if name.startswith(f"{i}.")}
            head._restore(own)
            self.heads_.append(head)

    def _started(self, labels: tuple[str, ...], dims: tuple[int, ...]) -> Head:
        head = self.settings.unfitted()
        head._begin(labels, dims)
        return head

    def _parts(self, X: np.ndarray) -> list[np.ndarray]:
        ends = np.cumsum(self.dims_)
        return [np.ascontiguousarray(X[:, end - dim : end]) for dim, end in zip(self.dims_, ends, strict=True)]

    def _cross_fitted_decisions(self, rows: LabelledRows, blocks: list[LabelledRows]) -> _Unfitted:
        """On unheard recordings where there are enough, else on all."""
        unheard = ~rows.heard_by_backbone
        enough = int(unheard.sum()) >= _FEWEST_UNHEARD
        usable = unheard if enough else np.ones(rows.n_recordings, dtype=bool)
        folds = recording_folds(rows, _FOLDS, self.settings.seed)
        most = max(1, _DECISIONS // (_FOLDS * len(rows.labels)))
        decisions, targets, recordings = [np.zeros((0, len(blocks)))], [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
        for fold in range(_FOLDS if rows.n_recordings >= _FOLDS else 0):
            fitting, asked = folds != fold, (folds == fold) & usable
            if not rows.subset(fitting).n_rows or not rows.subset(asked).n_rows:
                continue
            known = (rows.targets[fitting] > 0).any(axis=0)
            found = []
            for block in blocks:
                head = self._started(rows.labels, block.dims)
                head._learn(block.subset(fitting), lambda share: None)
                asking = block.subset(asked).sample(most, self.settings.seed)
                found.append(np.concatenate([_log_odds(head, X)[:, known].ravel() for X, _ in asking.batches(4096)]))
            asking = rows.subset(asked).sample(most, self.settings.seed)
            truths, truth_of_row = asking.truths
            truth = truths[truth_of_row][:, known].ravel().astype(np.float64)
            told = ~np.isnan(truth)
            decisions.append(np.stack(found, axis=1)[told])
            targets.append(truth[told])
            recordings.append(np.repeat(np.flatnonzero(asked)[asking.recording_of_row], known.sum())[told])
        return _Unfitted(np.concatenate(decisions), np.concatenate(targets), np.concatenate(recordings), enough)

    def _weigh(self, rows: LabelledRows, said: _Unfitted) -> None:
        n_blocks = len(rows.dims)
        allowed = np.ones(n_blocks, dtype=bool)
        alike = self.settings.weights == "equal"
        memory = rows.heard_by_block.mean(axis=0)
        uneven = bool(np.ptp(memory) > _ALIKE)
        if not said.unheard and not alike:
            allowed, alike = memory <= memory.min() + _ALIKE, True
        self._fitted_calibration = None
        if uneven and not alike:
            fitted = chosen_weights(said.decisions, said.targets, said.recordings)
        else:
            fitted = stacking_weights(said.decisions, said.targets, allowed=allowed, alike=alike)
        if fitted is None:
            self.weights_ = allowed / allowed.sum()
            self.weighed_on_ = "alike: too few recordings"
            return
        self.weights_, offset = fitted
        if np.count_nonzero(self.weights_) == 1:
            self.weights_ = (self.weights_ > 0).astype(np.float64)
        if not allowed.all():
            self.weighed_on_ = "alike, without blocks whose backbones heard these recordings"
        elif self.settings.weights == "equal":
            self.weighed_on_ = "alike, as asked"
        elif alike:
            self.weighed_on_ = "alike: too few recordings are unheard"
        else:
            self.weighed_on_ = f"chosen on {said.n_recordings} recordings that no backbone has heard"
        if np.count_nonzero(self.weights_) == 1:
            return
        # A block that has heard them makes its own decisions about them look better than they are.
        honest = said.unheard or not rows.heard_by_block[:, self.weights_ > 0].any()
        calibration = Calibration(1.0, offset, UNHEARD if honest else HEARD, said.n_recordings, len(said.targets))
        error = calibration_error(calibration.apply(said.decisions @ self.weights_), said.targets)
        self._fitted_calibration = replace(calibration, calibration_error=error)


def _log_odds(head: Head, X: np.ndarray) -> np.ndarray:
    """A head's decisions on a scale on which they add up."""
    decisions = head._decide(X)
    if head.needs_calibration:
        return decisions
    votes = np.clip(decisions, _VOTE_FLOOR, 1 - _VOTE_FLOOR)
    return np.log(votes / (1 - votes))
