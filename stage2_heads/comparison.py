"""Heads side by side on the same recordings, with paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embeddings.errors import InputError
from stage2_heads.bootstrap import interval
from stage2_heads.score_report import Figure, ScoreReport

__all__ = ["COMPARED", "PAIRED", "Comparison", "compare_reports"]

COMPARED = ("top_1", "top_3", "cmap_present", "cmap_padded_5", "auroc")
PAIRED = ("cmap_present", "top_1")


@dataclass(frozen=True)
class Comparison:
    """reports : name -> ScoreReport, the first is the one the others are measured against.

    differences  name -> metric -> Figure of (this head - the first head), per recording; absent for the first head
    notes        sentences for the reader
    """

    reports: dict[str, ScoreReport]
    differences: dict[str, dict[str, Figure]]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "heads": {name: report.to_json() for name, report in self.reports.items()},
            "against": next(iter(self.reports)),
            "differences": {
                name: {metric: figure.to_json() for metric, figure in figures.items()}
                for name, figures in self.differences.items()
            },
            "notes": list(self.notes),
        }


def compare_reports(reports: Mapping[str, ScoreReport]) -> Comparison:
    """Pair each head with the first by the same bootstrap weights.

    reports  name -> report. Score all heads with the union of what any of them has heard, and with one seed: only
             then are their recordings, and so their weights, the same
    Differences are left out, and a note says why, where recordings or weights differ.
    Raises InputError when there are no reports.
    """
    if not reports:
        raise InputError("no reports to compare; give at least one.")
    first_name, first = next(iter(reports.items()))
    differences: dict[str, dict[str, Figure]] = {}
    notes: list[str] = []
    for name, report in list(reports.items())[1:]:
        reason = _unpaired(first, report)
        if reason:
            notes.append(f"{name} and {first_name} are not paired: {reason}.")
            continue
        differences[name] = {
            metric: _difference(first, report, metric) for metric in PAIRED if _both_defined(first, report, metric)
        }
    shared = list(dict.fromkeys(note for report in reports.values() for note in report.notes))
    return Comparison(dict(reports), differences, (*notes, *shared))


def _unpaired(first: ScoreReport, other: ScoreReport) -> str:
    if set(first.recordings) != set(other.recordings):
        return f"they were scored on different recordings ({len(first.recordings)} and {len(other.recordings)})"
    if first.recordings != other.recordings:
        return "their recordings stand in another order"
    if (first.seed, first.n_bootstrap) != (other.seed, other.n_bootstrap):
        return "their intervals rest on different draws (seed or number of replicates)"
    if set(first.labels) != set(other.labels):
        return f"they know different classes ({len(first.labels)} and {len(other.labels)})"
    return ""


def _both_defined(first: ScoreReport, other: ScoreReport, metric: str) -> bool:
    return first.recording[metric].value is not None and other.recording[metric].value is not None


def _difference(first: ScoreReport, other: ScoreReport, metric: str) -> Figure:
    ours, theirs = other.recording[metric], first.recording[metric]
    assert ours.value is not None
    assert theirs.value is not None
    difference = ours.value - theirs.value
    low, high = interval(other.replicates[metric] - first.replicates[metric], difference)
    return Figure(difference, low, high, ours.n)
