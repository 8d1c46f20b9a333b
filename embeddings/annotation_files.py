"""One annotation file: boxes from a Raven selection table, an Audacity label track or a CSV table."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from embeddings.catalogue_sources import AUDIO_SUFFIXES
from embeddings.errors import InputError
from embeddings.recordings import NO_CALL

__all__ = ["Box", "ParsedFile", "annotated_name", "has_audio_suffix", "parse_annotation_file"]

NOTHING_LABELS = ("none", *NO_CALL)
"""Labels that say "nothing that we look for", however they are capitalised."""

_COLUMNS: dict[str, tuple[str, ...]] = {
    "filename": ("filename", "file", "file name", "recording", "soundscape", "audio", "begin path", "begin file"),
    "start_s": ("start s", "start", "start time", "start time s", "begin s", "begin time s", "begin time"),
    "end_s": ("end s", "end", "end time", "end time s"),
    "label": (
        "label", "species", "annotation", "species code", "species ebird code", "ebird code", "common name", "tag",
    ),
    "scientific_name": ("scientific name", "latin name"),
    "common_name": ("common name",),
    "low_hz": ("low hz", "low freq hz", "low freq", "min hz"),
    "high_hz": ("high hz", "high freq hz", "high freq", "max hz"),
    "confidence": ("confidence", "certainty"),
    "complete": ("complete", "box complete"),
    "looked_for": ("looked for", "annotated species"),
    "offset_s": ("file offset s",),
    "view": ("view",),
    "selection": ("selection",),
}  # fmt: skip
_NEEDED = ("start_s", "end_s", "label")
_SPELT = {
    "filename": ("filename", "Begin File"),
    "start_s": ("start_s", "Begin Time (s)"),
    "end_s": ("end_s", "End Time (s)"),
    "label": ("label", "Species", "Annotation", "Common Name"),
}
_SHOWN = 60  # characters of a column's title
_TABLE_NAME = re.compile(r"(\.birdnet)?(\.table\.\d+)?(\.selections?(\.table)?)?\.(txt|tsv)$", re.IGNORECASE)


@dataclass(frozen=True)
class Box:
    """A call that somebody drew a box around.

    start_s, end_s   seconds from the recording's beginning, 0 <= start_s < end_s
    where            file:line, for errors
    low_hz, high_hz  None where the file has no frequencies;  confidence, complete: the table's own words about the box
    scientific_name, common_name   of the label, where the table has such columns
    """

    start_s: float
    end_s: float
    label: str
    where: str
    low_hz: float | None = None
    high_hz: float | None = None
    confidence: str = ""
    complete: str = ""
    scientific_name: str = ""
    common_name: str = ""


@dataclass
class ParsedFile:
    """What one file says.

    boxes         recording as the file names it -> its boxes; none: annotated, and nothing found
    marked_empty  recording -> file:line that says so
    looked_for    recording -> species that were looked for, None: all; absent where the file does not say
    bad           file:line and what is wrong there
    n_views       rows that show a selection of another row in Raven's second view
    n_nothing     timed rows that say "no call here"
    """

    boxes: dict[str, list[Box]] = field(default_factory=dict)
    marked_empty: dict[str, str] = field(default_factory=dict)
    looked_for: dict[str, frozenset[str] | None] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    n_views: int = 0
    n_nothing: int = 0


def annotated_name(path: PurePosixPath) -> str:
    """The recording that a table or label track is named after, with its folder; its suffix may be unknown.

    >>> annotated_name(PurePosixPath("site/A7.Table.1.selections.txt")), annotated_name(PurePosixPath("A7.wav.txt"))
    ('site/A7', 'A7.wav')
    """
    return str(path.with_name(_TABLE_NAME.sub("", path.name) or path.name))


def parse_annotation_file(path: Path, name: str, label_column: str = "") -> ParsedFile:
    """Read a file of boxes.

    name          the recording that the file belongs to, where it names none itself
    label_column  the column that holds labels; default: the first of the usual ones
    Raises InputError when it is no annotation at all: not text, without the needed columns. Rows that cannot be meant
    so are told in `bad`.
    """
    text = _text_of(path)
    if path.suffix.lower() != ".csv":
        if not text.strip():
            return ParsedFile(boxes={name: []})
        first = next(line for line in text.splitlines() if line.strip())
        if _number(first.split("\t")[0]) is not None:
            return _parse_label_track(path, text, name)
    return _parse_table(path, text, name, label_column)


def _text_of(path: Path) -> str:
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte {raw[error.start]:#04x} at {error.start}): save it anew as UTF-8 text."
        ) from None
    if "\0" in text:
        raise InputError(f"{path} holds zero bytes and is no text; annotations are .txt or .csv tables.")
    return text


def _parse_label_track(path: Path, text: str, name: str) -> ParsedFile:
    """Audacity's: start, end, label; a line that begins with a backslash holds the frequencies of the one above."""
    found = ParsedFile(boxes={name: []})
    for line, row in enumerate(io.StringIO(text), start=1):
        cells = row.split("\t")
        if not row.strip() or cells[0].strip() == "\\":  # of frequencies nothing depends on
            continue
        values = {"start_s": cells[0], "end_s": "".join(cells[1:2]).strip(), "label": " ".join(cells[2:])}
        _add_box(found, name, values, f"{path}:{line}", {})
    return found


def _parse_table(path: Path, text: str, name: str, label_column: str) -> ParsedFile:
    is_csv = path.suffix.lower() == ".csv"
    lines = _lines_of(path, text, is_csv)
    _, header = lines[0] if lines else (0, [])
    column = _columns_of(header, label_column)
    needed = ("filename", *_NEEDED) if is_csv else _NEEDED
    if missing := [role for role in needed if role not in column]:
        wanted = [_wanted(role, label_column) for role in missing]
        raise InputError(
            f"{path} is no table of annotations: it lacks {', '.join(wanted)}. Its columns are "
            f"{', '.join(repr(cell[:_SHOWN]) for cell in header) or 'none'}."
        )
    titles = {role: header[place] for role, place in column.items()}
    found, rows = ParsedFile(), []
    for line, row in lines[1:]:
        where = f"{path}:{line}"
        values = {role: row[place].strip() for role, place in column.items() if place < len(row)}
        if len(row) <= max(column[role] for role in needed):
            found.bad.append(f"{where}: {len(row)} cells, but the header has {len(header)}")
        elif "filename" in column and not PurePosixPath(values.get("filename", "")).name:
            found.bad.append(f"{where}: names no file under {titles['filename']!r}")
        else:
            rows.append((where, values))
    if "filename" not in column or not lines[1:]:
        if not is_csv:
            found.boxes[name] = []
    elif titles["filename"].lower().startswith("begin ") and "offset_s" not in column:
        _require_one_file(path, rows)
    seen: dict[tuple[str, ...], str] = {}
    for where, values in rows:
        if "view" in column and _in_another_view(values, seen):
            found.n_views += 1
        else:
            recording = values["filename"].replace("\\", "/") if "filename" in column else name
            _add_row(found, values, recording, where, titles)
    return found


def _lines_of(path: Path, text: str, is_csv: bool) -> list[tuple[int, list[str]]]:
    """Number and cells of every line that is not blank; the first is the header."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max("\t;,", key=first.count) if is_csv else "\t"
    stream = io.StringIO(text)
    # A Raven annotation may hold a single quotation mark.
    reader = (
        csv.reader(stream, delimiter=delimiter) if is_csv else csv.reader(stream, "excel-tab", quoting=csv.QUOTE_NONE)
    )
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num} cannot be read as a table: {error}.") from None


def _wanted(role: str, label_column: str) -> str:
    """A column that is missing, in words."""
    if role == "label" and label_column:
        return f"the label column {label_column!r}"
    spellings = _SPELT[role]
    return f"{role} ({', '.join(spellings)}{'; name another with --label-column' if role == 'label' else ''})"


def _require_one_file(path: Path, rows: list[tuple[str, dict[str, str]]]) -> None:
    """Times of a table over several files count from the first one's beginning."""
    names = sorted({values["filename"] for _, values in rows})
    if len(names) > 1:
        raise InputError(
            f"{path} has selections of {len(names)} files ({', '.join(names[:3])}) but no column 'File Offset (s)', "
            "which says where in its file each one begins. Export it with that measurement."
        )


def _in_another_view(values: Mapping[str, str], seen: dict[tuple[str, ...], str]) -> bool:
    """Whether this row shows a selection that was met in another of Raven's views."""
    key = tuple(values.get(role, "") for role in ("selection", "start_s", "end_s", "filename"))
    view = values.get("view", "")
    return seen.setdefault(key, view) != view


def _columns_of(header: list[str], label_column: str) -> dict[str, int]:
    """Role -> place in the header; of several spellings of a role the first in `_COLUMNS` counts."""
    place = {_plain(title): i for i, title in reversed(list(enumerate(header)))}
    found = {
        role: next(place[spelling] for spelling in spellings if spelling in place)
        for role, spellings in _COLUMNS.items()
        if any(spelling in place for spelling in spellings)
    }
    if label_column:
        found.pop("label", None)
        if _plain(label_column) in place:
            found["label"] = place[_plain(label_column)]
    return found


def _plain(title: str) -> str:
    """A column's title without capitals, underscores and brackets.

    >>> _plain("Begin Time (s)"), _plain("start_time_s")
    ('begin time s', 'start time s')
    """
    return " ".join(re.sub(r"[\W_]+", " ", title.lower()).split())


def _add_row(found: ParsedFile, values: dict[str, str], name: str, where: str, titles: Mapping[str, str]) -> None:
    if broken := next((role for role, text in values.items() if "\n" in text or "\r" in text), None):
        found.bad.append(f"{where}: {titles[broken]} holds a line break; is a quotation mark left open?")
        return
    if species := [part.strip() for part in re.split("[;,]", values.get("looked_for", "")) if part.strip()]:
        everything = {part.lower() for part in species} & {"all", "*"}
        before = found.looked_for.get(name, frozenset())
        found.looked_for[name] = None if everything or before is None else before | frozenset(species)
    if not values["start_s"] and not values["end_s"] and values["label"].lower() in ("", *NOTHING_LABELS):
        found.marked_empty.setdefault(name, where)
        found.boxes.setdefault(name, [])
        return
    _add_box(found, name, values, where, titles)


def _add_box(found: ParsedFile, name: str, values: Mapping[str, str], where: str, titles: Mapping[str, str]) -> None:
    boxes = found.boxes.setdefault(name, [])
    numbers: dict[str, float | None] = {}
    for role in ("start_s", "end_s", "offset_s", "low_hz", "high_hz"):
        text = values.get(role, "").strip()
        numbers[role] = _number(text)
        if numbers[role] is None and (text or role in ("start_s", "end_s")):
            comma = "; write decimals with a point" if re.fullmatch(r"-?\d+,\d+", text) else ""
            found.bad.append(f"{where}: {titles.get(role, role)} is {text!r}, not a number{comma}")
            return
    if "offset_s" in titles and numbers["offset_s"] is None:
        found.bad.append(f"{where}: {titles['offset_s']} is empty, so where in its file the box lies is unknown")
        return
    start_s, end_s = numbers["start_s"], numbers["end_s"]
    assert start_s is not None
    assert end_s is not None
    if (offset_s := numbers["offset_s"]) is not None:  # the times count from the beginning of the first of many files
        start_s, end_s = offset_s, offset_s + (end_s - start_s)
    label = values.get("label", "").strip()
    if start_s < 0:
        found.bad.append(f"{where}: starts at {start_s:g} s, before the recording")
    elif end_s < start_s:
        found.bad.append(f"{where}: starts at {start_s:g} s, after its end at {end_s:g} s")
    elif end_s == start_s:
        found.bad.append(f"{where}: starts and ends at {start_s:g} s; a point says not how long the call is")
    elif not label:
        found.bad.append(f"{where}: has no label")
    elif label.lower() in NOTHING_LABELS:
        found.n_nothing += 1
    else:
        more = {role: values.get(role, "") for role in ("confidence", "complete", "scientific_name", "common_name")}
        boxes.append(Box(start_s, end_s, label, where, numbers["low_hz"], numbers["high_hz"], **more))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def has_audio_suffix(name: str) -> bool:
    """Whether a name ends like an audio file's."""
    return PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES
