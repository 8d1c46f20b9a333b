"""What a contest of heads is about, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from stage2_heads.arrangement import Arrangement
from stage2_heads.base import Head
from stage2_heads.bootstrap import interval
from stage2_heads.heads import HEADS, create_head
from stage2_heads.score_report import Figure

__all__ = ["Contest", "Entry", "Result"]


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
    curve   (recordings fitted on, cmAP), fewest first; empty where none was asked for
    """

    entry: Entry
    figures: dict[str, Figure]
    replicates: dict[str, np.ndarray]
    per_class: tuple[dict[str, Any], ...]
    scores: np.ndarray
    fit_s: float
    windows_per_s: float
    n_bytes: int
    curve: tuple[tuple[int, Figure], ...] = ()

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
    arrangements  how each set of blocks arranges the scored recordings (of the first store), where asked for
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
    arrangements: tuple[Arrangement, ...] = ()

    def to_json(self) -> dict[str, Any]:
        best = self.results[0]
        return {
            "verdict": self.verdict(),
            "how": self.how,
            "n": len(self.truth),
            "n_fitted": self.n_fitted,
            "seeds": list(self.seeds),
            "notes": list(self.notes),
            "arrangements": [
                {
                    "blocks": list(a.blocks),
                    "silhouette": a.silhouette.to_json(),
                    "adjusted_mutual_information": a.mutual,
                    "adjusted_mutual_information_sd": a.mutual_sd,
                }
                for a in self.arrangements
            ],
            "results": [
                {
                    "head": r.entry.head,
                    "blocks": list(r.entry.blocks),
                    "figures": {name: figure.to_json() for name, figure in r.figures.items()},
                    "minus_best": {n: r.minus(best, n).to_json() for n in ("cmap_present", "top_1")},
                    "fit_s": r.fit_s,
                    "windows_per_s": r.windows_per_s,
                    "bytes": r.n_bytes,
                    "learning_curve": [{"n_fitted": n, "cmap_present": figure.to_json()} for n, figure in r.curve],
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


def _words(figure: Figure) -> str:
    return "undefined" if figure.value is None else f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})"
