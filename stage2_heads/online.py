"""The head that learns a stream one labelled window at a time, scores itself as it goes, and notices drift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from embeddings.errors import InputError
from stage2_heads.base import Head, Progress
from stage2_heads.online_learner import LEARNING_RATE, OnlineLogistic
from stage2_heads.progressive import Drift, ProgressiveScore
from stage2_heads.river_models import RiverModel, try_detector, try_model
from stage2_heads.rows import LabelledRows

__all__ = ["OnlineHead", "OnlineSettings"]

_READ_ROWS = 1024
_FEW_ROWS = 32


@dataclass(frozen=True)
class OnlineSettings:
    """How the head learns.

    learning_rate   about how far, in log-odds, a class's first step moves its answer to that window
    passes          times that `fit` goes over the windows; only the first counts for the progressive score
    detector        river's drift detector of that name;  detector_settings: arguments of its constructor
    model           "" for the head's own learner, or a river classifier such as "linear_model.LogisticRegression"
    model_settings  arguments of that classifier's constructor, plain values
    seed            of the order in which `fit` and `update_head` take windows
    """

    learning_rate: float = LEARNING_RATE
    passes: int = 1
    detector: str = "ADWIN"
    detector_settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    model_settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InputError(f"learning_rate={self.learning_rate} must be a positive number.")
        if self.passes < 1:
            raise InputError(f"passes={self.passes} must be 1 or more.")
        if self.model_settings and not self.model:
            raise InputError("model_settings are given without a model; name one, such as linear_model.PAClassifier.")
        try_detector(self.detector, self.detector_settings)  # wrong names are told where they are given
        if self.model:
            try_model(self.model, self.model_settings)


class OnlineHead(Head):
    """Learns window by window, each predicted before it is learnt; decisions are log-odds.

    A prediction counts as right when its likeliest class is one of the window's; for a window without any species, when
    no class reaches a probability of a half. When the detector says that these errors have grown, the head's own
    learner takes steps as long as at the beginning, until it has learnt the stream anew.
    learner_ : the weights;  progressive_ : the score so far and the log of drifts
    """

    kind = "online"
    settings_type = OnlineSettings
    settings: OnlineSettings
    learner_: OnlineLogistic | RiverModel

    def __init__(self, settings: OnlineSettings | None = None) -> None:
        super().__init__(settings)
        self.progressive_ = self._fresh_score()

    def learn_window(self, vector: np.ndarray, targets: np.ndarray, *, new_recording: bool = False) -> Drift | None:
        """Learn one window, after predicting it.

        vector : (dim,) raw fused, finite;  targets : (c,) in [0, 1];  neither is checked: `partial_fit` does that
        new_recording : no window of its recording has been learnt
        Returns the drift that the prediction's error gave away, if any.
        """
        decisions = self.learner_.learn_row(vector, targets)
        best = decisions.argmax()
        hit = bool(targets[best] > 0) if targets.any() else bool(decisions[best] < 0)
        drift = self.progressive_.record(hit, new_recording=new_recording)
        if drift is not None and drift.got_worse:
            self.learner_.restart_steps()
        return drift

    def facts(self) -> dict[str, Any]:
        return {"progressive": self.progressive_.to_json()}

    def _learn(self, rows: LabelledRows, progress: Progress) -> None:
        self._reset()
        n_passes = self.settings.passes
        self._learn_rows(rows, self.settings.seed, lambda share: progress(share / n_passes))
        for done in range(1, n_passes):
            for X, Y in _in_drawn_order(rows, self.settings.seed + done).batches(_READ_ROWS):
                for vector, targets in zip(X, Y, strict=True):
                    self.learner_.learn_row(vector, targets)
            progress((done + 1) / n_passes)

    def _learn_rows(self, rows: LabelledRows, seed: int, progress: Progress) -> None:
        drawn = _in_drawn_order(rows, seed)
        new = np.zeros(drawn.n_rows, dtype=bool)
        new[np.unique(drawn.recording_of_row, return_index=True)[1]] = True
        done = 0
        with threadpool_limits(1, user_api="blas"):  # one row is over before a second thread has woken up
            for X, Y in drawn.batches(_READ_ROWS):
                for i in range(len(X)):
                    self.learn_window(X[i], Y[i], new_recording=bool(new[done + i]))
                done += len(X)
                progress(done / rows.n_rows)

    def _learn_more(self, X: np.ndarray, Y: np.ndarray) -> None:
        if not hasattr(self, "learner_"):
            self._reset()
        # Holding the threads takes a few milliseconds, which a handful of rows would not win back.
        with threadpool_limits(1, user_api="blas") if len(X) > _FEW_ROWS else nullcontext():
            for vector, targets in zip(X, Y, strict=True):
                self.learn_window(vector, targets)

    def _widen(self, n: int) -> None:
        self.learner_.add_classes(n)

    def _decide(self, X: np.ndarray) -> np.ndarray:
        return self.learner_.decide(X)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {**self.learner_.to_arrays(), **self.progressive_.to_arrays()}

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._reset()
        self.learner_.restore(arrays)
        self.progressive_.restore(arrays)

    def _reset(self) -> None:
        dim, n_classes, settings = sum(self.dims_), len(self.labels_), self.settings
        self.progressive_ = self._fresh_score()
        if settings.model:
            self.learner_ = RiverModel(settings.model, settings.model_settings, dim, n_classes)
        else:
            self.learner_ = OnlineLogistic(dim, n_classes, settings.learning_rate)

    def _fresh_score(self) -> ProgressiveScore:
        return ProgressiveScore(self.settings.detector, self.settings.detector_settings)


def _in_drawn_order(rows: LabelledRows, seed: int) -> LabelledRows:
    order = np.random.default_rng(seed).permutation(rows.n_rows)
    return rows.taken(order)
