"""Scores a head on recordings it has not heard: per recording and per window, with intervals, a baseline and notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from embeddings.contract import Heard, RowReader
from embeddings.errors import InputError
from stage2_heads.base import Progress
from stage2_heads.bootstrap import bayesian_weights, interval
from stage2_heads.labels import RecordingLabels, primary_codes, target_matrix
from stage2_heads.leaks import LeakSplit, guard
from stage2_heads.levels import METRICS, Level, LevelFigures, random_baseline
from stage2_heads.metrics import padded_cmap
from stage2_heads.pooling import POOLS, pool_windows
from stage2_heads.score_notes import score_notes
from stage2_heads.score_report import Figure, ScoreReport
from stage2_heads.score_table import ScoreTable
from stage2_heads.thresholds import DEFAULT_THRESHOLD
from stage2_heads.tuned import Tuning

__all__ = ["METRICS", "Figure", "ScoreReport", "evaluate", "padded_cmap", "score_rows"]

_BATCH_ROWS = 4096
_BASELINE_DRAWS = 20
_BASELINE_VALUES = 1 << 26  # truth values times draws; larger tables need fewer draws for an equally steady mean
_WINDOW_VALUES = 1 << 32  # truth values times replicates at the level of windows


class Scorer(Protocol):
    """What `evaluate` needs of a head."""

    labels_: tuple[str, ...]
    heard_: Heard
    names_: dict[str, tuple[str, str]]

    tuning_: Tuning | None

    @property
    def calibrated_on_(self) -> str: ...

    def scores(self, X: np.ndarray) -> np.ndarray: ...


def evaluate(
    head: Scorer,
    reader: RowReader,
    rows: np.ndarray,
    recording_of_row: np.ndarray,
    recordings: Sequence[RecordingLabels],
    *,
    pool: str = "mean",
    heard: Heard | None = None,
    include_seen: bool = False,
    n_bootstrap: int = 1000,
    seed: int = 0,
    threshold: float | None = None,
    secondary_weight: float = 1.0,
    progress: Progress | None = None,
) -> ScoreReport:
    """Predict the windows of recordings that nobody has heard, batch by batch, and score them.

    rows, recording_of_row  (n,) row numbers of `reader`, and the place of each row's recording in `recordings`
    heard                   what the blocks' backbones have heard; what the head itself has heard is added
    threshold               None: the head's tuned thresholds and top K where it has them, else 0.5
    progress                called with the share of windows predicted, 0 to 1
    Other arguments and errors as in `score_rows`.
    """
    _require_settings(pool, DEFAULT_THRESHOLD if threshold is None else threshold, secondary_weight)
    rows, codes = np.asarray(rows), np.asarray(recording_of_row)
    everything_heard = head.heard_ if heard is None else heard.union(head.heard_)
    asked = _ask(recordings, codes, head.labels_, everything_heard, include_seen, secondary_weight)
    rows, group = rows[asked.group >= 0], asked.group[asked.group >= 0]
    table = ScoreTable(len(rows), len(head.labels_))
    buffer = np.empty((min(_BATCH_ROWS, max(len(rows), 1)), sum(reader.dims)), dtype=np.float32)
    for start in range(0, len(rows), _BATCH_ROWS):
        stop = min(start + _BATCH_ROWS, len(rows))
        table.write(start, head.scores(reader.read(rows[start:stop], out=buffer)))
        if progress is not None:
            progress(stop / len(rows))
    return _report(
        table,
        head.labels_,
        group,
        asked,
        pool=pool,
        n_bootstrap=n_bootstrap,
        seed=seed,
        threshold=DEFAULT_THRESHOLD if threshold is None else threshold,
        tuning=head.tuning_ if threshold is None else None,
        names=head.names_,
        calibrated_on=head.calibrated_on_,
        secondary_weight=secondary_weight,
    )


def score_rows(
    scores: np.ndarray,
    labels: Sequence[str],
    recording_of_row: Sequence[str],
    recordings: Sequence[RecordingLabels],
    *,
    pool: str = "mean",
    heard: Heard | None = None,
    include_seen: bool = False,
    n_bootstrap: int = 1000,
    seed: int = 0,
    threshold: float = DEFAULT_THRESHOLD,
    tuning: Tuning | None = None,
    names: Mapping[str, tuple[str, str]] | None = None,
    calibrated_on: str = "",
    secondary_weight: float = 1.0,
) -> ScoreReport:
    """Score a table of windows x classes, joined to the truth by recording and by class name.

    scores            (n, c) float64 in [0, 1);  labels: the class of each column
    recording_of_row  (n,) content hash of each window's recording; several windows make a recording
    recordings        the truth: primary and secondary labels. Those without windows are counted and left out
    pool              "mean", "lme" or "max" of a recording's windows makes the recording's scores
    heard             recordings in it are left out, or with `include_seen` counted on every line
    threshold         where a score becomes a detection, for F1;  tuning: thresholds a class and top K instead
    secondary_weight  what a recording counts for a species that is its secondary label: 1 like any other, 0 not at all
                      (neither true nor false), between them as a part of a recording
    Top-k asks for the primary label; all other metrics take primary and secondary labels as true.
    Raises ScoreRangeError for scores outside [0, 1); InputError when the join fails or nothing is left to score.
    """
    _require_settings(pool, threshold, secondary_weight)
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.shape != (len(recording_of_row), len(labels)):
        raise InputError(
            f"scores of shape {scores.shape} do not fit {len(recording_of_row)} rows, {len(labels)} classes."
        )
    asked = _ask(
        recordings, _join(recording_of_row, recordings), labels, heard or Heard(), include_seen, secondary_weight
    )
    in_use = asked.group >= 0
    return _report(
        ScoreTable.of(scores[in_use]),
        labels,
        asked.group[in_use],
        asked,
        pool=pool,
        n_bootstrap=n_bootstrap,
        seed=seed,
        threshold=threshold,
        tuning=tuning,
        names=names or {},
        calibrated_on=calibrated_on,
        secondary_weight=secondary_weight,
    )


def _require_settings(pool: str, threshold: float, secondary_weight: float) -> None:
    if pool not in POOLS:
        raise InputError(f"pool={pool!r} is not a way to pool windows; choose {', '.join(POOLS)}.")
    if not 0 < threshold < 1:
        raise InputError(f"threshold={threshold} must lie between 0 and 1.")
    if not 0 <= secondary_weight <= 1:
        raise InputError(f"secondary_weight={secondary_weight} must lie between 0 (left out) and 1 (like the primary).")


@dataclass(frozen=True)
class _Asked:
    """Which recordings are scored. group : (n,) the place of each row's recording among `scored`, -1 left out."""

    scored: list[RecordingLabels]
    group: np.ndarray
    split: LeakSplit
    heard: Heard
    n_seen: int
    n_windowless: int


def _ask(
    recordings: Sequence[RecordingLabels],
    codes: np.ndarray,
    labels: Sequence[str],
    heard: Heard,
    include_seen: bool,
    secondary_weight: float,
) -> _Asked:
    split = guard(recordings, heard, labels, include_seen=include_seen)
    has_windows = np.bincount(codes, minlength=len(recordings)) > 0
    chosen = np.flatnonzero(split.scored & has_windows)
    if len(chosen) == 0:
        raise InputError(f"none of the {int(split.scored.sum())} recordings to score has windows; extract them first.")
    scored = [recordings[int(i)] for i in chosen]
    counted = target_matrix(scored, labels, secondary_weight) > 0
    if not counted.any():
        raise InputError(
            f"none of {len(scored)} recordings is of the head's {len(labels)} classes "
            f"({', '.join(labels[:5])}, ...); their labels begin {sorted({r.primary_label for r in scored})[:5]}."
        )
    place = np.full(len(recordings), -1)
    place[chosen] = np.arange(len(chosen))
    return _Asked(
        scored=scored,
        group=place[codes],
        split=split,
        heard=heard,
        n_seen=int((split.heard & has_windows).sum()) if include_seen else 0,
        n_windowless=int((split.scored & ~has_windows).sum()),
    )


def _report(
    table: ScoreTable,
    labels: Sequence[str],
    group: np.ndarray,
    asked: _Asked,
    *,
    pool: str,
    n_bootstrap: int,
    seed: int,
    threshold: float,
    tuning: Tuning | None,
    names: Mapping[str, tuple[str, str]],
    calibrated_on: str,
    secondary_weight: float,
) -> ScoreReport:
    """group : (n,) place of each of the table's rows among the recordings that are scored."""
    scored = asked.scored
    all_true, by_primary = target_matrix(scored, labels) > 0, target_matrix(scored, labels, 0.0) > 0
    secondary = all_true & ~by_primary
    truth = all_true if secondary_weight > 0 else by_primary
    primary = primary_codes(scored, labels)
    n = len(scored)
    pooled = np.empty((n, len(labels)))
    for first, block in table.blocks():
        pooled[:, first : first + block.shape[1]] = pool_windows(block, group, n, pool)
    at_recording: float | np.ndarray = threshold if tuning is None else tuning.recording.values
    at_window: float | np.ndarray = threshold if tuning is None else tuning.window.values
    top_k = None if tuning is None else tuning.top_k
    by_recording = Level(
        truth, ScoreTable.of(pooled), primary, np.arange(n), at_recording, top_k, secondary, secondary_weight
    )
    by_window = replace(by_recording, scores=table, group=group, threshold=at_window)

    n_window_replicates = min(n_bootstrap, max(100, _WINDOW_VALUES // math.prod(table.shape)))
    weights = np.hstack([np.ones((n, 1)), bayesian_weights(n, n_bootstrap, seed)])
    recording_figures = by_recording.figures(weights)
    window_figures = by_window.figures(weights[:, : n_window_replicates + 1])
    baseline: dict[str, Any] = _without_nan(random_baseline(by_recording, _n_draws(by_recording), seed))
    baseline["window"] = _without_nan(random_baseline(by_window, _n_draws(by_window), seed))

    figures = {
        "recording": _figures(recording_figures, by_recording),
        "window": _figures(window_figures, by_window),
    }
    support = truth.sum(axis=0)
    n_absent = int((support == 0).sum())
    notes = score_notes(
        scored,
        labels,
        support,
        figures["recording"],
        split=asked.split,
        heard=asked.heard,
        pool=pool,
        n_secondary=int(secondary.sum()),
        secondary_weight=secondary_weight,
        calibrated_on=calibrated_on,
        tuning=tuning,
    )
    if n_window_replicates < n_bootstrap:
        notes.append(f"Intervals per window rest on {n_window_replicates} replicates: the table is large.")
    return ScoreReport(
        labels=tuple(labels),
        recording=figures["recording"],
        window=figures["window"],
        left_out={
            "heard": asked.split.n_heard_left_out,
            "no_label": int(asked.split.no_label.sum()),
            "no_windows": asked.n_windowless,
        },
        absent_classes=n_absent,
        random_baseline=baseline,
        pool=pool,
        per_class=_per_class(by_recording, recording_figures, by_window, window_figures, labels, names, scored),
        notes=tuple(notes),
        n_seen=asked.n_seen,
        calibrated_on=calibrated_on,
        secondary_weight=secondary_weight,
        threshold=None if tuning is not None else threshold,
        top_k=top_k,
        n_bootstrap=n_bootstrap,
        seed=seed,
        recordings=tuple(r.recording for r in scored),
        replicates={name: values[1:] for name, values in recording_figures.metrics.items()},
    )


def _join(recording_of_row: Sequence[str], recordings: Sequence[RecordingLabels]) -> np.ndarray:
    place = {r.recording: i for i, r in enumerate(recordings)}
    if len(place) != len(recordings):
        raise InputError(f"{len(recordings) - len(place)} recordings occur twice in the truth; each needs one line.")
    unknown = sorted({name for name in recording_of_row if name not in place})
    if unknown:
        raise InputError(
            f"{len(unknown)} recordings of the scores are not in the truth ({', '.join(unknown[:3])}, ...). "
            "Scores and truth are joined by recording: give the labels of all."
        )
    return np.array([place[name] for name in recording_of_row], dtype=np.int64)


def _figures(level_figures: LevelFigures, level: Level) -> dict[str, Figure]:
    n_primary = int((level.primary[level.group] >= 0).sum())
    figures = {}
    for name, values in level_figures.metrics.items():
        n = n_primary if name.startswith("top_") else len(level.group)
        if np.isnan(values[0]):
            figures[name] = Figure(None, None, None, n)
            continue
        low, high = interval(values[1:], float(values[0]))
        figures[name] = Figure(float(values[0]), max(low, 0.0), min(high, 1.0), n)
    return figures


def _per_class(
    by_recording: Level,
    recording_figures: LevelFigures,
    by_window: Level,
    window_figures: LevelFigures,
    labels: Sequence[str],
    names: Mapping[str, tuple[str, str]],
    scored: Sequence[RecordingLabels],
) -> tuple[dict[str, Any], ...]:
    own_names = {r.primary_label: (r.scientific_name, r.common_name) for r in scored}
    thresholds = [np.broadcast_to(level.threshold, len(labels)) for level in (by_recording, by_window)]
    right, n_claimed, true = recording_figures.right, recording_figures.claimed, recording_figures.true
    support = by_recording.truth.sum(axis=0)
    support_windows = np.bincount(by_window.group, minlength=len(scored)) @ by_recording.truth
    table = []
    for c, label in enumerate(labels):
        scientific, common = names.get(label) or own_names.get(label) or ("", "")
        table.append(
            {
                "label": label,
                "scientific_name": scientific,
                "common_name": common,
                "support": int(support[c]),
                "support_windows": int(support_windows[c]),
                "ap": _or_none(recording_figures.ap[c]),
                "auroc": _or_none(recording_figures.auroc[c]),
                "threshold": float(thresholds[0][c]),
                "threshold_window": float(thresholds[1][c]),
                "precision": float(right[c] / n_claimed[c]) if n_claimed[c] else None,
                "recall": float(right[c] / true[c]) if support[c] else None,
                "f1": float(recording_figures.f1[c]) if support[c] else None,
                "ap_window": _or_none(window_figures.ap[c]),
                "auroc_window": _or_none(window_figures.auroc[c]),
            }
        )
    return tuple(table)


def _n_draws(level: Level) -> int:
    return int(np.clip(_BASELINE_VALUES // math.prod(level.scores.shape), 1, _BASELINE_DRAWS))


def _without_nan(values: Mapping[str, float]) -> dict[str, Any]:
    return {name: _or_none(value) for name, value in values.items()}


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
