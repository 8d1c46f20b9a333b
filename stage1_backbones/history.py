"""What training measured, epoch by epoch: kept in the checkpoint, written as CSV, drawn as curves."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from embeddings.files import write_atomically

__all__ = ["COLUMNS", "History", "draw_curves"]

COLUMNS = ("epoch", "train_loss", "select_loss", "select_cmap", "learning_rate", "seconds", "data_wait")

Row = dict[str, float | None]
"""An epoch's figures; None where nothing was judged."""


class History(Callback):
    """Gathers a row an epoch. It travels in the checkpoint, so that a resumed run has the whole curve."""

    def __init__(self, path: Path, on_epoch: Callable[[Mapping[str, float | None]], None] | None) -> None:
        self.rows: list[Row] = []
        self._judged = False
        self._path = path
        self._on_epoch = on_epoch

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._judged = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not self._judged:
            metrics = {name: value for name, value in metrics.items() if not name.startswith("select")}
        metrics |= {"epoch": trainer.current_epoch + 1, "learning_rate": trainer.optimizers[0].param_groups[0]["lr"]}
        row: Row = {name: {**metrics, **pl_module.timing}.get(name) for name in COLUMNS}
        self._judged = False
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


def draw_curves(rows: list[Row], best_epoch: int, title: str, path: Path) -> None:
    """Losses and the selection cmAP over epochs as a PNG, the chosen epoch marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, quality = figure.subplots(1, 2)
    judged = [row for row in rows if row["select_cmap"] is not None]
    looks = [row["epoch"] for row in judged]
    losses.plot([row["epoch"] for row in rows], [row["train_loss"] for row in rows], label="training", color="#1b6ca8")
    losses.plot(looks, [row["select_loss"] for row in judged], label="kept apart", color="#d1495b")
    losses.set(xlabel="epoch", ylabel="loss", yscale="log", title=title)
    losses.legend(frameon=False)
    quality.plot(looks, [row["select_cmap"] for row in judged], color="#d1495b")
    quality.axvline(best_epoch, color="0.5", linestyle=":", label=f"chosen: epoch {best_epoch}")
    quality.set(xlabel="epoch", ylabel="cmAP of the recordings kept apart", ylim=(0, 1.02), title="not fitted on")
    quality.legend(frameon=False, loc="lower right")
    for axes in (losses, quality):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
