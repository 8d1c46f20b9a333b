"""What decides a training, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embeddings.errors import InputError
from embeddings.files import read_json
from embeddings.splits import Split

__all__ = ["TrainingSettings", "TrainingSummary", "finished_training"]


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides what a training gives; saved beside it.

    kind, network        the backbone's kind and its own settings      weights  none, auto or a file
    crops_per_recording  windows drawn from a recording in an epoch
    mixup_alpha          lambda ~ Beta(alpha, alpha); 0 is off
    secondary_weight     target of a secondary label that is among the classes, 0..1
    patience             epochs without a better cmAP before training stops
    select_windows       windows a recording of the inner slice is judged by, at most
    """

    kind: str
    network: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "auto"
    epochs: int = 40
    crops_per_recording: int = 2
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_share: float = 0.1
    mixup_alpha: float = 0.4
    secondary_weight: float = 1.0
    patience: int = 12
    select_windows: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "crops_per_recording", "batch_size", "patience", "select_windows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.batch_size < 2:
            raise InputError("batch_size=1 leaves nothing to mix or to normalise over; use 2 or more.")
        if not self.learning_rate > 0 or self.weight_decay < 0 or self.mixup_alpha < 0:
            raise InputError("learning_rate must be above 0; weight_decay and mixup_alpha at least 0.")
        if not 0 <= self.secondary_weight <= 1 or not 0 <= self.warmup_share < 1:
            raise InputError("secondary_weight must lie in 0..1 and warmup_share in 0..1 (1 excluded).")


@dataclass(frozen=True)
class TrainingSummary:
    """What a training came to."""

    out: str
    labels: tuple[str, ...]
    n_fit: int
    n_select: int
    epochs: int
    best_epoch: int
    best_cmap: float
    minutes: float
    problems: tuple[str, ...] = ()


def finished_training(out: Path, settings: TrainingSettings, split: Split) -> TrainingSummary | None:
    """The summary of a finished training of these settings; None when there is one to start or to go on with."""
    if not (out / "settings.json").is_file():
        return None
    stored = read_json(out / "settings.json", what="training settings")
    asked = {**asdict(settings), "split": split.to_json()}
    differing = [name for name in asked if stored.get(name) != asked[name]]
    if differing:
        named = "; ".join(f"{name}: {stored.get(name)!r} there, {asked[name]!r} asked" for name in differing)
        raise InputError(f"{out} holds a training with other settings ({named}). Choose another --out, or --overwrite.")
    if not (out / "backbone.json").is_file():
        return None
    summary = read_json(out / "summary.json", what="training summary")
    return TrainingSummary(**{**summary, "labels": tuple(summary["labels"]), "problems": tuple(summary["problems"])})
