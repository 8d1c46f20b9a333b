"""What the three commands share: errors in plain words, progress, options, summaries. Imports nothing heavy."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from embeddings.contract import Backbone, BlockSource
    from embeddings.recordings import Catalogue
    from embeddings.store import Store

__all__ = [
    "DeviceOption",
    "DryRunOption",
    "JsonOption",
    "console",
    "describe_named_backbones",
    "engine_words",
    "fact_words",
    "make_app",
    "print_names",
    "progress",
    "require_replaceable",
    "require_target",
    "run",
    "say_licences",
    "store_backbones",
    "targeted",
    "write_summary",
]

_SHOWN_NAMES = 20
_LOOKED_AT = 4096  # bytes of a file that would be written over

DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto for the best there is.")]


def require_replaceable(option: str, path: Path | None, begins: Sequence[bytes], what: str) -> None:
    """Refuse to write over a file that is not of the kind that would be written there.

    begins : how such a file begins, white space left out;  what : the kind in words.  An empty file may be replaced.
    Raises InputError.
    """
    from embeddings.errors import InputError

    if path is None or not path.exists():
        return
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file.")
    start = b""
    if path.is_file():  # anything else, such as a device, is no file to replace
        with open(path, "rb") as handle:
            start = handle.read(_LOOKED_AT)
    if not path.is_file() or (start and not start.lstrip().startswith(tuple(begins))):
        raise InputError(f"{option} {path} is there and is not {what}: it is left as it is. Name another file.")


def _json_target(path: Path | None) -> Path | None:
    require_replaceable("--json", path, (b"{", b"["), "JSON")
    return path


JsonOption = Annotated[
    Path | None,
    typer.Option("--json", help="Also write the summary as JSON to this file.", callback=_json_target),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


def make_app(summary: str) -> typer.Typer:
    """A command line whose help comes at once and whose errors are sentences."""
    return typer.Typer(help=summary, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def run(app: typer.Typer) -> None:
    """Run a command line. Exit codes: 0 done, 1 done with something quarantined or failed, 2 wrong usage."""
    from embeddings.errors import CisticolaError

    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's polite end is as good as Ctrl-C
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except CisticolaError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except OSError as error:  # a full disk, a folder without permission: its own words name the file
        sys.stderr.write(f"error: {error}. What was finished is kept; mend it and run the same command again.\n")
        sys.exit(2)
    except MemoryError as error:  # numpy's own words say how much was asked for
        sys.stderr.write(f"error: not enough memory: {error}. Ask for less at a time.\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was finished is kept, and the same command goes on from there.\n")
        sys.exit(130)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def console() -> Console:
    """Where tables and summaries go; as wide as the terminal, or 120 columns when there is none.

    What it prints stands there as it is: brackets and colons in labels and paths are no markup.
    """
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False, emoji=False)


@contextmanager
def progress(what: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """A bar with rate and time left; yields a function that advances it. Silent when nobody watches.

    The function takes (steps) or (steps, units), of which the rate is then told: recordings done, windows a second.
    """
    import time

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    watched = Console(stderr=True)
    n_units, since = 0, time.monotonic()
    with Progress(*columns, console=watched, disable=not watched.is_terminal) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(n: int, units: int | None = None) -> None:
            nonlocal n_units
            n_units += n if units is None else units
            bar.update(task, advance=n)
            if elapsed_s := time.monotonic() - since:
                bar.update(task, rate=f"{n_units / elapsed_s:,.1f} {unit}/s")

        yield advance


def print_names(heading: str, names: list[str]) -> None:
    """A heading with every name below it, the first twenty on the screen."""
    if not names:
        return
    out = console()
    out.print(f"{heading} ({len(names)}):")
    for name in names[:_SHOWN_NAMES]:
        out.print(f"  {name}")
    if len(names) > _SHOWN_NAMES:
        out.print(f"  ... and {len(names) - _SHOWN_NAMES} more; --json FILE lists all")


def require_target(target: str, *, both: bool = False) -> None:
    """Raises InputError for a `--target` that there is not; `both` as in `targeted`."""
    from embeddings.errors import InputError

    allowed = ["species", "type", *(["species+type"] if both else [])]
    if target not in ("", *allowed):
        raise InputError(f"--target {target} is not known; choose {' or '.join(allowed)}.")


def targeted(catalogue: Catalogue, target: str, *, both: bool = False) -> Catalogue:
    """The catalogue with what `--target` names for labels; says how every raw value of the `type` column was read.

    both : whether `species+type` may be asked for, which leaves the labels as they are
    Raises InputError for a target that there is not, and when there are no types to take.
    """
    from dataclasses import replace

    from rich.table import Table

    from embeddings.call_types import call_types

    require_target(target, both=both)
    if target in ("", "species"):
        return catalogue
    found = call_types(catalogue)

    table = Table("type", "recordings", "kind of call", "sex", "age", "not in the vocabulary")
    for raw, count in found.counts.items():
        meaning = found.meanings[raw]
        table.add_row(raw, str(count), ", ".join(meaning.kinds), meaning.sex, meaning.age, ", ".join(meaning.unmapped))
    console().print(table)
    console().print(
        f"{found.n_without} recordings say no kind of call{' and count as unlabelled' if target == 'type' else ''}; "
        f"{found.n_other} say only what is not in the vocabulary, and are labelled `other`."
    )
    return replace(catalogue, recordings=found.recordings) if target == "type" else catalogue


def write_summary(path: Path | None, summary: dict[str, Any]) -> None:
    """Write a command's summary where `--json` asked for it."""
    from embeddings.files import write_json

    if path is not None:
        write_json(path, summary)


def describe_named_backbones(references: list[str]) -> list[tuple[str, BlockSource]]:
    """What `FOLDER`, a frozen backbone's name, or `NAME=` either means: where it lies, and what it is."""
    from embeddings.errors import InputError
    from stage1_backbones.registry import describe_backbone

    described = []
    for reference in references:
        name, separator, place = reference.partition("=")
        if not separator:
            name, place = "", reference
        source = describe_backbone(place)
        if name:
            if not name.replace("_", "").replace("-", "").replace(".", "").isalnum() or name.startswith("."):
                raise InputError(f"{name!r} cannot name a block; use letters, digits, '_', '-' and '.'.")
            source.name = name
        described.append((place, source))
    say_licences([source for _, source in described])
    return described


def engine_words(record: dict[str, Any] | None) -> str:
    """An engine and the figures of its gate, for people."""
    if not record or "min_cosine" not in record:
        return (record or {}).get("engine", "unknown")
    words = f"{record['engine']}, smallest cosine to {record['reference']} {record['min_cosine']:.6f}"
    if record.get("windows_per_s"):
        words += f", {record['windows_per_s'] / record['reference_windows_per_s']:.1f} times its speed"
    return words


def fact_words(value: Any) -> str:
    """What a head tells of itself, in a line: a mapping as its names and values."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)


def store_backbones(store: Store, blocks: list[str] | None, device: str) -> list[Backbone]:
    """The backbones that made a store's blocks, from the store's own copies."""
    from stage1_backbones.registry import load_backbone

    loaded = []
    for block in store.choose_blocks(blocks):
        backbone = load_backbone(store.backbone_path(block), device=device)
        backbone.name = block.name
        loaded.append(backbone)
    return loaded


def say_licences(backbones: Sequence[BlockSource]) -> None:
    """Tell whoever runs the command under which terms a frozen network's weights stand."""
    for backbone in backbones:
        if notice := getattr(backbone, "licence_notice", ""):
            sys.stderr.write(f"{backbone.name}: {notice}\n")
