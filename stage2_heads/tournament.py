"""Heads against blocks on one store: each fitted, and scored on recordings that neither it nor any backbone heard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from embeddings.errors import InputError
from stage2_heads.base import Head
from stage2_heads.bootstrap import interval
from stage2_heads.calibration import BELOW_ONE
from stage2_heads.folds import recording_folds
from stage2_heads.heads import HEADS, create_head
from stage2_heads.labels import class_set, primary_codes, target_matrix
from stage2_heads.rows import LabelledRows
from stage2_heads.score_report import Figure, ScoreReport
from stage2_heads.scoring import pool_windows, score_rows
from stage2_heads.stored_rows import stored_rows

if TYPE_CHECKING:
    from embeddings.store import Store

__all__ = ["Contest", "Entry", "Result", "entries_of", "run_contest"]

_TIMED_WINDOWS = 4096


@dataclass(frozen=True)
class Entry:
    """A kind of head on some blocks. Several blocks are fused late: a head each, weighed by unheard recordings."""

    head: str
    blocks: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.head} on {' + '.join(self.blocks)}"

    def unfitted(self, seed: int) -> Head:
        seeded = any(f.name == "seed" for f in fields(HEADS[self.head].load_class().settings_type))
        settings = {"seed": seed} if seeded else {}
        if len(self.blocks) == 1:
            return create_head(self.head, **settings)
        return create_head("fused", head=self.head, settings=settings)


@dataclass(frozen=True)
class Result:
    """What an entry came to.

    figures, replicates   metric -> mean over seeds, with the interval of that mean; (r,) its replicates
    per_class             of the first seed, as in a ScoreReport
    scores : (n, c) per recording, mean over seeds
    fit_s, windows_per_s, n_bytes   of one head: seconds to fit it, windows that it scores a second, its size saved
    """

    entry: Entry
    figures: dict[str, Figure]
    replicates: dict[str, np.ndarray]
    per_class: tuple[dict[str, Any], ...]
    scores: np.ndarray
    fit_s: float
    windows_per_s: float
    n_bytes: int

    def minus(self, other: Result, metric: str) -> Figure:
        """The paired difference to another entry, with its interval."""
        ours, theirs = self.figures[metric], other.figures[metric]
        if ours.value is None or theirs.value is None:
            return Figure(None, None, None, ours.n)
        difference = ours.value - theirs.value
        low, high = interval(self.replicates[metric] - other.replicates[metric], difference)
        return Figure(difference, low, high, ours.n)


@dataclass(frozen=True)
class Contest:
    """All results, best cmAP first, and what they were measured on.

    truth, counted : (n, c) bool, what is true, and what is scored at all
    primary : (n,) column of the primary label, -1 outside the classes
    names  label -> common or scientific name, where known;  notes  sentences for the reader
    """

    results: tuple[Result, ...]
    labels: tuple[str, ...]
    truth: np.ndarray
    counted: np.ndarray
    primary: np.ndarray
    names: dict[str, str]
    n_fitted: int
    seeds: tuple[int, ...]
    how: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        best = self.results[0]
        return {
            "verdict": self.verdict(),
            "how": self.how,
            "n": len(self.truth),
            "n_fitted": self.n_fitted,
            "seeds": list(self.seeds),
            "notes": list(self.notes),
            "results": [
                {
                    "head": r.entry.head,
                    "blocks": list(r.entry.blocks),
                    "figures": {name: figure.to_json() for name, figure in r.figures.items()},
                    "minus_best": {n: r.minus(best, n).to_json() for n in ("cmap_present", "top_1")},
                    "fit_s": r.fit_s,
                    "windows_per_s": r.windows_per_s,
                    "bytes": r.n_bytes,
                }
                for r in self.results
            ],
        }

    def verdict(self) -> str:
        """Who wins, and whether it is luck, in a few sentences."""
        best, *others = self.results
        figure = best.figures["cmap_present"]
        text = f"{best.entry.name} has the highest cmAP: {_words(figure)} on {figure.n} recordings."
        level = [r for r in others if (high := r.minus(best, "cmap_present").high) is not None and high >= 0]
        worse = [r for r in others if r not in level]
        if level:
            names = ", ".join(r.entry.name for r in level)
            text += f" {names} {'is' if len(level) == 1 else 'are'} level with it: the difference may be luck."
        if worse:
            names = ", ".join(r.entry.name for r in worse)
            text += f" Worse by more than luck explains: {names}."
        return text


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
    store: Store,
    entries: Sequence[Entry],
    *,
    folds: int = 0,
    seeds: Sequence[int] = (0,),
    pool: str = "mean",
    secondary_weight: float = 1.0,
    n_bootstrap: int = 1000,
    bootstrap_seed: int = 0,
    progress: Callable[[Entry, int], None] = lambda entry, seed: None,
) -> Contest:
    """Fit every entry and score it.

    folds   0: fitted on the store's training side, scored on its validation side. k: every recording that no backbone
            has heard is scored by a head fitted on the other k - 1 of k folds, and on all that a backbone has heard
    seeds   of the heads; the folds and the intervals stay the same, so all differences are paired
    Raises InputError when no unheard recording is left to score.
    """
    everything = np.arange(store.n_rows)
    blocks = sorted({block for entry in entries for block in entry.blocks})
    all_rows = stored_rows(store, blocks, everything)
    unheard = ~all_rows.heard_by_backbone
    parts, how = _parts(store, all_rows, unheard, folds)
    asked = np.any([ask for _, ask in parts], axis=0)
    if not asked.any():
        raise InputError(
            f"{store.path} has no recording to score that no backbone has heard ({how}); keep some apart when "
            f"training, or give --folds."
        )
    fitted_on = [r for r, used in zip(all_rows.recordings, np.any([f for f, _ in parts], axis=0), strict=True) if used]
    labels = class_set(fitted_on)
    scoring: dict[str, Any] = {
        "pool": pool,
        "secondary_weight": secondary_weight,
        "n_bootstrap": n_bootstrap,
        "seed": bootstrap_seed,
    }
    results, report = [], None
    for entry in entries:
        rows = stored_rows(store, entry.blocks, everything, labels=labels)
        outcomes = []
        for seed in seeds:
            outcomes.append(_outcome(entry, rows, parts, asked, seed, scoring))
            progress(entry, seed)
        results.append(_result(entry, outcomes))
        report = outcomes[0].report
    assert report is not None
    known = {r.recording: r for r in all_rows.recordings}
    scored = [known[name] for name in report.recordings]
    truth = target_matrix(scored, labels, secondary_weight) > 0
    return Contest(
        results=tuple(sorted(results, key=lambda r: -(r.figures["cmap_present"].value or 0.0))),
        labels=labels,
        truth=truth,
        counted=truth | (target_matrix(scored, labels) == 0),
        primary=primary_codes(scored, labels),
        names={r.primary_label: r.common_name or r.scientific_name for r in all_rows.recordings},
        n_fitted=int(np.mean([fit.sum() for fit, _ in parts])),
        seeds=tuple(seeds),
        how=how,
        notes=report.notes,
    )


@dataclass(frozen=True)
class _Outcome:
    report: ScoreReport
    scores: np.ndarray
    fit_s: float
    windows_per_s: float
    n_bytes: int


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
    return [(fit, (sides == "valid") & unheard)], "the store's validation side"


def _outcome(
    entry: Entry,
    rows: LabelledRows,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    asked: np.ndarray,
    seed: int,
    scoring: Mapping[str, Any],
) -> _Outcome:
    scores = np.zeros((rows.n_rows, len(rows.labels)))
    fit_s, seconds, n_scored, n_bytes = 0.0, 0.0, 0, 0
    calibrated_on = ""
    for fit, ask in parts:
        began = time.perf_counter()
        head = entry.unfitted(seed).fit(rows.subset(fit))
        fit_s += (time.perf_counter() - began) / len(parts)
        places = np.flatnonzero(ask[rows.recording_of_row])
        for start in range(0, len(places), _TIMED_WINDOWS):
            chosen = places[start : start + _TIMED_WINDOWS]
            vectors = rows.reader.read(rows.rows[chosen])
            began = time.perf_counter()
            scores[chosen] = head.scores(vectors)
            seconds += time.perf_counter() - began
            n_scored += len(chosen)
        n_bytes = sum(array.nbytes for array in head._arrays().values())
        calibrated_on = head.calibrated_on_
    wanted = np.flatnonzero(asked[rows.recording_of_row])
    recordings = rows.recordings
    report = score_rows(
        scores[wanted],
        rows.labels,
        [recordings[code].recording for code in rows.recording_of_row[wanted]],
        [r for r, is_asked in zip(recordings, asked, strict=True) if is_asked],
        calibrated_on=calibrated_on,
        **scoring,
    )
    place = {name: i for i, name in enumerate(report.recordings)}
    codes = np.array([place.get(r.recording, -1) for r in recordings])[rows.recording_of_row]
    there = codes >= 0
    pooled = pool_windows(scores[there], codes[there], len(place), scoring["pool"])
    return _Outcome(report, pooled, fit_s, n_scored / max(seconds, 1e-9), n_bytes)


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


def _words(figure: Figure) -> str:
    return "undefined" if figure.value is None else f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})"
