"""Files that could not be embedded: which, why, in the decoder's words, and when."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from embeddings.files import write_atomically

__all__ = ["Quarantine", "QuarantinedFile"]


@dataclass(frozen=True)
class QuarantinedFile:
    """A file that gave no row. It is tried again when it changes, or on request."""

    path: str
    size_bytes: int
    mtime_ns: int
    reason: str
    when: str


class Quarantine:
    """The quarantined files of a store, as JSON lines; each writer appends to a file of its own."""

    def __init__(self, folder: Path, writer: str) -> None:
        self._folder = folder
        self._own = folder / f"{writer}.jsonl"

    def files(self) -> list[QuarantinedFile]:
        """Every quarantined file, the newest word on each path. A line torn by a kill is passed over."""
        found: dict[str, QuarantinedFile] = {}
        for journal in sorted(self._folder.glob("*.jsonl")):
            for line in journal.read_text(encoding="utf-8").splitlines():
                try:
                    entry = QuarantinedFile(**json.loads(line))
                except (json.JSONDecodeError, TypeError):
                    continue
                if entry.path not in found or found[entry.path].when <= entry.when:
                    found[entry.path] = entry
        return list(found.values())

    def add(self, path: Path, reason: str, stamp: tuple[int, int] | None = None) -> QuarantinedFile:
        """Write one file down at once, so that a kill does not lose it.

        stamp : size in bytes and mtime_ns of what was bad; None takes those of today
        """
        size, mtime = _stamp(path) if stamp is None else stamp
        entry = QuarantinedFile(str(path), size, mtime, reason, datetime.now(UTC).isoformat(timespec="seconds"))
        self.keep(entry)
        return entry

    def keep(self, entry: QuarantinedFile) -> None:
        """Write down an entry as it is."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._own, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")

    def unchanged(self) -> dict[str, QuarantinedFile]:
        """Path -> entry for files that are today as they were when they were quarantined."""
        return {e.path: e for e in self.files() if _stamp(Path(e.path)) == (e.size_bytes, e.mtime_ns)}

    def release(self, paths: Iterable[str]) -> None:
        """Forget these files, so that the next extraction tries them again."""
        gone = set(paths)
        kept = [entry for entry in self.files() if entry.path not in gone]
        text = "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in kept)
        journals = [journal for journal in self._folder.glob("*.jsonl") if journal != self._own]
        write_atomically(self._own, lambda temporary: _write(temporary, text))
        for journal in journals:
            journal.unlink()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
