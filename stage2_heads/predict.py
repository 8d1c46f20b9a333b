"""What sang, and when: a head on stored windows, batch by batch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from embeddings.contract import RowReader
from embeddings.errors import InputError
from stage2_heads.base import Head
from stage2_heads.thresholds import DEFAULT_THRESHOLD, detected

__all__ = ["Detecting", "WindowScores", "detecting_of", "predict"]

_BATCH_BYTES = 16 << 20


@dataclass(frozen=True)
class Detecting:
    """What counts as a detection.

    classes     (c,) bool: those that are looked for;  thresholds : (c,) of a window's score
    top_k       a window's best so many of all classes; None for any number
    words       the same for people
    """

    classes: np.ndarray
    thresholds: np.ndarray
    top_k: int | None
    words: str

    def found(self, scores: np.ndarray) -> np.ndarray:
        """scores : (n, c).  Returns (n, c) bool."""
        return detected(scores, self.thresholds, self.top_k) & self.classes


@dataclass(frozen=True)
class WindowScores:
    """Some of a store's windows.

    rows       (n,) row numbers, in the order of recordings and of time
    scores     (n, c) float64 in [0, 1), calibrated;  raw : (n, c) the head's own decisions
    found      (n, c) bool, the detections
    """

    rows: np.ndarray
    scores: np.ndarray
    raw: np.ndarray
    found: np.ndarray


def detecting_of(
    head: Head, *, threshold: float | None = None, top_k: int | None = None, species: Sequence[str] = ()
) -> Detecting:
    """What to look for with a head.

    threshold  one for all classes; None: the head's own where it was tuned, else 0.5
    top_k      None: the head's own where it was tuned and no threshold is given, else any number
    species    labels, scientific or common names; none: all classes
    Raises InputError that names a value out of range, or a species that the head does not know and those near it.
    """
    if threshold is not None and not 0 <= threshold < 1:
        raise InputError(f"threshold {threshold:g} must lie in 0..1 (1 excluded): scores are below 1.")
    if top_k is not None and top_k < 1:
        raise InputError(f"top K {top_k} leaves nothing; give 1 or more.")
    tuning = head.tuning_
    n = len(head.labels_)
    if threshold is not None:
        thresholds, words = np.full(n, threshold), f"scores of {threshold:g} or more"
    elif tuning is not None:
        thresholds, words = tuning.window.values, f"scores at or above tuned thresholds ({tuning.rule})"
    else:
        thresholds, words = np.full(n, DEFAULT_THRESHOLD), f"scores of {DEFAULT_THRESHOLD:g} or more"
    if top_k is None and threshold is None and tuning is not None:
        top_k = tuning.top_k
    classes = np.ones(n, bool)
    if species:
        classes = np.zeros(n, bool)
        classes[[column for name in species for column in _columns(head, name)]] = True
        words += f", of {', '.join(species)}"
    return Detecting(classes, thresholds, top_k, words + (f", the best {top_k} of a window" if top_k else ""))


def predict(head: Head, reader: RowReader, rows: np.ndarray, detecting: Detecting) -> Iterator[WindowScores]:
    """Score windows in the order given; memory does not grow with their number.

    reader : of the head's blocks, in its order;  rows : (n,) row numbers
    """
    step = max(1, _BATCH_BYTES // (4 * sum(reader.dims) + 16 * len(head.labels_)))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        raw = head.decision(reader.read(some))
        scores = head.scores_of(raw)
        yield WindowScores(some, scores, raw, detecting.found(scores))


def _columns(head: Head, name: str) -> list[int]:
    """Every class of that name: several may be called alike, such as the calls and the songs of one species."""
    known: dict[str, list[int]] = {}
    for i, label in enumerate(head.labels_):
        for word in (label, *head.names_.get(label, ())):
            if word:
                known.setdefault(word.casefold(), []).append(i)
    if name.casefold() not in known:
        near = difflib.get_close_matches(name.casefold(), known, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else f" It has {', '.join(head.labels_[:10])}, ..."
        raise InputError(f"the head has no species {name!r} among its {len(head.labels_)} classes.{hint}")
    return known[name.casefold()]
