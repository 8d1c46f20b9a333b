"""`backbones`: train the networks of stage one, export them, and list those that there are."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import backbones_compare, type_ablation
from cli.common import (
    DeviceOption,
    DryRunOption,
    JsonOption,
    console,
    make_app,
    print_names,
    require_target,
    run,
    targeted,
    write_summary,
)

if TYPE_CHECKING:
    from stage1_backbones.recipe import TrainingSettings

app = make_app("Train the networks that hear recordings, compare recipes, and list the backbones that there are.")


@app.command()
def train(
    source: Annotated[Path, typer.Argument(help="A train_metadata.csv, or a folder with a subfolder per label.")],
    backbone: Annotated[str, typer.Option(help="efficientnet, vggish_bigru or fusion.")],
    out: Annotated[Path, typer.Option(help="Folder of the backbone; the same command resumes a killed training.")],
    audio: Annotated[
        Path | None, typer.Option(help="Where a table's audio lies. Default: train_audio beside it.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of its block in stores. Default: the kind.")] = "",
    weights: Annotated[str, typer.Option(help="First weights: auto (ImageNet; the default), none, or a file.")] = "",
    model: Annotated[str, typer.Option(help="efficientnet: any timm EfficientNet.")] = "",
    width: Annotated[str, typer.Option(help="vggish_bigru: light or original.")] = "",
    how: Annotated[str, typer.Option(help="fusion: early, deep, gated and others (docs/fusion.md).")] = "",
    recipe: Annotated[
        str, typer.Option(help="default, plain, or a YAML file of training settings (docs/recipes.md lists them).")
    ] = "default",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, such as augment.noise_p=0.5 or loss.name=softmax.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Exactly so many epochs. Default: the recipe's, and enough steps.")
    ] = None,
    crops_per_recording: Annotated[int | None, typer.Option(help="Windows drawn from a recording in an epoch.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of AdamW.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split and of everything drawn.")] = 0,
    valid_fold: Annotated[str, typer.Option(help="The published fold that validates, or 2/5: fold 2 of 5.")] = "",
    group: Annotated[str, typer.Option(help="With 2/5: recordings with one author (source, ...) stay together.")] = "",
    split: Annotated[str, typer.Option(help="train (8:2 or --valid-fold) or all (everything trains).")] = "train",
    target: Annotated[
        str, typer.Option(help="What it learns to tell apart: species, type (song, call, ...), or species+type.")
    ] = "",
    overwrite: Annotated[bool, typer.Option(help="Throw away what --out holds and train anew.")] = False,
    device: DeviceOption = "auto",
    json_path: JsonOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Train a backbone by the default recipe or your own; a part of the recordings is kept apart to judge by."""
    from embeddings.catalogue_sources import read_catalogue
    from embeddings.errors import InputError
    from embeddings.identity import HashCache
    from embeddings.recordings import is_no_call
    from embeddings.splits import k_fold_split, make_split
    from stage1_backbones.augment import read_beds
    from stage1_backbones.registry import create_network
    from stage1_backbones.trained import resolve_device

    require_target(target, both=True)
    if split not in ("train", "all"):
        raise InputError(f"--split {split} is not known here; choose train or all.")
    made_folds = _made_folds(valid_fold, group, everything=split == "all")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder.")
    if (
        out.is_dir()
        and any(out.iterdir())
        and not (out / "settings.json").is_file()
        and not (out / "hashes.arrow").is_file()
    ):
        raise InputError(f"--out {out} holds other files; name an empty or a new folder.")
    network = _network_settings(backbone, model, width, how)
    given = {
        "epochs": epochs,
        "min_steps": None if epochs is None else 0,
        "crops_per_recording": crops_per_recording,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "with_types": True if target == "species+type" else None,
    }
    settings = _training_settings(backbone, network, weights, recipe, setting or [], given)
    device = resolve_device(device)
    # Wrong names, weights and folders are told before any audio is read.
    built = create_network(backbone, settings.network, 2, settings.weights)
    if settings.augment.background_folder:
        read_beds(Path(settings.augment.background_folder), built.sample_rate_hz, built.window_s, most_s=1.0)
    cache = HashCache(None if dry_run else out / "hashes.arrow")
    catalogue = targeted(
        read_catalogue(source, audio=audio, label_folders=source.is_dir(), cache=cache), target, both=True
    )
    if made_folds is not None:
        fold, folds = made_folds
        division = k_fold_split(catalogue.recordings, folds=folds, fold=fold, seed=seed, group=group)
    else:
        division = make_split(catalogue.recordings, seed=seed, valid_fold=valid_fold, everything=split == "all")
    recordings = [r for r in catalogue if division.assignments.get(r.recording) in ("train", "both")]
    n_valid = sum(side == "valid" for side in division.assignments.values())
    from stage1_backbones.targets import words_of
    from stage1_backbones.training import plan_training, seconds_a_step

    plan = plan_training(recordings, settings)
    n_no_call = sum(is_no_call(r.primary_label) for r in recordings)
    negatives = f" ({n_no_call} without a call)" if n_no_call else ""
    out_console = console()
    out_console.print(
        f"{backbone}: {len(recordings)} recordings{negatives} of {words_of(plan.labels)} to train on, "
        f"{len(plan.fit)} to fit and {len(plan.select)} kept apart; {n_valid} held out ({division.kind})."
    )
    print_names("To mend", [*catalogue.problems, *(f"{r.path}: {r.reason}" for r in catalogue.rejected)])
    if dry_run:
        minutes = plan.n_steps * seconds_a_step(settings, len(plan.labels)) / 60
        n_windows = settings.batch_size * settings.accumulate
        out_console.print(
            f"Would train for {plan.n_epochs} epochs, {plan.n_steps} steps of {n_windows} windows, into {out}: about "
            f"{minutes:.1f} minutes on this machine's CPU, by a step taken now."
        )
        return
    summary = _train(recordings, settings, out, division, name, device, overwrite, plan.n_epochs)
    print_names("Left out", list(summary.problems))
    cmap = "" if summary.best_cmap is None else f"cmAP {summary.best_cmap:.3f} on {summary.n_select} kept apart, "
    out_console.print(
        f"Backbone: {out} (epoch {summary.best_epoch} of {summary.epochs}, {cmap}fitted on {summary.n_fit}; "
        f"{summary.minutes:.1f} min, {summary.data_wait:.0%} of them waiting for data). Curves: {out / 'curves.png'}"
    )
    write_summary(json_path, asdict(summary))
    if summary.problems:
        raise typer.Exit(1)


backbones_compare.register(app)
type_ablation.register(app)


@app.command("list")
def list_kinds() -> None:
    """The backbones there are, with size and licence."""
    from rich.table import Table

    from stage1_backbones.registry import list_backbones

    table = Table("name", "numbers", "trained by you", "licence", "what it is")
    for kind in list_backbones():
        missing = "" if kind.installed else " (not installed)"
        trained = "yes" if kind.trainable else "no, frozen"
        table.add_row((kind.reference or kind.name) + missing, kind.dim, trained, kind.licence, kind.summary)
    console().print(table)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A backbone made by `backbones train`.")],
    out: Annotated[Path, typer.Option(help="Folder for backbone.onnx, card.json and README.md.")],
    audio: Annotated[
        Path | None, typer.Option(help="Recordings on which parity is measured. Default: synthesised chirps and noise.")
    ] = None,
    from_waveform: Annotated[bool, typer.Option(help="Put the front end into the graph: it hears waveforms.")] = False,
    json_path: JsonOption = None,
) -> None:
    """Write a trained backbone as ONNX, with a card and its parity figures. Exit code 1 when parity fails."""
    from rich.table import Table

    from embeddings.errors import InputError
    from stage1_backbones.registry import load_backbone
    from stage1_backbones.trained import TrainedBackbone

    backbone = load_backbone(folder, device="cpu")
    if not isinstance(backbone, TrainedBackbone):
        raise InputError(f"{folder} is frozen: its network is not Cisticola's to export. Take it from its makers.")
    if len(backbone.engines) == 1:
        raise InputError("exporting needs ONNX: pip install 'cisticola[fast]'")
    if out.exists() and (not out.is_dir() or any(e.name not in _EXPORTED for e in out.iterdir())):
        raise InputError(f"--out {out} holds other files; name an empty or a new folder.")
    from stage1_backbones.model_card import export_backbone

    waveforms, source = _parity_windows(backbone, audio)
    done = export_backbone(backbone, out, waveforms, source=source, from_waveform=from_waveform)
    table = Table("engine", "windows", "smallest cosine", "largest score difference", "", title=f"Parity on {source}")
    for parity in done.parities:
        verdict = "ok" if parity.passed else "FAILS: do not use it"
        table.add_row(
            parity.engine,
            str(parity.n_windows),
            f"{parity.min_cosine:.6f}",
            f"{parity.max_score_difference:.6f}",
            verdict,
        )
    console().print(table)
    console().print(f"Exported: {out / 'backbone.onnx'}, with card.json and README.md beside it.")
    write_summary(json_path, {"out": str(out), "ok": done.ok, "parity": [asdict(p) for p in done.parities]})
    if not done.ok:
        raise typer.Exit(1)


_EXPORTED = ("backbone.onnx", "card.json", "README.md")


def _parity_windows(backbone: Any, audio: Path | None) -> tuple[Any, str]:
    """Windows to compare engines on, float32 (n, n_samples), and what they are in words."""
    import numpy as np

    n_samples = round(backbone.window_s * backbone.sample_rate_hz)
    if audio is None:
        rng = np.random.default_rng(0)
        t = np.arange(n_samples) / backbone.sample_rate_hz
        chirps = [0.3 * np.sin(2 * np.pi * (500 + 400 * i) * t * (1 + 0.05 * t)) * (t % 1 < 0.5) for i in range(14)]
        waveforms = np.stack(chirps) + 0.01 * rng.standard_normal((14, n_samples))
        silence = np.zeros((1, n_samples))
        noise = 0.1 * rng.standard_normal((1, n_samples))
        return np.concatenate([waveforms, silence, noise]).astype(np.float32), "16 synthesised windows"
    from embeddings.catalogue_sources import read_catalogue
    from stage1_backbones.audio import read_audio

    paths = [r.path for r in read_catalogue(audio, label_folders=False)][:_PARITY_RECORDINGS]
    windows = [read_audio(path, backbone.sample_rate_hz, duration_s=backbone.window_s) for path in paths]
    return np.stack([np.resize(w, n_samples) for w in windows]), f"the first windows of {len(paths)} recordings"


_PARITY_RECORDINGS = 64


def _train(
    recordings: list[Any],
    settings: Any,
    out: Path,
    division: Any,
    name: str,
    device: str,
    overwrite: bool,
    n_epochs: int,
) -> Any:
    from stage1_backbones.training import train as run_training
    from stage2_heads.metrics import present_cmap

    if overwrite and (out / "settings.json").is_file():
        for entry in (
            "settings.json",
            "backbone.json",
            "weights.safetensors",
            "heard.json",
            "summary.json",
            "metrics.csv",
        ):
            (out / entry).unlink(missing_ok=True)
        shutil.rmtree(out / "resume", ignore_errors=True)
    return run_training(
        recordings,
        settings,
        out,
        split=division,
        scorer=present_cmap,
        name=name,
        device=device,
        on_epoch=lambda row: _say_epoch(row, n_epochs),
    )


def _say_epoch(row: Mapping[str, float | None], n_epochs: int) -> None:
    """A line for each epoch that was judged; without recordings kept apart, for about twenty of all."""
    epoch, cmap = int(row["epoch"] or 0), row["select_cmap"]
    if cmap is None and epoch % max(1, n_epochs // 20):
        return
    judged = "" if cmap is None else f"  kept apart: loss {row['select_loss']:.4f}  cmAP {cmap:.3f}"
    console().print(f"  epoch {epoch:3}/{n_epochs}  loss {row['train_loss']:.4f}{judged}  {row['seconds']:.1f} s")


def _made_folds(valid_fold: str, group: str, *, everything: bool) -> tuple[int, int] | None:
    """Fold and number of folds in "2/5"; None when a fold is published or there is none.

    Raises InputError for what no recordings could be divided by.
    """
    from embeddings.errors import InputError
    from embeddings.splits import k_fold_split

    fold, _, folds = valid_fold.partition("/")
    if fold.isdecimal() and folds.isdecimal() and not everything:
        k_fold_split((), folds=int(folds), fold=int(fold), group=group)
        return int(fold), int(folds)
    if group:
        raise InputError(f"--group {group} goes with --valid-fold 2/5 and the like; leave it out otherwise.")
    return None


def _network_settings(backbone: str, model: str, width: str, how: str) -> dict[str, Any]:
    from embeddings.errors import InputError

    belongs = {
        "model": (("efficientnet", "fusion"), model),
        "width": (("vggish_bigru", "fusion"), width),
        "how": (("fusion",), how),
    }
    for option, (kinds, value) in belongs.items():
        if value and backbone not in kinds:
            raise InputError(f"--{option} {value} belongs to --backbone {' or '.join(kinds)}, not to {backbone}.")
    return {option: value for option, (_, value) in belongs.items() if value}


def _training_settings(
    backbone: str,
    network: dict[str, Any],
    weights: str,
    recipe: str,
    assignments: list[str],
    given: dict[str, Any],
) -> TrainingSettings:
    """The named recipe, or the default one with a file laid over it; then what stands on the command line."""
    from embeddings.settings import merged, parse_assignments, read_yaml
    from stage1_backbones.recipe import TrainingSettings
    from stage1_backbones.recipes import RECIPES, recipe_of

    is_file = recipe not in RECIPES
    chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if weights:
        chosen["weights"] = weights
    layers = [
        recipe_of(backbone) if is_file else recipe_of(backbone, recipe),
        read_yaml(Path(recipe)) if is_file else {},
        {**chosen, "network": network},
        parse_assignments(assignments),
    ]
    return TrainingSettings.from_json(merged(*layers))


def main() -> None:
    """Entry point of `backbones`."""
    run(app)


if __name__ == "__main__":
    main()
