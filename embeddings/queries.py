"""What a search asks for: audio files, parts of them, stored windows; resolved by name first, embedded later."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from embeddings.contract import Backbone
from embeddings.errors import InputError
from embeddings.extract import embed_file
from embeddings.files import content_hash
from embeddings.joined import JoinedReader, JoinedStores
from embeddings.recordings import Recording
from embeddings.store import StoreReader
from embeddings.windows import WindowStream

__all__ = [
    "AudioPart",
    "DecodePart",
    "Example",
    "Question",
    "Reference",
    "StoredWindows",
    "audio_part",
    "embedded",
    "named_example",
    "stored_row",
]

DecodePart = Callable[[float, float | None], WindowStream]
"""(start_s, end_s or None) -> a decoder that hears only that part, with times of the whole recording."""

_BEYOND_S = 0.05  # times are shown to a tenth of a second: one that was rounded up still names the end


@dataclass(frozen=True)
class AudioPart:
    """An audio file as a query: each of its windows asks. `end_s` is None for a part that reaches to the end."""

    path: Path
    start_s: float = 0.0
    end_s: float | None = None

    @property
    def name(self) -> str:
        if self.end_s is None and not self.start_s:
            return self.path.name
        return f"{self.path.name} from {self.start_s:g} s" + (f" to {self.end_s:g} s" if self.end_s is not None else "")


@dataclass(frozen=True)
class StoredWindows:
    """Windows of one stored recording as a query, by their row numbers in the stores that are searched."""

    name: str
    recording: Recording
    rows: tuple[int, ...]


Reference = AudioPart | StoredWindows


@dataclass(frozen=True)
class Question:
    """What one search asks: be like these, and unlike those."""

    positives: tuple[Reference, ...]
    negatives: tuple[Reference, ...] = ()

    def __post_init__(self) -> None:
        if not self.positives:
            raise InputError(
                "there is nothing to look for: name an audio file, or give --like or --row. Negatives (--unlike) only "
                "say what to keep away from."
            )

    @property
    def name(self) -> str:
        """What is looked for, in a line."""
        words = " + ".join(reference.name for reference in self.positives)
        return words + "".join(f" - {reference.name}" for reference in self.negatives)


@dataclass(frozen=True, eq=False)
class Example:
    """A reference with its vectors.

    path            where the audio lies, or lay when the store was made
    recording       content hash
    start_s, end_s  (n,) float64, seconds of the whole recording
    vectors         (n, dim) float32, raw fused vectors
    """

    name: str
    path: Path
    recording: str
    start_s: np.ndarray
    end_s: np.ndarray
    vectors: np.ndarray


def audio_part(
    path: Path, duration_of: Callable[[Path], float], start_s: float | None = None, end_s: float | None = None
) -> AudioPart:
    """A file, or the part of it from `start_s` to `end_s`, in seconds; None is its beginning and its end.

    duration_of : path -> seconds as the header tells
    Raises InputError for a part that there is not, and for a file of 0 s; AudioError when it is not audio.
    """
    length_s = duration_of(path)
    if length_s <= 0:
        raise InputError(f"{path} is audio, but holds no samples (0 s). Give a recording with something to hear.")
    for option, value in (("start", start_s), ("end", end_s)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"the {option} of the query, {value:g} s, must be 0 or more seconds.")
    first_s = start_s or 0.0
    if end_s is not None and first_s >= end_s:
        raise InputError(f"the query begins at {first_s:g} s and ends at {end_s:g} s; the end must come after.")
    if first_s >= length_s or (end_s is not None and end_s > length_s + _BEYOND_S):
        asked = f"from {first_s:g} s" + (f" to {end_s:g} s" if end_s is not None else " on")
        raise InputError(f"the query asks for {path} {asked}, but it ends at {length_s:.2f} s.")
    return AudioPart(path, first_s, None if end_s is None or end_s >= length_s else end_s)


def stored_row(row: int, stores: JoinedStores) -> StoredWindows:
    """The window with this row number in the first of the stores. Raises InputError when there is none."""
    n_rows = stores.stores[0].n_rows
    if not 0 <= row < n_rows:
        raise InputError(f"row {row} is not in {stores.path}: its {n_rows} rows are numbered 0 to {n_rows - 1}.")
    recording = stores.catalogue.recordings[stores.place_of_row[row]]
    return StoredWindows(f"{recording.filename} at {stores.rows.start_s[row]:.1f} s", recording, (row,))


def named_example(text: str, stores: JoinedStores, duration_of: Callable[[Path], float]) -> Reference:
    """What `FILE`, `FILE@START_S`, `RECORDING` or `RECORDING@START_S` means.

    A file that exists goes first: all of it, or one window's length from START_S on. A stored recording is named as in
    the store, by the last part of that name, or by content hash: all of its windows, or that which begins nearest to
    START_S.
    Raises InputError with near names when it is neither, when a name fits several recordings, and for a START_S that
    lies outside; AudioError for a file that is not audio.
    """
    if Path(text).is_file():
        return audio_part(Path(text), duration_of)
    name, _, tail = text.rpartition("@")
    start_s = _seconds(tail) if name else None
    if start_s is None or _fitting(text, stores):
        return _stored(text, stores)
    if Path(name).is_file():
        part = audio_part(Path(name), duration_of, start_s)
        length_s = duration_of(Path(name))
        end_s = part.start_s + stores.plan.window_s
        return AudioPart(part.path, part.start_s, end_s if end_s < length_s else None)
    found = _stored(name, stores)
    starts, last_s = stores.rows.start_s[list(found.rows)], float(stores.rows.end_s[list(found.rows)].max())
    if not 0 <= start_s <= last_s + _BEYOND_S:
        raise InputError(f"{text}: the windows of {name} lie between 0 and {last_s:.2f} s.")
    row = found.rows[int(np.abs(starts - start_s).argmin())]
    return StoredWindows(f"{found.name} at {stores.rows.start_s[row]:.1f} s", found.recording, (row,))


def embedded(
    reference: Reference,
    stores: JoinedStores,
    reader: StoreReader | JoinedReader,
    backbones: Callable[[], Sequence[Backbone]],
    decode: DecodePart,
) -> Example:
    """Read a reference's vectors from the store, or make them.

    backbones : called only when audio has to be embedded; they make the reader's blocks, in its order
    Raises AudioError when nothing of a file decodes.
    """
    if isinstance(reference, StoredWindows):
        rows = np.array(reference.rows, np.int64)
        table = stores.rows.take(rows)
        recording = reference.recording
        return Example(
            reference.name, recording.path, recording.recording, table.start_s, table.end_s, reader.read(rows)
        )
    decoder = decode(reference.start_s, reference.end_s)
    table, vectors = embed_file(reference.path, backbones(), stores.plan, decoder)
    return Example(reference.name, reference.path, content_hash(reference.path), table.start_s, table.end_s, vectors)


def _stored(name: str, stores: JoinedStores) -> StoredWindows:
    fitting = _fitting(name, stores)
    if not fitting:
        names = {r.filename: r.filename for r in stores.catalogue} | {
            Path(r.filename).name: r.filename for r in stores.catalogue
        }
        near = dict.fromkeys(names[match] for match in get_close_matches(name, list(names), n=3, cutoff=0.5))
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"{name!r} is neither a file nor a recording of {stores.path}.{hint}")
    if len(fitting) > 1:
        words = ", ".join(f"{r.filename} ({r.recording})" for r in fitting[:3])
        raise InputError(f"{name!r} fits {len(fitting)} recordings: {words}. Name one by its content hash.")
    rows = np.flatnonzero(stores.place_of_row == stores.catalogue.position(fitting[0].recording))
    if not len(rows):
        raise InputError(f"{name!r} is in the catalogue of {stores.path}, but no window of it is stored yet.")
    return StoredWindows(fitting[0].filename, fitting[0], tuple(rows.tolist()))


def _fitting(name: str, stores: JoinedStores) -> list[Recording]:
    """Recordings of exactly that name or content; if there is none, those whose name ends so."""
    exact = [r for r in stores.catalogue if name in (r.filename, r.recording)]
    return exact or [r for r in stores.catalogue if name == Path(r.filename).name]


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
