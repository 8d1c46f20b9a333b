"""Reads a catalogue from what people have: a BirdCLEF table, a folder per label, a list or folder of files."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embeddings.errors import InputError
from embeddings.identity import HashCache
from embeddings.recordings import Catalogue, Recording, Rejected

__all__ = ["AUDIO_SUFFIXES", "parse_list", "read_catalogue"]

AUDIO_SUFFIXES = frozenset(
    [
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".au",
        ".caf",
        ".w64",
        ".rf64",
        ".m4a",
        ".aac",
        ".mp4",
    ]
)
REQUIRED_COLUMNS = ("filename", "primary_label")
_SHOWN = 5  # names listed in a sentence before "and N more"


@dataclass(frozen=True)
class _Entry:
    """A line of the source before its audio was looked at; `recording` is still to come."""

    path: Path
    fields: dict[str, Any]


def read_catalogue(
    source: Path,
    *,
    audio: Path | None = None,
    label_folders: bool = False,
    cache: HashCache | None = None,
    on_hashed: Callable[[int], None] | None = None,
) -> Catalogue:
    """Read the recordings that `source` names.

    source         a BirdCLEF `train_metadata.csv`, a `.txt` list of paths, a folder, or one audio file
    audio          where a table's files lie; default the `train_audio` folder beside it
    label_folders  a folder's first level of subfolders are primary labels
    Returns a Catalogue whose `problems` name what was wrong: rows without a file, files without a row, rows that
    do not parse, contents that occur twice.
    Raises InputError when nothing usable is there.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source} does not exist. Give a metadata table, a list, a folder of audio or an audio file.")
    if source.is_dir():
        entries, problems = _read_folder(source, label_folders)
    elif source.suffix.lower() == ".csv":
        entries, problems = _read_birdclef(source, audio)
    elif source.suffix.lower() == ".txt":
        entries, problems = _read_list(source)
    else:
        entries, problems = [_Entry(source, {"filename": source.name})], []
    catalogue = _identify(entries, problems, cache or HashCache(None), on_hashed)
    if not catalogue.recordings and not catalogue.rejected:
        raise InputError(f"no recordings in {source}. " + " ".join(catalogue.problems))
    return catalogue


def parse_list(text: str) -> tuple[str, ...]:
    """Items of a list literal as BirdCLEF's tables hold it; never evaluates code.

    >>> parse_list("['call', 'song']"), parse_list("['call, female, male']"), parse_list("['']"), parse_list("")
    (('call', 'song'), ('call', 'female', 'male'), (), ())

    Raises ValueError when the text opens a list that does not parse.
    """
    text = text.strip()
    if not text:
        return ()
    items: Any = [text]
    if text[0] in "[(":
        try:
            items = ast.literal_eval(text)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            raise ValueError(f"{text!r} is not a list of texts") from None
    if not all(isinstance(item, str) for item in items):
        raise ValueError(f"{text!r} is not a list of texts")
    parts = (part.strip() for item in items for part in item.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def _read_birdclef(table: Path, audio: Path | None) -> tuple[list[_Entry], list[str]]:
    import pandas as pd

    try:
        rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{table} cannot be read as a CSV table: {error}") from None
    missing = [name for name in REQUIRED_COLUMNS if name not in rows.columns]
    if missing:
        raise InputError(
            f"{table} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has "
            f"{', '.join(rows.columns)}. BirdCLEF's train_metadata.csv has filename (<label>/<file>) and primary_label."
        )
    root = audio if audio is not None else table.parent / "train_audio"
    if not root.is_dir():
        raise InputError(f"the audio folder {root} does not exist. Name it with --audio DIR.")

    on_disk = {str(path.relative_to(root)): path for path in _audio_below(root)}
    entries: list[_Entry] = []
    absent: list[str] = []
    unparsed: list[str] = []
    for number, cells in enumerate(rows.itertuples(index=False), start=2):
        row: dict[str, str] = dict(zip(rows.columns, cells, strict=True))
        filename = row["filename"].strip()
        path = on_disk.pop(filename, None) or root / filename
        if not filename or not path.is_file():
            absent.append(filename or f"line {number}")
            continue
        try:
            entries.append(_Entry(path, _fields_of(row)))
        except ValueError as error:
            unparsed.append(f"line {number} ({filename}): {error}")
    named = {entry.path for entry in entries}
    extra = [name for name, path in on_disk.items() if path not in named]
    problems = [
        *_sentence(absent, "in the table but not on disk, left out"),
        *_sentence(unparsed, "left out because a field does not parse"),
        *_sentence(extra, "on disk but not in the table, left out"),
    ]
    return entries, problems


def _fields_of(row: dict[str, str]) -> dict[str, Any]:
    """A BirdCLEF row as fields of a Recording. Raises ValueError that names the column."""

    def text(name: str) -> str:
        return row.get(name, "").strip()

    def number(name: str) -> float | None:
        try:
            return float(text(name)) if text(name) else None
        except ValueError:
            return None  # "not recorded" and its like: common, and nothing depends on it

    def items(name: str) -> tuple[str, ...]:
        try:
            return parse_list(row.get(name, ""))
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None

    primary = text("primary_label")
    return {
        "filename": text("filename"),
        "primary_label": primary,
        "secondary_labels": tuple(label for label in items("secondary_labels") if label != primary),
        "types": items("type"),
        "latitude": number("latitude"),
        "longitude": number("longitude"),
        "rating": number("rating"),
        **{
            name: text(name)
            for name in ("scientific_name", "common_name", "author", "license", "url", "source", "fold")
        },
    }


def _read_folder(folder: Path, label_folders: bool) -> tuple[list[_Entry], list[str]]:
    files = _audio_below(folder)
    if not files:
        raise InputError(f"no audio files below {folder} (looked for {', '.join(sorted(AUDIO_SUFFIXES))}).")
    if not label_folders:
        return [_Entry(path, {"filename": str(path.relative_to(folder))}) for path in files], []
    entries, loose = [], []
    for path in files:
        relative = path.relative_to(folder)
        if len(relative.parts) == 1:
            loose.append(relative.name)
            continue
        entries.append(_Entry(path, {"filename": str(relative), "primary_label": relative.parts[0]}))
    return entries, _sentence(loose, f"directly in {folder}, outside any label's folder, left out")


def _read_list(listing: Path) -> tuple[list[_Entry], list[str]]:
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list {listing} cannot be read: {error}") from None
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    entries = [_Entry(listing.parent / name, {"filename": name}) for name in names]
    absent = [str(entry.fields["filename"]) for entry in entries if not entry.path.is_file()]
    present = [entry for entry in entries if entry.path.is_file()]
    return present, _sentence(absent, "in the list but not on disk, left out")


def _identify(
    entries: Sequence[_Entry], problems: list[str], cache: HashCache, on_hashed: Callable[[int], None] | None
) -> Catalogue:
    """Hash every file and unite entries of one content."""
    paths = list(dict.fromkeys(entry.path for entry in entries))
    hashes = cache.hash_all(paths, on_done=on_hashed)
    merged: dict[str, Recording] = {}
    rejected: list[Rejected] = []
    twice: list[str] = []
    contradictory: list[str] = []
    for entry in entries:
        recording = hashes[entry.path]
        if isinstance(recording, OSError):
            rejected.append(Rejected(entry.path, f"cannot be read: {recording.strerror or recording}"))
            continue
        if entry.path.stat().st_size == 0:
            rejected.append(Rejected(entry.path, "empty file (0 bytes)"))
            continue
        new = Recording(recording=recording, path=entry.path.resolve(), **entry.fields)
        new = replace(new, xeno_canto_id=_xeno_canto_id(new))
        first = merged.get(recording)
        if first is None:
            merged[recording] = new
            continue
        twice.append(f"{new.filename} = {first.filename}")
        if first.fold != new.fold:
            contradictory.append(
                f"{new.filename} (fold {new.fold or 'none'}) = {first.filename} (fold {first.fold or 'none'})"
            )
        merged[recording] = _united(first, new)
    problems = [
        *problems,
        *_sentence(twice, "same content under two names, taken as one recording with the labels of both"),
        *_sentence(contradictory, "same content in two folds, the first taken"),
    ]
    return Catalogue(tuple(merged.values()), tuple(problems), tuple(rejected))


def _united(first: Recording, second: Recording) -> Recording:
    primary = first.primary_label or second.primary_label
    others = dict.fromkeys((*first.labels, *second.labels))
    return replace(
        first,
        primary_label=primary,
        secondary_labels=tuple(label for label in others if label != primary),
        types=tuple(dict.fromkeys((*first.types, *second.types))),
        source=first.source or second.source,
        fold=first.fold or second.fold,
        xeno_canto_id=first.xeno_canto_id or second.xeno_canto_id,
        other_paths=tuple(dict.fromkeys(p for p in (*first.other_paths, second.path) if p != first.path)),
    )


def _xeno_canto_id(recording: Recording) -> str:
    """The number in a xeno-canto address or in a file name such as XC123456.mp3; "" when there is none."""
    found = re.search(r"xeno-canto\.org/(\d+)", recording.url) or re.match(r"XC(\d+)\b", recording.path.name)
    return found.group(1) if found else ""


def _audio_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())


def _sentence(names: list[str], what: str) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}."]
