"""The linear heads as a scikit-learn classifier, for pipelines, grid searches and data of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import label_binarize
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, check_random_state, column_or_1d, validate_data

from embeddings.contract import Fingerprint
from stage2_heads.heads import create_head
from stage2_heads.linear import LinearHead
from stage2_heads.rows import ArrayReader, LabelledRows

__all__ = ["LinearClassifier"]

_LARGEST_SEED = np.iinfo(np.int32).max


class LinearClassifier(ClassifierMixin, BaseEstimator):
    """One weight matrix for all classes, one class or several a row, by `fit` or by `partial_fit`.

    loss        "squared_hinge", "hinge" or "log";  the other parameters: `stage2_heads.linear.LinearSettings`
    warm_start  `fit` goes on from the weights that there are, if the classes are the same
    Fitted attributes: classes_, n_features_in_, head_ (the `svm` or `logistic` head inside).

    >>> import numpy as np
    >>> X = np.array([[0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.9, 0.1]])
    >>> LinearClassifier(min_updates=50).fit(X, ["wren", "wren", "rook", "rook"]).predict([[0.0, 0.8]])
    array(['wren'], dtype='<U4')
    """

    classes_: np.ndarray
    head_: LinearHead

    def __init__(
        self,
        loss: str = "squared_hinge",
        *,
        c: float = 1.0,
        class_balanced: bool = False,
        epochs: int = 4,
        min_updates: int = 2000,
        batch_size: int = 256,
        learning_rate: float = 0.2,
        schedule: str = "late",
        averaging: bool = True,
        features: str = "none",
        n_features: int = 2048,
        gamma: float = 0.5,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.loss = loss
        self.c = c
        self.class_balanced = class_balanced
        self.epochs = epochs
        self.min_updates = min_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.averaging = averaging
        self.features = features
        self.n_features = n_features
        self.gamma = gamma
        self.warm_start = warm_start
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """X : (n, dim) float;  y : (n,) labels, or (n, c) of {0, 1} for several classes a row.

        Raises ValueError when shapes do not fit, values are not finite, or there is one class only.
        """
        X, y = validate_data(self, X, y, dtype=np.float32, multi_output=True)
        y = _labels(y)
        check_classification_targets(y)
        classes = unique_labels(y)
        if len(classes) < 2 and y.ndim == 1:
            raise ValueError(f"y holds one class only ({classes[0]}); a classifier needs at least two.")
        if self.warm_start and hasattr(self, "head_") and np.array_equal(classes, self.classes_):
            self.head_.partial_fit(X, self._targets(y))
            return self
        self.classes_ = classes
        head = self._unfitted()
        Y = self._targets(y)
        one_each = np.arange(len(X))
        reader = ArrayReader(X, (X.shape[1],))
        labels = tuple(str(column) for column in range(Y.shape[1]))
        rows = LabelledRows(reader, one_each, one_each, Y, labels, (("x", Fingerprint({})),))
        head._begin(rows.labels, rows.dims)
        head._learn(rows, lambda share: None)
        self.head_ = head
        return self

    def partial_fit(self, X: Any, y: Any, classes: Sequence[Any] | None = None) -> Self:
        """Learn from these rows, then forget them.

        classes  all labels that will ever come; required in the first call. With y of (n, c): the c columns' names
        """
        first = not hasattr(self, "head_")
        X, y = validate_data(self, X, y, dtype=np.float32, multi_output=True, reset=first)
        y = _labels(y)
        if first:
            if classes is None:
                raise ValueError("the first call of partial_fit needs classes=, all labels that will ever come.")
            self.classes_ = np.unique(classes)
            self.head_ = self._unfitted()
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes={list(classes)} differ from those of the first call, {self.classes_.tolist()}.")
        if y.ndim == 1 and (unknown := np.setdiff1d(y, self.classes_)).size:
            raise ValueError(f"y holds {unknown[0]}, which is not among the classes {self.classes_.tolist()}.")
        Y = self._targets(y)
        self.head_.partial_fit(X, Y, classes=tuple(str(column) for column in range(Y.shape[1])))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Signed margins or log-odds, float64 (n, c); (n,) for two exclusive classes, of the second."""
        check_is_fitted(self, "head_")
        decisions = self.head_.decision(validate_data(self, X, dtype=np.float32, reset=False))
        return decisions[:, 0] if decisions.shape[1] == 1 else decisions

    def predict(self, X: Any) -> np.ndarray:
        """Labels (n,), or (n, c) of {0, 1} when fitted on several classes a row."""
        decisions = self.decision_function(X)
        if decisions.ndim == 1:
            return self.classes_[(decisions > 0).astype(np.int64)]
        return (decisions > 0).astype(np.int64) if self._several else self.classes_[decisions.argmax(axis=1)]

    def _unfitted(self) -> LinearHead:
        given = self.get_params()
        del given["warm_start"], given["random_state"]
        loss = given.pop("loss")
        seed = int(check_random_state(self.random_state).randint(_LARGEST_SEED))
        if loss != "log":
            given["loss"] = loss
        head = create_head("logistic" if loss == "log" else "svm", seed=seed, **given)
        assert isinstance(head, LinearHead)
        return head

    def _targets(self, y: np.ndarray) -> np.ndarray:
        """(n, c) float32; one column for two exclusive classes."""
        self._several = y.ndim == 2
        return np.asarray(y if y.ndim == 2 else label_binarize(y, classes=self.classes_), np.float32)


def _labels(y: np.ndarray) -> np.ndarray:
    """One column is a label a row; several are classes, each there or not."""
    return column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
