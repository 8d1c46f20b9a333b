"""`embed extract`: recordings into a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.common import DeviceOption, DryRunOption, JsonOption, write_summary
from cli.extraction import extract_into

__all__ = ["extract", "register"]


def register(app: typer.Typer) -> None:
    """Add the command to `embed`."""
    app.command()(extract)


def extract(
    source: Annotated[Path, typer.Argument(help="A train_metadata.csv, a .txt list, a folder, or an audio file.")],
    out: Annotated[Path, typer.Option(help="The store: a new folder, or one to go on with.")],
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="A trained folder, birdnet, FILE.onnx, ...; NAME=... names it. Default: the store's"),
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="Where a table's audio lies. Default: train_audio beside it.")
    ] = None,
    label_folders: Annotated[bool, typer.Option(help="A folder's subfolders are primary labels.")] = False,
    hop_s: Annotated[float | None, typer.Option(help="Seconds from window to window. Default 5.")] = None,
    last: Annotated[str | None, typer.Option(help="The last window: shift (default), pad or drop.")] = None,
    dtype: Annotated[str, typer.Option(help="Numbers on disk: float16 or float32.")] = "float16",
    engine: Annotated[
        str, typer.Option(help="auto (the fastest that passes the parity gate), reference, onnxruntime, openvino, ...")
    ] = "auto",
    workers: Annotated[int | None, typer.Option(help="Processes that embed. Default: one a core.")] = None,
    seal_s: Annotated[float, typer.Option(help="Seconds of each worker's work that a crash may cost.")] = 60.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the split. Default: the backbones' own, or 0.")] = None,
    valid_fold: Annotated[str, typer.Option(help="The published fold that validates.")] = "",
    mix_splits: Annotated[bool, typer.Option(help="Allow backbones that were trained on different splits.")] = False,
    link_backbones: Annotated[bool, typer.Option(help="Refer to the backbones instead of copying them.")] = False,
    retry_quarantined: Annotated[bool, typer.Option(help="Try quarantined files again.")] = False,
    rehash: Annotated[bool, typer.Option(help="Read every file again instead of trusting size and time.")] = False,
    device: DeviceOption = "auto",
    json_path: JsonOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Embed every window of every recording. Run it again after a crash: it goes on where it stopped."""
    done = extract_into(
        *(source, out),
        backbone=backbone,
        audio=audio,
        label_folders=label_folders,
        hop_s=hop_s,
        last=last,
        dtype=dtype,
        engine=engine,
        workers=workers,
        seal_s=seal_s,
        seed=seed,
        valid_fold=valid_fold,
        mix_splits=mix_splits,
        link_backbones=link_backbones,
        retry_quarantined=retry_quarantined,
        rehash=rehash,
        device=device,
        dry_run=dry_run,
    )
    if done is None:
        return
    summary = done.summary
    write_summary(json_path, {**vars(summary), "windows_per_s": summary.windows_per_s})
    if summary.interrupted:
        raise typer.Exit(130)
    if summary.quarantined or summary.incomplete:
        raise typer.Exit(1)
