"""`backbones ablate-types`: call types by top K and threshold, epoch by epoch, as the reference system told them."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.common import DeviceOption, JsonOption, console, targeted, write_summary
from cli.figures import figure_words

if TYPE_CHECKING:
    import numpy as np

    from embeddings.recordings import Recording
    from stage1_backbones.recipe import TrainingSettings
    from stage2_heads.score_report import Figure

__all__ = ["Cell", "cells_of", "register"]

_METRICS = {"cmap_present": "mAP", "ap_micro": "mAP, micro", "f1_micro": "F1, micro", "f1_macro": "F1, macro"}
_PALETTE = ("#1b6ca8", "#d1495b", "#66a182")
_REPLICATES = 1000
_TOO_MANY_EPOCHS = 40  # from here on a training looks at its recordings every other epoch


def register(app: typer.Typer) -> None:
    """Add the command to `backbones`."""
    app.command("ablate-types")(ablate_types)


def ablate_types(
    source: Annotated[Path, typer.Argument(help="A train_metadata.csv with a `type` column.")],
    out: Annotated[Path, typer.Option(help="Folder of the table and the plot; finished folds are kept in it.")],
    audio: Annotated[Path | None, typer.Option(help="Where the audio lies. Default: train_audio beside it.")] = None,
    backbone: Annotated[str, typer.Option(help="efficientnet or vggish_bigru.")] = "efficientnet",
    epochs: Annotated[int, typer.Option(help="Epochs, each judged.")] = 5,
    top_k: Annotated[str, typer.Option(help="How many of the best types are kept.")] = "3,5",
    thresholds: Annotated[str, typer.Option(help="Scores below are dropped.")] = "0.2,0.3,0.4",
    folds: Annotated[int, typer.Option(help="Every recording is judged once, by a network that did not hear it.")] = 3,
    min_recordings: Annotated[int, typer.Option(help="A type with fewer recordings counts as `other`.")] = 6,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A training setting, such as crops_per_recording=20.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of folds and trainings.")] = 0,
    device: DeviceOption = "auto",
    json_path: JsonOption = None,
) -> None:
    """Train on call types with softmax; score each epoch for every top K and threshold, before and after cutting."""
    import numpy as np

    from embeddings.call_types import without_rare
    from embeddings.catalogue_sources import read_catalogue
    from embeddings.errors import InputError
    from embeddings.identity import HashCache
    from embeddings.settings import merged, parse_assignments
    from stage1_backbones.recipe import TrainingSettings
    from stage1_backbones.recipes import recipe_of

    try:
        keep, cut = [int(k) for k in top_k.split(",")], [float(t) for t in thresholds.split(",")]
    except ValueError:
        raise InputError(f"--top-k {top_k} and --thresholds {thresholds} must be numbers between commas.") from None
    if min(keep) < 1 or not 0 < min(cut) <= max(cut) < 1:
        raise InputError(f"--top-k {top_k} must be 1 or more, --thresholds {thresholds} between 0 and 1.")
    if not 1 <= epochs < _TOO_MANY_EPOCHS:
        raise InputError(f"--epochs {epochs} must be 1 to {_TOO_MANY_EPOCHS - 1}: each of them is judged.")
    if out.is_dir() and any(out.iterdir()) and not (out / "hashes.arrow").is_file():
        raise InputError(f"--out {out} holds other files; name an empty or a new folder.")
    given = {"epochs": epochs, "min_steps": 0, "loss": {"name": "softmax"}, "choose": "last", "seed": seed}
    settings = TrainingSettings.from_json(merged(recipe_of(backbone), given, parse_assignments(setting or [])))
    read = read_catalogue(source, audio=audio, label_folders=False, cache=HashCache(out / "hashes.arrow"))
    recordings, rare = without_rare(targeted(read, "type").recordings, min_recordings)
    if rare:
        console().print(f"Counted as `other`, fewer than {min_recordings} recordings: {', '.join(rare)}.")
    judged = [_judge(recordings, settings, out, folds, fold, device) for fold in range(1, folds + 1)]
    labels = sorted({r.primary_label for r in recordings})
    truth = np.concatenate([t for t, _ in judged])
    scores = np.concatenate([s for _, s in judged], axis=1)
    cells = cells_of(truth, scores, keep, cut, seed)
    n, steps = len(truth), settings.n_batches(len(truth) * (folds - 1) // folds)
    title = (
        f"Call types of {source.parent.name}: {n} recordings, {len(labels)} types ({', '.join(labels)}), each judged "
        f"by a network fitted on the other folds of {folds}; {backbone}, softmax, about {steps} steps an epoch, a seed"
    )
    _write(cells, out, title)
    best = max(cells, key=lambda cell: cell.cut["cmap_present"].value or 0.0)
    printer = console()
    printer.print(_table(cells, title))
    printer.print(
        f"Highest mAP after cutting: {figure_words(best.cut['cmap_present'])} at epoch {best.epoch}, K {best.top_k}, "
        f"threshold {best.threshold:g}; uncut {figure_words(best.whole['cmap_present'])}. Table and plot: {out}"
    )
    write_summary(json_path, {"title": title, "n": n, "labels": labels, "cells": [cell.to_json() for cell in cells]})


@dataclass(frozen=True)
class Cell:
    """Figures at one epoch, top K and threshold. whole, cut: metric -> Figure of the scores as they are, and cut."""

    epoch: int
    top_k: int
    threshold: float
    whole: dict[str, Figure]
    cut: dict[str, Figure]

    def to_json(self) -> dict[str, Any]:
        sides = {"whole": self.whole, "cut": self.cut}
        figures = {side: {name: f.to_json() for name, f in values.items()} for side, values in sides.items()}
        return {"epoch": self.epoch, "top_k": self.top_k, "threshold": self.threshold, **figures}


def cells_of(
    truth: np.ndarray, scores: np.ndarray, top_k: Sequence[int], thresholds: Sequence[float], seed: int = 0
) -> list[Cell]:
    """Every cell. truth : (n, c) of {0, 1};  scores : (epochs, n, c) in [0, 1).

    Cut scores are 0 outside a recording's K best and below the threshold; F1 counts what is left as detections, and is
    the same on both sides. Intervals: Bayesian bootstrap over recordings, the same weights everywhere.
    """
    import numpy as np

    from stage2_heads.bootstrap import bayesian_weights, interval
    from stage2_heads.calibration import BELOW_ONE
    from stage2_heads.levels import Level
    from stage2_heads.score_report import Figure
    from stage2_heads.score_table import ScoreTable
    from stage2_heads.thresholds import detected

    n = len(truth)
    weights = np.hstack([np.ones((n, 1)), bayesian_weights(n, _REPLICATES, seed)])
    nobody = np.full(n, -1)

    def figures(values: np.ndarray, k: int, threshold: float) -> dict[str, Figure]:
        table = ScoreTable.of(np.clip(values, 0.0, BELOW_ONE))
        found = Level(truth > 0, table, nobody, np.arange(n), threshold, k).figures(weights).metrics
        made = {}
        for name in _METRICS:
            value = float(found[name][0])
            low, high = interval(found[name][1:], value)
            made[name] = Figure(value, max(low, 0.0), min(high, 1.0), n)
        return made

    return [
        Cell(
            epoch,
            k,
            threshold,
            figures(of_epoch, k, threshold),
            figures(np.where(detected(of_epoch, threshold, k), of_epoch, 0.0), k, threshold),
        )
        for epoch, of_epoch in enumerate(scores, start=1)
        for k in top_k
        for threshold in thresholds
    ]


def _judge(
    recordings: Sequence[Recording], settings: TrainingSettings, out: Path, folds: int, fold: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Truth (n, c) of a fold's recordings, and their scores after each epoch (epochs, n, c)."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    from cli.experiment import digest_of
    from embeddings.files import write_atomically
    from embeddings.splits import k_fold_split
    from stage1_backbones.targets import labels_digest
    from stage1_backbones.trained import resolve_device
    from stage1_backbones.training import train
    from stage2_heads.metrics import present_cmap

    split = k_fold_split(recordings, folds=folds, fold=fold, seed=settings.seed)
    told = labels_digest(recordings, with_types=settings.with_types)
    path = out / f"fold-{fold}-{digest_of(settings.to_json(), split.to_json(), told)}.safetensors"
    if not path.is_file():
        seen: list[tuple[np.ndarray, np.ndarray]] = []

        def remember(truth: np.ndarray, scores: np.ndarray) -> float:
            seen.append((truth.copy(), scores.copy()))
            return present_cmap(truth, scores)

        folder = out / f"training-{fold}"
        shutil.rmtree(folder, ignore_errors=True)  # one that was cut short has not remembered its first epochs
        held_out = {recording for recording, side in split.assignments.items() if side == "valid"}
        summary = train(
            recordings,
            settings,
            folder,
            split=split,
            scorer=remember,
            device=resolve_device(device),
            kept_apart=held_out,
        )
        found = {"truth": seen[0][0], "scores": np.stack([scores for _, scores in seen])}
        write_atomically(path, lambda temporary: save_file(found, temporary))
        shutil.rmtree(folder)
        console().print(f"  fold {fold} of {folds}: {summary.n_fit} recordings, {summary.minutes:.1f} min")
    kept = load_file(path)
    return kept["truth"], kept["scores"]


def _headings() -> list[str]:
    aps = [f"{_METRICS[name]}, {side}" for name in ("cmap_present", "ap_micro") for side in ("whole", "cut")]
    return ["epoch", "K", "threshold", *aps, _METRICS["f1_micro"], _METRICS["f1_macro"]]


def _row(cell: Cell) -> list[str]:
    aps = [figure_words(side[name]) for name in ("cmap_present", "ap_micro") for side in (cell.whole, cell.cut)]
    return [
        *(str(cell.epoch), str(cell.top_k), f"{cell.threshold:g}"),
        *aps,
        *(figure_words(cell.cut[name]) for name in ("f1_micro", "f1_macro")),
    ]


def _table(cells: Sequence[Cell], title: str) -> Any:
    from rich.table import Table

    table = Table(*_headings(), title=title, title_justify="left")
    for cell in cells:
        table.add_row(*(text.replace(" (", "\n(") for text in _row(cell)))
    return table


def _write(cells: Sequence[Cell], out: Path, title: str) -> None:
    """types.csv, types.md and types.png in `out`."""
    from embeddings.files import write_atomically, write_text

    lines = [f"# {title}", "", "| " + " | ".join(_headings()) + " |", "|" + "---|" * len(_headings())]
    lines += ["| " + " | ".join(_row(cell)) + " |" for cell in cells]
    lines += ["", "95 % intervals: Bayesian bootstrap over recordings. Cut: scores outside the K best, or below the"]
    lines += ["threshold, are 0; F1 counts what is left.", ""]
    write_text(out / "types.md", "\n".join(lines))
    write_atomically(out / "types.csv", lambda path: _write_csv(path, cells))
    write_atomically(out / "types.png", lambda path: _draw(path, cells))


def _write_csv(path: Path, cells: Sequence[Cell]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        columns = [(name, side) for name in _METRICS for side in ("whole", "cut")]
        names = [f"{name}_{side}{end}" for name, side in columns for end in ("", "_low", "_high")]
        writer.writerow(["epoch", "top_k", "threshold", *names])
        for cell in cells:
            figures = [side[name] for name in _METRICS for side in (cell.whole, cell.cut)]
            values = [number for f in figures for number in (f.value, f.low, f.high)]
            writer.writerow([cell.epoch, cell.top_k, cell.threshold, *values])


def _draw(path: Path, cells: Sequence[Cell]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(canvas)
    epochs = sorted({cell.epoch for cell in cells})
    panels = (("cmap_present", "mAP"), ("f1_micro", "F1, micro"))
    for axes, (name, what) in zip(canvas.subplots(1, 2), panels, strict=True):
        for place, k in enumerate(sorted({cell.top_k for cell in cells})):
            for colour, threshold in zip(_PALETTE, sorted({cell.threshold for cell in cells}), strict=False):
                own = [cell for cell in cells if (cell.top_k, cell.threshold) == (k, threshold)]
                values = [cell.cut[name].value for cell in own]
                style = ("-", "--", ":")[place % 3]
                axes.plot(epochs, values, style, color=colour, marker="o", markersize=3, label=f"K {k}, {threshold:g}")
        if name == "cmap_present":
            whole = [next(c for c in cells if c.epoch == epoch).whole[name].value for epoch in epochs]
            axes.plot(epochs, whole, color="black", linewidth=1, label="uncut")
        axes.set(xlabel="epoch", ylabel=what, xticks=epochs, ylim=(0, 1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, ncols=2)
    canvas.savefig(path, dpi=130, format="png")
