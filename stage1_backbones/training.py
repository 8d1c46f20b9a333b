"""The recipe: binary cross-entropy and mixup on random windows, the best epoch by cmAP on an inner slice."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from embeddings.contract import Heard
from embeddings.errors import InputError
from embeddings.files import write_json
from embeddings.recordings import Recording
from embeddings.splits import Split, inner_slice
from stage1_backbones.crops import Crops, FixedWindows, RandomWindows
from stage1_backbones.history import History, draw_curves
from stage1_backbones.mixup import mix
from stage1_backbones.network import TrainableNetwork
from stage1_backbones.recipe import TrainingSettings, TrainingSummary, finished_training
from stage1_backbones.registry import create_network
from stage1_backbones.runtime import keep_large_blocks, quiet_lightning
from stage1_backbones.trained import TrainedBackbone

__all__ = ["TrainingSettings", "TrainingSummary", "train"]

Scorer = Callable[[np.ndarray, np.ndarray], float]
"""(truth (n, n_labels) of {0, 1}, scores (n, n_labels) float64 in [0, 1)) -> a figure to maximise."""


def train(
    recordings: Sequence[Recording],
    settings: TrainingSettings,
    out: Path,
    *,
    split: Split,
    scorer: Scorer,
    name: str = "",
    device: str = "cpu",
    on_epoch: Callable[[Mapping[str, float]], None] | None = None,
) -> TrainingSummary:
    """Train a backbone on `recordings`, all of the training side of `split`.

    An inner slice of them chooses the epoch; both parts are recorded as heard. The same call goes on after a kill
    and gives the same weights as an uninterrupted run; after a finished training it returns the summary.
    Writes backbone.json, weights.safetensors, heard.json, settings.json, metrics.csv, curves.png, summary.json.
    Raises InputError when `out` holds another training, or too little is left to train on.
    """
    out = Path(out)
    finished = finished_training(out, settings, split)
    if finished is not None:
        return finished
    began = time.monotonic()
    keep_large_blocks()
    fit_recordings, select_recordings = inner_slice(recordings, settings.seed)
    labels = tuple(sorted({r.primary_label for r in recordings}))
    if len(labels) < 2 or not select_recordings:
        raise InputError(
            f"{len(recordings)} training recordings of {len(labels)} labels are too few: two labels are needed, and "
            f"at least one label with two recordings, so that an inner slice can choose the epoch."
        )
    _seed(settings.seed, -1)
    network = create_network(settings.kind, settings.network, len(labels), settings.weights)
    fit = Crops(fit_recordings, network.sample_rate_hz, network.window_s)
    select = Crops(select_recordings, network.sample_rate_hz, network.window_s)
    if not len(fit) or not len(select):
        raise InputError(
            f"nothing to train on is left after decoding: {' '.join((*fit.problems, *select.problems)[:5])}"
        )
    write_json(out / "settings.json", {**asdict(settings), "split": split.to_json()})

    task = _Task(network, fit, select, labels, settings, scorer)
    history = History(out / "metrics.csv", on_epoch)
    checkpoints = ModelCheckpoint(
        dirpath=out / "resume",
        filename="best",
        monitor="select_cmap",
        mode="max",
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    patience = EarlyStopping("select_cmap", mode="max", patience=settings.patience, check_on_train_epoch_end=True)
    with quiet_lightning():
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(device.split(":")[0], device.split(":")[0]),
            devices=1,
            max_epochs=settings.epochs,
            callbacks=[history, patience, checkpoints, *_progress_bar()],
            logger=False,
            enable_progress_bar=sys.stderr.isatty(),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=out,
        )
        trainer.fit(task, ckpt_path=_last_sound_checkpoint(out / "resume"), weights_only=True)
        best = torch.load(checkpoints.best_model_path, map_location="cpu", weights_only=True)
    task.load_state_dict(best["state_dict"])

    best_epoch = max(history.rows, key=lambda row: (row["select_cmap"], -row["epoch"]))
    summary = TrainingSummary(
        out=str(out),
        labels=labels,
        n_fit=len(fit),
        n_select=len(select),
        epochs=len(history.rows),
        best_epoch=int(best_epoch["epoch"]),
        best_cmap=best_epoch["select_cmap"],
        minutes=round((time.monotonic() - began) / 60, 2),
        problems=(*fit.problems, *select.problems),
    )
    draw_curves(history.rows, summary.best_epoch, f"{settings.kind}, {len(labels)} labels", out / "curves.png")
    backbone = TrainedBackbone(
        network.cpu(),
        name=name or settings.kind,
        labels=labels,
        heard=_heard(fit.recordings, select.recordings),
        split=split,
        provenance={"training": asdict(settings), "best_epoch": summary.best_epoch, "torch": torch.__version__},
    )
    write_json(out / "summary.json", asdict(summary))
    backbone.save(out)  # backbone.json comes last: with it the training counts as finished
    return summary


class _Task(LightningModule):
    """The network, its loss and its judge, in Lightning's words."""

    def __init__(
        self,
        network: TrainableNetwork,
        fit: Crops,
        select: Crops,
        labels: Sequence[str],
        settings: TrainingSettings,
        scorer: Scorer,
    ) -> None:
        super().__init__()
        self.network = network
        self._fit, self._select, self._settings, self._scorer = fit, select, settings, scorer
        self._fit_targets = _targets(fit.recordings, labels, settings.secondary_weight)
        self._select_targets = _targets(select.recordings, labels, 1.0)
        self._places = select.fixed(settings.select_windows)
        self._judged: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._epoch_began = 0.0

    def configure_optimizers(self) -> Any:
        s = self._settings
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=s.learning_rate, weight_decay=s.weight_decay)
        steps = s.epochs * _n_batches(len(self._fit) * s.crops_per_recording, s.batch_size)
        warmup = max(1, round(s.warmup_share * steps))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + float(np.cos(np.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        s = self._settings
        return DataLoader(
            RandomWindows(self._fit, self._fit_targets, s.crops_per_recording, s.seed, self.current_epoch),
            batch_size=s.batch_size,
            drop_last=_n_batches(len(self._fit) * s.crops_per_recording, s.batch_size) > 1,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(FixedWindows(self._select, self._places), batch_size=self._settings.batch_size)

    def on_train_epoch_start(self) -> None:
        # Everything that draws starts anew each epoch, so that a resumed epoch draws what it would have drawn.
        _seed(self._settings.seed, self.current_epoch)
        self._epoch_began = time.monotonic()

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        waveforms, targets = batch
        inputs, targets = mix(self.network.inputs(waveforms), targets, self._settings.mixup_alpha)
        loss = binary_cross_entropy_with_logits(self.network.logits_of(inputs), targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(targets))
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        waveforms, recording = batch
        self._judged.append((recording.cpu(), self.network(waveforms).double().cpu()))

    def on_validation_epoch_end(self) -> None:
        recording = torch.cat([r for r, _ in self._judged]).numpy()
        logits = torch.cat([x for _, x in self._judged])
        self._judged.clear()
        truth = self._select_targets
        loss = binary_cross_entropy_with_logits(logits, torch.from_numpy(truth[recording]).double())
        # float64: in float32 a sigmoid of 17 is already 1.0, and padded cmAP refuses ties with its padding.
        windows = np.minimum(torch.sigmoid(logits).numpy(), 1 - 2.0**-53)
        sums = np.zeros(truth.shape)
        np.add.at(sums, recording, windows)
        scores = sums / np.bincount(recording, minlength=len(truth))[:, None]
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        seconds = time.monotonic() - self._epoch_began
        figures = {"select_loss": float(loss), "select_cmap": self._scorer(truth, scores), "learning_rate": rate}
        self.log_dict({**figures, "seconds": seconds}, prog_bar=False)


def _targets(recordings: Sequence[Recording], labels: Sequence[str], secondary_weight: float) -> np.ndarray:
    column = {label: i for i, label in enumerate(labels)}
    targets = np.zeros((len(recordings), len(labels)), np.float32)
    for row, recording in zip(targets, recordings, strict=True):
        for label in recording.secondary_labels:
            if label in column:
                row[column[label]] = secondary_weight
        row[column[recording.primary_label]] = 1.0
    return targets


def _heard(fit: Sequence[Recording], select: Sequence[Recording]) -> Heard:
    return Heard(
        trained_on=frozenset(r.recording for r in fit),
        selected_on=frozenset(r.recording for r in select),
        xeno_canto_ids=frozenset(r.xeno_canto_id for r in (*fit, *select) if r.xeno_canto_id),
    )


def _last_sound_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that loads: a kill may have torn the last one."""
    for name in ("last.ckpt", "best.ckpt"):
        try:
            torch.load(folder / name, map_location="cpu", weights_only=True)
            return folder / name
        except Exception:  # absent, torn or foreign: each has an error of its own
            continue
    return None


def _seed(seed: int, epoch: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence((seed, epoch + 1)).generate_state(1)[0]))


def _n_batches(n_windows: int, batch_size: int) -> int:
    """Whole batches of an epoch; a set smaller than a batch is one batch."""
    return max(1, n_windows // batch_size)


def _progress_bar() -> list[Callback]:
    if not sys.stderr.isatty():
        return []
    from lightning.pytorch.callbacks import RichProgressBar

    return [RichProgressBar()]
