"""`heads predict`: what sang, when, in files that other tools open."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.common import DeviceOption, DryRunOption, JsonOption, console, progress, write_summary
from cli.head_backbones import backbones_of
from cli.heads_common import blocks_in

if TYPE_CHECKING:
    from embeddings.store import Store
    from stage2_heads.base import Head
    from stage2_heads.prediction_files import Provenance

__all__ = ["predict", "register"]

_CARD = "predictions.json"
_LONGEST_PATH = 255
_USUAL_RATE_HZ = 32_000.0  # where a backbone has gone, for the height of Raven's boxes


def register(app: typer.Typer) -> None:
    """Add the command to `heads`."""
    app.command()(predict)


def predict(
    head_path: Annotated[Path, typer.Argument(metavar="HEAD", help="A head made by `heads fit`.")],
    audio: Annotated[
        list[str], typer.Argument(metavar="AUDIO...", help="Files, folders, patterns, one table or list, or one store.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the predictions, and of the vectors they were made of.")],
    formats: Annotated[
        str, typer.Option("--format", help="csv, parquet, jsonl, raven, audacity, separated by commas, or all.")
    ] = "csv",
    sample_submission: Annotated[
        Path | None, typer.Option(help="BirdCLEF's: also write submission.csv, with its rows and columns.")
    ] = None,
    fill: Annotated[
        float | None, typer.Option(help="Submission: score of species and recordings that cannot be scored.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Lowest score of a detection. Default: the head's tuned ones, or 0.5.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="At most so many species a window.")] = None,
    species: Annotated[str, typer.Option(help="Only these, separated by commas, or a file with a name a line.")] = "",
    hop_s: Annotated[float | None, typer.Option(help="Seconds from window to window. Default 5.")] = None,
    backbone: Annotated[
        list[str] | None, typer.Option(help="Where the backbones lie, if neither the head nor its store has them.")
    ] = None,
    pictures: Annotated[
        int,
        typer.Option(help="Draw so many recordings, the first ones, into OUT/pictures: what sang when, at a glance."),
    ] = 0,
    store: Annotated[
        Path | None, typer.Option(help="Keep the vectors in this store, new or begun. Default: OUT/store.")
    ] = None,
    engine: Annotated[str, typer.Option(help="As for `embed extract`.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Processes that embed. Default: one a core.")] = None,
    device: DeviceOption = "auto",
    json_path: JsonOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Say what sang when. Run it again after a crash, or on more audio: what was heard is not heard again."""
    from cli.extraction import extract_into
    from embeddings.errors import InputError
    from embeddings.store import Store
    from stage2_heads.heads import load_head
    from stage2_heads.predict import detecting_of
    from stage2_heads.prediction_files import FILES, FORMATS
    from stage2_heads.submission import read_sample, require_answerable

    head = load_head(head_path)
    wanted = list(FORMATS) if formats == "all" else [name.strip() for name in formats.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise InputError(f"--format {unknown[0]} is not known; choose among {', '.join(FORMATS)}, or all.")
    detecting = detecting_of(head, threshold=threshold, top_k=top_k, species=_species(species))
    sample = read_sample(sample_submission) if sample_submission is not None else None
    if sample is not None:
        require_answerable(sample, head, fill)
    elif fill is not None:
        raise InputError("--fill goes with --sample-submission; leave it out otherwise.")
    if pictures < 0:
        raise InputError(f"--pictures {pictures} cannot be drawn; give 0 for none, or how many recordings.")
    if not wanted:
        raise InputError(f"--format {formats!r} names no format; choose among {', '.join(FORMATS)}, or all.")
    more = [*(["submission.csv"] if sample is not None else []), *(["pictures"] if pictures else [])]
    _require_own(out, [*(FILES[name] for name in wanted), *more])
    stored = Path(audio[0]) if len(audio) == 1 and (Path(audio[0]) / "store.json").is_file() else None
    quarantined: dict[str, str] = {}
    absent: list[str] = []
    recordings: frozenset[str] | None = None
    if stored is not None:
        if hop_s is not None or backbone or store is not None:
            raise InputError(f"{stored} is a store: its windows are there; leave out --hop-s, --backbone and --store.")
        opened = Store(stored)
        blocks_in(head, head_path, opened)
        if dry_run:
            console().print(f"Would score {opened.n_rows} windows of {stored} for {detecting.words}.")
            return
    else:
        named = backbones_of(head, head_path, backbone or [])
        place = store or out / "store"
        done = extract_into(
            _source(audio),
            place,
            backbone=named,
            hop_s=hop_s,
            engine=engine,
            workers=workers,
            device=device,
            mix_splits=True,  # nothing is fitted on what is predicted
            dry_run=dry_run,
        )
        if done is None:
            console().print(f"Would then score their windows for {detecting.words}.")
            return
        if done.summary.interrupted:
            raise typer.Exit(130)
        opened, recordings = done.store, done.recordings
        quarantined, absent = done.summary.quarantined, done.summary.absent
    summary = _write(head, head_path, opened, recordings, out, wanted, detecting, sample, fill, pictures)
    summary |= {"quarantined": quarantined, "absent": absent}
    write_summary(json_path, summary)
    if quarantined or absent or summary.get("pictures", {}).get("missing"):
        raise typer.Exit(1)


def _write(
    head: Head,
    head_path: Path,
    store: Store,
    recordings: frozenset[str] | None,
    out: Path,
    formats: list[str],
    detecting: Any,
    sample: Any,
    fill: float | None,
    n_pictures: int,
) -> dict[str, Any]:
    from dataclasses import asdict

    import numpy as np

    from embeddings.files import write_json
    from stage2_heads.predict import predict as run_head
    from stage2_heads.prediction_files import open_writers
    from stage2_heads.stretches import stretches
    from stage2_heads.submission import score_sample, write_submission

    names = blocks_in(head, head_path, store)
    reader = store.reader(names)
    catalogue = store.catalogue.recordings
    wanted = np.array([recordings is None or r.recording in recordings for r in catalogue], bool)
    rows = store.index.rows_of(wanted)
    about = _provenance(head, head_path, store, names, detecting)
    sampled = None
    if sample is not None:  # what it asks for may have no answer: to be known before anything is written
        of_store = (store.rows, store.place_of_row, catalogue, store.plan)
        sampled = score_sample(sample, head, reader, rows, *of_store, fill=fill)
    found = np.zeros(len(head.labels_), np.int64)
    # First of all: after an interruption the files that are there are known to be a prediction's, and written over.
    write_json(out / _CARD, {"head": about.head, "blocks": about.blocks, "version": about.version, "finished": False})
    with open_writers(formats, out, about) as writers, progress("predicting", len(rows), "windows") as advance:
        batches = run_head(head, reader, rows, detecting)
        for stretch in stretches(batches, store.rows, store.place_of_row, catalogue):
            for writer in writers:
                writer.write(stretch)
            found += stretch.found.sum(axis=0)
            advance(len(stretch.start_s))
    paths = [str(writer.path) for writer in writers]
    if sampled is not None:
        write_submission(out / "submission.csv", sample, sampled)
        paths.append(str(out / "submission.csv"))
    card = {
        "head": about.head,
        "blocks": about.blocks,
        "version": about.version,
        "calibrated_on": head.calibrated_on_,
        "detections": detecting.words,
        "windows": asdict(store.plan),
        "n_windows": len(rows),
        "n_recordings": len(store.index.recordings_of(rows)[0]),
        "n_detections": int(found.sum()),
        "by_species": {head.labels_[i]: int(found[i]) for i in np.argsort(-found, kind="stable") if found[i]},
        "store": str(store.path.resolve()),
        "files": paths,
        "finished": True,
    }
    write_json(out / _CARD, card)
    _print_summary(card, head)
    if not n_pictures:
        return card
    from cli.prediction_pictures import draw_pictures

    drawn = draw_pictures(out / "pictures", n_pictures, head, store, reader, rows, about, detecting)
    return {**card, "pictures": drawn}


def _print_summary(card: dict[str, Any], head: Head) -> None:
    from rich.table import Table

    out = console()
    table = Table("species", "name", "windows", title="Most often detected", title_justify="left")
    for label, n in list(card["by_species"].items())[:10]:
        scientific, common = head.names_.get(label, ("", ""))
        table.add_row(label, common or scientific, str(n))
    if card["by_species"]:
        out.print(table)
    out.print(
        f"{card['n_detections']} detections ({card['detections']}) in {card['n_windows']} windows of "
        f"{card['n_recordings']} recordings.",
    )
    out.print(f"Written: {', '.join(card['files'])}, and {_CARD} that says how.", soft_wrap=True)


def _provenance(head: Head, head_path: Path, store: Store, names: list[str], detecting: Any) -> Provenance:
    from importlib.metadata import version

    from embeddings.files import read_json
    from stage2_heads.prediction_files import Provenance

    digest = hashlib.sha256((head_path / "head.json").read_bytes()).hexdigest()[:12]
    described = [store.backbone_path(store.blocks[name]) / "backbone.json" for name in names]
    rates_hz = [read_json(path, what="backbone").get("sample_rate_hz", 0) for path in described if path.is_file()]
    return Provenance(
        head=f"{head_path.name}@{digest}",
        blocks="+".join(f"{name}@{fingerprint.digest[:12]}" for name, fingerprint in head.blocks_),
        version=version("cisticola"),
        labels=head.labels_,
        names=head.names_,
        thresholds=detecting.thresholds,
        high_hz=max(map(float, rates_hz), default=_USUAL_RATE_HZ) / 2,
    )


def _species(text: str) -> list[str]:
    """Names from between commas, or from a file; none for all. Raises InputError when the file or list is empty."""
    from embeddings.errors import InputError

    if not text:
        return []
    names = text.split(",")
    if len(text) < _LONGEST_PATH and Path(text).is_file():
        try:
            names = Path(text).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"--species {text} is no text in UTF-8: {error}. Save it as UTF-8.") from None
    found = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not found:
        raise InputError(f"--species {text} names no species; leave it out for all of them.")
    return found


def _source(audio: list[str]) -> Path | list[Path]:
    """What is to be embedded: the one thing named, or all the files and folders that several or a pattern name."""
    import glob

    from embeddings.catalogue_sources import AUDIO_SUFFIXES
    from embeddings.errors import InputError

    sources: list[Path] = []
    for text in audio:
        path = Path(text)
        if not text:
            raise InputError("an empty name stands among the recordings; is a variable of your shell not set?")
        if len(text) < _LONGEST_PATH and path.exists():
            if len(audio) == 1:
                return path
            found = [path]
        else:  # a pattern also finds a recorder's settings, which are no recordings
            named = [Path(name) for name in sorted(glob.glob(text, recursive=True))]
            found = [one for one in named if one.is_dir() or one.suffix.lower() in AUDIO_SUFFIXES]
        if not found:
            raise InputError(f"{text} is neither a file, a folder, nor a pattern that audio fits.")
        if stores := [one for one in found if (one / "store.json").is_file()]:
            raise InputError(f"{stores[0]} is a store; predict on it alone.")
        sources += found
    return sources


def _require_own(out: Path, names: list[str]) -> None:
    """Raises InputError where a file that this command did not make would be written over."""
    from embeddings.errors import InputError

    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder.")
    foreign = [name for name in names if (out / name).exists()]
    if foreign and not (out / _CARD).is_file():
        raise InputError(
            f"{out / foreign[0]} is there, and no {_CARD} says that it is a prediction; name another --out."
        )
    if odd := [name for name in foreign if (out / name).is_dir() != (name in ("audacity", "pictures"))]:
        it_is, wanted = ("folder", "file") if (out / odd[0]).is_dir() else ("file", "folder")
        raise InputError(f"{out / odd[0]} is a {it_is}, where a {wanted} is to be written; name another --out.")
