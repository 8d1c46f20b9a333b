"""Which engine runs a backbone: the fastest that gives the vectors of the reference, shown on real windows."""

from __future__ import annotations

import difflib
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from embeddings.errors import EngineError, InputError

__all__ = [
    "COSINES",
    "SCORE_DIFFERENCES",
    "EngineChoice",
    "EngineTrial",
    "HasEngines",
    "choose_engine",
    "cosines",
    "trial_of",
]

COSINES = {"fp32": 0.9999, "bf16": 0.999}
"""Smallest allowed cosine between an engine's vector of a window and the reference's, by precision."""

SCORE_DIFFERENCES = {"fp32": 0.005, "bf16": 0.05}
"""Largest allowed difference of a probability of the backbone's own classifier, by precision."""

_TIMED_ROUNDS, _TIMED_WINDOWS = 3, 16


class HasEngines(Protocol):
    """A backbone that can run on several engines.

    engines  usable here, expected fastest first, the reference last       engine  the one in use
    """

    name: str
    engine: str

    @property
    def engines(self) -> tuple[str, ...]: ...

    def use_engine(self, name: str, threads: int | None = None) -> None:
        """Build an engine; `embed` runs on it from then on, with at most so many threads."""
        ...

    def embed(self, waveforms: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class EngineTrial:
    """How one engine did beside the reference. `why_not` is "" when it passed the gate.

    min_cosine            over windows; vectors that share a large mean are close whatever their content, hence also
    min_centred_cosine    after taking the reference's mean from both; None below eight windows
    max_score_difference  of the classifier's probabilities; None for a backbone without a classifier
    """

    engine: str
    precision: str
    min_cosine: float
    min_centred_cosine: float | None
    max_score_difference: float | None
    same_top_1: float | None
    windows_per_s: float
    why_not: str = ""


@dataclass(frozen=True)
class EngineChoice:
    """The engine that was taken, and the figures of its gate; goes into the provenance of every shard."""

    engine: str
    reference: str
    asked: str
    n_windows: int
    min_cosine: float
    cosine_threshold: float
    max_score_difference: float | None
    score_threshold: float
    windows_per_s: float
    reference_windows_per_s: float
    trials: tuple[EngineTrial, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "trials": [asdict(trial) for trial in self.trials]}


def choose_engine(
    backbone: HasEngines, waveforms: np.ndarray, asked: str = "auto", *, threads: int | None = None
) -> EngineChoice:
    """Let a backbone run on an engine that has passed the parity gate on these windows.

    waveforms : (n, n_samples) float32, real first windows, n >= 1
    asked     : an engine's name, "reference", or "auto" for the fastest that passes
    threads   : cores that it may use
    Returns what was chosen; the backbone runs on it from then on. An engine passes when every window's vector keeps
    the cosine of `COSINES` to the reference's, and the classifier's probabilities, if it has one, stay within
    `SCORE_DIFFERENCES`. Measured on trained networks, fp32 engines differ by 1e-6 and bf16 by some 3e-4.
    Raises InputError for an unknown engine, EngineError when the one that was asked for fails the gate.
    """
    engines = backbone.engines
    reference = engines[-1]
    asked = reference if asked == "reference" else asked
    if asked != "auto" and asked not in engines:
        near = difflib.get_close_matches(asked, engines, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(
            f"--engine {asked} cannot run {backbone.name!r} here; choose auto, reference, {', '.join(engines)}.{hint} "
            f"More come with: pip install 'cisticola[fast]'"
        )
    candidates = [e for e in engines if e != reference] if asked == "auto" else [asked] if asked != reference else []
    backbone.use_engine(reference, threads)
    expected = backbone.embed(waveforms)
    trials = [trial_of(backbone, engine, waveforms, expected, threads) for engine in candidates]
    passed = [trial for trial in trials if not trial.why_not]
    if asked not in ("auto", reference) and not passed:
        raise EngineError(
            f"engine {asked} does not reproduce {reference} for {backbone.name!r} on the first {len(waveforms)} "
            f"windows: {trials[0].why_not}. Take --engine auto, or {reference}."
        )
    backbone.use_engine(reference, threads)
    reference_speed = _windows_per_s(backbone, waveforms)
    best = max(passed, key=lambda trial: trial.windows_per_s, default=None)
    if best is None or (asked == "auto" and best.windows_per_s <= reference_speed):
        best = EngineTrial(reference, "fp32", 1.0, None, 0.0 if _classifies(backbone) else None, None, reference_speed)
    backbone.use_engine(best.engine, threads)
    return EngineChoice(
        best.engine,
        reference,
        asked,
        len(waveforms),
        best.min_cosine,
        COSINES[best.precision],
        best.max_score_difference,
        SCORE_DIFFERENCES[best.precision],
        best.windows_per_s,
        reference_speed,
        tuple(trials),
    )


def trial_of(
    backbone: HasEngines, engine: str, waveforms: np.ndarray, expected: np.ndarray, threads: int | None
) -> EngineTrial:
    """Run windows on an engine and judge its vectors beside the reference's, `expected`.

    An engine that cannot be built or run fails the gate like one whose vectors are wrong.
    """
    precision = "bf16" if engine.endswith("bf16") else "fp32"
    try:
        backbone.use_engine(engine, threads)
        vectors = backbone.embed(waveforms)
        speed = _windows_per_s(backbone, waveforms)
    except Exception as error:
        why = f"it cannot run here ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        return EngineTrial(engine, precision, 0.0, None, None, None, 0.0, why)
    cosine = float(cosines(vectors, expected).min())
    mean = expected.mean(axis=0)
    centred = float(cosines(vectors - mean, expected - mean).min()) if len(expected) >= 8 else None
    difference, same = None, None
    reasons = []
    if not cosine >= COSINES[precision]:  # also when it is not a number
        reasons.append(f"smallest cosine {cosine:.6f}, {COSINES[precision]} is needed")
    if _classifies(backbone):
        scores, expected_scores = backbone.scores(vectors), backbone.scores(expected)  # type: ignore[attr-defined]
        difference = float(np.abs(scores - expected_scores).max())
        same = float(np.mean(scores.argmax(axis=1) == expected_scores.argmax(axis=1)))
        if not difference <= SCORE_DIFFERENCES[precision]:
            reasons.append(f"a probability differs by {difference:.4f}, {SCORE_DIFFERENCES[precision]} is allowed")
    return EngineTrial(engine, precision, cosine, centred, difference, same, speed, " and ".join(reasons))


def _classifies(backbone: object) -> bool:
    return hasattr(backbone, "scores")


def _windows_per_s(backbone: HasEngines, waveforms: np.ndarray) -> float:
    """Median of a few rounds, warm."""
    seconds = []
    waveforms = waveforms[:_TIMED_WINDOWS]
    for _ in range(_TIMED_ROUNDS):
        began = time.perf_counter()
        backbone.embed(waveforms)
        seconds.append(time.perf_counter() - began)
    return len(waveforms) / statistics.median(seconds)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Row by row, in float64. Two zero vectors are alike; a zero and another one are not."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    both_zero = (norms[0] == 0) & (norms[1] == 0)
    product = norms[0] * norms[1]
    values = np.divide(np.sum(one * other, axis=1), product, out=np.zeros(len(one)), where=product > 0)
    return np.where(both_zero, 1.0, values)
