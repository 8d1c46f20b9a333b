"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "part_of"]

Progress = Callable[[float], None]
"""Called with the share of the work that is done, from 0 to 1."""


def part_of(progress: Progress, start: float, share: float) -> Progress:
    """Reports 0 to 1 of a part of the work as `start` to `start + share` of the whole."""
    return lambda done: progress(start + share * done)
