"""A store as one file for other tools: Parquet, NumPy's npz, or CSV without vectors."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embeddings.errors import InputError
from embeddings.files import read_json, write_atomically
from embeddings.layout import Block
from embeddings.recordings import Recording
from embeddings.shards import FLAGS, shard_metadata
from embeddings.store import Store

__all__ = ["BEGINNINGS", "FORMATS", "SPLIT_CHOICES", "ExportSummary", "export"]

FORMATS = (".parquet", ".npz", ".csv")
SPLIT_CHOICES = ("train", "valid", "none")
_WINDOW_COLUMNS = ("start_s", "end_s", "rms_dbfs", *FLAGS)
_TEXTS = (
    *("recording", "filename", "path", "primary_label", "scientific_name", "common_name", "split"),
    *("recorded_at", "recorder", "gain", "author", "license", "url", "xeno_canto_id"),
)
# How a file of ours begins, by which it is told from somebody else's of that name.
BEGINNINGS = {".parquet": b"PAR1", ".npz": b"PK", ".csv": ",".join(_TEXTS[:4]).encode()}
_LISTS = ("secondary_labels", "types")
_NUMBERS = ("latitude", "longitude", "battery_v", "temperature_c")
_BATCH_BYTES = 16 << 20  # of vectors in memory at a time; 64 MB was slower, and took 500 MB in all for Parquet
_MAX_BATCH_ROWS = 65_536
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's earliest date, so that one store gives one file


@dataclass(frozen=True)
class ExportSummary:
    """What was written. `torn` names shards that could not be read, so that their windows are missing."""

    out: str
    format: str
    n_windows: int
    n_recordings: int
    n_bytes: int
    dtype: str
    blocks: tuple[str, ...]
    torn: tuple[str, ...]


def export(
    store: Store,
    out: Path,
    *,
    blocks: Iterable[str] | None = None,
    split: str = "",
    vectors: bool = True,
    on_rows: Callable[[int], None] | None = None,
) -> ExportSummary:
    """Write the windows of a store, in its order, to one file that is whole or absent.

    out      .parquet, .npz or .csv decides the format; a file of that name is replaced
    blocks   whose vectors to write; default all. A column `embedding_<block>` each, (n, dim) in the store's dtype
    split    "train" or "valid" (recordings of both sides are on either), "none" (not assigned), "" for everything
    vectors  False for the rows only; CSV never has vectors
    on_rows  called with the number of rows each time some were written
    Memory does not grow with the number of vectors.
    Raises InputError for an unknown format, block or split, and when no window is left.
    """
    out = Path(out)
    suffix = out.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{out} ends in {suffix or 'nothing'}; the end names the format: {', '.join(FORMATS)}.")
    if out.is_dir():
        raise InputError(f"{out} is a folder. Name a file with --out.")
    if suffix == ".csv" and blocks is not None:
        raise InputError("a .csv has no vectors, so --blocks means nothing; write .parquet or .npz, or leave it out.")
    chosen = store.choose_blocks(blocks) if vectors and suffix != ".csv" else []
    rows = _rows_of(store, split)
    advance = on_rows or (lambda n: None)

    task = _Task(store, rows, chosen, advance)
    writer = {".parquet": _write_parquet, ".npz": _write_npz, ".csv": _write_csv}[suffix]
    write_atomically(out, lambda temporary: writer(temporary, task))
    return ExportSummary(
        out=str(out),
        format=suffix[1:],
        n_windows=len(rows),
        n_recordings=len(store.index.recordings_of(rows)[0]),
        n_bytes=out.stat().st_size,
        dtype=store.dtype if chosen else "",
        blocks=tuple(block.name for block in chosen),
        torn=tuple(store.torn.values()),
    )


@dataclass(frozen=True)
class _Task:
    """What every format writes: rows (n,) of the store, and the blocks whose vectors go along."""

    store: Store
    rows: np.ndarray
    blocks: list[Block]
    advance: Callable[[int], None]

    def batches(self, bytes_a_row: int) -> Iterator[np.ndarray]:
        """The row numbers in pieces whose vectors fit into the memory that an export may take."""
        step = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // max(1, bytes_a_row)))
        for start in range(0, len(self.rows), step):
            yield self.rows[start : start + step]

    def recordings(self, batch: np.ndarray) -> list[Recording]:
        """The recording of each row."""
        recordings = self.store.catalogue.recordings
        return [recordings[place] for place in self.store.place_of_row[batch]]

    def described(self) -> tuple[dict[str, Any], list[str]]:
        """The store's description with its blocks' digests, and every distinct provenance of its shards as JSON."""
        store = self.store
        header = read_json(store.path / "store.json", what="store description")
        header["fingerprints"] = {block.name: block.fingerprint.digest for block in self.blocks}
        paths = [store.row_path(shard) for shard in store.shards]
        paths += [store.vector_path(block.name, shard) for block in self.blocks for shard in store.shards]
        distinct = dict.fromkeys(json.dumps(shard_metadata(path), sort_keys=True) for path in paths if path.is_file())
        return header, list(distinct)


def _rows_of(store: Store, split: str) -> np.ndarray:
    if split and split not in SPLIT_CHOICES:
        raise InputError(f"--split {split} is not one of {', '.join(SPLIT_CHOICES)}.")
    rows = np.arange(store.n_rows)
    if split:
        sides = ("",) if split == "none" else (split, "both")
        on_side = [r.split in sides for r in store.catalogue]
        rows = store.index.rows_of(np.array(on_side, bool))
    if not len(rows):
        what = f"no windows of --split {split}" if split and store.n_rows else "no windows"
        raise InputError(f"{store.path} has {what}; nothing was written. See `embed info {store.path}`.")
    return rows


def _write_parquet(temporary: Path, task: _Task) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    header, provenance = task.described()
    number = pa.from_numpy_dtype(np.dtype(task.store.dtype))
    types = {name: pa.string() for name in _TEXTS}
    types |= {name: pa.list_(pa.string()) for name in _LISTS} | {name: pa.float64() for name in _NUMBERS}
    types |= {name: pa.from_numpy_dtype(getattr(task.store.rows, name).dtype) for name in _WINDOW_COLUMNS}
    types |= {f"embedding_{block.name}": pa.list_(number, block.dim) for block in task.blocks}
    metadata = {"cisticola": json.dumps({"store": header, "provenance": [json.loads(text) for text in provenance]})}
    schema = pa.schema(list(types.items()), metadata=metadata)
    reader = task.store.reader([block.name for block in task.blocks]) if task.blocks else None
    # Dictionaries pay for texts that repeat from window to window, and only cost for vectors.
    repeated = [*_TEXTS, *(f"{name}.list.element" for name in _LISTS)]

    with pq.ParquetWriter(str(temporary), schema, use_dictionary=repeated, compression="zstd") as writer:
        for batch in task.batches(4 * reader.dim if reader else 0):
            of_rows = task.recordings(batch)
            arrays = [pa.array([str(getattr(r, name)) for r in of_rows]) for name in _TEXTS]
            arrays += [pa.array([getattr(r, name) for r in of_rows], types[name]) for name in (*_LISTS, *_NUMBERS)]
            arrays += [pa.array(getattr(task.store.rows, name)[batch]) for name in _WINDOW_COLUMNS]
            if reader is not None:
                fused, start = reader.read(batch), 0
                for dim in reader.dims:
                    block = fused[:, start : start + dim].astype(task.store.dtype).reshape(-1)
                    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(block), dim))
                    start += dim
            writer.write_batch(pa.record_batch(arrays, schema=schema), row_group_size=len(batch))
            task.advance(len(batch))


def _write_npz(temporary: Path, task: _Task) -> None:
    header, provenance = task.described()
    n = len(task.rows)
    with zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        for block in task.blocks:  # one block after the other: a member of a zip is written in one go
            reader = task.store.reader([block.name])
            pieces = (reader.read(batch).astype(task.store.dtype) for batch in task.batches(4 * block.dim))
            _add_array(archive, f"embedding_{block.name}", np.dtype(task.store.dtype), (n, block.dim), pieces)
        for name in _WINDOW_COLUMNS:
            column = getattr(task.store.rows, name)[task.rows]
            _add_array(archive, name, column.dtype, column.shape, [column])
        recordings = task.store.catalogue.recordings
        used = [recordings[place] for place in task.store.index.recordings_of(task.rows)[0]]
        for name in (*_TEXTS, *_LISTS):
            # Texts have the width of the longest, 4 bytes a letter; compressed, the repetition costs next to nothing.
            dtype = np.dtype(f"<U{max(1, *(len(_text(r, name)) for r in used))}")
            texts = (
                np.array([_text(r, name) for r in task.recordings(batch)], dtype)
                for batch in task.batches(dtype.itemsize)
            )
            _add_array(archive, name, dtype, (n,), texts, zipfile.ZIP_DEFLATED)
        for name in _NUMBERS:
            numbers = (
                np.array([getattr(r, name) for r in task.recordings(batch)], np.float64)  # None becomes NaN
                for batch in task.batches(8)
            )
            _add_array(archive, name, np.dtype(np.float64), (n,), numbers, zipfile.ZIP_DEFLATED)
        for name, value in (("store", np.array(json.dumps(header))), ("provenance", np.array(provenance, str))):
            _add_array(archive, name, value.dtype, value.shape, [value], zipfile.ZIP_DEFLATED)
    task.advance(n)


def _add_array(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    pieces: Iterable[np.ndarray],
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """A member that np.load reads as one array, written from pieces along the first axis."""
    member = zipfile.ZipInfo(f"{name}.npy", date_time=_ZIP_EPOCH)
    member.compress_type = compression
    with archive.open(member, "w", force_zip64=True) as sink:
        start = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            start, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        )
        sink.write(start.getvalue())
        for piece in pieces:
            sink.write(np.ascontiguousarray(piece).tobytes())


def _write_csv(temporary: Path, task: _Task) -> None:
    with open(temporary, "w", newline="", encoding="utf-8") as sink:
        writer = csv.writer(sink)
        writer.writerow([*_TEXTS, *_LISTS, *_NUMBERS, *_WINDOW_COLUMNS])
        for batch in task.batches(0):
            columns = [getattr(task.store.rows, name)[batch].astype(str) for name in _WINDOW_COLUMNS]
            for recording, *window in zip(task.recordings(batch), *columns, strict=True):
                texts = [_text(recording, name) for name in (*_TEXTS, *_LISTS)]
                writer.writerow([*texts, *(getattr(recording, name) for name in _NUMBERS), *window])
            task.advance(len(batch))


def _text(recording: Recording, name: str) -> str:
    """A field as one text; the items of a list separated by ";"."""
    value = getattr(recording, name)
    return ";".join(value) if isinstance(value, tuple) else str(value)
