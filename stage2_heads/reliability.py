"""How far scores are from the shares that came true: expected calibration error, with its interval and its picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embeddings.files import write_atomically
from stage2_heads.bootstrap import bayesian_weights, interval
from stage2_heads.score_report import Figure

__all__ = ["N_BINS", "Reliability", "draw_reliability", "reliability"]

N_BINS = 15
_INK, _QUIET, _BEFORE, _AFTER = "#22303c", "#7b8794", "#e07a3f", "#2a9d8f"


@dataclass(frozen=True)
class Reliability:
    """Scores beside what came true, in equal bins of the score.

    counts       (15,) scores in each bin;  mean_scores, true_shares: (15,), nan where the bin is empty
    error        the expected calibration error with its 95 % interval, n counting scores
    log_loss     mean, in nats
    """

    counts: np.ndarray
    mean_scores: np.ndarray
    true_shares: np.ndarray
    error: Figure
    log_loss: float

    def to_json(self) -> dict[str, Any]:
        return {
            "calibration_error": self.error.to_json(),
            "log_loss": self.log_loss,
            "bins": [
                {"n": int(n), "mean_score": float(score) if n else None, "true_share": float(share) if n else None}
                for n, score, share in zip(self.counts, self.mean_scores, self.true_shares, strict=True)
            ],
        }


def reliability(
    scores: np.ndarray, targets: np.ndarray, recordings: np.ndarray, *, n_bootstrap: int = 1000, seed: int = 0
) -> Reliability:
    """Bins and calibration error of scores.

    scores, targets : (m,) in [0, 1];  recordings : (m,) int, whose score it is: what the interval reweighs
    Source: Naeini et al. 2015 (the error), Rubin 1981 (the interval).
    """
    _, group = np.unique(recordings, return_inverse=True)
    n_groups = int(group.max()) + 1
    bins = np.minimum((scores * N_BINS).astype(np.int64), N_BINS - 1)
    cell = group * N_BINS + bins
    size = n_groups * N_BINS
    counts, score_sums, target_sums = (
        np.bincount(cell, weights=w, minlength=size).reshape(n_groups, N_BINS) for w in (None, scores, targets)
    )
    weights = np.hstack([np.ones((n_groups, 1)), bayesian_weights(n_groups, n_bootstrap, seed)])
    errors = np.abs((score_sums - target_sums).T @ weights).sum(axis=0) / (counts.sum(axis=1) @ weights)
    low, high = interval(errors[1:], float(errors[0]))
    in_bin = counts.sum(axis=0)
    with np.errstate(invalid="ignore"):
        means, shares = score_sums.sum(axis=0) / in_bin, target_sums.sum(axis=0) / in_bin
    p = np.clip(scores, 1e-12, 1 - 1e-12)
    log_loss = float(-(targets * np.log(p) + (1 - targets) * np.log1p(-p)).mean())
    return Reliability(
        in_bin, means, shares, Figure(float(errors[0]), max(low, 0.0), min(high, 1.0), len(scores)), log_loss
    )


def draw_reliability(
    before: Reliability, after: Reliability, path: Path, *, title: str, names: tuple[str, str]
) -> None:
    """Both diagrams side by side as a PNG, with the number of scores in each bin below. names : of the two."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(9.5, 6.2), layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    canvas.suptitle(title, x=0.01, ha="left", fontsize=11, color=_INK)
    axes = canvas.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
    edges = np.linspace(0, 1, N_BINS + 1)
    for column, (found, name, colour) in enumerate(((before, names[0], _BEFORE), (after, names[1], _AFTER))):
        top, bottom = axes[0, column], axes[1, column]
        filled = found.counts > 0
        top.plot([0, 1], [0, 1], color=_QUIET, linewidth=1, linestyle="--")
        top.vlines(
            found.mean_scores[filled], found.mean_scores[filled], found.true_shares[filled], color=colour, alpha=0.45
        )
        top.plot(found.mean_scores[filled], found.true_shares[filled], "o-", color=colour, markersize=5, linewidth=1.2)
        error = found.error
        top.set_title(
            f"{name}: ECE {error.value:.4f} ({error.low:.4f}-{error.high:.4f})", loc="left", fontsize=10, color=_INK
        )
        top.set(xlim=(0, 1), ylim=(-0.02, 1.02))
        bars = bottom.bar(
            edges[:-1],
            np.maximum(found.counts, 0.5),
            width=1 / N_BINS,
            align="edge",
            color=colour,
            alpha=0.8,
            edgecolor="white",
        )
        bottom.bar_label(bars, [_short(int(n)) for n in found.counts], fontsize=6.5, color=_INK, padding=1)
        bottom.set_yscale("log")
        bottom.set(xlabel="score", ylim=(0.5, 8 * max(before.counts.max(), after.counts.max())))
        for one in (top, bottom):
            one.grid(alpha=0.2)
            one.spines[["top", "right"]].set_visible(False)
            one.tick_params(colors=_QUIET, labelsize=8)
    axes[0, 0].set_ylabel("share that is true")
    axes[1, 0].set_ylabel("scores in the bin")
    write_atomically(path, lambda temporary: canvas.savefig(temporary, format="png", dpi=130))


def _short(n: int) -> str:
    return str(n) if n < 10_000 else f"{n / 1000:.0f}k"
