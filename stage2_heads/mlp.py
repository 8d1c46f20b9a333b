"""A small network over embeddings: trained with torch, asked with numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from embeddings.errors import InputError
from stage2_heads.base import Head, Progress, required_array
from stage2_heads.folds import inner_slice
from stage2_heads.metrics import known_cmap
from stage2_heads.rows import LabelledRows
from stage2_heads.standardise import Standardiser

if TYPE_CHECKING:
    import torch

__all__ = ["MlpHead", "MlpSettings"]

LOSSES = ("bce", "focal", "asymmetric")
_STATISTICS_ROWS = 4096
_TINY = 1e-8  # without a margin a score of 1 would cost infinitely much


@dataclass(frozen=True)
class MlpSettings:
    """How the network looks and learns.

    hidden         widths of the hidden layers, rectified
    mixup          a of Beta(a, a), by which pairs of rows and their targets are mixed; 0 switches it off
    max_epochs     passes over the rows at most, and at least enough for `min_updates` updates
    patience       looks at the held-out slice (at most 50) without improvement before training stops
    learning_rate, weight_decay   of AdamW; `update_rate` times the former in `partial_fit` after `fit`
    """

    hidden: tuple[int, ...] = (512,)
    dropout: float = 0.3
    mixup: float = 0.4
    loss: str = "bce"
    gamma: float = 2.0
    margin: float = 0.05
    max_epochs: int = 30
    min_updates: int = 600
    patience: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    update_rate: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(int(width) for width in self.hidden))
        if any(width < 1 for width in self.hidden):
            raise InputError(f"hidden={self.hidden}: every layer needs a width of 1 or more.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout} must lie in [0, 1).")
        if self.loss not in LOSSES:
            raise InputError(f"loss={self.loss!r} is not one of {', '.join(LOSSES)}.")
        if not 0 <= self.margin < 1:
            raise InputError(f"margin={self.margin} must lie in [0, 1).")
        for name in ("mixup", "weight_decay", "gamma"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"{name}={getattr(self, name)} must be 0 or more.")
        for name in ("learning_rate", "update_rate"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"{name}={getattr(self, name)} must be a positive number.")
        for name in ("max_epochs", "min_updates", "patience", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be 1 or more.")


class MlpHead(Head):
    """Hidden layers, dropout and a binary loss a class; decisions are log-odds.

    Training stops by the cmAP on a seventh of the fitting recordings, and keeps the best weights; `heard_` names those
    recordings as selected on. Asking needs no torch.
    layers_ : (weights (in, out), bias (out,)) of each layer, float32;  standardiser_ : what they are applied to
    """

    kind = "mlp"
    settings_type = MlpSettings
    learns_partial_truth = True
    settings: MlpSettings

    def __init__(self, settings: MlpSettings | None = None) -> None:
        super().__init__(settings)
        self.layers_: list[tuple[np.ndarray, np.ndarray]] = []
        self._trainer: _Trainer | None = None

    def _learn(self, rows: LabelledRows, progress: Progress) -> np.ndarray:
        held_out = inner_slice(rows, self.settings.seed)
        fitting, selecting = rows.subset(~held_out), rows.subset(held_out)
        self.standardiser_ = Standardiser.fit((X for X, _ in fitting.batches(_STATISTICS_ROWS)), rows.dims)
        self.layers_, self._trainer = [], None
        trainer = _Trainer(self, self.settings.learning_rate)
        per_epoch = math.ceil(fitting.n_rows / self.settings.batch_size)
        n_epochs = max(self.settings.max_epochs, math.ceil(self.settings.min_updates / per_epoch))
        look_every = max(1, math.ceil(n_epochs / 50))  # tiny sets have many short epochs
        best, best_layers, looks_in_vain = (-math.inf, -math.inf), trainer.layers(), 0
        for epoch in range(n_epochs):
            for X, Y in fitting.batches(self.settings.batch_size, seed=_epoch_seed(self.settings.seed, epoch)):
                trainer.step(self._prepared(X), Y)
            progress((epoch + 1) / n_epochs)
            if selecting.n_rows == 0:
                best_layers = trainer.layers()
            elif (epoch + 1) % look_every == 0 or epoch + 1 == n_epochs:
                self.layers_ = trainer.layers()
                merit = self._merit(selecting)
                looks_in_vain = 0 if merit > best else looks_in_vain + 1
                if merit > best:
                    best, best_layers = merit, self.layers_
                if looks_in_vain >= self.settings.patience:
                    break
        self.layers_ = best_layers
        return held_out

    def _learn_more(self, X: np.ndarray, Y: np.ndarray) -> None:
        settings = self.settings
        if not hasattr(self, "standardiser_"):
            self.standardiser_ = Standardiser.fit([X], self.dims_)
        trainer = self._trainer
        if trainer is None:
            trainer = _Trainer(self, settings.learning_rate * (settings.update_rate if self.layers_ else 1.0))
        order = np.random.default_rng((settings.seed, trainer.n_updates)).permutation(len(X))
        for start in range(0, len(X), settings.batch_size):
            chosen = order[start : start + settings.batch_size]
            trainer.step(self._prepared(X[chosen]), Y[chosen])
        self.layers_ = trainer.layers()
        self._trainer = trainer  # keeps the optimiser's moments for the next call; they are not saved

    def _decide(self, X: np.ndarray) -> np.ndarray:
        hidden = self._prepared(X.copy()).astype(np.float64)
        for number, (weights, bias) in enumerate(self.layers_, start=1):
            hidden = hidden @ weights + bias
            if number < len(self.layers_):
                np.maximum(hidden, 0, out=hidden)
        return hidden

    def _prepared(self, X: np.ndarray) -> np.ndarray:
        """Standardised in place and brought to a mean square of 1 a value, as initial weights expect."""
        X = self.standardiser_.apply(X, out=X)
        X *= np.float32(math.sqrt(sum(self.dims_) / len(self.dims_)))
        return X

    def _merit(self, rows: LabelledRows) -> tuple[float, float]:
        """Present-only cmAP over windows, then minus the loss: more is better.

        The loss alone would stop too soon: ranks go on improving after the odds begin to overshoot.
        """
        decisions = np.empty((rows.n_rows, len(rows.labels)))
        targets = np.empty(decisions.shape)
        done = 0
        for X, Y in rows.batches(_STATISTICS_ROWS):
            decisions[done : done + len(X)], targets[done : done + len(X)] = self._decide(X), Y
            done += len(X)
        loss = float(np.nanmean(np.logaddexp(0.0, decisions) - targets * decisions))
        return known_cmap(targets, decisions), -loss

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"mean": self.standardiser_.mean, "scale": self.standardiser_.scale}
        for number, (weights, bias) in enumerate(self.layers_):
            arrays[f"weights_{number}"], arrays[f"bias_{number}"] = weights, bias
        return arrays

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        widths = (sum(self.dims_), *self.settings.hidden, len(self.labels_))
        self.standardiser_ = Standardiser(
            required_array(arrays, "mean", (widths[0],), np.float32),
            required_array(arrays, "scale", (widths[0],), np.float32),
            self.dims_,
        )
        self.layers_ = [
            (
                required_array(arrays, f"weights_{number}", shape, np.float32),
                required_array(arrays, f"bias_{number}", shape[1:], np.float32),
            )
            for number, shape in enumerate(pairwise(widths))
        ]

    def _settings_json(self) -> dict[str, Any]:
        return {**asdict(self.settings), "hidden": list(self.settings.hidden)}


class _Trainer:
    """A torch network with its optimiser, begun from a head's layers or from seeded noise."""

    def __init__(self, head: MlpHead, learning_rate: float) -> None:
        import torch

        settings = head.settings
        self._rng = np.random.default_rng((settings.seed, 1))
        self._settings = settings
        self.n_updates = 0
        widths = (sum(head.dims_), *settings.hidden, len(head.labels_))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            parts: list[torch.nn.Module] = []
            for n_in, n_out in pairwise(widths):
                parts += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU(), torch.nn.Dropout(settings.dropout)]
            self._network = torch.nn.Sequential(*parts[:-2])
            self._dropout_state = torch.random.get_rng_state()
        self._linears = [m for m in self._network if isinstance(m, torch.nn.Linear)]
        with torch.no_grad():
            for linear, (weights, bias) in zip(self._linears, head.layers_, strict=False):
                linear.weight.copy_(torch.from_numpy(weights.T.copy()))
                linear.bias.copy_(torch.from_numpy(bias.copy()))
        self._optimiser = torch.optim.AdamW(
            self._network.parameters(), lr=learning_rate, weight_decay=settings.weight_decay
        )

    def step(self, X: np.ndarray, Y: np.ndarray) -> None:
        """One update on prepared rows, each mixed with another row of the batch."""
        import torch

        inputs, targets = torch.from_numpy(X), torch.from_numpy(Y)
        if self._settings.mixup > 0 and len(X) > 1:
            partner = torch.from_numpy(self._rng.permutation(len(X)))
            share = torch.from_numpy(
                self._rng.beta(self._settings.mixup, self._settings.mixup, (len(X), 1)).astype(np.float32)
            )
            inputs = share * inputs + (1 - share) * inputs[partner]
            targets = share * targets + (1 - share) * targets[partner]
        with torch.random.fork_rng(devices=[]):  # dropout draws from its own stream, whatever else uses torch
            torch.random.set_rng_state(self._dropout_state)
            self._network.train()
            loss = _loss(self._settings, self._network(inputs), targets)
            self._dropout_state = torch.random.get_rng_state()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._optimiser.step()
        self.n_updates += 1

    def layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Copies of (weights (in, out), bias (out,)), float32."""
        return [(layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy()) for layer in self._linears]


def _loss(settings: MlpSettings, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over rows and classes. A fractional target counts partly as a presence, partly as an absence, nan as none.

    A cell mixed of two, one of them unknown, is unknown.
    """
    from torch.nn.functional import logsigmoid

    present, absent = -logsigmoid(logits), -logsigmoid(-logits)
    if settings.loss == "focal":
        score = logits.sigmoid()
        present, absent = present * (1 - score) ** settings.gamma, absent * score**settings.gamma
    elif settings.loss == "asymmetric":
        score = (logits.sigmoid() - settings.margin).clamp(min=0)
        absent = -(1 - score).clamp(min=_TINY).log() * score**settings.gamma
    known = ~targets.isnan()
    targets = targets.where(known, 0.0)
    return (known * (targets * present + (1 - targets) * absent)).mean()


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
