"""Learning curves: nested draws of a few recordings a class, and what heads fitted on them score, with intervals."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embeddings.errors import InputError
from stage2_heads.bootstrap import bayesian_weights, interval
from stage2_heads.labels import RecordingLabels
from stage2_heads.metrics import Ranking, top_k_hits
from stage2_heads.score_report import Figure

__all__ = ["METRICS", "CurvePoint", "Shots", "class_ranks", "curve_points", "parse_shots", "shots_name"]

METRICS = {"top_1": "top-1", "cmap_present": "cmAP, present"}
Shots = int | None
"""Recordings a class; None stands for all that there are."""


@dataclass(frozen=True)
class CurvePoint:
    """What a head scores with so many recordings of each class.

    n          recordings scored;  n_seeds: draws
    figures    metric -> mean over draws with a 95 % interval of that mean
    spread     metric -> standard deviation over draws, None with one: how far a single draw may be from the mean
    against    metric -> this head less the first one, on the same draws and recordings; empty for the first
    """

    head: str
    shots: Shots
    n: int
    n_seeds: int
    figures: dict[str, Figure]
    spread: dict[str, float | None]
    against: dict[str, Figure]

    def to_json(self) -> dict[str, Any]:
        return {
            "head": self.head,
            "shots": shots_name(self.shots),
            "n": self.n,
            "n_seeds": self.n_seeds,
            "figures": {name: figure.to_json() for name, figure in self.figures.items()},
            "spread": self.spread,
            "against_first": {name: figure.to_json() for name, figure in self.against.items()},
        }


def parse_shots(text: str) -> tuple[Shots, ...]:
    """Read "1,2,4,8,all".

    Returns the numbers in ascending order, None for "all" last. Raises InputError for anything else.
    """
    found: list[Shots] = []
    for word in text.split(","):
        word = word.strip()
        if word != "all" and not (word.isascii() and word.isdigit() and int(word) >= 1):
            raise InputError(
                f"--shots {text}: {word!r} is no number of recordings; give whole numbers from 1, or all, separated "
                f"by commas, such as 1,2,4,8,all."
            )
        shots = None if word == "all" else int(word)
        if shots in found:
            raise InputError(f"--shots {text} names {word} twice; name each number once.")
        found.append(shots)
    return tuple(sorted(found, key=lambda shots: (shots is None, shots)))


def shots_name(shots: Shots) -> str:
    """How tables call it."""
    return "all" if shots is None else str(shots)


def class_ranks(recordings: Sequence[RecordingLabels], seed: int) -> np.ndarray:
    """The place of each recording in a random order of its class's recordings, int64 (n,).

    Those with a rank below k are the k-shot draw of this seed, which contains every smaller one. A recording's class is
    its primary label; those of no call are drawn as one more class. Depends on contents and seed, not on order.
    """
    drawn = sorted(
        range(len(recordings)),
        key=lambda i: hashlib.sha256(f"shots/{seed}/{recordings[i].recording}".encode()).hexdigest(),
    )
    ranks, taken = np.zeros(len(recordings), dtype=np.int64), dict[str, int]()
    for i in drawn:
        label = recordings[i].primary_label
        ranks[i] = taken.setdefault(label, 0)
        taken[label] += 1
    return ranks


def curve_points(
    scores: Mapping[tuple[str, Shots], Sequence[np.ndarray]],
    truth: np.ndarray,
    primary: np.ndarray,
    *,
    fold: np.ndarray | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> list[CurvePoint]:
    """Mean figures over draws, with intervals for chance in both the draws and the scored recordings.

    scores   (head, shots) -> a table (n, c) in [0, 1) a seed, the same seeds everywhere; the first head is what the
             others are compared with
    truth    (n, c) bool;  primary : (n,) column of the primary label, -1 when it is none of the classes
    fold     (n,) int, whose fit scored the recording; each fold is ranked by itself, because another fit's sigmoid may
             lie elsewhere, and a figure is the mean over folds, by their recordings. Default: one for all
    A replicate weighs recordings by one flat Dirichlet draw and seeds by another (Rubin 1981), the same for every head
    and number of shots, so differences are paired. The seeds' weights are spread by sqrt((S + 1) / (S - 1)) about 1,
    without which few seeds would seem surer of their mean than they are.
    Raises InputError when tables differ in shape or number, or no scored recording's primary label is a class.
    """
    truth = np.asarray(truth) > 0
    fold = np.zeros(len(truth), dtype=np.int64) if fold is None else np.asarray(fold)
    if not (primary >= 0).any():
        raise InputError(f"none of the {len(truth)} recordings to score is of the {truth.shape[1]} classes.")
    counts = {len(tables) for tables in scores.values()}
    if len(counts) != 1 or any(table.shape != truth.shape for tables in scores.values() for table in tables):
        raise InputError(
            f"scores of {sorted(counts)} seeds a cell must be one number of tables of shape {truth.shape}."
        )
    n, n_seeds = len(truth), counts.pop()
    weights = np.hstack([np.ones((n, 1)), bayesian_weights(n, n_bootstrap, seed)])
    of_seeds = np.ones((n_seeds, n_bootstrap + 1))
    if n_seeds > 1:
        drawn = bayesian_weights(n_seeds, n_bootstrap, seed + 1)
        of_seeds[:, 1:] += (drawn - 1) * np.sqrt((n_seeds + 1) / (n_seeds - 1))

    by_seed: dict[tuple[str, Shots], dict[str, np.ndarray]] = {}
    known: dict[bytes, dict[str, np.ndarray]] = {}  # a head that draws nothing scores alike wherever draws are alike
    for cell, tables in scores.items():
        found = []
        for table in tables:
            key = hashlib.sha256(table.tobytes()).digest()
            if key not in known:
                known[key] = _metrics(truth, table, primary, fold, weights)
            found.append(known[key])
        by_seed[cell] = {name: np.stack([f[name] for f in found]) for name in METRICS}

    first_head = next(iter(scores))[0]
    means = {
        cell: {name: (of_seeds * values).mean(axis=0) for name, values in metrics.items()}
        for cell, metrics in by_seed.items()
    }
    points = []
    for (head, shots), metrics in by_seed.items():
        own, first = means[head, shots], means.get((first_head, shots))
        against = {} if head == first_head or first is None else {name: own[name] - first[name] for name in METRICS}
        points.append(
            CurvePoint(
                head=head,
                shots=shots,
                n=n,
                n_seeds=n_seeds,
                figures={name: _figure(own[name], n, 0.0, 1.0) for name in METRICS},
                spread={
                    name: float(values[:, 0].std(ddof=1)) if n_seeds > 1 else None for name, values in metrics.items()
                },
                against={name: _figure(values, n, -1.0, 1.0) for name, values in against.items()},
            )
        )
    return points


def _metrics(
    truth: np.ndarray, scores: np.ndarray, primary: np.ndarray, fold: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Metric -> (r,) under each column of weights: the mean over folds."""
    totals = {name: np.zeros(weights.shape[1]) for name in METRICS}
    shares = dict.fromkeys(METRICS, 0)
    for number in np.unique(fold):
        own = np.flatnonzero(fold == number)
        w, everyone = weights[own], np.arange(len(own))
        precision = [
            Ranking.of(truth[own, c], scores[own, c], everyone, len(own)).curve(w).average_precision()
            for c in np.flatnonzero(truth[own].any(axis=0))
        ]
        ranked = np.flatnonzero(primary[own] >= 0)
        if precision:
            totals["cmap_present"] += len(own) * np.mean(precision, axis=0)
            shares["cmap_present"] += len(own)
        if len(ranked):
            hits = top_k_hits(scores[own[ranked]], primary[own[ranked]], 1)
            totals["top_1"] += len(ranked) * (hits @ w[ranked]) / w[ranked].sum(axis=0)
            shares["top_1"] += len(ranked)
    return {name: totals[name] / shares[name] for name in METRICS}


def _figure(values: np.ndarray, n: int, least: float, most: float) -> Figure:
    """values : (1 + r,), the figure itself and then its replicates."""
    low, high = interval(values[1:], float(values[0]))
    return Figure(float(values[0]), max(low, least), min(high, most), n)
