"""A fitted head that goes on learning: new recordings of a store, or a stream of lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embeddings.contract import Heard
from embeddings.errors import CisticolaError, InputError
from embeddings.recordings import is_no_call
from stage2_heads.base import Head, Progress, heard_in
from stage2_heads.labels import RecordingLabels, label_names
from stage2_heads.online import OnlineHead
from stage2_heads.progressive import ProgressiveScore
from stage2_heads.rows import LabelledRows

__all__ = ["LineStream", "new_classes", "update_head"]

_SHOWN_SCORES = 5
_WANTED = '{"vector": [numbers], "label": "text"} (or "labels": [texts], or neither to be told a prediction only)'


def new_classes(head: Head, recordings: Sequence[RecordingLabels]) -> tuple[str, ...]:
    """Primary labels, sorted, that the head has no class for."""
    found = {r.primary_label for r in recordings if r.primary_label and not is_no_call(r.primary_label)}
    return tuple(sorted(found - set(head.labels_)))


def update_head(head: Head, rows: LabelledRows, *, seed: int = 0, progress: Progress | None = None) -> Head:
    """Learn more recordings, once each, window by window where the head does that; they count as heard from then on.

    rows : windows with this head's blocks, and its classes in its order (make room first: `Head.add_classes`);
    those of which not every class is known are learnt by kinds that can
    The scores' sigmoid stays as it was fitted. Raises InputError when classes differ or a recording was learnt already.
    """
    if rows.labels != head.labels_:
        raise InputError(
            f"the rows have {len(rows.labels)} classes ({', '.join(rows.labels[:5])}, ...), the head "
            f"{len(head.labels_)} ({', '.join(head.labels_[:5])}, ...); make the rows with the head's labels_."
        )
    again = [r.recording for r in rows.recordings if head.heard_.covers(r.recording, r.xeno_canto_id)]
    if again:
        raise InputError(f"{len(again)} of {rows.n_recordings} recordings were learnt already (first: {again[0]}).")
    rows = head.rows_to_learn(rows)
    head._learn_rows(rows, seed, progress or (lambda share: None))
    names = label_names(rows.recordings)
    head.names_ |= {label: names[label] for label in head.labels_ if label in names and label not in head.names_}
    head.heard_ = head.heard_.union(heard_in(rows))
    return head


class LineStream:
    """A head fed with lines of JSON: each is predicted, then, if it is labelled, learnt.

    A line is {"vector": [...], "label": "ash"}, or {"vector": [...], "labels": ["ash", "birch"]}, or a vector alone.
    The vector is raw and fused: the head's blocks side by side, in its order. "labels": [] (or a "no call" label) says
    that the window holds none of the species. A label that is new becomes a class, where the head can take one.
    "recording": the content hash of what the window comes from; it counts as heard from then on.
    n_rows, n_hits : labelled lines, and those whose likeliest class was right
    """

    def __init__(self, head: Head) -> None:
        self.head = head
        self.n_lines = self.n_errors = self.n_rows = self.n_hits = 0
        # An online head keeps its own score and log; for others drift is watched here.
        self._score = head.progressive_ if isinstance(head, OnlineHead) else ProgressiveScore()

    def answer(self, line: str | bytes) -> dict[str, Any]:
        """What is to be said of the next line. A line that cannot be used is answered with {"line", "error"}."""
        self.n_lines += 1
        try:
            return {"line": self.n_lines, **self._learn(*self._read(line))}
        except CisticolaError as error:
            self.n_errors += 1
            return {"line": self.n_lines, "error": str(error)}

    def _learn(self, vector: np.ndarray, labels: tuple[str, ...] | None, recording: str) -> dict[str, Any]:
        head = self.head
        X = vector[None]
        scores = head.scores(X)[0]
        ranked = np.argsort(-scores, kind="stable")[:_SHOWN_SCORES]
        said: dict[str, Any] = {
            "prediction": head.labels_[ranked[0]],
            "scores": {head.labels_[i]: round(float(scores[i]), 6) for i in ranked},
        }
        if labels is None:
            return said
        fresh = [label for label in labels if label not in head.labels_]
        head.add_classes(fresh)
        targets = np.array([[label in labels for label in head.labels_]], np.float32)
        last_drift = self._score.drifts[-1:]
        hit = said["prediction"] in labels if labels else bool(scores.max() < 0.5)
        if not isinstance(head, OnlineHead):
            self._score.record(hit)
        heard = Heard(trained_on=frozenset({recording})) if recording else None
        head.partial_fit(X, targets, heard=heard)
        self.n_rows += 1
        self.n_hits += hit
        said |= {"labels": list(labels), "progressive": {"rows": self.n_rows, "top_1": self.n_hits / self.n_rows}}
        if fresh:
            said["new_classes"] = fresh
        if self._score.drifts[-1:] != last_drift:
            said["drift"] = self._score.drifts[-1].to_json()
        return said

    def _read(self, line: str | bytes) -> tuple[np.ndarray, tuple[str, ...] | None, str]:
        """Vector (dim,) float32, labels (None when there are none to learn), content hash or ""."""
        try:
            said = json.loads(line)
        except (ValueError, RecursionError) as error:  # also bytes that are no text
            raise InputError(f"this line is not JSON ({error}); expected {_WANTED}.") from None
        if not isinstance(said, dict) or "vector" not in said:
            raise InputError(f"this line has no vector; expected {_WANTED}.")
        if unknown := set(said) - {"vector", "label", "labels", "recording"}:
            raise InputError(f"this line holds {', '.join(sorted(unknown))}, which nothing is known of; {_WANTED}.")
        recording = said.get("recording") or ""
        if not isinstance(recording, str):
            raise InputError(f"recording is {recording!r}; its content hash was expected, a text.")
        return self._vector(said["vector"]), _labels(said), recording

    def _vector(self, given: Any) -> np.ndarray:
        dim = sum(self.head.dims_)
        if not isinstance(given, list) or len(given) != dim:
            got = f"{len(given)} long" if isinstance(given, list) else f"a {type(given).__name__}"
            blocks = " + ".join(f"{n} {d}" for (n, _), d in zip(self.head.blocks_, self.head.dims_, strict=False))
            raise InputError(f"the vector is {got}; {dim} numbers were expected ({blocks or 'one block'}).")
        wrong = next((i for i, v in enumerate(given) if isinstance(v, bool) or not isinstance(v, int | float)), None)
        if wrong is not None:
            raise InputError(f"number {wrong} of the vector is {given[wrong]!r}; {dim} numbers were expected.")
        with np.errstate(over="ignore"):
            vector = np.array([_finite(v) for v in given]).astype(np.float32)
        if not np.isfinite(vector).all():
            wrong = int(np.flatnonzero(~np.isfinite(vector))[0])
            raise InputError(f"number {wrong} of the vector is {given[wrong]!r}; finite float32 numbers were expected.")
        if not vector.any():
            raise InputError(f"all {dim} numbers of the vector are 0, which no backbone says of a window.")
        return vector


def _finite(value: float) -> float:
    """A whole number too large for a float is as infinite as a float that overflowed."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _labels(said: Mapping[str, Any]) -> tuple[str, ...] | None:
    label, labels = said.get("label"), said.get("labels")
    if label is not None and labels is not None:
        raise InputError(f"this line has both label and labels; expected {_WANTED}.")
    if label is None and labels is None:
        return None
    given = [label] if labels is None else labels
    if not isinstance(given, list) or not all(isinstance(text, str) and text.strip() for text in given):
        raise InputError(f"the labels are {given!r}; texts were expected, none of them empty.")
    return tuple(dict.fromkeys(text for text in given if not is_no_call(text)))
