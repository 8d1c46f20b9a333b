"""What has to be said beside a report's figures: what was left out, what flatters, where an interval promises much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from embeddings.contract import Heard
from stage2_heads.bootstrap import rule_of_three
from stage2_heads.labels import RecordingLabels
from stage2_heads.leaks import LeakSplit
from stage2_heads.score_report import Figure
from stage2_heads.tuned import Tuning

__all__ = ["score_notes"]

_THIN_SUPPORT = 5  # recordings a class needs before reweighting them shows how much its figure may vary


def score_notes(
    scored: Sequence[RecordingLabels],
    labels: Sequence[str],
    support: np.ndarray,
    figures: Mapping[str, Figure],
    *,
    split: LeakSplit,
    heard: Heard,
    pool: str,
    n_secondary: int,
    secondary_weight: float,
    calibrated_on: str,
    tuning: Tuning | None,
) -> list[str]:
    """Sentences on the scores of `scored` recordings.

    support      (n_labels,) recordings of each class;  figures: those per recording, by name
    n_secondary  secondary labels among the classes;  secondary_weight: what each counts
    """
    known = set(labels)
    notes = [
        f"A recording's scores are the {pool} of its windows'; equal scores share a place in top-k.",
        _secondary_note(n_secondary, secondary_weight),
    ]
    if split.n_seen:
        notes.append(f"{split.n_seen} of {len(scored)} recordings were heard in training: these figures flatter.")
    if split.n_heard_left_out:
        notes.append(f"{split.n_heard_left_out} recordings heard in training are left out.")
    if heard.unpublished:
        notes.append(heard.unpublished)
    if split.without_unheard:
        notes.append(
            f"{len(split.without_unheard)} classes have no unheard recording: {', '.join(split.without_unheard)}."
        )
    n_absent = int((support == 0).sum())
    if n_absent:
        notes.append(
            f"{n_absent} of {len(labels)} classes do not occur: left out of present-only figures, "
            "scored 1 by construction in padded cmAP."
        )
    n_thin = int(((support > 0) & (support < _THIN_SUPPORT)).sum())
    if n_thin:
        notes.append(
            f"{n_thin} classes have fewer than {_THIN_SUPPORT} recordings: intervals of class means (cmAP, AUROC, F1) "
            "are narrower than the truth there."
        )
    n_outside = sum(r.primary_label not in known for r in scored)
    if n_outside:
        notes.append(f"{n_outside} recordings are of species that the head does not know: negatives, not in top-k.")
    n_unknown = sum(label not in known for r in scored for label in r.secondary_labels)
    if n_unknown:
        notes.append(f"{n_unknown} secondary labels name species that the head does not know, and are ignored.")
    if calibrated_on:
        notes.append(f"Scores are calibrated on {calibrated_on}.")
    flat = [name for name, f in figures.items() if f.value in (0.0, 1.0) and f.low == f.high]
    if flat:
        n = len(scored)
        notes.append(
            f"An interval of no width ({', '.join(flat)}) is not certainty: by the rule of three, {n} recordings "
            f"without exception leave room for a rate of {rule_of_three(n):.3f}."
        )
    if tuning is not None:
        notes.append(_tuned_note(tuning, pool))
    return notes


def _secondary_note(n: int, weight: float) -> str:
    if n == 0:
        return "No scored recording has a secondary label that the head knows."
    if weight == 1:
        return f"{n} secondary labels count as true, like primary ones."
    if weight == 0:
        return f"{n} secondary labels are ignored: neither true nor false for their species."
    return f"{n} secondary labels count as true, each as {weight:g} of a recording."


def _tuned_note(tuning: Tuning, pool: str) -> str:
    most = f", at most {tuning.top_k} classes a row" if tuning.top_k is not None else ""
    note = f"Precision, recall and F1 are at the head's tuned thresholds ({tuning.rule}{most})."
    if pool != tuning.pool:
        note += f" Recordings' were chosen for windows pooled by {tuning.pool}, not {pool}: tune with --pool {pool}."
    return note
