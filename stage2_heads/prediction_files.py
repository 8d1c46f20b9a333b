"""Predictions as files that other tools open: CSV, Parquet, JSON lines, Raven's selection table, Audacity's labels."""

from __future__ import annotations

import csv
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from embeddings.errors import InputError
from embeddings.file_names import file_name
from embeddings.recordings import Recording
from stage2_heads.stretches import Stretch

__all__ = ["FILES", "FORMATS", "Provenance", "began_at", "open_writers"]


@dataclass(frozen=True)
class Provenance:
    """What every file says of its making.

    head     name and digest of the head;  blocks: "name@digest" of each block, joined by "+";  version: of Cisticola
    labels   the classes;  names : label -> (scientific name, common name);  thresholds : (c,)
    high_hz  the highest frequency that any block hears
    """

    head: str
    blocks: str
    version: str
    labels: Sequence[str]
    names: Mapping[str, tuple[str, str]]
    thresholds: np.ndarray
    high_hz: float

    @property
    def words(self) -> str:
        return f"Cisticola {self.version}, head {self.head}, blocks {self.blocks}"


@contextmanager
def open_writers(formats: Sequence[str], folder: Path, about: Provenance) -> Iterator[list[Writer]]:
    """A writer for each format, into `folder`. Files appear whole when the block ends, or not at all; label tracks do
    so one by one.

    Raises InputError for a format that there is not.
    """
    if unknown := [name for name in formats if name not in _WRITERS]:
        raise InputError(f"--format {unknown[0]} is not known; choose among {', '.join(FORMATS)}.")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        yield [stack.enter_context(_WRITERS[name](folder, about)) for name in dict.fromkeys(formats)]


class Writer(ABC):
    """One format's file. Entered, it takes stretches; left without an error, it puts the file into place."""

    name: str

    def __init__(self, folder: Path, about: Provenance) -> None:
        self.path = folder / self.name
        self.about = about
        self._temporary = self.path.with_name(f".{self.path.name}.{uuid4().hex[:8]}.tmp")

    def __enter__(self) -> Writer:
        self._open(self._temporary)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._close()
            if kind is None:
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    @abstractmethod
    def write(self, stretch: Stretch) -> None:
        """Take the next stretch."""

    @abstractmethod
    def _open(self, path: Path) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    def _rows(self, stretch: Stretch) -> Iterator[dict[str, Any]]:
        """A detection a row, the same columns in every format that has columns of its own choosing."""
        recording, about = stretch.recording, self.about
        began = began_at(recording.recorded_at)
        for window, column in stretch.detections():
            label = about.labels[column]
            scientific, common = about.names.get(label, ("", ""))
            start_s = float(stretch.start_s[window])
            yield {
                "file": str(recording.path),
                "start_s": round(start_s, 6),
                "end_s": round(float(stretch.end_s[window]), 6),
                "label": label,
                "common_name": common,
                "scientific_name": scientific,
                "score": float(stretch.scores[window, column]),
                "raw_score": float(stretch.raw[window, column]),
                "threshold": float(about.thresholds[column]),
                "time": "" if began is None else (began + timedelta(seconds=start_s)).isoformat(),
                "recording": recording.recording,
                "head": about.head,
                "blocks": about.blocks,
                "version": about.version,
            }


_COLUMNS = (
    *("file", "start_s", "end_s", "label", "common_name", "scientific_name", "score", "raw_score", "threshold", "time"),
    *("recording", "head", "blocks", "version"),
)
_NUMBERS = ("start_s", "end_s", "score", "raw_score", "threshold")


class _TextWriter(Writer):
    def _open(self, path: Path) -> None:
        self._handle = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115 - closed by `_close`

    def _close(self) -> None:
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()


class _Csv(_TextWriter):
    name = "predictions.csv"

    def _open(self, path: Path) -> None:
        super()._open(path)
        self._writer = csv.DictWriter(self._handle, _COLUMNS)
        self._writer.writeheader()

    def write(self, stretch: Stretch) -> None:
        self._writer.writerows(self._rows(stretch))


class _JsonLines(_TextWriter):
    name = "predictions.jsonl"

    def write(self, stretch: Stretch) -> None:
        self._handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows(stretch))


class _Parquet(Writer):
    name = "predictions.parquet"

    def _open(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {name: pa.float64() if name in _NUMBERS else pa.string() for name in _COLUMNS}
        about = {"cisticola": json.dumps({"head": self.about.head, "blocks": self.about.blocks})}
        self._schema = pa.schema(list(kinds.items()), metadata=about)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._waiting: list[dict[str, Any]] = []

    def write(self, stretch: Stretch) -> None:
        self._waiting.extend(self._rows(stretch))
        if len(self._waiting) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
            self._waiting.clear()

    def _close(self) -> None:
        self._flush()
        self._writer.close()


_ROW_GROUP = 65_536


class _Raven(_TextWriter):
    """Raven lays sounds end to end: `Begin Time (s)` counts from the first one's start, `File Offset (s)` in the file.

    Source: Raven Pro's user manual, selection tables of several files.
    """

    name = "predictions.selections.txt"

    def _open(self, path: Path) -> None:
        super()._open(path)
        self._writer = csv.writer(self._handle, delimiter="\t", lineterminator="\n")
        self._writer.writerow(
            [
                *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"),
                *("Begin Path", "File Offset (s)", "Begin File", "Species Code", "Common Name", "Scientific Name"),
                *("Score", "Raw Score", "Threshold", "Made By"),
            ]
        )
        self._n, self._before_s, self._duration_s = 0, 0.0, 0.0

    def write(self, stretch: Stretch) -> None:
        for row in self._rows(stretch):
            self._n += 1
            begin_s, end_s = (self._before_s + row[name] for name in ("start_s", "end_s"))
            self._writer.writerow(
                [
                    *(
                        self._n,
                        "Spectrogram 1",
                        1,
                        f"{begin_s:.6f}",
                        f"{end_s:.6f}",
                        "0.0",
                        f"{self.about.high_hz:.1f}",
                    ),
                    *(_line(row["file"]), f"{row['start_s']:.6f}", _line(Path(row["file"]).name)),
                    *(_line(row[name]) for name in ("label", "common_name", "scientific_name")),
                    *(f"{row['score']:.6f}", f"{row['raw_score']:.6g}"),
                    *(f"{row['threshold']:.6g}", _line(self.about.words)),
                ]
            )
        self._duration_s = max(self._duration_s, float(stretch.end_s.max()))
        if stretch.is_last:
            self._before_s, self._duration_s = self._before_s + self._duration_s, 0.0


class _Audacity(Writer):
    """A label track for each recording, also for those in which nothing was found, in a folder like the recordings'."""

    name = "audacity"

    def __enter__(self) -> Writer:
        self._lines: list[str] = []
        self._written: dict[Path, Path] = {}
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        return None

    def _open(self, path: Path) -> None:
        return None

    def _close(self) -> None:
        return None

    def write(self, stretch: Stretch) -> None:
        from embeddings.files import write_text

        for row in self._rows(stretch):
            name = _line(row["common_name"] or row["scientific_name"] or row["label"])
            self._lines.append(f"{row['start_s']:.6f}\t{row['end_s']:.6f}\t{name} {row['score']:.3f}\n")
        if not stretch.is_last:
            return
        text = "".join([f"0.000000\t0.000000\t# {_line(self.about.words)}\n", *self._lines])
        path = self._path_of(stretch.recording)
        write_text(path, text)
        self._lines.clear()

    def _path_of(self, recording: Recording) -> Path:
        """Named like the recording; its hash tells apart two recordings of one name."""
        name = Path(
            *[part for part in Path(recording.filename or recording.path.name).parts if part not in ("..", "/")]
        )
        content = recording.recording
        path = self.path / name.with_name(file_name(name.name, ".txt", content=content))
        if self._written.setdefault(path, recording.path) != recording.path:
            path = path.with_name(file_name(name.name, f".{content[:8]}.txt", content=content))
        return path


_WRITERS: dict[str, type[Writer]] = {
    "csv": _Csv,
    "parquet": _Parquet,
    "jsonl": _JsonLines,
    "raven": _Raven,
    "audacity": _Audacity,
}
FORMATS = tuple(_WRITERS)
FILES = {name: writer.name for name, writer in _WRITERS.items()}
"""Format -> what it is written as."""


def _line(text: str) -> str:
    """Without what would end a cell or a line: tables between tabs have no way to quote."""
    return " ".join(" ".join(text.splitlines()).split("\t"))


def began_at(recorded_at: str) -> datetime | None:
    """A recording's first moment by its recorder's clock; None where that is not known."""
    try:
        return datetime.fromisoformat(recorded_at) if recorded_at else None
    except ValueError:
        return None  # a clock that does not parse says nothing
