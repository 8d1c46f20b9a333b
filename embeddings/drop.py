"""Recordings taken out of a store."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from embeddings.errors import InputError
from embeddings.recordings import Recording, save_catalogue
from embeddings.store import Store

__all__ = ["drop", "matching"]


def matching(store: Store, patterns: Sequence[str]) -> list[Recording]:
    """The recordings whose file name, path or content hash fits any of the patterns (`*` and `?` as in a shell).

    Raises InputError for a pattern that fits nothing: it was mistyped.
    """
    found: dict[str, Recording] = {}
    for pattern in patterns:
        fitting = [
            r
            for r in store.catalogue
            if r.recording == pattern or fnmatchcase(r.filename, pattern) or fnmatchcase(str(r.path), pattern)
        ]
        if not fitting:
            raise InputError(
                f"no recording of {store.path} fits {pattern!r}. Give a file name as `embed search` shows it, a path, "
                f"a content hash, or a pattern with * and ?."
            )
        found.update({r.recording: r for r in fitting})
    return list(found.values())


def drop(store: Store, recordings: Sequence[Recording]) -> None:
    """Take recordings out of the catalogue, in one step that is done or not done.

    Their rows are gone for every reader at once. On disk they stay until `compact`; a recording that is extracted
    again before that comes back with the rows that it had, and is embedded anew after it.
    """
    gone = {r.recording for r in recordings}
    save_catalogue(store.path / "catalogue.arrow", [r for r in store.catalogue if r.recording not in gone])
    store.reload()
