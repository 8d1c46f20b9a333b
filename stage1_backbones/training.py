"""The recipe: windows drawn and varied, mixed, judged species by species; weights averaged over the last steps."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader

from embeddings.contract import Heard
from embeddings.errors import InputError
from embeddings.files import write_json
from embeddings.recordings import Recording
from embeddings.splits import Split, inner_slice
from stage1_backbones.batches import BatchMaker, TrainingBatches, TrainingLoader
from stage1_backbones.crops import Crops, FixedWindows
from stage1_backbones.history import History, draw_curves
from stage1_backbones.network import TrainableNetwork
from stage1_backbones.recipe import TrainingSettings, TrainingSummary, finished_training
from stage1_backbones.registry import create_network
from stage1_backbones.runtime import keep_large_blocks, quiet_lightning
from stage1_backbones.targets import class_names, labels_digest, n_species, target_matrix
from stage1_backbones.task import Scorer, Task, seed_torch
from stage1_backbones.trained import TrainedBackbone

__all__ = ["TrainingPlan", "TrainingSettings", "TrainingSummary", "plan_training", "seconds_a_step", "train"]

_LOOKS = 20  # at the recordings kept apart, over a training
_TIMED_WINDOWS = 8  # of a dry run; each window of a larger batch takes about as long


@dataclass(frozen=True)
class TrainingPlan:
    """What a training would do, known before any audio is decoded.

    labels       the classes;  fit, select: recordings that are fitted on, and those kept apart
    n_epochs, n_steps   how long;  judge_every: epochs between two looks at the recordings kept apart
    """

    labels: tuple[str, ...]
    fit: tuple[Recording, ...]
    select: tuple[Recording, ...]
    n_epochs: int
    n_steps: int
    judge_every: int


def plan_training(
    recordings: Sequence[Recording], settings: TrainingSettings, kept_apart: Collection[str] | None = None
) -> TrainingPlan:
    """Divide recordings and count epochs and steps.

    kept_apart : content hashes of those to judge by, in place of a share drawn by `select_share`
    Raises InputError when too little is there to train on.
    """
    labels = class_names(recordings, with_types=settings.with_types)
    fit, select = list(recordings), list[Recording]()
    if kept_apart is not None:
        fit = [r for r in recordings if r.recording not in kept_apart]
        select = [r for r in recordings if r.recording in kept_apart]
    elif settings.select_share:
        fit, select = inner_slice(recordings, settings.seed, settings.select_share)
    if n_species(labels) < 2 or not fit or (settings.select_share and not select):
        raise InputError(
            f"{len(recordings)} training recordings of {n_species(labels)} labels are too few: two labels are needed, "
            f"and at least one label with two recordings, so that some can be kept apart (select_share=0 keeps none)."
        )
    if settings.with_types:
        class_names(fit, with_types=True)  # those that are fitted on must say some, too
    n_epochs = settings.n_epochs(len(fit))
    most = 1 if settings.choose == "best" else max(1, n_epochs // _LOOKS)
    return TrainingPlan(
        labels=labels,
        fit=tuple(fit),
        select=tuple(select),
        n_epochs=n_epochs,
        n_steps=n_epochs * math.ceil(settings.n_batches(len(fit)) / settings.accumulate),
        judge_every=max(every for every in range(1, most + 1) if n_epochs % every == 0),
    )


def train(
    recordings: Sequence[Recording],
    settings: TrainingSettings,
    out: Path,
    *,
    split: Split,
    scorer: Scorer,
    name: str = "",
    device: str = "cpu",
    kept_apart: Collection[str] | None = None,
    on_epoch: Callable[[Mapping[str, float | None]], None] | None = None,
) -> TrainingSummary:
    """Train a backbone on `recordings`, all of the training side of `split`.

    A part of them is kept apart (`select_share`, or those that `kept_apart` names by content hash): it is judged by,
    and chooses the epoch if so asked. The same call goes on after a kill and gives the same weights as an uninterrupted
    run; after a finished training it returns the summary.
    Writes backbone.json, weights.safetensors, heard.json, settings.json, metrics.csv, curves.png, summary.json.
    Raises InputError when `out` holds another training, or too little is left to train on.
    """
    out = Path(out)
    labels = labels_digest(recordings, with_types=settings.with_types)
    finished = finished_training(out, settings, split, labels)
    if finished is not None:
        return finished
    began = time.monotonic()
    keep_large_blocks()
    plan = plan_training(recordings, settings, kept_apart)
    seed_torch(settings.seed, -1)
    network = create_network(settings.kind, settings.network, len(plan.labels), settings.weights)
    maker = BatchMaker(network, settings)
    fit = Crops(plan.fit, network.sample_rate_hz, network.window_s)
    select = Crops(plan.select, network.sample_rate_hz, network.window_s)
    if not len(fit) or (plan.select and not len(select)):
        raise InputError(
            f"nothing to train on is left after decoding: {' '.join((*fit.problems, *select.problems)[:5])}"
        )
    write_json(out / "settings.json", {**settings.to_json(), "split": split.to_json(), "labels": labels})

    fit_targets = target_matrix(fit.recordings, plan.labels, settings.secondary_weight)
    judged_labels = slice(n_species(plan.labels))  # not every recording kept apart says its kind of call
    on_cpu = device == "cpu"
    _start_at_base_rates(network, np.nanmean(fit_targets, axis=0))
    task = Task(
        network,
        settings,
        fit_targets=fit_targets,
        select_targets=target_matrix(select.recordings, plan.labels, 1.0),
        n_steps=plan.n_steps,
        scorer=lambda truth, scores: scorer(truth[:, judged_labels], scores[:, judged_labels]),
        maker=None if on_cpu else maker,
    )
    history = History(out / "metrics.csv", on_epoch)
    choose_best = settings.choose == "best"
    checkpoints = ModelCheckpoint(
        dirpath=out / "resume",
        filename="best",
        monitor="select_cmap" if choose_best else None,
        mode="max",
        save_last=True,
        every_n_epochs=plan.judge_every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    callbacks: list[Callback] = [history, checkpoints, *_progress_bar()]
    if settings.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=settings.ema_decay))
    if choose_best:
        callbacks.append(
            EarlyStopping("select_cmap", mode="max", patience=settings.patience, check_on_train_epoch_end=True)
        )
    judged = DataLoader(FixedWindows(select, select.fixed(settings.select_windows)), batch_size=settings.batch_size)
    with quiet_lightning():
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(device.split(":")[0], device.split(":")[0]),
            devices=1,
            precision=settings.precision,  # type: ignore[arg-type]
            max_epochs=plan.n_epochs,
            accumulate_grad_batches=settings.accumulate,
            check_val_every_n_epoch=plan.judge_every,
            limit_val_batches=None if plan.select else 0,
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=sys.stderr.isatty(),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=out,
        )
        batches = TrainingBatches(fit, fit_targets, settings, maker if on_cpu else None)
        checkpoint, first_epoch = _last_sound_checkpoint(out / "resume")
        # After a resume the loop draws its first batches before it has counted on.
        loader = TrainingLoader(batches, lambda: max(first_epoch, task.current_epoch))
        trainer.fit(task, loader, judged, ckpt_path=checkpoint, weights_only=True)
        chosen = out / "resume/best.ckpt" if choose_best else _last_sound_checkpoint(out / "resume")[0]
        assert chosen is not None  # the last epoch wrote it
        task.load_state_dict(torch.load(chosen, map_location="cpu", weights_only=True)["state_dict"])

    rows = history.rows
    looks = [row for row in rows if row["select_cmap"] is not None]
    best = max(looks, key=lambda row: (row["select_cmap"] or 0.0, -(row["epoch"] or 0))) if choose_best else rows[-1]
    summary = TrainingSummary(
        out=str(out),
        labels=plan.labels,
        n_fit=len(fit),
        n_select=len(select),
        epochs=len(rows),
        best_epoch=int(best["epoch"] or 0),
        best_cmap=best["select_cmap"],
        minutes=round((time.monotonic() - began) / 60, 2),
        data_wait=round(float(np.mean([row["data_wait"] or 0.0 for row in rows])), 4),
        problems=(*fit.problems, *select.problems),
    )
    draw_curves(rows, summary.best_epoch, f"{settings.kind}, {len(plan.labels)} labels", out / "curves.png")
    backbone = TrainedBackbone(
        network.cpu(),
        name=name or settings.kind,
        labels=plan.labels,
        heard=_heard(fit.recordings, select.recordings if choose_best else []),
        split=split,
        provenance={"training": settings.to_json(), "best_epoch": summary.best_epoch, "torch": torch.__version__},
    )
    write_json(out / "summary.json", asdict(summary))
    backbone.save(out)  # backbone.json comes last: with it the training counts as finished
    shutil.rmtree(out / "resume", ignore_errors=True)  # many times the size of the weights
    return summary


def seconds_a_step(settings: TrainingSettings, n_labels: int) -> float:
    """How long a step of this training takes on this machine's CPU, by taking one on some windows of noise.

    A step and not a look ahead: most of its time goes into what leads back through the network. One before it is not
    timed: layers that do not fit together fail there, and memory is taken up. Pictures are drawn between the steps, not
    ahead of them, so that a training is a little faster.
    """
    keep_large_blocks()
    network = create_network(settings.kind, settings.network, n_labels, "none").train()
    optimizer = torch.optim.AdamW(network.parameters())
    n_windows = min(settings.batch_size, _TIMED_WINDOWS)
    waveforms = 0.1 * torch.randn(n_windows, round(network.window_s * network.sample_rate_hz))
    for _ in range(2):
        began = time.monotonic()
        network(waveforms).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.monotonic() - began) * settings.batch_size / n_windows * settings.accumulate


def _start_at_base_rates(network: TrainableNetwork, class_shares: np.ndarray) -> None:
    """Let scores begin at how often each class occurs instead of at one half, which takes many steps to unlearn.

    Source: the prior initialisation of Lin et al. 2017, "Focal Loss for Dense Object Detection".
    """
    bias = getattr(network.classifier, "bias", None)
    if bias is not None and network.output == "sigmoid":
        shares = torch.from_numpy(class_shares).clamp(1e-3, 0.5)
        with torch.no_grad():
            bias.copy_(torch.log(shares / (1 - shares)))


def _heard(fit: Sequence[Recording], select: Sequence[Recording]) -> Heard:
    return Heard(
        trained_on=frozenset(r.recording for r in fit),
        selected_on=frozenset(r.recording for r in select),
        xeno_canto_ids=frozenset(r.xeno_canto_id for r in (*fit, *select) if r.xeno_canto_id),
    )


def _last_sound_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The newest checkpoint that loads, and the epoch that follows it: a kill may have torn the last one.

    Without a choice of the best, best.ckpt is written at each look too, right before last.ckpt.
    """
    for name in ("last.ckpt", "best.ckpt"):
        try:
            return folder / name, torch.load(folder / name, map_location="cpu", weights_only=True)["epoch"] + 1
        except Exception:  # absent, torn or foreign: each has an error of its own
            continue
    return None, 0


def _progress_bar() -> list[Callback]:
    if not sys.stderr.isatty():
        return []
    from lightning.pytorch.callbacks import RichProgressBar

    return [RichProgressBar()]
