"""Labels replaced or corrected by a table, without touching vectors or audio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embeddings.errors import InputError
from embeddings.recordings import Catalogue, Recording, save_catalogue
from embeddings.splits import make_split
from embeddings.store import Store
from embeddings.tables import TableRow, read_table

__all__ = ["Relabelled", "relabelled", "store_catalogue"]


_LABELS = ("primary_label", "secondary_labels", "types")


@dataclass
class Relabelled:
    """A catalogue under a table's labels, and what became of each side.

    changed    file names of recordings that are labelled otherwise now     n_same  those that the table agrees with
    unmatched  file names of the table that no recording has                unnamed  recordings that it does not name
    problems   sentences on rows that do not parse
    """

    recordings: list[Recording]
    changed: list[str] = field(default_factory=list)
    n_same: int = 0
    unmatched: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def relabelled(
    catalogue: Catalogue, table: Path, *, resplit: bool = False, split_settings: Mapping[str, Any] | None = None
) -> Relabelled:
    """Give recordings the columns of a BirdCLEF table, matched by `filename`.

    A column that the table leaves empty or lacks keeps its value, but for the labels: those are the table's word.
    resplit : divide anew by the new labels, with the seed and fold of `split_settings`; else sides stay as they are
    Raises InputError when the table cannot be read, contradicts itself or names none of the recordings.
    """
    rows: dict[str, TableRow] = {}
    for row in read_table(table):
        earlier = rows.setdefault(row.filename, row)
        for name in () if earlier.problem or row.problem else _LABELS:
            if earlier.fields[name] != row.fields[name]:
                said = [f"line {r.line} ({r.fields[name] or 'nothing'})" for r in (earlier, row)]
                raise InputError(
                    f"{table} contradicts itself on the {name} of {row.filename}: {said[0]} and {said[1]}. Keep one "
                    f"line of each recording."
                )
    found = Relabelled([], problems=[row.problem for row in rows.values() if row.problem])
    for recording in catalogue:
        named = rows.pop(recording.filename, None)
        if named is None or named.problem:
            found.unnamed += [recording.filename] if named is None else []
            found.recordings.append(recording)
            continue
        given = {name: value for name, value in named.fields.items() if value not in ("", None, ())}
        labels = {name: named.fields[name] for name in _LABELS}
        new = replace(recording, **{**given, **labels})
        found.recordings.append(new)
        if new == recording:
            found.n_same += 1
        else:
            found.changed.append(recording.filename)
    found.unmatched = list(rows)
    if len(found.unnamed) == len(catalogue) and len(catalogue):
        raise InputError(
            f"{table} names none of the {len(catalogue)} recordings. Its filenames look like "
            f"{next(iter(rows), '(none)')!r}, theirs like {found.unnamed[0]!r}."
        )
    if resplit:
        settings = split_settings or {}
        split = make_split(found.recordings, seed=settings.get("seed", 0), valid_fold=settings.get("valid_fold", ""))
        found.recordings = [replace(r, split=split.assignments.get(r.recording, "")) for r in found.recordings]
    return found


def store_catalogue(store: Store, recordings: Sequence[Recording]) -> None:
    """Make these the store's catalogue, in one step that is done or not done."""
    save_catalogue(store.path / "catalogue.arrow", recordings)
    store.reload()
