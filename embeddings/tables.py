"""BirdCLEF's metadata table: its rows as fields of recordings, without looking at any audio."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embeddings.errors import InputError

__all__ = ["TableRow", "parse_list", "read_table"]

REQUIRED_COLUMNS = ("filename", "primary_label")


@dataclass(frozen=True)
class TableRow:
    """A line of a table. `fields` are those of a Recording; `problem` says why they do not parse."""

    line: int
    filename: str
    fields: dict[str, Any]
    problem: str = ""


def read_table(table: Path) -> list[TableRow]:
    """Every row of a BirdCLEF `train_metadata.csv`, in order.

    Raises InputError when it is no CSV table or lacks a column.
    """
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
    found = []
    for line, cells in enumerate(rows.itertuples(index=False), start=2):
        row: dict[str, str] = dict(zip(rows.columns, cells, strict=True))
        filename = row["filename"].strip()
        try:
            found.append(TableRow(line, filename, _fields_of(row)))
        except ValueError as error:
            found.append(TableRow(line, filename, {}, f"line {line} ({filename}): {error}"))
    return found


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
