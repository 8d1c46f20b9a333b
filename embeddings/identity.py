"""Content hashes of many files, remembered so that a resume reads no audio."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from embeddings.files import content_hash, write_atomically
from embeddings.recordings import Recording

__all__ = ["HashCache", "Hashed", "is_as_hashed"]

_SAVE_EVERY_S = 60.0
_COLUMNS = ("path", "size_bytes", "mtime_ns", "recording")


class Hashed(NamedTuple):
    """A content hash, and what the file was like just before it was read for it."""

    recording: str
    size_bytes: int
    mtime_ns: int


def is_as_hashed(recording: Recording) -> bool:
    """Whether the file still holds what it was hashed for; read again only when its size or time changed.

    To be asked after a recording was decoded: a card or a network that is still copying changes files under our hands.
    """
    if recording.stamp is None:
        return True  # nobody looked
    try:
        status = recording.path.stat()
        is_same = (status.st_size, status.st_mtime_ns) == recording.stamp
        return is_same or content_hash(recording.path) == recording.recording
    except OSError:
        return False


class HashCache:
    """Content hash by (path, size, mtime_ns), kept in one Arrow file.

    The file is a cache in the strict sense: missing or damaged, it is made anew from the audio.
    `rehash=True` distrusts what is there and reads every file again.
    """

    def __init__(self, path: Path | None, *, rehash: bool = False) -> None:
        self._path = path
        self._abandoned = threading.Event()
        self._known: dict[tuple[str, int, int], str] = {} if path is None or rehash else _load(path)

    def hash_all(
        self, paths: Sequence[Path], *, threads: int = 4, on_done: Callable[[int], None] | None = None
    ) -> dict[Path, Hashed | OSError]:
        """Hash every path; an unreadable one maps to its OSError.

        The cache is written every minute and at the end: hashing terabytes takes hours, and may be interrupted.
        """
        results: dict[Path, Hashed | OSError] = {}
        n_saved, saved_at = len(self._known), time.monotonic()
        pool = ThreadPoolExecutor(threads)
        try:
            for path, result in zip(paths, pool.map(self._hash_one, paths), strict=True):
                results[path] = result
                if on_done is not None:
                    on_done(1)
                if len(self._known) != n_saved and time.monotonic() - saved_at > _SAVE_EVERY_S:
                    self._save()
                    n_saved, saved_at = len(self._known), time.monotonic()
        except BaseException:  # Ctrl-C, hours in
            self.abandon()
            raise
        finally:
            pool.shutdown()
            if len(self._known) != n_saved:
                self._save()
        return results

    def abandon(self) -> None:
        """Let `hash_all`, in whatever thread, end after the files that are being read."""
        self._abandoned.set()

    def _hash_one(self, path: Path) -> Hashed | OSError:
        if self._abandoned.is_set():
            return OSError("not read: the hashing was interrupted")
        try:
            status = path.stat()
            key = (str(path), status.st_size, status.st_mtime_ns)
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = content_hash(path)
            return Hashed(known, status.st_size, status.st_mtime_ns)
        except OSError as error:
            return error

    def _save(self) -> None:
        import pyarrow as pa

        if self._path is None:
            return
        rows = [(*key, value) for key, value in self._known.copy().items()]  # other threads go on adding
        table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(_COLUMNS)})

        def write(temporary: Path) -> None:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

        write_atomically(self._path, write)


def _load(path: Path) -> dict[tuple[str, int, int], str]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            columns = pa.ipc.open_file(source).read_all().to_pydict()
        names, sizes, times, hashes = (columns[name] for name in _COLUMNS)
    except (OSError, pa.ArrowInvalid, KeyError):
        return {}
    return {(n, s, t): h for n, s, t, h in zip(names, sizes, times, hashes, strict=True)}
