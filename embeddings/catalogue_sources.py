"""Reads a catalogue from what people have: a BirdCLEF table, a folder per label, a list or folder of files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from embeddings.errors import InputError
from embeddings.identity import HashCache
from embeddings.recordings import Catalogue, Recording, Rejected
from embeddings.tables import read_table

__all__ = ["AUDIO_SUFFIXES", "read_catalogue", "read_unlabelled", "united"]

AUDIO_SUFFIXES = frozenset(".wav .flac .ogg .oga .opus .mp3 .aif .aiff .au .caf .w64 .rf64 .m4a .aac .mp4".split())  # noqa: SIM905
_NEVER_FILLED = frozenset(
    "recording path size_bytes mtime_ns filename primary_label secondary_labels types other_paths".split()  # noqa: SIM905
)
_FIRST_BYTES = 1 << 30
_SHOWN = 5  # names listed in a sentence before "and N more"


@dataclass(frozen=True)
class _Entry:
    """A line of the source before its audio was looked at; `recording` is still to come."""

    path: Path
    fields: dict[str, Any]


_Found = tuple[list[_Entry], list[str], list[str]]
"""What a source names: entries, sentences on what is wrong, and names without a file."""


def read_catalogue(
    source: Path | Sequence[Path],
    *,
    audio: Path | None = None,
    label_folders: bool = False,
    cache: HashCache | None = None,
    on_hashed: Callable[[int], None] | None = None,
) -> Catalogue:
    """Read the recordings that `source` names.

    source         a BirdCLEF `train_metadata.csv`, a `.txt` list of paths, a folder, or one audio file; or several
                   folders and audio files
    audio          where a table's files lie; default the `train_audio` folder beside it
    label_folders  a folder's first level of subfolders are primary labels
    Returns a Catalogue whose `problems` name what was wrong: rows without a file, files without a row, rows that
    do not parse, contents that occur twice.
    Raises InputError when nothing usable is there.
    """
    entries, problems, absent = _entries_of(source, audio, label_folders)
    catalogue = replace(_identify(entries, problems, cache or HashCache(None), on_hashed), absent=tuple(absent))
    if not catalogue.recordings and not catalogue.rejected:
        raise InputError(f"no recordings in {source}. " + " ".join(catalogue.problems))
    return catalogue


def read_unlabelled(
    source: Path | Sequence[Path], *, cache: HashCache | None = None, first_bytes: int = _FIRST_BYTES
) -> tuple[int, Iterator[Catalogue]]:
    """Read folders, files or a list without labels, a part at a time, so that work on the first can begin early.

    Parts are identified when they are asked for: of about `first_bytes` of audio, then each twice the one before.
    Returns the number of files, and the parts. Raises InputError when nothing usable is there.
    """
    entries, problems, absent = _entries_of(source, None, False)
    if not entries:
        raise InputError(f"no recordings in {source}. " + " ".join(problems))
    cache = cache or HashCache(None)

    def parts() -> Iterator[Catalogue]:
        start, wanted, told, lacking = 0, first_bytes, problems, tuple(absent)
        while start < len(entries):
            end, n_bytes = start, 0
            while end < len(entries) and n_bytes < wanted:
                n_bytes += _size_of(entries[end].path)
                end += 1
            yield replace(_identify(entries[start:end], told, cache, None), absent=lacking)
            start, wanted, told, lacking = end, 2 * wanted, [], ()

    return len(entries), parts()


def _entries_of(source: Path | Sequence[Path], audio: Path | None, label_folders: bool) -> _Found:
    if not isinstance(source, str | Path):
        entries, problems = list[_Entry](), list[str]()
        for one in source:
            if one.suffix.lower() in (".csv", ".txt"):
                raise InputError(f"{one} is a table or a list; name it alone, without other recordings.")
            more, told, _ = _entries_of(one, None, label_folders)
            entries, problems = entries + more, problems + told
        return list({entry.path.resolve(): entry for entry in reversed(entries)}.values())[::-1], problems, []
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source} does not exist. Give a metadata table, a list, a folder of audio or an audio file.")
    if source.is_dir():
        return _read_folder(source, label_folders)
    if source.suffix.lower() == ".csv":
        return _read_birdclef(source, audio)
    if source.suffix.lower() == ".txt":
        return _read_list(source)
    return [_Entry(source, {"filename": source.name})], [], []


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_birdclef(table: Path, audio: Path | None) -> _Found:
    rows = read_table(table)
    root = audio if audio is not None else table.parent / "train_audio"
    if not root.is_dir():
        raise InputError(f"the audio folder {root} does not exist. Name it with --audio DIR.")

    files, unreadable = _audio_below(root)
    below = len(str(root)) + 1
    on_disk = {str(path)[below:]: path for path in files}
    entries: list[_Entry] = []
    absent: list[str] = []
    unparsed: list[str] = []
    for row in rows:
        found = on_disk.pop(row.filename, None)
        path = found or root / row.filename
        if not row.filename or (found is None and not path.is_file()):
            absent.append(row.filename or f"line {row.line}")
        elif row.problem:
            unparsed.append(row.problem)
        else:
            entries.append(_Entry(path, row.fields))
    named = {entry.path for entry in entries}
    extra = [name for name, path in on_disk.items() if path not in named]
    problems = [
        *unreadable,
        *_sentence(absent, "in the table but not on disk, left out"),
        *_sentence(unparsed, "left out because a field does not parse"),
        *_sentence(extra, "on disk but not in the table, left out"),
    ]
    return entries, problems, absent


def _read_folder(folder: Path, label_folders: bool) -> _Found:
    files, problems = _audio_below(folder)
    if not files:
        looked_for = ", ".join(sorted(AUDIO_SUFFIXES))
        raise InputError(" ".join([f"no audio files below {folder} (looked for {looked_for}).", *problems]))
    if not label_folders:
        return [_Entry(path, {"filename": str(path.relative_to(folder))}) for path in files], problems, []
    entries, loose = [], []
    for path in files:
        relative = path.relative_to(folder)
        if len(relative.parts) == 1:
            loose.append(relative.name)
            continue
        entries.append(_Entry(path, {"filename": str(relative), "primary_label": relative.parts[0]}))
    outside = _sentence(loose, f"directly in {folder}, outside any label's folder, left out")
    return entries, problems + outside, []


def _read_list(listing: Path) -> _Found:
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list {listing} cannot be read: {error}") from None
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    entries = [_Entry(listing.parent / name, {"filename": name}) for name in names]
    absent = [str(entry.fields["filename"]) for entry in entries if not entry.path.is_file()]
    present = [entry for entry in entries if entry.path.is_file()]
    return present, _sentence(absent, "in the list but not on disk, left out"), absent


def _identify(
    entries: Sequence[_Entry], problems: list[str], cache: HashCache, on_hashed: Callable[[int], None] | None
) -> Catalogue:
    """Hash every file and unite entries of one content."""
    paths = [path for path in dict.fromkeys(entry.path for entry in entries) if _is_text(os.path.realpath(path))]
    hashes = cache.hash_all(paths, on_done=on_hashed)
    merged: dict[str, Recording] = {}
    rejected: list[Rejected] = []
    twice: list[str] = []
    contradictory: list[str] = []
    for entry in entries:
        hashed = hashes.get(entry.path)
        if hashed is None:
            words = "its name is not UTF-8, which no table can hold; rename it"
            rejected.append(Rejected(Path(_printable(str(entry.path))), words))
            continue
        if isinstance(hashed, OSError):
            rejected.append(Rejected(entry.path, f"cannot be read: {hashed.strerror or hashed}"))
            continue
        if hashed.size_bytes == 0:
            rejected.append(Rejected(entry.path, "empty file (0 bytes)"))
            continue
        new = Recording(path=entry.path.resolve(), **hashed._asdict(), **entry.fields)
        new = replace(new, xeno_canto_id=_xeno_canto_id(new))
        first = merged.get(new.recording)
        if first is None:
            merged[new.recording] = new
            continue
        twice.append(f"{new.filename} = {first.filename}")
        if first.fold != new.fold:
            contradictory.append(
                f"{new.filename} (fold {new.fold or 'none'}) = {first.filename} (fold {first.fold or 'none'})"
            )
        merged[new.recording] = united(first, new)
    problems = [
        *problems,
        *_sentence(twice, "same content under two names, taken as one recording with the labels of both"),
        *_sentence(contradictory, "same content in two folds, the first taken"),
    ]
    return Catalogue(tuple(merged.values()), tuple(problems), tuple(rejected))


def united(first: Recording, second: Recording) -> Recording:
    """Two entries of one content as one recording: labels and types of both, other fields from the first that has one.

    The first one's path and primary label stay; the second's path is remembered among the others.
    """
    primary = first.primary_label or second.primary_label
    others = dict.fromkeys((*first.labels, *second.labels))
    filled = {
        f.name: getattr(second, f.name)
        for f in fields(Recording)
        if f.name not in _NEVER_FILLED and getattr(first, f.name) in ("", None)
    }
    paths = dict.fromkeys((*first.other_paths, second.path, *second.other_paths))
    return replace(
        first,
        **filled,
        primary_label=primary,
        secondary_labels=tuple(label for label in others if label != primary),
        types=tuple(dict.fromkeys((*first.types, *second.types))),
        other_paths=tuple(path for path in paths if path != first.path),
    )


def _xeno_canto_id(recording: Recording) -> str:
    """The number in a xeno-canto address or in a file name such as XC123456.mp3; "" when there is none."""
    found = re.search(r"xeno-canto\.org/(\d+)", recording.url) or re.match(r"XC(\d+)\b", recording.path.name)
    return found.group(1) if found else ""


def _audio_below(folder: Path) -> tuple[list[Path], list[str]]:
    """Audio files below a folder in the order of their paths, and sentences on what could not be looked at.

    Linked folders are followed; a folder that is reached twice counts once, under its real name if it has one here.
    """
    root = str(folder)
    files: list[str] = []
    companions: list[str] = []
    unreadable: list[str] = []
    waiting, linked = [root], list[str]()
    seen: set[tuple[int, int]] = set()
    while waiting or linked:
        here = waiting.pop() if waiting else linked.pop()  # links last, so that real names are met first
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = os.scandir(here)
        except OSError as error:
            unreadable.append(f"{os.path.relpath(here, root)} ({error.strerror or error})")
            continue
        with entries:
            for entry in entries:
                is_audio = os.path.splitext(entry.name)[1].lower() in AUDIO_SUFFIXES
                try:
                    if entry.is_dir():
                        (linked if entry.is_symlink() else waiting).append(entry.path)
                    elif is_audio and entry.name.startswith("._"):
                        companions.append(os.path.relpath(entry.path, root))
                    elif is_audio and entry.is_file():
                        files.append(entry.path)
                    elif is_audio and entry.is_symlink():
                        unreadable.append(f"{os.path.relpath(entry.path, root)} (a link to nothing)")
                except OSError as error:  # a link to itself, say
                    if is_audio or not entry.is_symlink():
                        unreadable.append(f"{os.path.relpath(entry.path, root)} ({error.strerror or error})")
    files.sort(key=lambda path: path.replace(os.sep, "\0"))  # as paths sort: a folder's files stay together
    problems = [
        *_sentence(sorted(unreadable), f"below {folder} cannot be read, left out"),
        *_sentence(sorted(companions), "macOS companion files (._NAME, no audio in them), left out"),
    ]
    return [Path(path) for path in files], problems


def _sentence(names: list[str], what: str) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(map(_printable, names[:_SHOWN]))}{more}."]


def _is_text(name: str) -> bool:
    """False for a file name of bytes that are no UTF-8."""
    return _printable(name) == name


def _printable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()
