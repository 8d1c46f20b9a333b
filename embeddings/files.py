"""Files that are whole or absent: atomic writing, readable JSON, and content hashes."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from uuid import uuid4

from embeddings.errors import InputError

__all__ = ["content_hash", "read_json", "replace_folder", "sync_folder", "write_atomically", "write_json", "write_text"]

_CHUNK_BYTES = 1 << 20


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it into place.

    A reader sees the old file or the new one, never half of one, whatever instant the process is killed at.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Not-a-number is refused, because JSON has no word for it."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, atomically."""
    write_atomically(path, lambda temporary: _write(temporary, text))


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Read a JSON object. `what` names the file in errors ("backbone description").

    Raises InputError when the file is missing, cut short or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{what} not found: {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{what} {path} cannot be read: {error}. It was cut short or edited; make it anew.") from None
    if not isinstance(value, dict):
        raise InputError(f"{what} {path} holds a {type(value).__name__}; a JSON object was expected.")
    return value


def replace_folder(folder: Path, fill: Callable[[Path], None], *, own: Collection[str] | None = None) -> None:
    """Let `fill` write a temporary folder, then put it in the place of `folder`.

    own : the names in it that may be replaced; whatever else lies there moves into the new folder. None: all of them.
    The old folder, if any, stays until the new one is complete. Where the system can exchange two names in one step
    (Linux), there is a whole folder of that name at every instant; elsewhere a kill between two renames leaves the old
    one beside it as `.<name>.<digits>.old`. A kill before everything has moved leaves the rest in the old one, beside.
    """
    folder = folder.resolve()  # what a link points to is replaced, not the link
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        fill(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # From here on nothing is removed on an error: either of the two may hold what is nowhere else.
    if not folder.exists():
        temporary.rename(folder)
    else:
        old = temporary
        if not _exchange(temporary, folder):
            old = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.old")
            folder.rename(old)
            temporary.rename(folder)
        for entry in list(old.iterdir()):
            if own is not None and entry.name not in own:
                entry.rename(folder / entry.name)
        shutil.rmtree(old)
    sync_folder(folder.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Give two folders each other's name in one step. False, and nothing done, where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux
    return rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut (a no-op where folders cannot be opened)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def content_hash(path: Path) -> str:
    """The first 128 bits of the file's SHA-256, as 32 hexadecimal digits: a recording's identity."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()[:32]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
