"""From boxes to the truth of windows: which windows hold a species, which do not, and which nobody can say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embeddings.annotations import AnnotatedFile
from embeddings.errors import InputError

__all__ = [
    "NEGATIVE",
    "POSITIVE",
    "UNKNOWN",
    "OverlapRule",
    "WindowTruth",
    "boxes_within",
    "united",
    "window_states",
    "window_truth",
    "windows_with",
]

NEGATIVE, POSITIVE, UNKNOWN = 0, 1, -1
_TOLERANCE_S = 1e-9  # sums of seconds in float64 are this exact


@dataclass(frozen=True)
class OverlapRule:
    """How much of a call a window must hold.

    A window is positive for a species when it holds at least `overlap_s` seconds of one of its boxes, or at least
    `overlap_share` of the box, whichever is reached first. One that holds less than both, but something, is neither
    positive nor negative. With a share of at most one half, windows that lie end to end miss no call: of a call on
    their border one holds half.
    """

    overlap_s: float = 0.25
    overlap_share: float = 0.5

    def __post_init__(self) -> None:
        if not (self.overlap_s > 0 and math.isfinite(self.overlap_s)):
            raise InputError(f"overlap-s={self.overlap_s} must be a positive number of seconds.")
        if not 0 < self.overlap_share <= 1:
            raise InputError(f"overlap-share={self.overlap_share} must be a share of the box above 0, at most 1.")

    def needed_s(self, length_s: np.ndarray) -> np.ndarray:
        """Seconds that a window must hold of boxes of these lengths."""
        return np.minimum(self.overlap_s, self.overlap_share * length_s)

    def to_json(self) -> dict[str, Any]:
        return {"overlap_s": self.overlap_s, "overlap_share": self.overlap_share}


@dataclass(frozen=True)
class WindowTruth:
    """What is true of n windows for c classes, and the calls behind it.

    states          (n, c) int8: 1 the window holds the species, 0 it does not, -1 unknown
    call_recording  (m,) whose each call is;  call_column: of which class;  call_span: (m, 2) from and to, in seconds
    """

    labels: tuple[str, ...]
    states: np.ndarray
    call_recording: np.ndarray
    call_column: np.ndarray
    call_span: np.ndarray


def united(spans: np.ndarray) -> np.ndarray:
    """Spans that overlap or touch made one. spans : (n, 2).  Returns (m, 2) in order of time."""
    spans = np.asarray(spans, dtype=np.float64).reshape(-1, 2)
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    if not len(spans):
        return spans
    reach = np.maximum.accumulate(spans[:, 1])
    first = np.flatnonzero(np.r_[True, spans[1:, 0] > reach[:-1]])
    return np.stack([spans[first, 0], reach[np.r_[first[1:] - 1, len(spans) - 1]]], axis=1)


def window_states(
    start_s: np.ndarray, end_s: np.ndarray, spans: np.ndarray, rule: OverlapRule, *, looked_for: bool = True
) -> np.ndarray:
    """What is true of the windows of one recording for one species.

    start_s, end_s : (n,) of the windows;  spans : (m, 2) the species' boxes there, in any order
    looked_for       whether a window without a box is known not to hold the species
    Returns int8 (n,) of 1 (positive), 0 (negative), -1 (unknown).
    """
    states = np.full(len(start_s), NEGATIVE if looked_for else UNKNOWN, dtype=np.int8)
    calls = united(spans)
    positive = np.zeros(len(start_s), dtype=bool)
    for (start, end), needed in zip(calls, rule.needed_s(calls[:, 1] - calls[:, 0]), strict=True):
        held = np.minimum(end_s, end) - np.maximum(start_s, start)
        states[held > _TOLERANCE_S] = UNKNOWN
        positive |= held >= needed - _TOLERANCE_S
    states[positive] = POSITIVE
    return states


def windows_with(start_s: np.ndarray, end_s: np.ndarray, call: np.ndarray, rule: OverlapRule) -> np.ndarray:
    """(n,) bool: the windows that hold enough of one call. call : (2,) from and to."""
    held = np.minimum(end_s, call[1]) - np.maximum(start_s, call[0])
    return held >= rule.needed_s(call[1] - call[0]) - _TOLERANCE_S


def window_truth(
    labels: Sequence[str],
    start_s: np.ndarray,
    end_s: np.ndarray,
    recording_of_row: np.ndarray,
    files: Mapping[int, AnnotatedFile],
    looked_for: Mapping[int, frozenset[str] | None],
    rule: OverlapRule,
) -> WindowTruth:
    """The truth of every window of annotated recordings.

    start_s, end_s, recording_of_row  (n,) each;  files: recording -> its boxes, cut to the recording
    looked_for                        recording -> the species whose absence is known where there is no box, None: all
    """
    states = np.full((len(start_s), len(labels)), UNKNOWN, dtype=np.int8)
    recordings, columns, found = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros((0, 2))]
    order = np.argsort(recording_of_row, kind="stable")
    ordered = np.asarray(recording_of_row)[order]
    column = {label: c for c, label in enumerate(labels)}
    for code, file in files.items():
        rows = order[np.searchsorted(ordered, code) : np.searchsorted(ordered, code, side="right")]
        species = looked_for[code]
        known = np.array([species is None or label in species for label in labels], dtype=bool)
        states[rows] = np.where(known, NEGATIVE, UNKNOWN)
        for label in sorted({box.label for box in file.boxes} & set(column)):
            c = column[label]
            spans = np.array([(box.start_s, box.end_s) for box in file.boxes if box.label == label])
            states[rows, c] = window_states(start_s[rows], end_s[rows], spans, rule, looked_for=bool(known[c]))
            calls = united(spans)
            recordings.append(np.full(len(calls), code))
            columns.append(np.full(len(calls), c))
            found.append(calls)
    return WindowTruth(
        tuple(labels), states, np.concatenate(recordings), np.concatenate(columns), np.concatenate(found)
    )


def boxes_within(file: AnnotatedFile, end_s: float, slack_s: float, *, cut: bool) -> tuple[AnnotatedFile, list[str]]:
    """A recording's boxes, and what is wrong with those that lie beyond its end.

    end_s    where its last window ends;  slack_s: how far boxes may reach beyond that
    cut      the recording ends there too: what reaches beyond is cut off
    """
    kept, bad = [], []
    for box in file.boxes:
        if box.end_s > end_s + slack_s or (cut and box.start_s >= end_s):
            bad.append(
                f"{box.where}: a box from {box.start_s:g} to {box.end_s:g} s, but {file.name} ends at {end_s:g} s"
            )
        else:
            kept.append(replace(box, end_s=min(box.end_s, end_s)) if cut else box)
    return replace(file, boxes=tuple(kept)), bad
