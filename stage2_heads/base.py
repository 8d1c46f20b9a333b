"""What every head is: fitted on labelled windows, asked for scores, saved as a folder without code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from embeddings.contract import Fingerprint, Heard
from embeddings.errors import ContractError, InputError
from stage2_heads.calibration import BELOW_ONE, HEARD, NOTHING, UNHEARD, Calibration, calibration_error, fit_sigmoid
from stage2_heads.calibrators import vote_log_odds
from stage2_heads.crossfit import DecisionFunction, HeldOut, cross_fitted
from stage2_heads.labels import label_names
from stage2_heads.progress import Progress, part_of
from stage2_heads.rows import LabelledRows
from stage2_heads.thresholds import DEFAULT_THRESHOLD, detected
from stage2_heads.tuned import Tuning

__all__ = ["Head", "Progress", "heard_in", "part_of", "required_array"]

_CALIBRATION_FOLDS = 3
_FEWEST_RECORDINGS = 3  # below this nothing can be held out
_UPDATE_ROWS = 4096  # rows of an update that are read at a time


class Head(ABC):
    """Vectors to species.

    Fitted attributes, as in scikit-learn, end in an underscore:
    labels_            the classes, in the order of the columns of `decision` and `scores`
    names_             label -> (scientific name, common name), where known
    blocks_, dims_     (name, Fingerprint) and length of each block, in the order in which X holds them
    heard_             the recordings that this head was fitted on or selected by (not those of its backbones)
    calibration_       the sigmoid, and what it was fitted on
    tuning_            calibration a class and thresholds, where `stage2_heads.tuning` chose them; scores follow it
    tuned_on_          those of heard_ that were only tuned on
    members_           whole heads that this one is made of, saved in folders below its own
    windows_, secondary_weight_   how weak labels fell on windows, and what secondary labels counted
    `provenance` is the caller's: plain JSON values that are saved along.
    learns_partial_truth  a window teaches the classes of which it is known, where others are not; a kind without it
                          learns complete windows only
    """

    kind: ClassVar[str]
    settings_type: ClassVar[type]
    default_slope: ClassVar[float] = 1.0
    needs_calibration: ClassVar[bool] = True
    learns_partial_truth: bool = False

    def __init__(self, settings: Any = None) -> None:
        self.settings = self.settings_type() if settings is None else settings
        self.provenance: dict[str, Any] = {}
        self.labels_: tuple[str, ...] = ()
        self.names_: dict[str, tuple[str, str]] = {}
        self.blocks_: tuple[tuple[str, Fingerprint], ...] = ()
        self.dims_: tuple[int, ...] = ()
        self.heard_ = Heard()
        self.windows_ = "all"
        self.secondary_weight_ = 1.0
        self.calibration_ = Calibration(self.default_slope, 0.0, NOTHING)
        self.tuning_: Tuning | None = None
        self.tuned_on_: frozenset[str] = frozenset()
        self.members_: tuple[Head, ...] = ()

    @property
    def calibrated_on_(self) -> str:
        """What the scores' calibration was fitted on, as tables say it; "" for a head whose scores are bare votes."""
        if self.tuning_ is not None:
            return self.tuning_.calibrated_on
        return self.calibration_.calibrated_on if self.needs_calibration else ""

    def fit(self, rows: LabelledRows, *, progress: Progress | None = None) -> Self:
        """Learn from labelled windows, forgetting what was learnt before.

        Raises InputError when there is nothing to learn from.
        """
        if rows.n_rows == 0 or not rows.labels:
            raise InputError(f"{rows.n_rows} windows of {len(rows.labels)} classes: a head needs at least one of each.")
        rows = self.rows_to_learn(rows).held()
        self._begin(rows.labels, rows.dims)
        self.calibration_ = Calibration(self.default_slope, 0.0, NOTHING)
        self.tuning_, self.tuned_on_ = None, frozenset()
        self.blocks_, self.windows_, self.secondary_weight_ = rows.blocks, rows.windows, rows.secondary_weight
        names = label_names(rows.recordings)
        self.names_ = {label: names[label] for label in rows.labels if label in names}
        report = progress or (lambda share: None)
        # Cross-fitting costs a fit on all but one fold, once a fold.
        own_share = 1 / _CALIBRATION_FOLDS if self.needs_calibration else 1.0
        selected = self._learn(rows, part_of(report, 0.0, own_share))
        self.heard_ = heard_in(rows, selected)
        if self.needs_calibration:
            self.calibration_ = self._cross_fitted(rows, part_of(report, own_share, 1 - own_share))
        report(1.0)
        return self

    def rows_to_learn(self, rows: LabelledRows) -> LabelledRows:
        """Those of the rows that this kind of head can learn: all, or those of which every class is known.

        Raises InputError when none is left.
        """
        if self.learns_partial_truth or not rows.is_partial:
            return rows
        complete = rows.complete()
        if not complete.n_rows:
            raise InputError(
                f"of none of {rows.n_rows} windows all {len(rows.labels)} classes are known, and a {self.kind} head "
                "learns such windows only. Name fewer classes, or choose svm, logistic, mlp or prototypes."
            )
        return complete

    def partial_fit(
        self, X: np.ndarray, Y: np.ndarray, *, classes: Sequence[str] | None = None, heard: Heard | None = None
    ) -> Self:
        """Learn a little more, from these rows only.

        X : (n, dim) raw fused vectors;  Y : (n, c) targets in [0, 1], nan where nobody knows and this kind can learn so
        classes  the labels of Y's columns; required the first time, and the same ever after
        heard    the recordings that these rows come from, so that they are never scored
        Calibration and thresholds stay as they are: fit or tune anew for others.
        """
        X, Y = np.asarray(X), np.asarray(Y, dtype=np.float32)
        if not self.labels_:
            if classes is None:
                raise InputError("the first partial_fit of a head needs classes=, the labels of Y's columns.")
            if X.ndim != 2 or len(X) == 0:
                raise InputError(f"X of shape {X.shape}; the first partial_fit needs (n, dim) with at least one row.")
            self._begin(tuple(classes), (X.shape[1],))
        elif classes is not None and tuple(classes) != self.labels_:
            raise InputError(
                f"classes={list(classes)[:5]}... differ from the {len(self.labels_)} that this head has "
                f"({', '.join(self.labels_[:5])}, ...). Give the same in the same order, or fit a new head."
            )
        X = self._checked(X)
        if Y.shape != (len(X), len(self.labels_)):
            raise InputError(f"Y of shape {Y.shape} does not fit {len(X)} rows of {len(self.labels_)} classes.")
        unknown = np.isnan(Y) if self.learns_partial_truth else np.zeros(Y.shape, dtype=bool)
        if not (((Y >= 0) & (Y <= 1)) | unknown).all():
            raise InputError("Y must lie between 0 and 1.")
        if len(X):
            self._learn_more(X, Y)
        if heard is not None:
            self.heard_ = self.heard_.union(heard)
        return self

    def add_classes(self, labels: Sequence[str]) -> Self:
        """Make room for classes that this head has not met, behind those that it has. Tuning is dropped: tune anew.

        Raises InputError when the head is not fitted, has one of them already, or is of a kind that cannot.
        """
        if not self.labels_:
            raise InputError(f"this {self.kind} head is not fitted; call fit first.")
        if known := [label for label in labels if label in self.labels_]:
            raise InputError(f"this {self.kind} head already has the class {known[0]}; name new ones only.")
        if len(set(labels)) != len(labels):
            raise InputError(f"{', '.join(labels)}: a class is named twice.")
        if labels:
            self._widen(len(labels))
            self.tuning_ = None  # it knows nothing of the new classes
            self.labels_ = (*self.labels_, *labels)
        return self

    def decision(self, X: np.ndarray) -> np.ndarray:
        """How strongly each window speaks for each class, on the head's own scale.

        X : (n, dim) raw fused vectors.  Returns float64 (n, c).
        Raises ContractError when the width differs, InputError when a value is not finite or the head is not fitted.
        """
        return self._decide(self._checked(X))

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Probabilities, float64 (n, c), finite, in [0, 1). Arguments and errors as for `decision`."""
        return self.scores_of(self.decision(X))

    def scores_of(self, decisions: np.ndarray) -> np.ndarray:
        """What `scores` makes of decisions, (n, c)."""
        if self.tuning_ is None:
            return self.fitted_scores(decisions)
        return self.tuning_.calibrator.apply(self.odds(decisions))

    def detections(self, X: np.ndarray) -> np.ndarray:
        """Which classes each window holds, bool (n, c): by the tuned thresholds and top K, else scores of 0.5 or more.

        Arguments and errors as for `decision`.
        """
        scores = self.scores(X)
        if self.tuning_ is None:
            return detected(scores, DEFAULT_THRESHOLD)
        return self.tuning_.detected(scores)

    def fitted_scores(self, decisions: np.ndarray) -> np.ndarray:
        """Decisions, (n, c), to scores as they were before any tuning: by the shared sigmoid, or votes as they are."""
        if not self.needs_calibration:
            return np.clip(decisions, 0.0, BELOW_ONE)
        return self.calibration_.apply(decisions)

    def odds(self, decisions: np.ndarray) -> np.ndarray:
        """Decisions, (n, c), on the scale that calibrators take: votes as log-odds, others as they are."""
        return decisions if self.needs_calibration else vote_log_odds(decisions)

    def cross_fitted_decisions(
        self, rows: LabelledRows, *, n_folds: int, progress: Progress | None = None
    ) -> HeldOut | None:
        """Decisions about `rows` by copies of this head, each fitted on all folds of recordings but the one asked.

        The head itself stays as it is. None when there is nothing that can be held out.
        """
        seed = int(getattr(self.settings, "seed", 0))
        return cross_fitted(
            self._learn_copy,
            rows,
            to_learn=self.rows_to_learn,
            n_folds=n_folds,
            seed=seed,
            progress=progress or (lambda share: None),
        )

    def facts(self) -> dict[str, Any]:
        """What a fitted head measured of itself, as plain JSON values by name; nothing unless a head says so."""
        return {}

    def save(self, folder: Path) -> None:
        """Write head.json, head.safetensors and heard.json into `folder`, whole or not at all."""
        from stage2_heads.head_files import write_head

        write_head(self, Path(folder))

    @classmethod
    def load(cls, folder: Path) -> Head:
        """Read a head of any kind; the same as `stage2_heads.heads.load_head`."""
        from stage2_heads.heads import load_head

        return load_head(folder)

    @abstractmethod
    def _learn(self, rows: LabelledRows, progress: Progress) -> np.ndarray | None:
        """Fit parameters. Returns which recordings were only selected by, (n_recordings,) bool, or None."""

    @abstractmethod
    def _learn_more(self, X: np.ndarray, Y: np.ndarray) -> None:
        """Go on from the present parameters, or from nothing. X, Y are checked and not empty."""

    def _learn_rows(self, rows: LabelledRows, seed: int, progress: Progress) -> None:
        """Go on from the present parameters with rows of this head's blocks and classes, in a seeded order."""
        done = 0
        for X, Y in rows.batches(_UPDATE_ROWS, seed=seed):
            self._learn_more(X.copy(), Y.copy())  # the next batch overwrites the buffers
            done += len(X)
            progress(done / rows.n_rows)

    def _widen(self, n: int) -> None:
        """Make room for n more classes behind the others."""
        raise InputError(
            f"a {self.kind} head cannot take new classes once it is fitted. Leave their recordings out (of boxes, name "
            "the head's own species with --annotated-species), or fit a new head on the old and the new recordings."
        )

    @abstractmethod
    def _decide(self, X: np.ndarray) -> np.ndarray:
        """Decisions for checked X."""

    @abstractmethod
    def _arrays(self) -> dict[str, np.ndarray]:
        """Fitted parameters by name."""

    @abstractmethod
    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `_arrays` gave; raise InputError through `required_array` when shapes do not fit."""

    def _begin(self, labels: tuple[str, ...], dims: tuple[int, ...]) -> None:
        if len(set(labels)) != len(labels):
            raise InputError(f"{len(labels)} classes, but only {len(set(labels))} different ones.")
        self.labels_, self.dims_ = tuple(labels), tuple(dims)

    def _checked(self, X: np.ndarray) -> np.ndarray:
        if not self.labels_:
            raise InputError(f"this {self.kind} head is not fitted; call fit first.")
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != sum(self.dims_):
            blocks = " + ".join(f"{n} {d}" for (n, _), d in zip(self.blocks_, self.dims_, strict=False)) or "one block"
            raise ContractError(
                f"vectors of shape {X.shape}, but this head was fitted on (n, {sum(self.dims_)}): {blocks}. "
                "Read the blocks that the head names, in its order."
            )
        X = X.astype(np.float32, copy=False)
        if not np.isfinite(X).all():
            bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
            raise InputError(f"{len(bad)} of {len(X)} vectors hold values that are not finite (first: row {bad[0]}).")
        return X

    def _learn_copy(self, rows: LabelledRows, progress: Progress) -> DecisionFunction:
        copy = type(self)(self.settings)
        copy._begin(rows.labels, rows.dims)
        copy._learn(rows, progress)
        return copy.decision

    def _cross_fitted(self, rows: LabelledRows, progress: Progress) -> Calibration:
        """The sigmoid of decisions about recordings that a copy of this head was not fitted on."""
        nothing = Calibration(self.default_slope, 0.0, NOTHING)
        if rows.n_recordings < _FEWEST_RECORDINGS:
            return nothing
        held = self.cross_fitted_decisions(rows, n_folds=_CALIBRATION_FOLDS, progress=progress)
        if held is None:
            return nothing
        decisions, targets = held.cells()
        fitted = fit_sigmoid(decisions, targets)
        if fitted is None:
            return nothing
        calibration = Calibration(*fitted, UNHEARD if held.unheard else HEARD, held.n_recordings, len(decisions))
        return replace(calibration, calibration_error=calibration_error(calibration.apply(decisions), targets))

    def _settings_json(self) -> dict[str, Any]:
        return asdict(self.settings)


def required_array(
    arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int | None, ...], dtype: Any
) -> np.ndarray:
    """An array of a saved head. shape : None stands for any length.

    Raises InputError when it is missing, has another shape or type, or holds values that are not finite.
    """
    array = arrays.get(name)
    if array is None:
        raise InputError(f"the head's weights lack {name!r}; they hold {', '.join(sorted(arrays)) or 'nothing'}.")
    fits = len(array.shape) == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype != np.dtype(dtype):
        raise InputError(
            f"the head's weights {name!r} are {array.dtype} {array.shape}; {np.dtype(dtype)} {shape} was expected."
        )
    if not np.isfinite(array).all():
        raise InputError(f"the head's weights {name!r} hold values that are not finite.")
    return array


def heard_in(rows: LabelledRows, selected: np.ndarray | None = None) -> Heard:
    """The recordings with windows among `rows`; `selected`, (n_recordings,) bool, were only selected by."""
    used = np.bincount(rows.recording_of_row, minlength=rows.n_recordings) > 0
    only_selected = np.zeros(rows.n_recordings, dtype=bool) if selected is None else selected
    # Rows without named recordings (vectors of one's own) leave the lists empty.
    named = [(r, bool(s)) for r, u, s in zip(rows.recordings, used, only_selected, strict=False) if u]
    return Heard(
        trained_on=frozenset(r.recording for r, only in named if not only),
        selected_on=frozenset(r.recording for r, only in named if only),
        xeno_canto_ids=frozenset(r.xeno_canto_id for r, _ in named if r.xeno_canto_id),
    )
