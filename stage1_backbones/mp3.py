"""What libsndfile does not tell of an mp3: whether its length is promised or guessed, and how to read on."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["MPG123_REMARKS", "EndlessFile", "Mp3Header"]

# What mpg123 says of a damaged file, from C; the user reads of the damage in an AudioError.
MPG123_REMARKS = (
    b"Warning: Xing",
    b"Note: Illegal Audio-MPEG-Header",
    b"Note: Trying to resync",
    b"Note: Skipped ",
    b"Note: Hit end of (available) data",
    b"[src/libmpg123/",
)


@dataclass(frozen=True)
class Mp3Header:
    """What an mp3's first frame promises (its Xing, Info or VBRI tag), known before mpg123 complains of it.

    promises_length  the tag tells the number of frames
    is_sound         the file begins like an mp3 and is as long as the tag says
    """

    promises_length: bool
    is_sound: bool

    @classmethod
    def read(cls, path: Path) -> Mp3Header | None:
        """None for a file that is no mp3 by its content or name."""
        with open(path, "rb") as handle:
            head = handle.read(10)
            start = 0
            if head[:3] == b"ID3" and len(head) == 10:
                start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
            handle.seek(start)
            frame = handle.read(4096).lstrip(b"\0")[:256]  # some tags are followed by padding
            n_bytes = handle.seek(0, os.SEEK_END) - start
        is_frame = len(frame) > 4 and frame[0] == 0xFF and frame[1] & 0xE0 == 0xE0 and frame[1] & 0x06 == 0x02
        if not is_frame:
            return cls(promises_length=True, is_sound=False) if path.suffix.lower() == ".mp3" else None
        if b"VBRI" in frame:
            return cls(promises_length=True, is_sound=True)
        at = max(frame.find(b"Xing"), frame.find(b"Info"))
        flags = int.from_bytes(frame[at + 4 : at + 8], "big") if at >= 0 else 0
        if not flags & 1:
            return cls(promises_length=False, is_sound=True)
        has_bytes = bool(flags & 2)
        promised_bytes = int.from_bytes(frame[at + 12 : at + 16], "big")
        return cls(promises_length=True, is_sound=not has_bytes or abs(n_bytes - promised_bytes) < 0.01 * n_bytes)


class EndlessFile:
    """A file that claims to be very long.

    libsndfile guesses the length of an mp3 without a Xing tag from its size and first frame, and stops there;
    with variable bit rates most of the recording may come after that. Shown no end, it reads to the true one.
    """

    _CLAIM = 1 << 40

    def __init__(self, path: Path) -> None:
        self._handle: BinaryIO = open(path, "rb")  # noqa: SIM115 - closed with the object
        self._asked_for_end = False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._asked_for_end = whence == os.SEEK_END
        with contextlib.suppress(OSError):  # a damaged file may send the decoder before its start
            self._handle.seek(offset, whence)
        return self._handle.tell()

    def tell(self) -> int:
        return self._CLAIM if self._asked_for_end else self._handle.tell()

    def read(self, n: int = -1) -> bytes:
        return self._handle.read(n)

    def readinto(self, buffer: Any) -> int:
        return self._handle.readinto(buffer)  # type: ignore[attr-defined]

    def __del__(self) -> None:
        self._handle.close()
