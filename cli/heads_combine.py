"""`heads combine`: several fitted heads as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.common import DryRunOption, JsonOption, console, write_summary

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to `heads`."""
    app.command()(combine)


def combine(
    paths: Annotated[list[Path], typer.Argument(metavar="HEAD...", help="Fitted heads, two or more.")],
    out: Annotated[Path, typer.Option(help="Folder of the combined head.")],
    weights: Annotated[str, typer.Option(help="A weight for each head, such as 2,1. Default: all alike.")] = "",
    overwrite: Annotated[bool, typer.Option(help="Replace even a head of another kind or other blocks.")] = False,
    json_path: JsonOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Make one head of several: all their classes, and the weighted mean of what they say of each."""
    from cli.head_backbones import gather_backbones
    from cli.heads_common import require_free_or_refit
    from embeddings.errors import InputError
    from stage2_heads.combined import combine_heads
    from stage2_heads.heads import load_head

    try:
        numbers = [float(part) for part in weights.split(",")] if weights else None
    except ValueError:
        raise InputError(f"--weights {weights} must be numbers between commas, such as 2,1.") from None
    combined = combine_heads([load_head(path) for path in paths], numbers)
    names = [name for name, _ in combined.blocks_]
    require_free_or_refit(out, combined.kind, names, overwrite)
    combined.provenance = {"members": [str(path.resolve()) for path in paths]}
    what = f"{len(paths)} heads, {len(combined.labels_)} classes, blocks {' + '.join(names)}"
    if dry_run:
        console().print(f"Would combine {what}.", soft_wrap=True)
        return
    combined.save(out)
    gather_backbones(paths, out)
    console().print(f"Combined {what}.\nHead: {out}", soft_wrap=True)
    write_summary(
        json_path,
        {
            "head": str(out),
            "kind": combined.kind,
            "blocks": names,
            "labels": list(combined.labels_),
            **combined.facts(),
        },
    )
