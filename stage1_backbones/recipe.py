"""What decides a training, and what it came to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embeddings.errors import InputError
from embeddings.files import read_json
from embeddings.settings import from_fields
from embeddings.splits import Split
from stage1_backbones.augment import AugmentSettings
from stage1_backbones.losses import LossSettings
from stage1_backbones.mixup import MixSettings

__all__ = ["CHOICES", "PRECISIONS", "SAMPLINGS", "TrainingSettings", "TrainingSummary", "finished_training"]

SAMPLINGS = ("uniform", "inverse_sqrt", "balanced")
CHOICES = ("last", "best")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides what a training gives; saved beside it.

    kind, network        the backbone's kind and its own settings      weights  none, auto or a file
    epochs, min_steps    passes over the recordings, and more of them until there were so many steps
    crops_per_recording  windows drawn from a recording in an epoch
    accumulate           batches whose gradients make one step
    ema_decay            weights are averaged over about 1 / (1 - decay) steps; 0 takes them as they are
    loud_crops           share of windows drawn around the recording's loud parts rather than anywhere
    sampling             uniform; inverse_sqrt and balanced draw recordings by their label's count ^ -1/2 and ^ -1
    secondary_weight     target of a secondary label that is among the classes, 0..1
    with_types           kinds of call are classes too, beside the species, where a recording's table says any
    select_share         part of the training recordings that is never fitted on: curves, calibration and fusion rest
                         on it
    choose               last: the weights at the end; best: those of the epoch with the best cmAP on that part
    patience             with `best`: epochs without a better cmAP before training stops
    select_windows       windows a recording of that part is judged by, at most
    """

    kind: str
    network: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "auto"
    epochs: int = 20
    min_steps: int = 600
    crops_per_recording: int = 2
    batch_size: int = 16
    accumulate: int = 1
    precision: str = "32-true"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_share: float = 0.1
    ema_decay: float = 0.99
    loss: LossSettings = field(default_factory=LossSettings)
    mixup: MixSettings = field(default_factory=MixSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    sampling: str = "uniform"
    loud_crops: float = 0.5
    secondary_weight: float = 1.0
    with_types: bool = False
    select_share: float = 0.15
    choose: str = "last"
    patience: int = 12
    select_windows: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "crops_per_recording", "batch_size", "accumulate", "patience", "select_windows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.batch_size < 2:
            raise InputError("batch_size=1 leaves nothing to mix or to normalise over; use 2 or more.")
        if self.min_steps < 0:
            raise InputError(f"min_steps={self.min_steps} must be 0 (epochs decide) or more.")
        if not self.learning_rate > 0 or self.weight_decay < 0:
            raise InputError("learning_rate must be above 0; weight_decay at least 0.")
        for name, most in (("secondary_weight", 1.0), ("loud_crops", 1.0)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"{name}={getattr(self, name)} must lie in 0..{most:g}.")
        for name in ("warmup_share", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must lie in 0..1 (1 excluded).")
        if not 0 <= self.select_share <= 0.5:
            raise InputError(f"select_share={self.select_share} must lie in 0..0.5.")
        for name, allowed in (("sampling", SAMPLINGS), ("choose", CHOICES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}={getattr(self, name)!r} is not known; choose {', '.join(allowed)}.")
        if self.choose == "best" and self.select_share == 0:
            raise InputError(
                "choose=best needs recordings to choose by, but select_share=0; set one of them otherwise."
            )
        if self.with_types and self.loss.kind.output == "softmax":
            raise InputError(
                f"with_types cannot go with loss.name={self.loss.name}: species and kinds of call do not exclude each "
                "other. Take bce."
            )
        object.__setattr__(self, "network", self._network_for_the_loss())

    def _network_for_the_loss(self) -> dict[str, Any]:
        """The network's settings with the last layer that the loss reads."""
        network = dict(self.network)
        for name in ("classifier", "output"):
            needed = getattr(self.loss.kind, name)
            if network.setdefault(name, needed) != needed:
                raise InputError(
                    f"network.{name}={network[name]} contradicts loss.name={self.loss.name}, which needs {needed}; "
                    f"leave network.{name} out."
                )
        return network

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainingSettings:
        """From plain JSON or YAML values. Raises InputError that names a wrong or unknown setting."""
        return from_fields(cls, value, "recipe")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, from which `from_json` makes the same settings."""
        values = asdict(self)
        if not self.with_types:
            del values["with_types"]  # older trainings, which knew no types, are still told to be the same
        return values

    def n_batches(self, n_recordings: int) -> int:
        """Batches of an epoch: whole ones, but a set smaller than a batch is one."""
        return max(1, n_recordings * self.crops_per_recording // self.batch_size)

    def n_epochs(self, n_recordings: int) -> int:
        """Epochs, more than `epochs` where `min_steps` needs them."""
        steps = math.ceil(self.n_batches(n_recordings) / self.accumulate)
        return max(self.epochs, math.ceil(self.min_steps / steps))


@dataclass(frozen=True)
class TrainingSummary:
    """What a training came to.

    best_cmap   of the chosen epoch, on the recordings that were not fitted on; None when there were none
    data_wait   share of the training's time in which the network waited for windows
    """

    out: str
    labels: tuple[str, ...]
    n_fit: int
    n_select: int
    epochs: int
    best_epoch: int
    best_cmap: float | None
    minutes: float
    data_wait: float = 0.0
    problems: tuple[str, ...] = ()


def finished_training(out: Path, settings: TrainingSettings, split: Split, labels: str) -> TrainingSummary | None:
    """The summary of a finished training of these settings; None when there is one to start or to go on with.

    labels : digest of what recordings are labelled with
    Raises InputError when `out` holds a training by other settings, another split or other labels.
    """
    if not (out / "settings.json").is_file():
        return None
    stored = read_json(out / "settings.json", what="training settings")
    labels_there = stored.pop("labels", labels)  # older trainings do not say
    asked = _plain({**settings.to_json(), "split": split.to_json()})
    differing = [name for name in {**stored, **asked} if stored.get(name) != asked.get(name)]
    if differing:
        named = "; ".join(f"{name}: {stored.get(name)!r} there, {asked.get(name)!r} asked" for name in differing)
        raise InputError(f"{out} holds a training with other settings ({named}). Choose another --out, or --overwrite.")
    if labels_there != labels:
        raise InputError(
            f"{out} holds a training on other labels: the table has changed. Choose another --out, or --overwrite."
        )
    if not (out / "backbone.json").is_file():
        return None
    summary = read_json(out / "summary.json", what="training summary")
    return TrainingSummary(**{**summary, "labels": tuple(summary["labels"]), "problems": tuple(summary["problems"])})


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
