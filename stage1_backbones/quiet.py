"""Remarks that C libraries write straight to the terminal, kept off it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator

__all__ = ["without_remarks"]

_LOCK = threading.Lock()


@contextlib.contextmanager
def without_remarks(prefixes: tuple[bytes, ...]) -> Iterator[None]:
    """Drop lines that begin with one of `prefixes` from the process's stderr; pass on all others afterwards.

    Meant for a moment, not for long: what other threads write there arrives late.
    """
    with _LOCK, contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            terminal = os.dup(2)
            os.dup2(held.fileno(), 2)
        except OSError:  # no stderr, or nowhere to hold it: nothing to keep clean
            yield
            return
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            held.seek(0)
            for line in held:
                if line.strip() and not line.startswith(prefixes):
                    os.write(terminal, line)
            os.close(terminal)
