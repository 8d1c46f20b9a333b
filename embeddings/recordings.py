"""The catalogue: which recordings there are, what is known of each, and which split each belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from embeddings.errors import StoreError
from embeddings.files import write_atomically

__all__ = [
    "NO_CALL",
    "SPLITS",
    "Catalogue",
    "Recording",
    "Rejected",
    "is_no_call",
    "load_catalogue",
    "save_catalogue",
    "with_recorder_notes",
]

SPLITS = ("train", "valid", "both", "")
NO_CALL = ("nocall", "no_call", "noise", "background", "silence")
"""Primary labels that say "nothing that we look for": such a recording is a negative for every class, never a class."""


def is_no_call(primary_label: str) -> bool:
    """Whether a primary label is one of NO_CALL, however it is capitalised."""
    return primary_label.lower() in NO_CALL


@dataclass(frozen=True)
class Recording:
    """One recording: its content, where it lies and what its table says of it.

    recording      content hash, the identity: two files with one content are one recording
    path           where the audio lies;  `filename` is its name in the table or below the folder
    primary_label  "" when nobody labelled it
    split          "train", "valid", "both" (a species with one recording only) or "" (not assigned)
    recorded_at    ISO 8601, with the offset from UTC where it is known;  `recorder` is make, model and serial number
    gain           as the recorder words it;  battery_v in volts, temperature_c in degrees Celsius
    size_bytes, mtime_ns   of the file at `path` when its content was hashed; None where nobody looked
    """

    recording: str
    path: Path
    filename: str = ""
    primary_label: str = ""
    secondary_labels: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    scientific_name: str = ""
    common_name: str = ""
    latitude: float | None = None
    longitude: float | None = None
    author: str = ""
    license: str = ""
    rating: float | None = None
    url: str = ""
    xeno_canto_id: str = ""
    source: str = ""
    fold: str = ""
    split: str = ""
    other_paths: tuple[Path, ...] = ()
    recorded_at: str = ""
    recorder: str = ""
    gain: str = ""
    battery_v: float | None = None
    temperature_c: float | None = None
    size_bytes: int | None = None
    mtime_ns: int | None = None

    @property
    def stamp(self) -> tuple[int, int] | None:
        """Size and time of the file when it was hashed; None where nobody looked."""
        return None if self.size_bytes is None or self.mtime_ns is None else (self.size_bytes, self.mtime_ns)

    @property
    def labels(self) -> tuple[str, ...]:
        """Primary label first, then the secondary ones; empty when unlabelled."""
        return (self.primary_label, *self.secondary_labels) if self.primary_label else self.secondary_labels


@dataclass(frozen=True)
class Rejected:
    """A file that cannot be a recording at all (empty, unreadable), and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Catalogue:
    """Recordings in a fixed order, each content once.

    problems  sentences for the user: what the table or the folder got wrong, by name
    rejected  files that extraction puts into quarantine without decoding
    absent    names in the table or list that have no file; `problems` has a sentence on them
    """

    recordings: tuple[Recording, ...]
    problems: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    absent: tuple[str, ...] = ()
    _by_hash: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_hash = {r.recording: i for i, r in enumerate(self.recordings)}
        object.__setattr__(self, "_by_hash", by_hash)

    def __len__(self) -> int:
        return len(self.recordings)

    def __iter__(self) -> Iterator[Recording]:
        return iter(self.recordings)

    def __contains__(self, recording: str) -> bool:
        return recording in self._by_hash

    def position(self, recording: str) -> int:
        """The place of a content hash in the catalogue's order."""
        return self._by_hash[recording]

    def get(self, recording: str) -> Recording | None:
        place = self._by_hash.get(recording)
        return None if place is None else self.recordings[place]

    @property
    def n_labelled(self) -> int:
        return sum(1 for r in self.recordings if r.primary_label)

    @property
    def counts(self) -> dict[str, int]:
        """Recordings per primary label, most first."""
        return dict(Counter(r.primary_label for r in self.recordings if r.primary_label).most_common())

    def names(self) -> dict[str, tuple[str, str]]:
        """Label -> (scientific name, common name), from the recordings that have it as primary label."""
        names: dict[str, tuple[str, str]] = {}
        for r in self.recordings:
            if r.primary_label and not any(names.get(r.primary_label, ("", ""))):
                names[r.primary_label] = (r.scientific_name, r.common_name)
        return names

    def with_splits(self, assignments: Mapping[str, str]) -> Catalogue:
        """The same recordings with `split` taken from content hash -> split, "" where not named."""
        changed = (replace(r, split=assignments.get(r.recording, "")) for r in self.recordings)
        return Catalogue(tuple(changed), self.problems, self.rejected, self.absent)

    def joined(self, newer: Iterable[Recording]) -> Catalogue:
        """This catalogue with `newer` recordings replacing those of the same content and following the rest.

        The places where a recording lay before are remembered among its other paths.
        """
        merged = {r.recording: r for r in self.recordings}
        for recording in newer:
            known = merged.get(recording.recording)
            if known is not None and known.path != recording.path:
                paths = dict.fromkeys((*recording.other_paths, known.path, *known.other_paths))
                recording = replace(recording, other_paths=tuple(p for p in paths if p != recording.path))
            merged[recording.recording] = recording
        return Catalogue(tuple(merged.values()), self.problems, self.rejected, self.absent)


def with_recorder_notes(
    recordings: Iterable[Recording], note_of: Callable[[Path], Mapping[str, Any]]
) -> tuple[Recording, ...]:
    """The recordings with what `note_of(path)` says of the recorder, in fields that are still empty.

    note_of : path -> any of recorded_at, recorder, gain, battery_v, temperature_c, latitude, longitude; more is ignored
    A place is taken as a whole: a table's latitude is never joined to a header's longitude.
    """
    return tuple(_noted(recording, note_of(recording.path)) for recording in recordings)


def _noted(recording: Recording, note: Mapping[str, Any]) -> Recording:
    filled: dict[str, Any] = {name: note.get(name) for name in _NOTED if getattr(recording, name) in ("", None)}
    if recording.latitude is None and recording.longitude is None:
        filled.update({name: note.get(name) for name in ("latitude", "longitude")})
    filled = {name: value for name, value in filled.items() if value not in ("", None)}
    return replace(recording, **filled) if filled else recording


def save_catalogue(path: Path, recordings: Sequence[Recording]) -> None:
    """Write recordings as one Arrow IPC file, atomically."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {f.name: [] for f in fields(Recording)}
    for recording in recordings:
        for name, column in columns.items():
            value = getattr(recording, name)
            if isinstance(value, tuple):
                value = [str(item) for item in value]
            column.append(str(value) if isinstance(value, Path) else value)
    schema = pa.schema([(name, _arrow_type(name)) for name in columns])
    table = pa.table(columns, schema=schema)

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(table)

    write_atomically(path, write)


def load_catalogue(path: Path) -> Catalogue:
    """Read what `save_catalogue` wrote; a column that an older version did not write has its default.

    Raises StoreError when it is missing or damaged.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            rows = pa.ipc.open_file(source).read_all().to_pylist()
        return Catalogue(tuple(_recording_of(row) for row in rows))
    except FileNotFoundError:
        raise StoreError(
            f"catalogue not found: {path}. The folder is not a store, or its extraction never began."
        ) from None
    except (OSError, pa.ArrowInvalid, KeyError, TypeError) as error:
        raise StoreError(
            f"catalogue {path} is damaged: {error}. Take it out with `embed repair {path.parent}`; no row is lost."
        ) from None


_NOTED = ("recorded_at", "recorder", "gain", "battery_v", "temperature_c")
_NUMBERS = ("latitude", "longitude", "rating", "battery_v", "temperature_c")
_WHOLE_NUMBERS = ("size_bytes", "mtime_ns")
_LISTS = ("secondary_labels", "types", "other_paths")


def _arrow_type(name: str) -> Any:
    import pyarrow as pa

    if name in _NUMBERS:
        return pa.float64()
    if name in _WHOLE_NUMBERS:
        return pa.int64()
    return pa.list_(pa.string()) if name in _LISTS else pa.string()


def _recording_of(row: dict[str, Any]) -> Recording:
    row["path"] = Path(row["path"])
    row["other_paths"] = tuple(Path(p) for p in row["other_paths"])
    row["secondary_labels"] = tuple(row["secondary_labels"])
    row["types"] = tuple(row["types"])
    return Recording(**row)
