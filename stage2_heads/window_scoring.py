"""Scores a head window by window on annotated recordings that nobody has heard: ranking, calls found, false alarms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from embeddings.contract import Heard, RowReader
from embeddings.errors import InputError
from stage2_heads.annotated_rows import AnnotatedWindows
from stage2_heads.base import Progress
from stage2_heads.bootstrap import bayesian_weights, interval
from stage2_heads.leaks import heard_mask
from stage2_heads.metrics import Ranking
from stage2_heads.score_report import Figure
from stage2_heads.score_table import ScoreTable
from stage2_heads.scoring import Scorer
from stage2_heads.thresholds import DEFAULT_THRESHOLD, detected
from stage2_heads.window_counts import ClassCounts, count_class
from stage2_heads.window_labels import POSITIVE, UNKNOWN
from stage2_heads.window_report import WindowReport, window_notes

__all__ = ["evaluate_windows"]

_BATCH_ROWS = 4096
_WINDOW_VALUES = 1 << 30  # cells times replicates, some minutes' work; larger tables get fewer replicates
_FEWEST_REPLICATES = 100
_CHUNK_VALUES = 1 << 22  # weights gathered at a time: 32 MB
_SUMMED = ("calls", "found", "alarms")


def evaluate_windows(
    head: Scorer,
    reader: RowReader,
    windows: AnnotatedWindows,
    *,
    heard: Heard | None = None,
    include_seen: bool = False,
    n_bootstrap: int = 1000,
    seed: int = 0,
    threshold: float | None = None,
    progress: Progress | None = None,
) -> WindowReport:
    """Predict the annotated windows of recordings that nobody has heard, and score them.

    heard      what the blocks' backbones have heard; what the head itself has heard is added
    threshold  None: the head's tuned thresholds and top K where it has them, else 0.5
    progress   called with the share of windows predicted, 0 to 1
    Windows of which it is unknown whether they hold a class are left out of that class's figures. A class has a
    ranking's figures when windows with and without it are known. Intervals: Bayesian bootstrap over recordings.
    Raises InputError when no recording is left, or no box's label is a class of the head.
    """
    if threshold is not None and not 0 < threshold < 1:
        raise InputError(f"threshold={threshold} must lie between 0 and 1; scores never reach 1.")
    everything_heard = head.heard_ if heard is None else heard.union(head.heard_)
    is_heard = heard_mask(windows.recordings, everything_heard)
    scored = np.ones(len(is_heard), dtype=bool) if include_seen else ~is_heard
    if not scored.any():
        raise InputError(
            f"nothing unheard to score: all {len(is_heard)} annotated recordings were heard in training. Annotate "
            "others, or pass --include-seen for figures that flatter."
        )
    counts = windows.counts
    outside = {label: n for label, n in counts.items() if label not in head.labels_}
    if counts and len(outside) == len(counts):
        raise InputError(
            f"none of the boxes' labels ({', '.join(outside)}) is a class of the head, which tells "
            f"{', '.join(head.labels_[:10])} apart. Give the boxes the head's labels, or its species' names."
        )
    truth = windows.truth(head.labels_)
    code_of = np.where(scored, np.cumsum(scored) - 1, -1)
    group = code_of[windows.recording_of_row]
    asked = (group >= 0) & (truth.states != UNKNOWN).any(axis=1)
    columns = np.flatnonzero((truth.states[asked] != UNKNOWN).any(axis=0))
    if not len(columns):
        raise InputError("no window is left of which it is known whether it holds any class of the head.")
    scores, claimed = _predicted(head, reader, windows.rows[asked], columns, threshold, progress)
    states, group = truth.states[asked][:, columns], group[asked]
    span = np.stack([windows.start_s[asked], windows.end_s[asked]], axis=1)
    n_recordings = int(scored.sum())
    n_drawn = min(n_bootstrap, max(_FEWEST_REPLICATES, _WINDOW_VALUES // states.size))
    replicates = _Replicates.drawn(n_recordings, n_drawn, seed)
    call_group = code_of[truth.call_recording]
    thresholds = _thresholds(head, threshold)
    counted, rankings, per_class = [], [], []
    for i, c in enumerate(columns):
        mine = (truth.call_column == c) & (call_group >= 0)
        part = count_class(
            states[:, i],
            claimed[:, i],
            span,
            group,
            n_recordings,
            call_group[mine],
            truth.call_span[mine],
            windows.rule,
        )
        ranking = replicates.ranking(states[:, i], scores.column(i), group)
        counted.append(part)
        rankings.append(ranking)
        per_class.append(_class_figures(head.labels_[c], float(thresholds[c]), part, ranking, replicates))

    ranked = [pair for pair in rankings if np.isfinite(pair[0][0])]
    calls, found, alarms = (np.sum([getattr(part, name) for part in counted], axis=0) for name in _SUMMED)
    hours = np.max([part.hours for part in counted], axis=0)  # one sound, in which all classes raise alarms
    n_windows = int(asked.sum())
    n_by_file = np.bincount(group, minlength=n_recordings)
    n_with_by_file = np.bincount(group[(states == POSITIVE).any(axis=1)], minlength=n_recordings)
    report = WindowReport(
        overall={
            "ap": replicates.figure(np.mean([ap for ap, _ in ranked], axis=0) if ranked else None, n_windows),
            "auroc": replicates.figure(np.mean([auroc for _, auroc in ranked], axis=0) if ranked else None, n_windows),
            "recall": replicates.ratio(found, calls, int(calls.sum())),
            "false_alarms_per_hour": replicates.ratio(alarms, hours, int(alarms.sum()), top=np.inf),
        },
        per_class=tuple(per_class),
        per_file=tuple(
            {
                "file": windows.names[place],
                "hours": float(hours[g]),
                "windows": int(n_by_file[g]),
                "windows_with": int(n_with_by_file[g]),
                "calls": int(calls[g]),
                "found": int(found[g]),
                "false_alarms": int(alarms[g]),
                "heard": bool(is_heard[place]),
            }
            for g, place in enumerate(np.flatnonzero(scored))
        ),
        left_out={
            "heard": 0 if include_seen else int(is_heard.sum()),
            "not_annotated": windows.n_unannotated,
            "windows_unknown": int((~asked & scored[windows.recording_of_row]).sum()),
            "calls_in_no_window": int(np.sum([part.unreached for part in counted])),
        },
        outside_labels=outside,
        n_windows=n_windows,
        n_recordings=n_recordings,
        n_ranked=len(ranked),
        n_seen=int(is_heard.sum()) if include_seen else 0,
        hours=float(hours.sum()),
        rule=windows.rule.to_json(),
        threshold=DEFAULT_THRESHOLD if threshold is None and head.tuning_ is None else threshold,
        calibrated_on=head.calibrated_on_,
        n_bootstrap=n_drawn,
        seed=seed,
    )
    notes = window_notes(report, everything_heard.unpublished)
    if n_drawn < n_bootstrap:
        notes.append(f"Intervals rest on {n_drawn} replicates: the table is large.")
    return report.with_notes(notes)


def _class_figures(
    label: str, threshold: float, part: ClassCounts, ranking: tuple[np.ndarray, np.ndarray], replicates: _Replicates
) -> dict[str, Any]:
    n_known, n_calls, n_alarms = int(part.known.sum()), int(part.calls.sum()), int(part.alarms.sum())
    ap, auroc = (replicates.figure(values, n_known, part.known) for values in ranking)
    return {
        "label": label,
        "windows_with": int(part.true.sum()),
        "windows_known": n_known,
        "ap": ap,
        "auroc": auroc,
        "threshold": threshold,
        "calls": n_calls,
        "recall": replicates.ratio(part.found, part.calls, n_calls),
        "false_alarms": n_alarms,
        "false_windows": int(part.claimed_false.sum()),
        "hours": float(part.hours.sum()),
        "false_alarms_per_hour": replicates.ratio(part.alarms, part.hours, n_alarms, top=np.inf),
    }


def _predicted(
    head: Scorer,
    reader: RowReader,
    rows: np.ndarray,
    columns: np.ndarray,
    threshold: float | None,
    progress: Progress | None,
) -> tuple[ScoreTable, np.ndarray]:
    """Scores of some classes, and (n, few) bool which of them are detections."""
    table, claimed = ScoreTable(len(rows), len(columns)), np.zeros((len(rows), len(columns)), dtype=bool)
    buffer = np.empty((min(_BATCH_ROWS, max(len(rows), 1)), sum(reader.dims)), dtype=np.float32)
    for start in range(0, len(rows), _BATCH_ROWS):
        stop = min(start + _BATCH_ROWS, len(rows))
        scores = head.scores(reader.read(rows[start:stop], out=buffer))
        table.write(start, scores[:, columns])
        if threshold is None and head.tuning_ is not None:
            found = head.tuning_.detected(scores)
        else:
            found = detected(scores, DEFAULT_THRESHOLD if threshold is None else threshold)
        claimed[start:stop] = found[:, columns]
        if progress is not None:
            progress(stop / len(rows))
    return table, claimed


def _thresholds(head: Scorer, threshold: float | None) -> np.ndarray:
    if threshold is None and head.tuning_ is not None:
        return head.tuning_.window.values
    return np.full(len(head.labels_), DEFAULT_THRESHOLD if threshold is None else threshold)


@dataclass(frozen=True)
class _Replicates:
    """Reweightings of the recordings, and figures with intervals from them.

    weights : (n_recordings, r), the first all ones
    """

    weights: np.ndarray

    @classmethod
    def drawn(cls, n_recordings: int, n_bootstrap: int, seed: int) -> _Replicates:
        return cls(np.hstack([np.ones((n_recordings, 1)), bayesian_weights(n_recordings, n_bootstrap, seed)]))

    def ranking(self, states: np.ndarray, scores: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average precision and AUROC, (r,) each, of a class's known windows; nan unless both kinds are there."""
        known = states != UNKNOWN
        true = states[known] == POSITIVE
        if not true.any() or true.all():
            nothing = np.full(self.weights.shape[1], np.nan)
            return nothing, nothing
        ranking = Ranking.of(true, scores[known], group[known], len(self.weights))
        size = max(1, _CHUNK_VALUES // len(true))
        starts = range(0, self.weights.shape[1], size)
        curves = [ranking.curve(self.weights[:, start : start + size]) for start in starts]
        return np.concatenate([c.average_precision() for c in curves]), np.concatenate([c.auroc() for c in curves])

    def figure(
        self, values: np.ndarray | None, n: int, behind: np.ndarray | None = None, *, top: float = 1.0
    ) -> Figure:
        """values : (r,) the figure, then its replicates.  behind : (n_recordings,) what each recording adds."""
        if values is None or not np.isfinite(values[0]):
            return Figure(None, None, None, n)
        n_behind = len(self.weights) if behind is None else np.count_nonzero(behind)
        if n_behind < 2:  # one recording shows nothing of how they vary
            return Figure(float(values[0]), None, None, n)
        low, high = interval(values[1:], float(values[0]))
        return Figure(float(values[0]), max(low, 0.0), min(high, top), n)

    def ratio(self, above: np.ndarray, below: np.ndarray, n: int, *, top: float = 1.0) -> Figure:
        """A ratio of sums over recordings. above, below : (n_recordings,)."""
        if not below.sum() > 0:
            return Figure(None, None, None, n)
        return self.figure((above @ self.weights) / (below @ self.weights), n, below, top=top)
