"""A byte a number: a store's vectors, rounded and mapped from a cache beside them, so that a search reads little.

Each normalised vector is kept as 8-bit steps of its own size, with the length of what rounding took away. An inner
product with the steps is therefore wrong by at most that length, and the rows that could be among the nearest are known
for certain; only those are read from the store. Nothing in the cache is code, and nothing in it is believed further
than that: similarities are always those of the store's own vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embeddings.clusters import lists_for, nearest_lists, sample_size, train_centroids
from embeddings.contract import RowReader
from embeddings.errors import CisticolaError, StoreError
from embeddings.files import read_json, replace_folder, write_json
from embeddings.normalise import BlockNormaliser

__all__ = ["SearchIndex", "make_index", "open_index"]

_VERSION = 1
_SEED = 0
_DESCRIPTION, _ARRAYS, _CODES = "index.json", "index.safetensors", "codes.arrow"
_PIECE_ROWS = 1 << 14  # rows that are read, rounded and written together
_BLOCK_VALUES = 1 << 18  # numbers made float32 at a time: a megabyte, which stays in a core's own cache
_SLACK = 6e-8  # a float32 sum of n products is off by less than n times this share of the vectors' lengths


class SearchIndex:
    """Rounded vectors in the order of lists, mapped; made by `make_index`, opened by `open_index`.

    normaliser  what centred and normalised the vectors;  rows : (n,) the store's row of each place
    errors      (n,) float32, the most by which a rough similarity to a vector of length at most one is wrong
    centroids   (n_lists, dim) float32;  starts : (n_lists + 1,) list i holds the places starts[i] to starts[i + 1]
    facts       what is told of the index: lists, and how many of them are looked into at which measured recall
    Besides 16 bytes a row nothing is held in memory.
    """

    def __init__(
        self, folder: Path, arrays: dict[str, np.ndarray], dims: tuple[int, ...], facts: dict[str, Any]
    ) -> None:
        self.normaliser = BlockNormaliser(arrays["means"], dims)
        self.rows, self.steps, self.errors = arrays["rows"], arrays["steps"], arrays["errors"]
        self.centroids, self.starts, self.facts = arrays["centroids"], arrays["starts"], facts
        self._pieces = _mapped(folder / _CODES, len(self.rows), self.normaliser.dim)

    @property
    def n_lists(self) -> int:
        return len(self.centroids)

    def scores(self, start: int, stop: int, queries: np.ndarray) -> np.ndarray:
        """Rough similarities of places from `start` to `stop`, float32 (stop - start, m). queries : (m, dim)."""
        dim = self.normaliser.dim
        found = np.empty((stop - start, len(queries)), np.float32)
        buffer = np.empty((min(max(64, _BLOCK_VALUES // dim), stop - start), dim), np.float32)
        columns = queries.T
        for piece, first, last in self._between(start, stop):
            for low in range(first, last, len(buffer)):
                high = min(low + len(buffer), last)
                vectors = buffer[: high - low]
                vectors[...] = self._pieces[piece][low - piece * _PIECE_ROWS : high - piece * _PIECE_ROWS]
                np.matmul(vectors, columns, out=found[low - start : high - start])
        found *= self.steps[start:stop, None]
        return found

    def _between(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        for piece in range(start // _PIECE_ROWS, -(-stop // _PIECE_ROWS)):
            yield piece, max(start, piece * _PIECE_ROWS), min(stop, (piece + 1) * _PIECE_ROWS)


def make_index(
    folder: Path, reader: RowReader, digest: str, measure: Callable[[SearchIndex], dict[str, Any]] | None
) -> SearchIndex:
    """Round all of a reader's vectors into `folder`, out of core; the folder is replaced whole, or left as it was.

    digest   changes with the vectors
    measure  None: one list. Else they are gathered about centroids trained on at most 256 MB of them, and what this
             says of the finished index (a dict of plain values, "n_probed" among them) is kept with it
    """
    from safetensors.numpy import save_file

    n, dim = reader.n_rows, sum(reader.dims)

    def fill(temporary: Path) -> None:
        normaliser = BlockNormaliser.fit(reader)
        centroids, list_of_row = _gathered(reader, normaliser, lists_for(n) if measure else 1)
        order = np.argsort(list_of_row, kind="stable")
        steps, errors = np.empty(n, np.float32), np.empty(n, np.float32)
        with pa.OSFile(str(temporary / _CODES), "wb") as sink, pa.ipc.new_file(sink, _schema(dim)) as writer:
            for start in range(0, n, _PIECE_ROWS):
                part = slice(start, start + _PIECE_ROWS)
                codes, steps[part], errors[part] = _rounded(normaliser.apply(reader.read(order[part])))
                numbers = pa.Array.from_buffers(pa.int8(), codes.size, [None, pa.py_buffer(codes.reshape(-1))])
                writer.write_batch(pa.record_batch([pa.FixedSizeListArray.from_arrays(numbers, dim)], _schema(dim)))
        starts = np.r_[0, np.cumsum(np.bincount(list_of_row, minlength=len(centroids)))].astype(np.int64)
        arrays = {
            "means": normaliser.means,
            "rows": order.astype(np.int64),
            "steps": steps,
            "errors": errors,
            "centroids": centroids,
            "starts": starts,
        }
        save_file(arrays, str(temporary / _ARRAYS))
        facts = {"version": _VERSION, "vectors": digest, "dims": list(reader.dims), "n_lists": len(centroids)}
        if measure:
            facts |= measure(SearchIndex(temporary, arrays, reader.dims, facts))
        write_json(temporary / _DESCRIPTION, facts)

    replace_folder(folder, fill)
    made = open_index(folder, reader, digest, lists=measure is not None)
    if made is None:
        raise StoreError(f"the search index {folder} cannot be read back; is something else writing there?")
    return made


def open_index(folder: Path, reader: RowReader, digest: str, *, lists: bool) -> SearchIndex | None:
    """The index in `folder`, or None when there is none of these very vectors, or it lacks lists that are wanted."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        facts = read_json(folder / _DESCRIPTION, what="search index")
        wanted = {"version": _VERSION, "vectors": digest, "dims": list(reader.dims)}
        if any(facts.get(name) != value for name, value in wanted.items()) or (lists and "n_probed" not in facts):
            return None
        arrays = load_file(str(folder / _ARRAYS))
        _require_fitting(arrays, reader.n_rows, sum(reader.dims))
        return SearchIndex(folder, arrays, reader.dims, facts)
    except (CisticolaError, SafetensorError, OSError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None  # a cache: absent, old or damaged, it is made anew


def _gathered(reader: RowReader, normaliser: BlockNormaliser, n_lists: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids (n_lists, dim), and the list of each row, (n,) int32."""
    n, dim = reader.n_rows, normaliser.dim
    if n_lists == 1:
        return np.zeros((1, dim), np.float32), np.zeros(n, np.int32)
    chosen = np.sort(np.random.default_rng(_SEED).choice(n, sample_size(n, dim), replace=False))
    sample = np.empty((len(chosen), dim), np.float32)
    for start in range(0, len(chosen), _PIECE_ROWS):
        part = slice(start, start + _PIECE_ROWS)
        sample[part] = normaliser.apply(reader.read(chosen[part]))
    centroids = train_centroids(sample, n_lists, _SEED)
    del sample
    list_of_row = np.empty(n, np.int32)
    for start in range(0, n, _PIECE_ROWS):
        rows = np.arange(start, min(start + _PIECE_ROWS, n))
        list_of_row[rows] = nearest_lists(normaliser.apply(reader.read(rows)), centroids)[:, 0]
    return centroids, list_of_row


def _rounded(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes int8 (n, dim), the step of each row (n,), and the length of what rounding took away (n,)."""
    steps = np.maximum(vectors.max(axis=1), -vectors.min(axis=1)) / np.float32(127)
    codes = np.rint(vectors / np.where(steps > 0, steps, 1)[:, None]).astype(np.int8)
    lost = vectors - codes * steps[:, None]
    errors = np.sqrt(np.einsum("ij,ij->i", lost, lost, dtype=np.float64)) + _SLACK * (vectors.shape[1] + 4)
    return codes, steps, errors.astype(np.float32)


def _schema(dim: int) -> pa.Schema:
    return pa.schema([("codes", pa.list_(pa.int8(), dim))])


def _mapped(path: Path, n: int, dim: int) -> list[np.ndarray]:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        columns = [reader.get_batch(i).column("codes") for i in range(reader.num_record_batches)]
    if reader.schema != _schema(dim) or [len(c) for c in columns] != [
        min(_PIECE_ROWS, n - start) for start in range(0, n, _PIECE_ROWS)
    ]:
        raise StoreError(f"{path} does not hold {n} x {dim} codes.")
    return [c.values.to_numpy(zero_copy_only=True).reshape(len(c), dim) for c in columns]


def _require_fitting(arrays: dict[str, np.ndarray], n: int, dim: int) -> None:
    rows, starts, centroids = arrays["rows"], arrays["starts"], arrays["centroids"]
    fits = (
        arrays["means"].shape == (dim,)
        and rows.shape == arrays["steps"].shape == arrays["errors"].shape == (n,)
        and bool(np.array_equal(np.bincount(rows, minlength=n), np.ones(n)))
        and centroids.ndim == 2
        and centroids.shape[1] == dim
        and starts.shape == (len(centroids) + 1,)
        and (starts[0], starts[-1]) == (0, n)
        and bool((np.diff(starts) >= 0).all())
        and all(np.isfinite(arrays[name]).all() for name in ("steps", "errors", "centroids"))
    )
    if not fits:
        raise StoreError("the search index does not fit its store.")
