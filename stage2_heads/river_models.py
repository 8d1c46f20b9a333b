"""River's own classifiers and drift detectors by name; nothing else can be named."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from embeddings.errors import InputError
from stage2_heads.base import required_array

__all__ = [
    "Detector",
    "RiverModel",
    "classifier_names",
    "create_detector",
    "detector_names",
    "try_detector",
    "try_model",
]

_ROWS_BYTES = 256 << 20  # rows that a model has learnt and that are kept so that it can be saved
_SURE = 1e-6  # probabilities are kept this far from 0 and 1, so that their log-odds are finite
_SEED = 0
# Modules of river that hold classifiers; its `compat`, which wraps other libraries, is left out.
_ROOMS = ("dummy", "ensemble", "facto", "forest", "linear_model", "naive_bayes", "neighbors", "tree")


class Detector:
    """A drift detector that is told of errors one by one, whether it wants numbers or truth values."""

    def __init__(self, detector: Any, binary: bool) -> None:
        self._detector, self._binary = detector, binary

    def feed(self, wrong: bool) -> bool:
        """Returns whether a drift is detected now."""
        self._detector.update(bool(wrong) if self._binary else float(wrong))
        return bool(self._detector.drift_detected)


class RiverModel:
    """A river classifier as a learner of rows: standardised by river, one against the rest where it is binary only.

    River's state cannot be saved without pickle. So the rows that it learnt are kept, up to 256 MB, and a model that is
    read back learns them again; beyond that it goes on learning, but can no longer be saved.
    A row with several species is learnt once as each; a row without any teaches it nothing.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], dim: int, n_classes: int) -> None:
        self.name, self._n_classes = name, n_classes
        self._model = _create_classifier(name, settings)
        self._features = [f"x{i}" for i in range(dim)]  # some river models split names
        self._rows: list[np.ndarray] = []
        self._labels: list[int] = []
        self._forgotten = False

    def learn_row(self, vector: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """vector : (dim,);  targets : (c,) in [0, 1].  Returns the log-odds before, float64 (c,)."""
        decisions = self.decide(vector[None])[0]
        for label in np.flatnonzero(targets > 0):
            self._learn(np.array(vector, np.float32), int(label))
        return decisions

    def decide(self, X: np.ndarray) -> np.ndarray:
        """X : (n, dim).  Returns log-odds, float64 (n, c), between -14 and 14; labels that it never met lie lowest."""
        shares = np.zeros((len(X), self._n_classes))
        for share, vector in zip(shares, X, strict=True):
            for label, probability in self._probabilities(vector).items():
                share[label] = probability
        shares = np.clip(np.nan_to_num(shares), _SURE, 1 - _SURE)
        return np.log(shares / (1 - shares))

    def add_classes(self, n: int) -> None:
        self._n_classes += n

    def restart_steps(self) -> None:
        """Nothing: how a river model answers drift is its own affair."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The rows learnt, to be learnt again. Raises InputError when they were too many to keep."""
        if self._forgotten:
            raise InputError(
                f"{self.name} has learnt more rows than are kept for saving ({_ROWS_BYTES >> 20} MB), and river's "
                "state cannot be saved without pickle. Use it for its progressive score, or fit a head without model=; "
                "its own learner saves all it knows."
            )
        return {
            "learnt_rows": np.array(self._rows, np.float32).reshape(-1, len(self._features)),
            "learnt_labels": np.array(self._labels, np.int32),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Learn again what `to_arrays` gave. Raises InputError when it does not fit."""
        rows = required_array(arrays, "learnt_rows", (None, len(self._features)), np.float32)
        labels = required_array(arrays, "learnt_labels", (len(rows),), np.int32)
        if len(labels) and not 0 <= labels.min() <= labels.max() < self._n_classes:
            raise InputError("the head's learnt rows and classes do not belong together; fit the head anew.")
        for vector, label in zip(rows, labels, strict=True):
            self._learn(vector, int(label))

    def _learn(self, vector: np.ndarray, label: int) -> None:
        self._model.learn_one(dict(zip(self._features, vector.tolist(), strict=True)), label)
        if not self._forgotten:
            self._rows.append(vector)
            self._labels.append(label)
            if len(self._rows) * vector.nbytes > _ROWS_BYTES:
                self._rows, self._labels, self._forgotten = [], [], True

    def _probabilities(self, vector: np.ndarray) -> dict[int, float]:
        if not self._labels and not self._forgotten:
            return {}  # some river models cannot be asked before they have met a label
        x = dict(zip(self._features, vector.tolist(), strict=True))
        try:
            return self._model.predict_proba_one(x)
        except NotImplementedError:  # it names a label without a probability
            label = self._model.predict_one(x)
            return {} if label is None else {label: 1.0}


@cache
def _classifiers() -> dict[str, type]:
    """`module.Class` -> class, for river's public classifiers that can be made from plain values."""
    from river import base

    found = {}
    for room in _ROOMS:
        module = import_module(f"river.{room}")
        for name in getattr(module, "__all__", ()):
            cls = getattr(module, name)
            if not (inspect.isclass(cls) and issubclass(cls, base.Classifier)) or inspect.isabstract(cls):
                continue
            if issubclass(cls, base.MultiLabelClassifier):
                continue
            needed = [p for p in inspect.signature(cls).parameters.values() if p.default is inspect.Parameter.empty]
            if all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in needed):
                found[f"{room}.{name}"] = cls
    return found


@cache
def _detectors() -> dict[str, type]:
    from river import base, drift

    kinds = (base.DriftDetector, base.BinaryDriftDetector)
    found = {}
    for module in (drift, drift.binary):
        for name in module.__all__:
            cls = getattr(module, name, None)  # river's list names one that it does not have
            if inspect.isclass(cls) and issubclass(cls, kinds):
                found[name] = cls
    return found


def classifier_names() -> list[str]:
    """What may stand in an online head's `model`."""
    return sorted(_classifiers())


def detector_names() -> list[str]:
    """What may stand in an online head's `detector`."""
    return sorted(_detectors())


def try_model(name: str, settings: Mapping[str, Any]) -> None:
    """Let the model learn two rows. Raises InputError for a name or settings that river does not have or cannot use."""
    model = RiverModel(name, settings, 1, 2)
    try:
        for label in (0, 1):
            model.learn_row(np.array([label], np.float32), np.eye(2)[label])
    except Exception as error:  # whatever river's models raise when they are given a text for a number
        raise InputError(f"{name} cannot learn with {dict(settings)}: {type(error).__name__}: {error}.") from None


def try_detector(name: str, settings: Mapping[str, Any]) -> None:
    """Tell the detector of some errors. Raises InputError as `create_detector`, and for settings it cannot use."""
    detector = create_detector(name, settings)
    try:
        for number in range(100):
            detector.feed(number % 3 == 0)
    except Exception as error:  # whatever river's detectors raise when they are given a text for a number
        raise InputError(f"{name} cannot watch with {dict(settings)}: {type(error).__name__}: {error}.") from None


def create_detector(name: str, settings: Mapping[str, Any]) -> Detector:
    """A fresh detector. Raises InputError for a name or argument that river does not have."""
    from river import base

    made = _made(_chosen(name, _detectors(), "drift detector"), name, settings)
    return Detector(made, isinstance(made, base.BinaryDriftDetector))


def _create_classifier(name: str, settings: Mapping[str, Any]) -> Any:
    from river import base, multiclass, preprocessing

    cls = _chosen(name, _classifiers(), "classifier that takes plain settings")
    model = _made(cls, name, settings)
    if base.tags.POSITIVE_INPUT in model._tags:
        raise InputError(f"{name} takes no negative values, and embeddings have them. Choose another model.")
    if not model._multiclass:
        model = multiclass.OneVsRestClassifier(model)
    return preprocessing.StandardScaler() | model


def _chosen(name: str, known: Mapping[str, type], what: str) -> type:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"river has no {what} {name!r}; it has {', '.join(sorted(known))}.{hint}")
    return known[name]


def _made(cls: type, name: str, settings: Mapping[str, Any]) -> Any:
    allowed = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    allowed += [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := [setting for setting in settings if setting not in allowed]:
        raise InputError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(allowed) or 'none'}.")
    for setting, value in settings.items():
        if not isinstance(value, bool | int | float | str | None):
            raise InputError(f"{name}: {setting}={value!r} is no plain value; give a number, a text, true or false.")
    if "seed" in allowed:
        settings = {"seed": _SEED, **settings}  # read back, it must become the same
    try:
        return cls(**settings)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{name} does not take {dict(settings)}: {error}") from None
