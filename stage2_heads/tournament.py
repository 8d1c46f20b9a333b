"""Heads against blocks: each fitted, and scored on recordings that neither it nor any backbone heard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embeddings.errors import InputError
from embeddings.recordings import is_no_call
from stage2_heads.arrangement import Arrangement, arrangement_of, mean_vectors
from stage2_heads.bootstrap import interval
from stage2_heads.calibration import BELOW_ONE
from stage2_heads.contest import Contest, Entry, Result
from stage2_heads.folds import recording_folds
from stage2_heads.heads import create_head
from stage2_heads.labels import RecordingLabels, class_set, primary_codes, target_matrix
from stage2_heads.pooling import pool_windows
from stage2_heads.rows import LabelledRows
from stage2_heads.score_report import Figure, ScoreReport
from stage2_heads.scoring import score_rows
from stage2_heads.stored_rows import stored_rows

if TYPE_CHECKING:
    from embeddings.store import Store

__all__ = ["entries_of", "run_contest"]

_TIMED_WINDOWS = 4096
_EIGHTHS = 8
_CURVE_SEED = 1  # not the folds' own: an eighth must not be one of them


def entries_of(store: Store, heads: Sequence[str], blocks: Sequence[tuple[str, ...]] = ()) -> list[Entry]:
    """Every head on each block alone, on all trained blocks together, and on all together; or on the `blocks` named.

    Raises InputError for a kind of head that there is not, or that cannot be asked for by itself.
    """
    for head in heads:
        if create_head(head).kind == "fused":
            raise InputError("fused heads are made of others: name svm, mlp, ..., and sets of blocks are fused late.")
    sets = list(blocks)
    if not sets:
        names = list(store.blocks)
        trained = tuple(n for n in names if store.heard([n]).trained_on)
        sets = [(name,) for name in names] + [s for s in (trained, tuple(names)) if len(s) > 1]
    return [Entry(head, chosen) for chosen in dict.fromkeys(sets) for head in dict.fromkeys(heads)]


def run_contest(
    stores: Store | Sequence[Store],
    entries: Sequence[Entry],
    *,
    folds: int = 0,
    seeds: Sequence[int] = (0,),
    pool: str = "mean",
    secondary_weight: float = 1.0,
    n_bootstrap: int = 1000,
    bootstrap_seed: int = 0,
    curves: int = 0,
    arrange: bool = False,
    progress: Callable[[Entry, int], None] = lambda entry, seed: None,
) -> Contest:
    """Fit every entry and score it.

    stores  one, or one for each fold that backbones were trained on: each store's heads are fitted and asked on its own
            sides of the split, and all that they were asked is scored together
    folds   0: fitted on the store's training side, scored on its validation side. k: every recording that no backbone
            has heard is scored by a head fitted on the other k - 1 of k folds, and on all that a backbone has heard
    seeds   of the heads; the folds and the intervals stay the same, so all differences are paired
    curves  so many of the best are fitted on an eighth, a quarter and half of their recordings, too (first seed)
    arrange  also say how each set of blocks arranges the scored recordings of the first store, and map them
    Raises InputError when no unheard recording is left to score, or when two stores ask for the same one.
    """
    stores = [stores] if not isinstance(stores, Sequence) else stores
    blocks = sorted({block for entry in entries for block in entry.blocks})
    sides = [_side(store, blocks, folds) for store in stores]
    asked = [r.recording for side in sides for r in side.scored]
    if len(set(asked)) < len(asked):
        raise InputError(
            f"{len(asked) - len(set(asked))} recordings are on the scored side of two stores; give stores whose "
            "validation sides have no recording in common, such as one for each fold."
        )
    labels = class_set([r for side in sides for r in side.fitted])
    scoring: dict[str, Any] = {
        "pool": pool,
        "secondary_weight": secondary_weight,
        "n_bootstrap": n_bootstrap,
        "seed": bootstrap_seed,
    }
    results, reports = [], []
    for entry in entries:
        outcomes = []
        for seed in seeds:
            outcomes.append(_outcome(entry, sides, labels, seed, scoring))
            progress(entry, seed)
        results.append(_result(entry, outcomes))
        reports.append(outcomes[0].report)
    results.sort(key=lambda r: -(r.figures["cmap_present"].value or 0.0))
    for place, result in enumerate(results[:curves]):
        results[place] = replace(result, curve=_learning_curve(result, sides, labels, seeds[0], scoring))
        progress(result.entry, seeds[0])
    known = {r.recording: r for side in sides for r in side.scored}
    scored = [known[name] for name in reports[0].recordings]
    truth = target_matrix(scored, labels, secondary_weight) > 0
    return Contest(
        results=tuple(results),
        labels=labels,
        truth=truth,
        counted=truth | (target_matrix(scored, labels) == 0),
        primary=primary_codes(scored, labels),
        names={r.primary_label: r.common_name or r.scientific_name for side in sides for r in side.recordings},
        n_fitted=_n_fitted(sides),
        seeds=tuple(seeds),
        how=sides[0].how if len(sides) == 1 else f"{sides[0].how}, of {len(sides)} stores",
        notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
        arrangements=_arrangements(sides[0], [entry.blocks for entry in entries]) if arrange else (),
    )


@dataclass(frozen=True)
class _Side:
    """A store's part in a contest. parts : masks (n_recordings,) of what is fitted on and what is then scored."""

    store: Store
    recordings: tuple[RecordingLabels, ...]
    parts: list[tuple[np.ndarray, np.ndarray]]
    eighth: np.ndarray
    how: str

    @property
    def scored(self) -> list[RecordingLabels]:
        return [r for r, asked in zip(self.recordings, self.asked, strict=True) if asked]

    @property
    def fitted(self) -> list[RecordingLabels]:
        used = np.any([fit for fit, _ in self.parts], axis=0)
        return [r for r, is_used in zip(self.recordings, used, strict=True) if is_used]

    @property
    def asked(self) -> np.ndarray:
        return np.any([ask for _, ask in self.parts], axis=0)

    def drawn(self, fit: np.ndarray, eighths: int) -> np.ndarray:
        """So many eighths of what is fitted on; the fewer are among the more."""
        return fit & (self.eighth < eighths)


@dataclass(frozen=True)
class _Outcome:
    report: ScoreReport
    scores: np.ndarray
    fit_s: float
    windows_per_s: float
    n_bytes: int


def _side(store: Store, blocks: Sequence[str], folds: int) -> _Side:
    rows = stored_rows(store, blocks, np.arange(store.n_rows))
    parts, how = _parts(store, rows, ~rows.heard_by_backbone, folds)
    if not np.any([ask for _, ask in parts]):
        raise InputError(
            f"{store.path} has no recording to score that no backbone has heard ({how}); keep some apart when "
            f"training, or give --folds."
        )
    return _Side(store, rows.recordings, parts, recording_folds(rows, _EIGHTHS, _CURVE_SEED), how)


def _arrangements(side: _Side, sets: Sequence[tuple[str, ...]]) -> tuple[Arrangement, ...]:
    """How each set of blocks arranges the recordings of one species that the side is asked for."""
    index = side.store.index
    names = {r.recording: r.primary_label for r in side.scored if r.primary_label and not is_no_call(r.primary_label)}
    wanted = np.array([r.recording in names for r in side.store.catalogue], bool)
    rows = index.rows_of(wanted)
    places, group = index.recordings_of(rows)
    labels = [names[side.store.catalogue.recordings[place].recording] for place in places]
    found = []
    for blocks in dict.fromkeys(sets):
        vectors = mean_vectors(side.store.reader(blocks), rows, group, len(places))
        if (arrangement := arrangement_of(blocks, vectors, labels)) is not None:
            found.append(arrangement)
    return tuple(found)


def _n_fitted(sides: Sequence[_Side], eighths: int = _EIGHTHS) -> int:
    """Recordings that a head is fitted on, on average."""
    return int(np.mean([side.drawn(fit, eighths).sum() for side in sides for fit, _ in side.parts]))


def _parts(
    store: Store, rows: LabelledRows, unheard: np.ndarray, folds: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Masks (n_recordings,) of what is fitted on and what is scored, part by part."""
    if folds:
        if folds < 2:
            raise InputError(f"--folds {folds} must be 2 or more, or 0 for the store's own split.")
        of = recording_folds(rows, folds, 0)
        parts = [((of != fold) | ~unheard, (of == fold) & unheard) for fold in range(folds)]
        return parts, f"{folds} folds over recordings"
    side = {r.recording: r.split for r in store.catalogue}
    sides = np.array([side[r.recording] for r in rows.recordings])
    fit = np.isin(sides, ["train", "both"])
    if not fit.any():
        raise InputError(f"{store.path} has no training side; give --folds to divide its recordings.")
    return [(fit, (sides == "valid") & unheard)], "the validation side"


def _outcome(
    entry: Entry,
    sides: Sequence[_Side],
    labels: Sequence[str],
    seed: int,
    scoring: Mapping[str, Any],
    eighths: int = _EIGHTHS,
) -> _Outcome:
    """Fit on so many eighths of each part's recordings, and score what was asked of all parts together."""
    fit_s, seconds, n_scored, n_bytes, calibrated_on = 0.0, 0.0, 0, 0, ""
    tables, names = [], []
    n_parts = sum(len(side.parts) for side in sides)
    for side in sides:
        rows = stored_rows(side.store, entry.blocks, np.arange(side.store.n_rows), labels=labels)
        for fit, ask in side.parts:
            began = time.perf_counter()
            head = entry.unfitted(seed).fit(rows.subset(side.drawn(fit, eighths)))
            fit_s += (time.perf_counter() - began) / n_parts
            places = np.flatnonzero(ask[rows.recording_of_row])
            names += [rows.recordings[code].recording for code in rows.recording_of_row[places]]
            for start in range(0, len(places), _TIMED_WINDOWS):
                vectors = rows.reader.read(rows.rows[places[start : start + _TIMED_WINDOWS]])
                began = time.perf_counter()
                tables.append(head.scores(vectors))
                seconds += time.perf_counter() - began
                n_scored += len(vectors)
            n_bytes = sum(array.nbytes for array in head._arrays().values())
            calibrated_on = head.calibrated_on_
    scores = np.concatenate(tables)
    recordings = [r for side in sides for r in side.scored]
    report = score_rows(scores, labels, names, recordings, calibrated_on=calibrated_on, **scoring)
    place = {name: i for i, name in enumerate(report.recordings)}
    codes = np.array([place.get(name, -1) for name in names])
    pooled = pool_windows(scores[codes >= 0], codes[codes >= 0], len(place), scoring["pool"])
    return _Outcome(report, pooled, fit_s, n_scored / max(seconds, 1e-9), n_bytes)


def _learning_curve(
    result: Result, sides: Sequence[_Side], labels: Sequence[str], seed: int, scoring: Mapping[str, Any]
) -> tuple[tuple[int, Figure], ...]:
    """Recordings fitted on, and cmAP with so many; the last is all of them, as in the table."""
    points = []
    for eighths in (1, 2, 4):
        if any(not side.drawn(fit, eighths).any() for side in sides for fit, _ in side.parts):
            continue  # too few recordings for so small a share
        found = _outcome(result.entry, sides, labels, seed, scoring, eighths).report
        points.append((_n_fitted(sides, eighths), found.recording["cmap_present"]))
    return (*points, (_n_fitted(sides), result.figures["cmap_present"]))


def _result(entry: Entry, outcomes: Sequence[_Outcome]) -> Result:
    first = outcomes[0].report
    figures, replicates = {}, {}
    for name, figure in first.recording.items():
        if figure.value is None:
            figures[name] = figure
            continue
        value = float(np.mean([o.report.recording[name].value for o in outcomes]))
        replicates[name] = np.mean([o.report.replicates[name] for o in outcomes], axis=0)
        low, high = interval(replicates[name], value)
        figures[name] = Figure(value, max(low, 0.0), min(high, 1.0), figure.n)
    return Result(
        entry,
        figures,
        replicates,
        first.per_class,
        np.minimum(np.mean([o.scores for o in outcomes], axis=0), BELOW_ONE),
        fit_s=float(np.mean([o.fit_s for o in outcomes])),
        windows_per_s=float(np.mean([o.windows_per_s for o in outcomes])),
        n_bytes=outcomes[0].n_bytes,
    )
