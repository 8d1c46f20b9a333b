"""What the commands of `heads` share: which rows, which blocks, which head, and where it may be written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.common import console, print_names, progress, targeted

if TYPE_CHECKING:
    import numpy as np

    from embeddings.store import Store
    from stage2_heads.base import Head

__all__ = [
    "FoldOption",
    "LabelsOption",
    "OnlyOption",
    "SeedOption",
    "StoreArgument",
    "TargetOption",
    "blocks_in",
    "head_settings",
    "named_like",
    "on_side",
    "open_store",
    "require_free_or_refit",
    "rows_of_split",
    "secondary_weight_of",
    "share_progress",
    "unfitted_head",
    "warn_of_torn_shards",
]

StoreArgument = Annotated[Path, typer.Argument(help="A store made by `embed extract`.")]
FoldOption = Annotated[str, typer.Option(help="Take this published fold as the validation side.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")]
OnlyOption = Annotated[
    str, typer.Option(help="Only recordings whose file name fits this pattern, such as 'site1_*' (quote it).")
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels", help="A table in BirdCLEF's layout whose labels stand in for the store's; matched by filename."
    ),
]

TargetOption = Annotated[
    str, typer.Option(help="What is told apart: species, or type (song, call, ...). Default: species, or the head's.")
]

_STEPS = 1000


@contextmanager
def share_progress(what: str) -> Iterator[Callable[[float], None]]:
    """A bar for work that reports its share done, from 0 to 1."""
    with progress(what, _STEPS, "steps") as advance:
        done = 0

        def report(share: float) -> None:
            nonlocal done
            advance(round(_STEPS * share) - done)
            done = round(_STEPS * share)

        yield report


def blocks_in(head: Head, head_path: Path, store: Store) -> list[str]:
    """The names under which a store holds a head's blocks."""
    from embeddings.contract import require_same_blocks

    available = {name: block.fingerprint for name, block in store.blocks.items()}
    return require_same_blocks(head.blocks_, available, who=f"head {head_path}", where=f"store {store.path}")


def on_side(store: Store, split: str, valid_fold: str) -> np.ndarray:
    """(n_recordings,) bool: on one side of the split, or "all"; "both" recordings are on either side."""
    import numpy as np

    from embeddings.errors import InputError
    from embeddings.splits import make_split

    if split not in ("train", "valid", "all"):
        raise InputError(f"--split {split} is not a side; choose train, valid or all.")
    sides = [r.split for r in store.catalogue]
    if valid_fold:
        made = make_split(store.catalogue.recordings, valid_fold=valid_fold).assignments
        sides = [made.get(r.recording, "") for r in store.catalogue]
    return np.array([split == "all" or side in (split, "both") for side in sides], bool)


def rows_of_split(store: Store, split: str, valid_fold: str, only: str = "") -> np.ndarray:
    """Row numbers of one side of the split, of recordings whose name fits a pattern. Raises InputError without any."""
    from embeddings.errors import InputError

    side = on_side(store, split, valid_fold)
    rows = store.index.rows_of(side)
    if not len(rows):
        raise InputError(f"{store.path} has no windows on the {split} side; `embed info {store.path}` shows its split.")
    if not only:
        return rows
    rows = store.index.rows_of(side & named_like(store, only))
    if not len(rows):
        names = ", ".join(r.filename or r.path.name for r in store.catalogue.recordings[:3])
        raise InputError(f"--only {only} fits no recording on the {split} side; names are like {names}.")
    return rows


def named_like(store: Store, pattern: str) -> np.ndarray:
    """(n_recordings,) bool: the file name fits a shell pattern (*, ?, [ab]), with its folder or without."""
    from fnmatch import fnmatchcase

    import numpy as np

    names = [(r.filename or r.path.name) for r in store.catalogue]
    return np.array([fnmatchcase(n, pattern) or fnmatchcase(n.rsplit("/", 1)[-1], pattern) for n in names], bool)


def secondary_weight_of(given: str) -> float:
    """What `--secondary` means as the weight of a secondary label's cell in figures."""
    from embeddings.errors import InputError

    weight = {"positive": 1.0, "ignored": 0.0}.get(given)
    if weight is None:
        try:
            weight = float(given)
        except ValueError:
            weight = -1.0
    if not 0 <= weight <= 1:
        raise InputError(f"--secondary {given} is neither positive nor ignored nor a weight from 0 to 1.")
    return weight


def require_free_or_refit(out: Path, kind: str, blocks: list[str], overwrite: bool) -> None:
    """Fitting the same kind on the same blocks replaces a head; anything else must be asked for."""
    from embeddings.errors import InputError
    from embeddings.files import read_json

    if not out.exists():
        return
    if not (out / "head.json").is_file():
        raise InputError(f"--out {out} exists and is not a head; name a new folder.")
    there = read_json(out / "head.json", what="head description")
    there_blocks = [block["name"] for block in there.get("blocks", [])]
    if not overwrite and (there.get("kind"), there_blocks) != (kind, blocks):
        raise InputError(
            f"--out {out} holds a {there.get('kind')} on {' + '.join(there_blocks)}, not a {kind} on "
            f"{' + '.join(blocks)}; name a new folder, or pass --overwrite to replace it."
        )


def unfitted_head(kind: str, fusion: str, n_blocks: int, settings: dict[str, Any]) -> Head:
    """The head to fit: of several blocks a fused one, unless they are wanted side by side."""
    from embeddings.errors import InputError
    from stage2_heads.heads import create_head

    weights = {"late": "chosen", "equal": "equal"}
    if fusion not in (*weights, "early"):
        raise InputError(f"--fusion {fusion} is not known; choose late, equal or early.")
    if n_blocks == 1 or fusion == "early":
        return create_head(kind, **settings)
    return create_head("fused", head=kind, settings=settings, weights=weights[fusion])


def head_settings(kind: str, given: list[str], seed: int) -> dict[str, Any]:
    """`name=value` settings, values read as JSON, else as text. The seed goes to the heads that draw."""
    from dataclasses import fields

    from embeddings.errors import InputError
    from stage2_heads.heads import create_head

    settings: dict[str, Any] = {}
    for item in given:
        name, separator, text = item.partition("=")
        if not separator:
            raise InputError(f"--set {item} is not name=value.")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        settings[name] = tuple(value) if isinstance(value, list) else value
    if any(f.name == "seed" for f in fields(create_head(kind).settings)):
        settings.setdefault("seed", seed)
    return settings


def open_store(path: Path, labels: Path | None = None, target: str = "species") -> Store:
    """A store, its labels replaced by a table's for this command; says what is torn, and what did not match.

    target : "type" takes kinds of call for labels, and says how every raw value was read
    Raises InputError when the table cannot be read, contradicts itself, or names none of the store's recordings; and
    when there are no types to take.
    """
    from embeddings.recordings import Catalogue
    from embeddings.relabel import relabelled
    from embeddings.store import Store

    store = Store(path)
    warn_of_torn_shards(store)
    if labels is not None:
        given = relabelled(store.catalogue, labels)
        store.catalogue = Catalogue(tuple(given.recordings))
        print_names("To mend", given.problems)
        print_names(f"In {labels}, not in the store", given.unmatched)
        print_names("In the store, not in the table, labelled as before", given.unnamed)
    store.catalogue = targeted(store.catalogue, target)
    return store


def warn_of_torn_shards(store: Store) -> None:
    """Say so when part of a store cannot be read."""
    if store.torn:
        console().print(
            f"Warning: {len(store.torn)} torn shards of {store.path} are passed over; `embed verify` names them, and "
            f"the `embed extract` that made the store embeds their recordings again."
        )
