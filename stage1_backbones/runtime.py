"""How training treats the machine's memory and the user's screen."""

from __future__ import annotations

import ctypes
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["keep_large_blocks", "quiet_lightning"]


def keep_large_blocks() -> None:
    """Let glibc keep freed tensors instead of returning them to the system after each layer.

    Training frees and asks for the same large blocks again and again; each return costs page faults.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold, one_gibibyte = -1, -3, 1 << 30
        libc.mallopt(m_mmap_threshold, one_gibibyte)
        libc.mallopt(m_trim_threshold, one_gibibyte)
    except (OSError, AttributeError):
        return  # another C library: nothing to tune


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's advice about hardware, workers and loggers off the screen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
