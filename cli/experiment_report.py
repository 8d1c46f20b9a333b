"""What an experiment came to: an arm a row, with intervals and paired differences, as table, CSV and picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cli.experiment import AGAINST, Arm, Experiment, Trial
from cli.experiment_cells import CellScores
from cli.figures import figure_words
from embeddings.errors import InputError
from embeddings.files import write_atomically, write_json, write_text
from stage2_heads.score_report import Figure

if TYPE_CHECKING:
    from rich.table import Table

    from embeddings.recordings import Catalogue

__all__ = ["METRICS", "ArmResult", "results_of", "results_table", "write_results"]

METRICS = {"top_1": "top-1", "cmap_present": "cmAP, present", "cmap_padded_5": "cmAP, padded 5", "auroc": "AUROC"}
PAIRED = ("top_1", "cmap_present")
_FILES_ONLY = ("cmAP, padded 5", "AUROC", "top-1 - first", "M numbers")  # a terminal is narrower than a page
_REPLICATES = 2000


@dataclass
class ArmResult:
    """A row of the table.

    n            recordings scored, each once a seed, by the trial that held it out
    figures      metric -> mean over seeds with a 95 % interval;  by_seed: metric -> a value a seed
    parameters   that the row's backbones learnt
    against      what -> metric -> paired difference: "first" recipe's arm of the same blocks or first row, "best block"
                 alone, and "<track> silenced": what is lost without it, negative when something is
    """

    arm: Arm
    n: int
    n_seeds: int
    minutes: float
    parameters: int = 0
    figures: dict[str, Figure] = field(default_factory=dict)
    by_seed: dict[str, list[float]] = field(default_factory=dict)
    replicates: dict[str, np.ndarray] = field(default_factory=dict)
    against: dict[str, dict[str, Figure]] = field(default_factory=dict)
    best_block: str = ""
    weights: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.arm.recipe,
            "blocks": list(self.arm.blocks),
            "head": self.arm.head,
            "fusion": self.arm.fusion,
            "n": self.n,
            "n_seeds": self.n_seeds,
            "minutes": round(self.minutes, 2),
            "parameters": self.parameters,
            "figures": {name: figure.to_json() for name, figure in self.figures.items()},
            "by_seed": self.by_seed,
            "against": {
                what: {name: figure.to_json() for name, figure in figures.items()}
                for what, figures in self.against.items()
            },
            "best_block": self.best_block,
            "block_weights": list(self.weights),
        }


def results_of(
    experiment: Experiment, catalogue: Catalogue, cells: Mapping[tuple[Trial, Arm], CellScores], seed: int = 0
) -> list[ArmResult]:
    """Figures of every arm whose trials are all there.

    Scores of all folds of a seed stand in one table, a recording a row, and are ranked together; a figure is the mean
    over seeds, and its interval comes from reweighting recordings, the same weights for every arm and seed.
    """
    by_arm: dict[Arm, dict[int, list[CellScores]]] = {}
    for (trial, arm), cell in cells.items():
        by_arm.setdefault(arm, {}).setdefault(trial.seed, []).append(cell)
    n_trials = len({(trial.seed, trial.fold) for trial in experiment.trials(catalogue)})
    complete = {arm: seeds for arm, seeds in by_arm.items() if sum(map(len, seeds.values())) == n_trials}
    results = [_result(arm, complete[arm], catalogue, seed) for arm in experiment.arms() if arm in complete]
    _pair(results, experiment)
    return [result for result in results if not result.arm.silenced]


def _result(arm: Arm, seeds: Mapping[int, Sequence[CellScores]], catalogue: Catalogue, seed: int) -> ArmResult:
    from stage2_heads.bootstrap import bayesian_weights, interval
    from stage2_heads.labels import RecordingLabels, primary_codes, target_matrix
    from stage2_heads.levels import Level
    from stage2_heads.score_table import ScoreTable

    by_seed: dict[str, list[float]] = {name: [] for name in METRICS}
    replicates: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    n = 0
    for cells in seeds.values():
        labels = cells[0].labels
        if any(cell.labels != labels for cell in cells):
            raise InputError(f"{arm.name}: folds know different labels; leave out labels that not every fold trains.")
        names = np.concatenate([np.array(cell.recordings) for cell in cells])
        order = np.argsort(names)  # the same order, and so the same weights, for every arm
        scores = np.concatenate([cell.scores for cell in cells])[order]
        known = [RecordingLabels.of(catalogue.recordings[catalogue.position(str(name))]) for name in names[order]]
        n = len(known)
        level = Level(
            target_matrix(known, labels) > 0, ScoreTable.of(scores), primary_codes(known, labels), np.arange(n)
        )
        weights = np.hstack([np.ones((n, 1)), bayesian_weights(n, _REPLICATES, seed)])
        metrics = level.figures(weights).metrics
        for name in METRICS:
            by_seed[name].append(float(metrics[name][0]))
            replicates[name].append(metrics[name][1:])
    minutes = sum(cell.minutes for cells in seeds.values() for cell in cells) / sum(map(len, seeds.values()))
    parameters = next(iter(seeds.values()))[0].parameters
    result = ArmResult(arm, n, len(seeds), minutes, parameters, by_seed=by_seed)
    chosen = [cell.weights for cells in seeds.values() for cell in cells if cell.weights]
    if chosen:
        result.weights = tuple(float(w) for w in np.median([np.array(w) / sum(w) for w in chosen], axis=0))
    for name in METRICS:
        mean = np.mean(replicates[name], axis=0)
        value = float(np.mean(by_seed[name]))
        low, high = interval(mean, value)
        result.figures[name] = Figure(value, max(low, 0.0), min(high, 1.0), n)
        result.replicates[name] = mean
    return result


def _pair(results: list[ArmResult], experiment: Experiment) -> None:
    first_recipe = next(iter(experiment.recipes))
    by_arm = {result.arm: result for result in results}
    for result in results:
        arm = result.arm
        for track in experiment.silenced:
            if not arm.silenced and (without := by_arm.get(replace(arm, silenced=track))) is not None:
                result.against[f"{track} silenced"] = _differences(without, result)
        compared = replace(arm, recipe=first_recipe) if experiment.against == AGAINST[0] else experiment.arms()[0]
        first = by_arm.get(compared, result)
        if first is not result:
            result.against["first"] = _differences(result, first)
        if len(arm.blocks) > 1 and not arm.silenced:
            alone = [
                found
                for block in arm.blocks
                for recipe in (arm.recipe, first_recipe)
                if (found := by_arm.get(Arm(recipe, (block,), arm.head))) is not None
            ]
            if alone:
                best = max(alone, key=lambda r: r.figures["cmap_present"].value or 0.0)
                result.best_block = best.arm.blocks[0]
                result.against["best block"] = _differences(result, best)


def _differences(result: ArmResult, other: ArmResult) -> dict[str, Figure]:
    from stage2_heads.bootstrap import interval

    found = {}
    for name in PAIRED:
        ours, theirs = result.figures[name].value, other.figures[name].value
        assert ours is not None
        assert theirs is not None
        low, high = interval(result.replicates[name] - other.replicates[name], ours - theirs)
        found[name] = Figure(ours - theirs, low, high, result.n)
    return found


def results_table(results: list[ArmResult], experiment: Experiment, title: str) -> Table:
    """The results for a terminal."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption=_caption(results, experiment), caption_justify="left")
    headings = _headings(experiment)
    shown = [place for place, heading in enumerate(headings) if not heading.startswith(_FILES_ONLY)]
    for place in shown:
        table.add_column(headings[place], justify="left" if place < 3 else "right")
    last = None
    for row in _rows(results, experiment):
        recipe, row[0] = row[0], "" if row[0] == last else row[0]
        if last not in (None, recipe):
            table.add_section()
        last = recipe
        table.add_row(*(row[place].replace(" (", "\n(").replace(" + ", "\n+ ") for place in shown))
    return table


def write_results(results: list[ArmResult], experiment: Experiment, folder: Path, *, title: str) -> list[Path]:
    """results.csv, results.md, results.json and results.png in `folder`. Returns their paths."""
    rows, headings = _rows(results, experiment), _headings(experiment)
    head = "| " + " | ".join(headings) + " |\n|" + "---|" * len(headings) + "\n"
    body = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    markdown = f"# {title}\n\n{head}{body}\n{_caption(results, experiment)}\n"
    write_text(folder / "results.md", markdown)
    write_atomically(folder / "results.csv", lambda path: _write_csv(path, results, experiment))
    about = {"title": title, "folds": experiment.folds, "seeds": list(experiment.seeds), "pool": experiment.pool}
    write_json(folder / "results.json", {**about, "results": [result.to_json() for result in results]})
    write_atomically(folder / "results.png", lambda path: _draw(path, results, title))
    return [folder / f"results.{ending}" for ending in ("md", "csv", "json", "png")]


def _headings(experiment: Experiment) -> list[str]:
    return [
        *("recipe", "blocks", "head"),
        *METRICS.values(),
        *(f"{name} - {experiment.against}" for name in ("top-1", "cmAP")),
        "cmAP - best block",
        *(f"cmAP, {track} silenced" for track in experiment.silenced),
        *("M numbers", "min"),
    ]


def _rows(results: list[ArmResult], experiment: Experiment) -> list[list[str]]:
    rows = []
    for result in results:
        arm, first, best = result.arm, result.against.get("first", {}), result.against.get("best block", {})
        rows.append(
            [
                arm.recipe,
                " + ".join(arm.blocks),
                f"{arm.head}, {arm.fusion}" if arm.fusion else arm.head,
                *(figure_words(result.figures[name]) for name in METRICS),
                figure_words(first.get("top_1"), sign=True),
                figure_words(first.get("cmap_present"), sign=True),
                figure_words(best.get("cmap_present"), sign=True),
                *(
                    figure_words(result.against.get(f"{track} silenced", {}).get("cmap_present"), sign=True)
                    for track in experiment.silenced
                ),
                f"{result.parameters / 1e6:.2f}" if result.parameters else "",
                f"{result.minutes:.1f}" if result.minutes else "",
            ]
        )
    return rows


def _caption(results: list[ArmResult], experiment: Experiment) -> str:
    if not results:
        return "No recipe is finished yet."
    n, n_seeds = results[0].n, results[0].n_seeds
    silenced = (
        " Silenced: what happens to the cmAP when a track hears silence, head and network having been fitted with both."
    )
    return (
        f"{n} recordings, each scored by the trial that held it out; mean of {n_seeds} seed{'s' * (n_seeds > 1)}; in "
        f"brackets 95 % intervals (Bayesian bootstrap over recordings, the same weights in every row). M numbers: "
        f"millions that the row's backbones learnt, without classifiers; min: minutes to train them once."
        f"{silenced if experiment.silenced else ''}"
    )


def _write_csv(path: Path, results: list[ArmResult], experiment: Experiment) -> None:
    compared = ("first", "best block", *(f"{track} silenced" for track in experiment.silenced))
    pairs = [(what, name) for what in compared for name in PAIRED]
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        paired = [f"{name} - {what}{end}" for what, name in pairs for end in ("", " low", " high")]
        figures = [f"{name}{end}" for name in METRICS for end in ("", "_low", "_high")]
        writer.writerow(
            ["recipe", "blocks", "head", "fusion", "n", "seeds", *figures, *paired, "parameters", "minutes"]
        )
        for result in results:
            found = [result.figures[name] for name in METRICS]
            differences = [result.against.get(what, {}).get(name) for what, name in pairs]
            arm = result.arm
            writer.writerow(
                [
                    *(arm.recipe, " + ".join(arm.blocks), arm.head, arm.fusion, result.n, result.n_seeds),
                    *(value for f in found for value in (f.value, f.low, f.high)),
                    *(value for f in differences for value in ((f.value, f.low, f.high) if f else ("", "", ""))),
                    *(result.parameters, round(result.minutes, 2)),
                ]
            )


def _draw(path: Path, results: list[ArmResult], title: str) -> None:
    """Top-1 and cmAP of every row with its interval, recipes in the table's order from the top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(11, 1.4 + 0.3 * len(results)), layout="constrained")
    FigureCanvasAgg(canvas)
    canvas.suptitle(title, x=0.01, ha="left", fontsize=11)
    sets = list(dict.fromkeys(result.arm.blocks for result in results))
    palette = ("#1b6ca8", "#d1495b", "#66a182", "#8d6a9f", "#edae49", "#2e4057", "#a44a3f", "#5c8001")
    colours = {blocks: palette[i % len(palette)] for i, blocks in enumerate(sets)}
    all_axes = canvas.subplots(1, 2, sharey=True)
    for axes, name in zip(all_axes, PAIRED, strict=True):
        for place, result in enumerate(results):
            figure, colour = result.figures[name], colours[result.arm.blocks]
            axes.plot([figure.low, figure.high], [place, place], color=colour, linewidth=2, alpha=0.6)
            axes.plot(figure.value, place, "o", color=colour, markersize=6)
        axes.set(xlabel=METRICS[name], xlim=(0, 1.02))
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right", "left"]].set_visible(False)
    all_axes[0].set_yticks(range(len(results)), [result.arm.name for result in results], fontsize=8)
    all_axes[0].invert_yaxis()
    canvas.savefig(path, dpi=130, format="png")
