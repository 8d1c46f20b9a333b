"""Logistic regression for many species at once that learns a row at a time, and the same as a river classifier."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from river.base import MiniBatchClassifier
from scipy.linalg.blas import sger

from embeddings.errors import InputError
from stage2_heads.base import required_array
from stage2_heads.calibration import sigmoid

__all__ = ["LEARNING_RATE", "OnlineClassifier", "OnlineLogistic"]

LEARNING_RATE = 4.0
_CONSTANT = 1e-6  # a deviation below this share of the mean's size is rounding, not variation
_FARTHEST = 10.0  # deviations from the mean beyond which a value counts no further
_FIRST_INTERCEPT = -2.0  # a class begins at a probability of .12: most windows hold other species
_FIRST_SQUARE = 1e-8
_ARRAYS = ("weights", "squared_gradients", "mean", "squares", "counts")


class OnlineLogistic:
    """One-against-the-rest logistic regression with one weight matrix, AdaGrad steps and running standardisation.

    learning_rate      about how far, in log-odds, a class's first step moves its answer to that row
    weights            (c, dim + 1) float32 on standardised features; the last column is the intercept
    squared_gradients  (c, dim + 1) float32, by which AdaGrad shortens a weight's steps
    mean, squares      (dim,) float64, running mean and sum of squared distances from it (Welford);  counts (dim,) int64
    A row is judged, and learnt from, with the statistics of the rows before it.
    Source: Duchi, Hazan and Singer 2011 (AdaGrad); Welford 1962.
    """

    def __init__(self, dim: int, n_classes: int, learning_rate: float = LEARNING_RATE) -> None:
        self.learning_rate = learning_rate
        self.weights = np.zeros((0, dim + 1), np.float32)
        self.squared_gradients = np.zeros((0, dim + 1), np.float32)
        self.mean, self.squares = np.zeros(dim), np.zeros(dim)
        self.counts = np.zeros(dim, np.int64)
        self._scale = np.zeros(dim)
        self.add_classes(n_classes)

    @property
    def dim(self) -> int:
        return len(self.mean)

    def learn_row(self, vector: np.ndarray, targets: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
        """Take one step on one row.

        vector : (dim,) finite;  targets : (c,) in [0, 1];  present : (dim,) bool, features that are known (default all)
        Returns the log-odds that the row had before, float32 (c,). Nothing is checked: this is the fast path.
        """
        apart = vector - self.mean
        if present is not None:
            apart[~present] = 0.0
        z = self._standardised(apart)
        decisions = self.weights @ z
        error = sigmoid(decisions).astype(np.float32) - targets
        # BLAS adds an outer product in place, several times as fast as numpy makes one.
        sger(1.0, z * z, error * error, a=self.squared_gradients.T, overwrite_a=1)
        self._step.fill(0.0)
        sger(self.learning_rate / self.dim, z, error, a=self._step.T, overwrite_a=1)
        self._step /= np.sqrt(self.squared_gradients, out=self._root)
        self.weights -= self._step
        self._move(vector, apart, present)
        return decisions

    def decide(self, X: np.ndarray) -> np.ndarray:
        """X : (n, dim) finite; NaN stands for a feature that is not known.  Returns log-odds, float64 (n, c)."""
        apart = X - self.mean
        np.nan_to_num(apart, copy=False)
        return self._standardised(apart).astype(np.float64) @ self.weights.T.astype(np.float64)

    def add_classes(self, n: int) -> None:
        """Make room for n more classes, after those that there are."""
        fresh = np.zeros((n, self.dim + 1), np.float32)
        fresh[:, -1] = _FIRST_INTERCEPT
        self.weights = np.vstack([self.weights, fresh])
        self.squared_gradients = np.vstack([self.squared_gradients, np.full_like(fresh, _FIRST_SQUARE)])
        self._make_buffers()

    def add_features(self, n: int) -> None:
        """Make room for n more features, after those that there are."""
        at = self.dim  # before the intercepts
        self.weights = np.insert(self.weights, [at] * n, 0.0, axis=1)
        self.squared_gradients = np.insert(self.squared_gradients, [at] * n, _FIRST_SQUARE, axis=1)
        self.mean, self.squares, self._scale = (np.pad(a, (0, n)) for a in (self.mean, self.squares, self._scale))
        self.counts = np.pad(self.counts, (0, n))
        self._make_buffers()

    def restart_steps(self) -> None:
        """Forget how far the steps have shrunk, so that the weights can follow a stream that has changed."""
        self.squared_gradients[:] = _FIRST_SQUARE

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All that it knows, by name."""
        return {name: getattr(self, name) for name in _ARRAYS}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `to_arrays` gave. Raises InputError when shapes, types or values do not fit."""
        for name in _ARRAYS:
            own = getattr(self, name)
            array = required_array(arrays, name, own.shape, own.dtype)
            if name != "weights" and name != "mean" and len(array) and array.min() < 0:
                raise InputError(f"the head's weights {name!r} hold negative values; fit the head anew.")
            setattr(self, name, array.copy())
        self._refresh()

    def _refresh(self) -> None:
        variance = self.squares / np.maximum(self.counts, 1)
        varies = variance > (_CONSTANT * self.mean) ** 2
        self._scale = np.divide(1.0, np.sqrt(variance), out=np.zeros(self.dim), where=varies)

    def _make_buffers(self) -> None:
        self._step, self._root = np.empty_like(self.weights), np.empty_like(self.weights)

    def _standardised(self, apart: np.ndarray) -> np.ndarray:
        """Distances from the mean, (dim,) or (n, dim), as float32 deviations with a 1 behind them."""
        z = np.ones((*apart.shape[:-1], self.dim + 1), np.float32)
        np.clip(apart * self._scale, -_FARTHEST, _FARTHEST, out=z[..., :-1], casting="same_kind")
        return z

    def _move(self, vector: np.ndarray, apart: np.ndarray, present: np.ndarray | None) -> None:
        self.counts += 1 if present is None else present
        self.mean += apart / np.maximum(self.counts, 1)
        after = vector - self.mean
        if present is not None:
            after[~present] = 0.0
        self.squares += apart * after
        self._refresh()


class OnlineClassifier(MiniBatchClassifier):
    """`OnlineLogistic` under river's protocol: one label a row, features by name, both appearing as they come.

    A feature that a row lacks counts as lying at its mean. `learn_many` is exactly a loop of `learn_one`.

    Parameters
    ----------
    learning_rate
        About how far, in log-odds, a label's first step moves its answer to that row.

    Examples
    --------
    >>> from river import datasets, evaluate, metrics
    >>> evaluate.progressive_val_score(datasets.ImageSegments(), OnlineClassifier(), metrics.Accuracy())
    Accuracy: 86.83%
    """

    def __init__(self, learning_rate: float = LEARNING_RATE) -> None:
        self.learning_rate = learning_rate
        self._place: dict[Hashable, int] = {}
        self._column: dict[Any, int] = {}
        self._learner = OnlineLogistic(0, 0, learning_rate)

    @property
    def _multiclass(self) -> bool:
        return True

    def learn_one(self, x: Mapping[Any, float], y: Any) -> None:
        """x : feature -> number;  y : the label. Raises InputError for a value that is not a finite number."""
        values = self._values(list(x), np.array([list(x.values())], dtype=object))
        self._learn(list(x), values[0], y)

    def learn_many(self, X: pd.DataFrame, y: pd.Series) -> None:
        """X : a row an example;  y : their labels. Every row is checked before the first is learnt."""
        names = list(X.columns)
        for row, label in zip(self._values(names, X.to_numpy(dtype=object)), y, strict=True):
            self._learn(names, row, label)

    def predict_proba_one(self, x: Mapping[Any, float], **kwargs: Any) -> dict[Any, float]:
        """Returns label -> probability, summing to 1; empty before the first row was learnt."""
        return dict(zip(self._column, self._shares(list(x), np.array([list(x.values())], object))[0], strict=True))

    def predict_proba_many(self, X: pd.DataFrame) -> pd.DataFrame:
        """Returns the probabilities of `predict_proba_one`, a column a label, on X's index."""
        shares = self._shares(list(X.columns), X.to_numpy(dtype=object))
        return pd.DataFrame(shares, index=X.index, columns=list(self._column))

    def _learn(self, names: Sequence[Hashable], values: np.ndarray, label: Any) -> None:
        # Sorted, so that the order in which a dictionary names its features cannot matter, to the last bit.
        if fresh := sorted((name for name in names if name not in self._place), key=str):
            self._place.update(zip(fresh, range(len(self._place), len(self._place) + len(fresh)), strict=True))
            self._learner.add_features(len(fresh))
        if label not in self._column:
            self._column[label] = len(self._column)
            self._learner.add_classes(1)
        places = [self._place[name] for name in names]
        vector, present = np.zeros(len(self._place)), np.zeros(len(self._place), dtype=bool)
        vector[places], present[places] = values, True
        targets = np.zeros(len(self._column), np.float32)
        targets[self._column[label]] = 1.0
        self._learner.learn_row(vector, targets, None if present.all() else present)

    def _shares(self, names: Sequence[Hashable], values: np.ndarray) -> np.ndarray:
        known = [i for i, name in enumerate(names) if name in self._place]
        X = np.full((len(values), len(self._place)), np.nan)
        X[:, [self._place[names[i]] for i in known]] = self._values(names, values)[:, known]
        odds = sigmoid(self._learner.decide(X))
        return odds / np.maximum(odds.sum(axis=1, keepdims=True), np.finfo(float).tiny)

    @staticmethod
    def _values(names: Sequence[Hashable], values: np.ndarray) -> np.ndarray:
        """(n, features) objects as float64; InputError names the first feature that is not a finite number."""
        try:
            numbers = values.astype(np.float64)
        except (TypeError, ValueError):
            numbers = np.array([[_number(v) for v in row] for row in values])
        bad = np.argwhere(~np.isfinite(numbers))
        if len(bad):
            row, column = bad[0]
            raise InputError(
                f"feature {names[column]!r} is {values[row, column]!r}; a finite number was expected. "
                "Leave out what is not known."
            )
        return numbers


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
