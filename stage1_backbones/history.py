"""What training measured, epoch by epoch: kept in the checkpoint, written as CSV, drawn as curves."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from embeddings.files import write_atomically

__all__ = ["COLUMNS", "History", "draw_curves"]

COLUMNS = ("epoch", "train_loss", "select_loss", "select_cmap", "learning_rate", "seconds")


class History(Callback):
    """Gathers a row an epoch. It travels in the checkpoint, so that a resumed run has the whole curve."""

    def __init__(self, path: Path, on_epoch: Callable[[Mapping[str, float]], None] | None) -> None:
        self.rows: list[dict[str, float]] = []
        self._path = path
        self._on_epoch = on_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        row.update({name: float(metrics[name]) for name in COLUMNS[1:]})
        self.rows.append(row)
        write_atomically(self._path, self._write)
        if self._on_epoch is not None:
            self._on_epoch(row)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def _write(self, path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)


def draw_curves(rows: list[dict[str, float]], best_epoch: int, title: str, path: Path) -> None:
    """Losses and the selection cmAP over epochs as a PNG, the chosen epoch marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, quality = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    losses.plot(epochs, [row["train_loss"] for row in rows], label="training (mixed windows)", color="#1b6ca8")
    losses.plot(epochs, [row["select_loss"] for row in rows], label="inner slice", color="#d1495b")
    losses.set(xlabel="epoch", ylabel="binary cross-entropy", yscale="log", title=title)
    losses.legend(frameon=False)
    quality.plot(epochs, [row["select_cmap"] for row in rows], color="#d1495b")
    quality.axvline(best_epoch, color="0.5", linestyle=":", label=f"chosen: epoch {best_epoch}")
    quality.set(xlabel="epoch", ylabel="cmAP of the inner slice", ylim=(0, 1.02), title="recordings not fitted on")
    quality.legend(frameon=False, loc="lower right")
    for axes in (losses, quality):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
