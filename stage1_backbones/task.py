"""One training step and one judgement of a network, in Lightning's words."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from stage1_backbones.batches import BatchMaker
from stage1_backbones.losses import leaving_out_unknown, make_loss, smoothed
from stage1_backbones.mixup import draw_mixing
from stage1_backbones.network import TrainableNetwork
from stage1_backbones.recipe import TrainingSettings

__all__ = ["Scorer", "Task", "seed_torch"]

Scorer = Callable[[np.ndarray, np.ndarray], float]
"""(truth (n, n_labels) of {0, 1}, scores (n, n_labels) float64 in [0, 1)) -> a figure to maximise."""


class Task(LightningModule):
    """The network, its loss and its judge. Recordings stay outside: averaging weights copies all that is in here."""

    def __init__(
        self,
        network: TrainableNetwork,
        settings: TrainingSettings,
        *,
        fit_targets: np.ndarray,
        select_targets: np.ndarray,
        n_steps: int,
        scorer: Scorer,
        maker: BatchMaker | None,
    ) -> None:
        """maker : turns waveforms into inputs on this task's device; None when batches come as inputs already."""
        super().__init__()
        self.network = network
        self._settings, self._scorer, self._n_steps, self._maker = settings, scorer, n_steps, maker
        self._loss = make_loss(settings.loss, torch.from_numpy(np.nanmean(fit_targets, axis=0)))
        if settings.with_types:
            self._loss = leaving_out_unknown(self._loss)
        self._select_targets = select_targets
        self._judged: list[tuple[Tensor, Tensor]] = []
        self._epoch_began = self._step_ended = 0.0
        self._waited_s = self._trained_s = 0.0

    @property
    def timing(self) -> dict[str, float]:
        """Of the present epoch: `seconds` in all, and the share of its training that was spent waiting for windows."""
        wait = self._waited_s / self._trained_s if self._trained_s else 0.0
        return {"seconds": time.monotonic() - self._epoch_began, "data_wait": wait}

    def configure_optimizers(self) -> Any:
        s = self._settings
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        plain = [p for p in self.network.parameters() if p.ndim <= 1]  # biases and normalisations
        groups = [{"params": decayed, "weight_decay": s.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=s.learning_rate)
        warmup = max(1, round(s.warmup_share * self._n_steps))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = min(1.0, (step - warmup) / max(1, self._n_steps - warmup))
            return 0.5 * (1 + math.cos(math.pi * done))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        # Everything that draws starts anew each epoch, so that a resumed epoch draws what it would have drawn.
        seed_torch(self._settings.seed, self.current_epoch)
        self._epoch_began = self._step_ended = time.monotonic()
        self._waited_s = self._trained_s = 0.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._waited_s += time.monotonic() - self._step_ended

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._step_ended = time.monotonic()
        self._trained_s = self._step_ended - self._epoch_began

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer.training and self._maker is not None:
            return self._maker(*batch)
        return batch

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        if self._settings.mixup.where in ("off", "sound"):
            logits = self.network.logits_of(inputs)
        else:
            mixing = draw_mixing(self._settings.mixup, len(inputs), self.network.stages)
            targets = mixing.targets(targets)
            with mixing.inside(self.network.stages):
                logits = self.network.logits_of(inputs if mixing.stage else mixing.values(inputs))
        loss = self._loss(logits.float(), smoothed(targets, self._settings.loss.smoothing))
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(targets))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        waveforms, recording = batch
        self._judged.append((recording.cpu(), self.network(waveforms).float().cpu()))

    def on_validation_epoch_end(self) -> None:
        recording = torch.cat([r for r, _ in self._judged]).numpy()
        logits = torch.cat([x for _, x in self._judged])
        self._judged.clear()
        truth = self._select_targets
        loss = self._loss(logits, torch.from_numpy(truth[recording]))
        sums = np.zeros(truth.shape)
        np.add.at(sums, recording, self.network.scores_of(logits).numpy())
        scores = sums / np.bincount(recording, minlength=len(truth))[:, None]
        self.log_dict({"select_loss": float(loss), "select_cmap": self._scorer(truth, scores)}, prog_bar=False)


def seed_torch(seed: int, epoch: int) -> None:
    """Set torch's global draws for an epoch; -1 for what comes before the first."""
    torch.manual_seed(int(np.random.SeedSequence((seed, epoch + 1)).generate_state(1)[0]))
