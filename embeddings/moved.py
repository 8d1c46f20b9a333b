"""Where a stored recording's audio lies now: found by name, believed by content."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from embeddings.errors import InputError
from embeddings.files import content_hash
from embeddings.recordings import Recording

__all__ = ["AudioFinder"]


class AudioFinder:
    """Finds the audio of recordings below a folder, or where it lay when it was embedded.

    root   looked through first: for the name that a recording has in its table, then for a file of that name anywhere
           below; None looks only where the audio lay
    wrong  files of a recording's name that hold something else, each once; they are not used
    A file counts only when its content hash is the recording's.
    """

    def __init__(self, root: Path | None = None) -> None:
        """Raises InputError when `root` is not a folder."""
        if root is not None and not root.is_dir():
            raise InputError(f"--audio-root {root} is not a folder. Name the folder that the recordings lie in now.")
        self._root = root
        self._by_name: dict[str, list[Path]] | None = None
        self._found: dict[str, Path | None] = {}
        self.wrong: list[str] = []

    def find(self, recording: Recording) -> Path | None:
        """The recording's audio, or None when it is not at hand."""
        if recording.recording not in self._found:
            self._found[recording.recording] = self._looked_for(recording)
        return self._found[recording.recording]

    def _looked_for(self, recording: Recording) -> Path | None:
        seen: set[Path] = set()
        for path in self._candidates(recording):
            if path in seen:
                continue
            seen.add(path)
            try:
                if not path.is_file():
                    continue
                if content_hash(path) == recording.recording:
                    return path
            except OSError:  # a file that may not be read is not at hand
                continue
            if str(path) not in self.wrong:
                self.wrong.append(str(path))
        return None

    def _candidates(self, recording: Recording) -> Iterator[Path]:
        if self._root is not None:
            named = recording.filename or recording.path.name
            yield self._root / named
            yield from self._files().get(Path(named).name, [])
        yield recording.path
        yield from recording.other_paths

    def _files(self) -> dict[str, list[Path]]:
        """File name -> where such files lie below the root; listed once, when first needed."""
        assert self._root is not None
        if self._by_name is None:
            self._by_name = {}
            for path in sorted(p for p in self._root.rglob("*") if p.is_file()):
                self._by_name.setdefault(path.name, []).append(path)
        return self._by_name
