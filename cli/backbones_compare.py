"""`backbones compare`: recipes side by side, on the same folds, with intervals; resumable for days."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.common import DeviceOption, DryRunOption, JsonOption, console, targeted, write_summary

if TYPE_CHECKING:
    from cli.experiment import Experiment, Trial
    from cli.experiment_cells import Cells
    from embeddings.identity import HashCache
    from embeddings.recordings import Catalogue

__all__ = ["compare", "register"]


def register(app: typer.Typer) -> None:
    """Add the command to `backbones`."""
    app.command()(compare)


def compare(
    file: Annotated[Path, typer.Argument(help="YAML: data, folds, seeds, recipes. See docs/recipes.md.")],
    out: Annotated[Path, typer.Option(help="Folder of finished cells and of the table; run again to go on.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder that the file's tables lie in. Default: the file's.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Train these recipes only; the table shows all finished.")
    ] = None,
    device: DeviceOption = "auto",
    json_path: JsonOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Train recipes on every fold, embed, fit heads on each fold's training side, and score what was held out."""
    from cli.experiment import read_experiment
    from cli.experiment_cells import Cells
    from cli.experiment_report import results_of, results_table, write_results
    from embeddings.call_types import without_rare
    from embeddings.errors import InputError
    from embeddings.identity import HashCache
    from stage1_backbones.trained import resolve_device

    experiment = read_experiment(file)
    if unknown := [name for name in only or [] if name not in experiment.recipes]:
        raise InputError(f"--only {unknown[0]} is not a recipe of {file}; it has {', '.join(experiment.recipes)}.")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder.")
    chosen_device = resolve_device(device)  # told before hours of hashing
    catalogue = _read_data(experiment, data or file.parent, HashCache(None if dry_run else out / "hashes.arrow"))
    screen = console()
    judged = catalogue
    if experiment.target == "type":
        recordings, _ = without_rare(targeted(catalogue, "type"), experiment.min_recordings)
        judged = replace(catalogue, recordings=recordings)
    cells = Cells(
        experiment,
        catalogue,
        out,
        judged=judged,
        device=chosen_device,
        say=lambda line: screen.print(line, soft_wrap=True),
    )
    trials, arms = experiment.trials(catalogue), experiment.arms()
    _check(experiment, catalogue, trials)
    if dry_run:
        _say_plan(experiment, catalogue, cells)
        return
    title = experiment.title or file.stem
    found = {}
    for trial in trials:
        own = [arm for arm in arms if arm.recipe == trial.recipe]
        if only and trial.recipe not in only:
            own = [arm for arm in own if cells.is_done(trial, arm)]
        if own:
            found.update({(trial, arm): cell for arm, cell in cells.scores(trial, own).items()})
    results = results_of(experiment, judged, found)
    paths = write_results(results, experiment, out, title=title)
    screen.print(results_table(results, experiment, title))
    screen.print(f"Results: {', '.join(str(path) for path in paths)}")
    write_summary(json_path, {"out": str(out), "results": [result.to_json() for result in results]})


def _read_data(experiment: Experiment, root: Path, cache: HashCache) -> Catalogue:
    """The recordings of all tables; one content in two tables is one recording."""
    from embeddings.catalogue_sources import read_catalogue
    from embeddings.recordings import Catalogue

    catalogue = Catalogue(())
    for table in experiment.data:
        read = read_catalogue(root / table, label_folders=(root / table).is_dir(), cache=cache)
        catalogue = Catalogue(
            catalogue.joined(r for r in read if r.primary_label).recordings,
            (*catalogue.problems, *read.problems),
            (*catalogue.rejected, *read.rejected),
        )
    return catalogue


def _check(experiment: Experiment, catalogue: Catalogue, trials: list[Trial]) -> None:
    """Everything that can be wrong is told before the first training."""
    from embeddings.errors import InputError
    from stage1_backbones.augment import read_beds
    from stage1_backbones.registry import create_network, describe_backbone
    from stage1_backbones.training import plan_training
    from stage2_heads.heads import create_head

    for head in experiment.heads:
        create_head(head)
    for name in experiment.frozen:
        describe_backbone(name)
    checked: set[str] = set()
    window_s: dict[tuple[str, str], float] = {}
    for trial in trials:
        split = experiment.split(catalogue, trial)
        trained = [r for r in catalogue if split.assignments.get(r.recording) == "train"]
        for kind in experiment.kinds(trial.recipe):
            settings = experiment.settings(trial.recipe, kind, trial.seed)
            plan_training(trained, settings)
            seen = str(replace(settings, seed=0))
            if seen in checked and (trial.recipe, kind) in window_s:
                continue
            checked.add(seen)
            network = create_network(kind, settings.network, 2, settings.weights)
            window_s[trial.recipe, kind] = network.window_s
            if settings.augment.background_folder:
                read_beds(
                    Path(settings.augment.background_folder), network.sample_rate_hz, network.window_s, most_s=1.0
                )
    for arm in experiment.arms():
        lengths = {block: window_s[arm.recipe, block] for block in arm.blocks if (arm.recipe, block) in window_s}
        if len(set(lengths.values())) > 1:
            named = ", ".join(f"{block} {length:g} s" for block, length in lengths.items())
            raise InputError(f"{arm.name}: blocks of one store hear windows of one length, not {named}.")


def _say_plan(experiment: Experiment, catalogue: Catalogue, cells: Cells) -> None:
    from rich.table import Table

    from stage1_backbones.training import plan_training, seconds_a_step

    table = Table("recipe", "backbone", "trainings", "done", "recordings", "labels", "steps", "min each", "min left")
    trials = experiment.trials(catalogue)
    total = 0.0
    for recipe in experiment.recipes:
        for kind in experiment.kinds(recipe):
            own = [trial for trial in trials if trial.recipe == recipe]
            folders, done = set(), set()
            for trial in own:
                split = experiment.split(catalogue, trial)
                folder = cells.backbone_path(trial, kind, split)
                folders.add(folder)
                if (folder / "backbone.json").is_file():
                    done.add(folder)
            split = experiment.split(catalogue, own[0])
            recordings = [r for r in catalogue if split.assignments.get(r.recording) == "train"]
            settings = experiment.settings(recipe, kind, own[0].seed)
            plan = plan_training(recordings, settings)
            minutes = plan.n_steps * seconds_a_step(settings, len(plan.labels)) / 60
            left = minutes * (len(folders) - len(done))
            total += left
            table.add_row(
                *(recipe, kind, str(len(folders)), str(len(done)), str(len(plan.fit)), str(len(plan.labels))),
                *(str(plan.n_steps), f"{minutes:.1f}", f"{left:.1f}"),
            )
    console().print(table)
    console().print(
        f"{len(catalogue)} recordings; {len(experiment.arms())} rows in the table. About {total:.0f} minutes of "
        f"training are left on this machine, by a step of each taken now."
    )
