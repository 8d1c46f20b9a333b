"""An experiment as a file: recipes to train, folds and seeds to train them on, and the rows of the table to come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embeddings.errors import InputError
from embeddings.settings import from_fields, merged, read_yaml
from stage2_heads.pooling import POOLS

if TYPE_CHECKING:
    from embeddings.recordings import Catalogue
    from embeddings.splits import Split
    from stage1_backbones.recipe import TrainingSettings

__all__ = ["AGAINST", "FUSIONS", "Arm", "Experiment", "Trial", "digest_of", "read_experiment"]

FUSIONS = ("late", "equal", "early", "unheard")
PUBLISHED = "published"
AGAINST = ("first recipe", "first row")
TRACKS = ("picture", "audio")


@dataclass(frozen=True)
class Arm:
    """A row of the table: a head on some blocks of a recipe.

    fusion  late: a head a block, weights chosen on unheard recordings; equal: the same, all blocks alike; early: one
            head on all blocks side by side; unheard: early, fitted on recordings only that no backbone has heard
    silenced  a track that hears nothing when the head, fitted with it, is scored
    """

    recipe: str
    blocks: tuple[str, ...]
    head: str
    fusion: str = ""
    silenced: str = ""

    @property
    def name(self) -> str:
        how = f", {self.fusion}" if self.fusion else ""
        return f"{self.recipe}: {self.head} on {' + '.join(self.blocks)}{how}"


@dataclass(frozen=True)
class Trial:
    """A recipe on one fold with one seed: what a cell of the experiment is."""

    recipe: str
    seed: int
    fold: str

    def __str__(self) -> str:
        return f"{self.recipe}, seed {self.seed}, fold {self.fold}"


@dataclass(frozen=True)
class Experiment:
    """What the file says.

    data       tables in BirdCLEF's layout, relative to `--data` or to the file
    folds      how many, or "published" for the table's own;  group: a column that keeps recordings in one fold
    only_folds  some of them, when all would take too long
    target     what heads are fitted on and scored by: species, or type (kinds of call; those of fewer than
               `min_recordings` count as `other`). What a backbone learns is its recipe's: with_types adds the kinds
    frozen     backbones that are taken as they are, such as birdnet
    recipes    name -> kind -> training settings; "all" holds settings for every kind of the recipe, and "start" the
               recipe that they are laid over: default or plain
    blocks     sets of blocks to fit heads on; default: each alone, the trained ones together, all together
    against    what paired differences are taken from: the first recipe's row of the same blocks, or the first row
    silenced   tracks (picture, audio), each of which is silenced once where both are heard, to see what it brings
    """

    recipes: Mapping[str, Any]
    data: tuple[str, ...]
    title: str = ""
    folds: int | str = 3
    only_folds: tuple[int, ...] = ()
    group: str = ""
    seeds: tuple[int, ...] = (0,)
    target: str = "species"
    min_recordings: int = 6
    frozen: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("svm",)
    fusions: tuple[str, ...] = ("late",)
    blocks: tuple[Any, ...] = ()
    pool: str = "mean"
    against: str = AGAINST[0]
    silenced: tuple[str, ...] = ()
    base: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.recipes or not isinstance(self.recipes, Mapping):
            raise InputError("recipes must name at least one recipe, each with settings for its backbones.")
        if self.folds != PUBLISHED and (not isinstance(self.folds, int) or self.folds < 2):
            raise InputError(f"folds={self.folds!r} must be 2 or more, or {PUBLISHED}.")
        if unknown := [fusion for fusion in self.fusions if fusion not in FUSIONS]:
            raise InputError(f"fusions: {unknown[0]!r} is not known; choose among {', '.join(FUSIONS)}.")
        if self.target not in ("species", "type"):
            raise InputError(f"target={self.target!r} is not known; choose species or type.")
        if self.against not in AGAINST:
            raise InputError(f"against={self.against!r} is not known; choose {' or '.join(AGAINST)}.")
        if unknown := [track for track in self.silenced if track not in TRACKS]:
            raise InputError(f"silenced: {unknown[0]!r} is not a track; choose among {', '.join(TRACKS)}.")
        if self.pool not in POOLS:
            raise InputError(f"pool={self.pool!r} is not a way to pool windows; choose {', '.join(POOLS)}.")
        if not self.seeds:
            raise InputError("seeds must name at least one number.")
        for recipe, kinds in self.recipes.items():
            if not isinstance(kinds, Mapping) or not self.kinds(recipe):
                raise InputError(f"recipes.{recipe} must name at least one backbone kind with its settings.")
        known = {*self.frozen, *(kind for recipe in self.recipes for kind in self.kinds(recipe))}
        for blocks in self.blocks:
            if isinstance(blocks, str) or not blocks or not set(blocks) <= known:
                raise InputError(f"blocks: {blocks!r} must be a list of blocks among {', '.join(sorted(known))}.")

    def kinds(self, recipe: str) -> tuple[str, ...]:
        """The backbones that a recipe trains."""
        return tuple(kind for kind in self.recipes[recipe] if kind not in ("all", "start"))

    def settings(self, recipe: str, kind: str, seed: int) -> TrainingSettings:
        """A backbone's training settings: the recipe that it starts from, `base`, its `all`, and its own."""
        from stage1_backbones.recipe import TrainingSettings
        from stage1_backbones.recipes import recipe_of

        own = self.recipes[recipe]
        layers = (self.base.get("all"), self.base.get(kind), own.get("all"), own[kind])
        try:
            values = merged(recipe_of(kind, own.get("start", "default")), *(layer or {} for layer in layers))
            return replace(TrainingSettings.from_json(values), seed=seed)
        except InputError as error:
            raise InputError(f"recipes.{recipe}.{kind}: {error}") from None

    def arms(self) -> list[Arm]:
        """The table's rows, recipe by recipe, each followed by itself with a track silenced.

        Frozen blocks alone are in the first recipe's part only.
        """
        arms: list[Arm] = []
        for recipe in self.recipes:
            trained = self.kinds(recipe)
            sets: list[tuple[str, ...]] = [tuple(blocks) for blocks in self.blocks]
            if not sets:
                sets = [(kind,) for kind in (*trained, *self.frozen)]
                sets += [together for together in (trained, (*trained, *self.frozen)) if len(together) > 1]
            for blocks in dict.fromkeys(sets):
                if not set(blocks) <= {*trained, *self.frozen}:
                    continue
                if recipe != next(iter(self.recipes)) and set(blocks) <= set(self.frozen):
                    continue
                fusions = self.fusions if len(blocks) > 1 else ("",)
                if any(not self.settings(recipe, kind, 0).select_share for kind in trained):
                    fusions = tuple(fusion for fusion in fusions if fusion != "unheard")  # no recording is
                silenced = ("", *self.silenced) if len(_tracks(blocks)) > 1 else ("",)
                arms += [
                    Arm(recipe, blocks, head, fusion, track)
                    for fusion in fusions
                    for head in self.heads
                    for track in silenced
                ]
        return arms

    def trials(self, catalogue: Catalogue) -> list[Trial]:
        """Every recipe on every fold with every seed; seeds and folds first, so that all recipes grow together."""
        return [
            Trial(recipe, seed, fold)
            for seed in self.seeds
            for fold in self._folds(catalogue)
            for recipe in self.recipes
        ]

    def split(self, catalogue: Catalogue, trial: Trial) -> Split:
        """Who trains and who is scored in a trial.

        Raises InputError when a label has no recording to train on.
        """
        from embeddings.splits import k_fold_split, make_split

        if self.folds != PUBLISHED:
            return k_fold_split(
                catalogue.recordings, folds=int(self.folds), fold=int(trial.fold), seed=trial.seed, group=self.group
            )
        split = make_split(catalogue.recordings, seed=trial.seed, valid_fold=trial.fold)
        trained = {r.primary_label for r in catalogue if split.assignments.get(r.recording) == "train"}
        if missing := sorted({r.primary_label for r in catalogue if r.primary_label} - trained):
            raise InputError(
                f"published fold {trial.fold} leaves no training recording of {', '.join(missing)}; leave those labels "
                f"out of the table, or set folds to a number."
            )
        return split

    def _folds(self, catalogue: Catalogue) -> list[str]:
        names = sorted({r.fold for r in catalogue if r.fold})
        if self.folds != PUBLISHED:
            names = [str(number + 1) for number in range(int(self.folds))]
        elif not names:
            raise InputError(f"folds={PUBLISHED}, but the tables have no `fold` column; set a number.")
        wanted = [str(number) for number in self.only_folds] or names
        if unknown := [name for name in wanted if name not in names]:
            raise InputError(f"only_folds: there is no fold {unknown[0]}; there are {', '.join(names)}.")
        return wanted


def _tracks(blocks: tuple[str, ...]) -> set[str]:
    """The tracks of what is trained here; a frozen network hears in its own way."""
    from stage1_backbones.registry import BACKBONES

    return {track for block in blocks if block in BACKBONES for track in BACKBONES[block].tracks}


def read_experiment(path: Path) -> Experiment:
    """Raises InputError when the file is no YAML, or a setting is unknown or wrong."""
    return from_fields(Experiment, read_yaml(path), path.name)


def digest_of(*parts: Any) -> str:
    """16 hexadecimal digits of plain values: names cells by what decides them."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
