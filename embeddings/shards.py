"""One sealed Arrow file: rows or vectors with a checksum inside, whole or absent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embeddings.errors import StoreError
from embeddings.files import write_atomically

__all__ = [
    "FLAGS",
    "RowTable",
    "ShardRuns",
    "check_shard",
    "read_rows",
    "read_runs",
    "read_vectors",
    "shard_checksum",
    "shard_metadata",
    "write_rows",
    "write_vectors",
]

FLAGS = ("silent", "repeated", "partial")
_CHECKSUM = b"sha256"
_METADATA = b"cisticola"


@dataclass(frozen=True)
class RowTable:
    """Rows of the index, one per window, as parallel arrays.

    recording  (n,) content hashes          start_s, end_s  (n,) float64, seconds
    rms_dbfs   (n,) float32                 silent, repeated, partial  (n,) bool
    """

    recording: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    rms_dbfs: np.ndarray
    silent: np.ndarray
    repeated: np.ndarray
    partial: np.ndarray

    def __len__(self) -> int:
        return len(self.recording)

    def take(self, rows: np.ndarray) -> RowTable:
        """The rows with these numbers, in this order."""
        return RowTable(*(getattr(self, f.name)[rows] for f in fields(self)))

    @classmethod
    def concatenated(cls, tables: Sequence[RowTable]) -> RowTable:
        if not tables:
            tables = [cls.empty()]
        return cls(*(np.concatenate([getattr(t, f.name) for t in tables]) for f in fields(cls)))

    @classmethod
    def empty(cls) -> RowTable:
        numbers = [np.zeros(0, dtype) for dtype in (np.float64, np.float64, np.float32, bool, bool, bool)]
        return cls(np.zeros(0, object), *numbers)


@dataclass(frozen=True)
class ShardRuns:
    """A sealed row shard by runs: rows of one recording side by side, in the order of time.

    recordings       content hashes, each once
    recording        (n_runs,) int32, which of them a run is of
    offset, length   (n_runs,) int64, rows            start_s  (n_runs,) float64, of its first row
    """

    recordings: tuple[str, ...]
    recording: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    start_s: np.ndarray

    @property
    def n_rows(self) -> int:
        return int(self.length.sum())


def write_rows(path: Path, rows: RowTable, metadata: Mapping[str, Any]) -> None:
    """Seal the rows of a shard. Its presence is what makes the shard's vectors part of the store."""
    arrays = {
        f.name: _encoded(rows.recording) if f.name == "recording" else pa.array(getattr(rows, f.name))
        for f in fields(rows)
    }
    _write(path, pa.record_batch(arrays), _digest_of_rows(rows), metadata)


def read_rows(path: Path) -> RowTable:
    """Read a sealed row shard. Raises StoreError when it is torn."""
    batch = _open(path)
    columns = {name: batch.column(name) for name in batch.schema.names}
    return RowTable(
        recording=_decoded(columns["recording"]),
        **{f.name: columns[f.name].to_numpy(zero_copy_only=False) for f in fields(RowTable) if f.name != "recording"},
    )


def read_runs(path: Path) -> ShardRuns:
    """What a sealed row shard holds of which recording, without reading it row by row. Raises as `read_rows` does."""
    batch = _open(path)
    column, start_s = batch.column("recording"), batch.column("start_s").to_numpy(zero_copy_only=False)
    code = column.indices.to_numpy(zero_copy_only=False)
    begins = np.flatnonzero(np.r_[True, (code[1:] != code[:-1]) | (start_s[1:] < start_s[:-1])][: len(code)])
    ends = np.r_[begins[1:], len(code)].astype(np.int64)
    runs = ShardRuns(
        tuple(column.dictionary.to_pylist()), code[begins], begins, ends[: len(begins)] - begins, start_s[begins]
    )
    return runs if _in_time_order(runs, start_s) else _row_by_row(runs, code, start_s)


def _in_time_order(runs: ShardRuns, start_s: np.ndarray) -> bool:
    """Whether a recording's runs, put in order of their first rows, leave all of its rows in order of time."""
    order = np.lexsort((runs.offset, runs.start_s, runs.recording))
    code, first, last = runs.recording[order], runs.start_s[order], start_s[(runs.offset + runs.length - 1)[order]]
    return not bool(np.any((code[1:] == code[:-1]) & (first[1:] <= last[:-1])))


def _row_by_row(runs: ShardRuns, code: np.ndarray, start_s: np.ndarray) -> ShardRuns:
    return ShardRuns(runs.recordings, code, np.arange(len(code)), np.ones(len(code), np.int64), start_s)


def write_vectors(path: Path, vectors: np.ndarray, metadata: Mapping[str, Any]) -> None:
    """Seal the vectors (n, dim) of one block, float16 or float32, row for row beside the shard's rows."""
    vectors = np.ascontiguousarray(vectors)
    # From the buffer: pa.array() would take a mask of a byte a number on the way.
    numbers = pa.Array.from_buffers(
        pa.from_numpy_dtype(vectors.dtype), vectors.size, [None, pa.py_buffer(vectors.reshape(-1))]
    )
    column = pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1])
    _write(path, pa.record_batch({"embedding": column}), _digest(vectors), metadata)


def read_vectors(path: Path) -> np.ndarray:
    """Map a sealed vector shard: (n, dim), read from the disk as it is touched. Raises StoreError when it is torn."""
    column = _open(path).column("embedding")
    return column.values.to_numpy(zero_copy_only=True).reshape(len(column), column.type.list_size)


def shard_metadata(path: Path) -> dict[str, Any]:
    """The provenance that was sealed into a shard."""
    return json.loads(_open(path).schema.metadata[_METADATA])


def shard_checksum(path: Path) -> str:
    """The SHA-256 of its content that was sealed into a shard, as hexadecimal digits."""
    return _open(path).schema.metadata[_CHECKSUM].decode()


def check_shard(path: Path) -> str:
    """Read the whole shard and compare its checksum. Returns "" or what is wrong with it."""
    try:
        batch = _open(path)
        stored = batch.schema.metadata[_CHECKSUM].decode()
        if "embedding" in batch.schema.names:
            vectors = read_vectors(path)
            if not np.isfinite(vectors).all():
                return "holds values that are not finite"
            found = _digest(vectors)
        else:
            found = _digest_of_rows(read_rows(path))
    except StoreError as error:
        return str(error)
    return "" if found == stored else "its checksum does not match its content"


def _encoded(recordings: np.ndarray) -> pa.DictionaryArray:
    """Each hash once, and its number for each row."""
    codes = {recording: i for i, recording in enumerate(dict.fromkeys(recordings))}
    return pa.DictionaryArray.from_arrays(
        pa.array(np.fromiter((codes[r] for r in recordings), np.int32, len(recordings))), pa.array(list(codes))
    )


def _decoded(column: pa.DictionaryArray) -> np.ndarray:
    """The hashes as objects, each recording's shared by all of its rows."""
    return np.array(column.dictionary.to_pylist(), object)[column.indices.to_numpy(zero_copy_only=False)]


def _write(path: Path, batch: pa.RecordBatch, checksum: str, metadata: Mapping[str, Any]) -> None:
    batch = batch.replace_schema_metadata({_CHECKSUM: checksum, _METADATA: json.dumps(metadata)})

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)

    write_atomically(path, write)


def _open(path: Path) -> pa.RecordBatch:
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            if reader.num_record_batches != 1:
                raise StoreError(f"{path} is torn: {reader.num_record_batches} record batches, 1 expected.")
            batch = reader.get_batch(0)
        batch.validate(full=False)
        return batch
    except FileNotFoundError:
        raise StoreError(f"{path} is missing.") from None
    except (OSError, pa.ArrowInvalid, pa.ArrowException) as error:
        raise StoreError(f"{path} is torn: {error}") from None


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.data).hexdigest()


def _digest_of_rows(rows: RowTable) -> str:
    digest, separator = hashlib.sha256(), b""
    for recording in rows.recording:
        digest.update(separator + recording.encode())
        separator = b"\n"
    for f in fields(rows):
        if f.name != "recording":
            digest.update(np.ascontiguousarray(getattr(rows, f.name)).data)
    return digest.hexdigest()
