"""Calls found and false alarms: what a class's detected windows amount to, recording by recording."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stage2_heads.window_labels import NEGATIVE, POSITIVE, UNKNOWN, OverlapRule, windows_with

__all__ = ["ClassCounts", "count_class"]

_HOUR_S = 3600.0


@dataclass(frozen=True)
class ClassCounts:
    """Of one class, by recording, (n_recordings,) each.

    calls, found   calls that some window holds, and those of them that were detected;  unreached: held by no window
    alarms, hours  false alarms, and hours of sound of which it is known whether the species is there, in recordings
                   that have windows without it
    known, true, claimed_false   windows: known ones, positive ones, negative ones that were detected all the same
    """

    calls: np.ndarray
    found: np.ndarray
    unreached: np.ndarray
    alarms: np.ndarray
    hours: np.ndarray
    known: np.ndarray
    true: np.ndarray
    claimed_false: np.ndarray


def count_class(
    states: np.ndarray,
    claimed: np.ndarray,
    span: np.ndarray,
    group: np.ndarray,
    n_recordings: int,
    call_group: np.ndarray,
    call_span: np.ndarray,
    rule: OverlapRule,
) -> ClassCounts:
    """Count one class.

    states, claimed, group  (n,) of the windows: what is true, whether they are detected, whose they are
    span                    (n, 2) from and to, in seconds
    call_group, call_span   (m,) and (m, 2): whose the calls are, from and to
    A call is found when a window that holds enough of it is detected. Detected windows without the species that
    overlap or touch are one false alarm: one sound is heard in several windows.
    """
    order = np.lexsort((span[:, 1], span[:, 0], group))
    first = np.searchsorted(group[order], np.arange(n_recordings + 1))
    calls, found, unreached = np.zeros((3, n_recordings))
    for code, call in zip(call_group, call_span, strict=True):
        rows = order[first[code] : first[code + 1]]
        rows = rows[windows_with(span[rows, 0], span[rows, 1], call, rule)]
        if len(rows):
            calls[code] += 1
            found[code] += claimed[rows].any()
        else:
            unreached[code] += 1
    known = order[states[order] != UNKNOWN]
    wrong = order[(states[order] == NEGATIVE) & claimed[order]]
    # Where the species was boxed but not looked for no window can be a false alarm, so its sound must not count.
    searched = np.bincount(group[states == NEGATIVE], minlength=n_recordings) > 0
    return ClassCounts(
        calls=calls,
        found=found,
        unreached=unreached,
        alarms=np.bincount(group[wrong], _begins_run(span[wrong], group[wrong]), n_recordings),
        hours=np.bincount(group[known], _own_s(span[known], group[known]), n_recordings) / _HOUR_S * searched,
        known=np.bincount(group[known], minlength=n_recordings),
        true=np.bincount(group[states == POSITIVE], minlength=n_recordings),
        claimed_false=np.bincount(group[wrong], minlength=n_recordings),
    )


def _begins_run(span: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(n,) bool, of windows in order of time: overlaps and touches none before it."""
    if not len(span):
        return np.zeros(0, dtype=bool)
    return np.r_[True, (np.diff(group) != 0) | (span[1:, 0] > span[:-1, 1])]


def _own_s(span: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(n,) seconds of each window, in order of time, until the next of its recording begins: their sum is a union."""
    if not len(span):
        return np.zeros(0)
    until = np.r_[np.where(np.diff(group) == 0, span[1:, 0], np.inf), np.inf]
    return np.minimum(span[:, 1], until) - span[:, 0]
