"""File names that every file system takes, made of labels and of recordings' names however long."""

from __future__ import annotations

import re

__all__ = ["LONGEST_BYTES", "file_name", "plain_word"]

LONGEST_BYTES = 200  # file systems take 255; a name that is being written is a little longer
_DIGITS = 8  # of a content hash


def plain_word(text: str) -> str:
    """Letters of any script, digits and a few signs."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-._")


def file_name(name: str, ending: str = "", *, content: str = "", n_bytes: int = LONGEST_BYTES) -> str:
    """`name` and `ending`; a longer one than fits is cut at a whole letter, and told apart by its recording's hash.

    n_bytes : of all of it in UTF-8;  content : the content hash, "" where the ending tells apart
    """
    if len(f"{name}{ending}".encode()) <= n_bytes:
        return f"{name}{ending}"
    if content:
        ending = f"-{content[:_DIGITS]}{ending}"
    return name.encode()[: n_bytes - len(ending.encode())].decode(errors="ignore") + ending
