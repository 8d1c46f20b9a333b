"""`embed export`: a store as one Parquet, npz or CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.common import JsonOption, console, print_names, progress, require_replaceable, write_summary

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Give `embed` its command `export`."""
    app.command()(export)


def export(
    store_path: Annotated[Path, typer.Argument(help="A store made by `embed extract`.")],
    out: Annotated[Path, typer.Option(help="The file to write; .parquet, .npz or .csv names the format.")],
    blocks: Annotated[str | None, typer.Option(help="Blocks to write, separated by commas. Default: all.")] = None,
    split: Annotated[str, typer.Option(help="Only train, valid or none (not assigned). Default: everything.")] = "",
    no_vectors: Annotated[bool, typer.Option("--no-vectors", help="Rows only.")] = False,
    json_path: JsonOption = None,
) -> None:
    """Write a store's windows, labels and vectors to one file for other tools."""
    from embeddings.export import BEGINNINGS
    from embeddings.export import export as write_export
    from embeddings.store import Store

    begin = BEGINNINGS.get(out.suffix.lower())
    if begin is not None:  # of another suffix the export itself says what is allowed
        require_replaceable("--out", out, (begin,), f"a {out.suffix.lower()} as `embed export` writes it")
    store = Store(store_path)
    with progress("exporting", store.n_rows, "windows") as advance:
        summary = write_export(
            store,
            out,
            blocks=blocks.split(",") if blocks else None,
            split=split,
            vectors=not no_vectors,
            on_rows=advance,
        )
    write_summary(json_path, vars(summary))
    vectors = f"blocks {', '.join(summary.blocks)} in {summary.dtype}" if summary.blocks else "no vectors"
    console().print(
        f"{summary.out}: {summary.n_windows} windows of {summary.n_recordings} recordings, {vectors}, "
        f"{summary.n_bytes / 1e6:.1f} MB."
    )
    print_names("Torn shards, left out", list(summary.torn))
    if summary.torn:
        raise typer.Exit(1)
