"""Tuning a fitted head: calibration and thresholds a class, judged on recordings that had no say in either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from embeddings.contract import Heard
from embeddings.errors import InputError
from stage2_heads.base import Head, Progress
from stage2_heads.calibration import HEARD, UNHEARD, Calibration, calibration_error, fit_sigmoid
from stage2_heads.calibrators import METHODS, Calibrator, fit_calibrator
from stage2_heads.crossfit import HeldOut, held_out_of
from stage2_heads.labels import RecordingLabels
from stage2_heads.metrics import sum_by_group
from stage2_heads.pooling import POOLS, pool_windows
from stage2_heads.reliability import reliability
from stage2_heads.rows import LabelledRows
from stage2_heads.thresholds import DEFAULT_THRESHOLD, Rule, Thresholds, choose_thresholds, detected
from stage2_heads.tuned import Tuning
from stage2_heads.tuning_report import Agreement, Claims, TuningReport, agreements

__all__ = ["TuneSettings", "TuningReport", "heard_before_tuning", "tune"]

_FEWEST_RECORDINGS = 3  # as for the calibration of a fit


@dataclass(frozen=True)
class TuneSettings:
    """calibration  one of shared, platt, isotonic, temperature
    rule         how thresholds are chosen
    top_k        keep at most so many classes a window or recording; None: any number
    pool         how a recording's scores come from its windows', for the thresholds of recordings
    n_folds      divisions of the recordings; a fit each when the head's own recordings are cross-fitted
    """

    calibration: str = "platt"
    rule: Rule = field(default_factory=Rule)
    top_k: int | None = None
    pool: str = "mean"
    n_folds: int = 5

    def __post_init__(self) -> None:
        if self.calibration not in METHODS:
            raise InputError(f"calibration={self.calibration!r} is not known; choose {', '.join(METHODS)}.")
        if self.pool not in POOLS:
            raise InputError(f"pool={self.pool!r} is not a way to pool windows; choose {', '.join(POOLS)}.")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top-k={self.top_k} must be 1 or more; leave it out to keep any number of classes.")
        if self.n_folds < 2:
            raise InputError(f"folds={self.n_folds} must be 2 or more, so that something is held out.")


def tune(
    head: Head,
    rows: LabelledRows,
    settings: TuneSettings | None = None,
    *,
    unheard: bool = False,
    progress: Progress | None = None,
) -> TuningReport:
    """Choose a head's calibration and thresholds, and leave them in it.

    rows     False: windows of the recordings that the head was fitted on, cross-fitted by copies of it, one a fold
    unheard  True: windows of recordings that the head has not heard. Its own decisions are used, and the recordings
             count as selected on from then on
    A target above 0 counts as true for thresholds. An earlier tuning is replaced and has no influence.
    Raises InputError when rows do not fit the head, or when nothing can be held out or is true.
    """
    settings = settings or TuneSettings()
    if rows.labels != head.labels_:
        raise InputError(
            f"the rows have {len(rows.labels)} classes, not the head's {len(head.labels_)}; give the head's."
        )
    if rows.n_recordings < _FEWEST_RECORDINGS:
        raise InputError(
            f"{rows.n_recordings} recordings to tune on; at least {_FEWEST_RECORDINGS} are needed to hold some out."
        )
    rows = rows.held()
    n_folds = min(settings.n_folds, rows.n_recordings)
    if unheard:
        seed = int(getattr(head.settings, "seed", 0))
        held: HeldOut | None = held_out_of(head.decision, rows, n_folds=n_folds, seed=seed)
        (progress or (lambda share: None))(1.0)
    else:
        held = head.cross_fitted_decisions(rows, n_folds=n_folds, progress=progress)
    if held is None or not (held.known & (held.targets > 0)).any() or len(np.unique(held.folds)) < 2:
        raise InputError(
            f"nothing to tune by: among {rows.n_recordings} recordings no class has two that could be held out in "
            "turn. Give more recordings of the head's classes."
        )
    report = _tuned(head, held, settings, unheard)
    head.tuning_ = report.tuning
    if unheard:
        named = frozenset(r.recording for r in rows.recordings)
        ids = frozenset(r.xeno_canto_id for r in rows.recordings if r.xeno_canto_id)
        head.heard_ = head.heard_.union(Heard(selected_on=named, xeno_canto_ids=ids))
        head.tuned_on_ = head.tuned_on_ | named
    return report


def heard_before_tuning(head: Head, recordings: Sequence[RecordingLabels]) -> Heard:
    """What the head was fitted on, without what it was only tuned on. recordings : where their ids are looked up."""
    ids = {r.xeno_canto_id for r in recordings if r.recording in head.tuned_on_}
    return replace(
        head.heard_,
        selected_on=head.heard_.selected_on - head.tuned_on_,
        xeno_canto_ids=head.heard_.xeno_canto_ids - ids,
    )


@dataclass(frozen=True)
class _Rows:
    """Scores to choose thresholds on, at one level: windows, or recordings."""

    scores: np.ndarray
    truth: np.ndarray
    known: np.ndarray
    recordings: np.ndarray


def _tuned(head: Head, held: HeldOut, settings: TuneSettings, unheard: bool) -> TuningReport:
    plain = head.fitted_scores(held.decisions)
    held = replace(held, decisions=head.odds(held.decisions))
    base = head.calibration_
    # A sigmoid that was fitted on these recordings is judged like a new one: fitted again without the fold.
    refit = head.needs_calibration and not unheard and base.calibrated_on in (HEARD, UNHEARD)
    before, after = np.empty(held.decisions.shape), np.empty(held.decisions.shape)
    claims: dict[str, list[Claims]] = {"recording": [], "window": []}
    for fold in np.unique(held.folds):
        inside = held.folds == fold
        others, judged = held.of(~inside), held.of(inside)
        own_base = _refitted(base, others) if refit else base
        before[inside] = own_base.apply(judged.decisions) if refit else plain[inside]
        calibrator = fit_calibrator(settings.calibration, others, own_base)
        after[inside] = calibrator.apply(judged.decisions)
        chosen = _thresholds(others, calibrator.apply(others.decisions), settings)
        untuned = _levels(judged, before[inside], settings.pool)
        for level, tuned in _levels(judged, after[inside], settings.pool).items():
            found = detected(tuned.scores, chosen[level].values, settings.top_k)
            at_half = detected(untuned[level].scores, DEFAULT_THRESHOLD)
            claims[level].append(Claims(at_half, found, tuned.truth, tuned.known, tuned.recordings))
    calibrator = fit_calibrator(settings.calibration, held, base)
    thresholds = _thresholds(held, calibrator.apply(held.decisions), settings)
    cells = held.known
    targets = held.targets.astype(np.float64)
    whose = np.broadcast_to(held.recordings[:, None], cells.shape)[cells]
    as_fitted, as_tuned = (reliability(scores[cells], targets[cells], whose) for scores in (before, after))
    per_class = _per_class(head, held, before, after, thresholds, calibrator)
    errors = [
        float(np.mean([row[f"calibration_error_{when}"] for row in per_class if row["recordings"]]))
        for when in ("before", "after")
    ]
    where = "unheard recordings kept for tuning" if unheard else (UNHEARD if held.unheard else HEARD)
    tuning = Tuning(
        calibrator=calibrator,
        window=thresholds["window"],
        recording=thresholds["recording"],
        pool=settings.pool,
        rule=settings.rule.words,
        top_k=settings.top_k,
        calibrated_on=f"{where} ({calibrator.method})",
        n_recordings=held.n_recordings,
        n_windows=len(held.decisions),
        calibration_error=(as_fitted.error.value or 0.0, as_tuned.error.value or 0.0),
    )
    agreement = {level: agreements(parts) for level, parts in claims.items()}
    return TuningReport(
        tuning,
        as_fitted,
        as_tuned,
        per_class,
        (errors[0], errors[1]),
        agreement,
        (*_notes(head, held, tuning, settings, unheard), *_losses(agreement, settings.rule)),
    )


def _refitted(base: Calibration, held: HeldOut) -> Calibration:
    fitted = fit_sigmoid(*held.cells())
    return base if fitted is None else Calibration(*fitted, base.calibrated_on)


def _levels(held: HeldOut, scores: np.ndarray, pool: str) -> dict[str, _Rows]:
    truth = held.targets > 0
    windows = _Rows(scores, truth, held.known, held.recordings)
    names, group = np.unique(held.recordings, return_inverse=True)
    pooled = pool_windows(scores, group, len(names), pool)
    # A recording holds what any of its windows holds; that it does not hold a class, all of them must say.
    there = sum_by_group(truth & held.known, group, len(names)) > 0
    known = there | (sum_by_group(~held.known, group, len(names)) == 0)
    return {"recording": _Rows(pooled, there, known, names), "window": windows}


def _thresholds(held: HeldOut, scores: np.ndarray, settings: TuneSettings) -> dict[str, Thresholds]:
    return {
        level: choose_thresholds(r.scores, r.truth, r.known, r.recordings, settings.rule, settings.top_k)
        for level, r in _levels(held, scores, settings.pool).items()
    }


def _per_class(
    head: Head,
    held: HeldOut,
    before: np.ndarray,
    after: np.ndarray,
    thresholds: dict[str, Thresholds],
    calibrator: Calibrator,
) -> tuple[dict[str, Any], ...]:
    table = []
    for c, label in enumerate(head.labels_):
        rows = held.known[:, c]
        targets = held.targets[rows, c].astype(np.float64)
        positive = targets > 0
        scientific, common = head.names_.get(label, ("", ""))
        table.append(
            {
                "label": label,
                "scientific_name": scientific,
                "common_name": common,
                "recordings": len(np.unique(held.recordings[rows][positive])),
                "windows": int(positive.sum()),
                "calibration_error_before": calibration_error(before[rows, c], targets),
                "calibration_error_after": calibration_error(after[rows, c], targets),
                "own_calibration": bool(calibrator.own[c]),
                **{
                    f"{name}_{level}": value
                    for level, chosen in thresholds.items()
                    for name, value in (
                        ("threshold", float(chosen.values[c])),
                        ("own_threshold", bool(chosen.own[c])),
                        ("reached", bool(chosen.reached[c])),
                    )
                },
            }
        )
    return tuple(table)


def _notes(head: Head, held: HeldOut, tuning: Tuning, settings: TuneSettings, unheard: bool) -> list[str]:
    notes = [
        f"Figures are of {held.n_recordings} recordings in {len(np.unique(held.folds))} folds, each judged by what the "
        "others chose."
    ]
    if unheard:
        notes.append(f"These {held.n_recordings} recordings count as selected on from now on and are never scored.")
    elif not held.unheard:
        notes.append(
            "Backbones have heard some of these recordings, so scores of new ones will be less sure than said."
        )
    sharing = [label for label, own in zip(head.labels_, tuning.window.own, strict=True) if not own]
    if sharing:
        notes.append(
            f"{len(sharing)} classes have fewer than {settings.rule.fewest_recordings} held-out recordings and share "
            f"the threshold {tuning.window.shared:.3f} of windows, {tuning.recording.shared:.3f} of recordings: "
            f"{', '.join(sharing)}."
        )
    for level, chosen in (("windows", tuning.window), ("recordings", tuning.recording)):
        missed = [label for label, reached in zip(head.labels_, chosen.reached, strict=True) if not reached]
        if missed:
            notes.append(
                f"No threshold of {level} reaches {tuning.rule} in {len(missed)} classes, which get one above every "
                f"held-out score: {', '.join(missed)}."
            )
    if tuning.calibrator.method in ("platt", "isotonic") and not tuning.calibrator.own.all():
        kept = [label for label, own in zip(head.labels_, tuning.calibrator.own, strict=True) if not own]
        notes.append(
            f"{len(kept)} classes without held-out windows both with and without them keep the shared sigmoid: "
            f"{', '.join(kept)}."
        )
    return notes


def _losses(agreement: dict[str, tuple[Agreement, Agreement]], rule: Rule) -> list[str]:
    """Where thresholds that were meant to raise F1 did not."""
    pairs = {level: (untuned.f1_micro.value, tuned.f1_micro.value) for level, (untuned, tuned) in agreement.items()}
    return [
        f"Tuned thresholds of {level}s reach F1 {tuned:.3f}, 0.5 on the scores as fitted {untuned:.3f}: these "
        "recordings are too few to choose by. More of them, or a larger --min-recordings, may help."
        for level, (untuned, tuned) in pairs.items()
        if rule.precision is None and untuned is not None and tuned is not None and tuned < untuned
    ]
