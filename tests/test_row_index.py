"""Rows by runs, beside the same rows sorted one by one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.row_index import RowIndex
from embeddings.shards import RowTable, ShardRuns, read_runs, write_rows

SHARD = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=12)


def table(rows: list[tuple[int, int]]) -> RowTable:
    n = len(rows)
    return RowTable(
        np.array([f"r{recording}" for recording, _ in rows], object),
        np.array([start for _, start in rows], np.float64),
        np.array([start + 5 for _, start in rows], np.float64),
        np.zeros(n, np.float32),
        *np.zeros((3, n), bool),
    )


def place_of(recording: str) -> int:
    return {"r0": 2, "r1": 0, "r2": 1, "r3": 3}.get(recording, -1)  # r4 was dropped from the catalogue


def brute(shards: list[list[tuple[int, int]]]) -> list[tuple[int, int, int]]:
    """(place, shard, offset) of each row, in order."""
    every = [
        (place_of(f"r{recording}"), start, shard, offset)
        for shard, rows in enumerate(shards)
        for offset, (recording, start) in enumerate(rows)
    ]
    home = {place: min(s for p, _, s, _ in every if p == place) for place, *_ in every}
    return [(place, s, o) for place, _, s, o in sorted(every) if place >= 0 and s == home[place]]


@settings(max_examples=150, deadline=None)
@given(st.lists(SHARD, max_size=4))
def test_runs_order_rows_as_sorting_them_one_by_one_does(shards: list[list[tuple[int, int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.arrow" for i in range(len(shards))]
        for path, rows in zip(paths, shards, strict=True):
            write_rows(path, table(rows), {})
        runs = [read_runs(path) for path in paths]
    index = RowIndex.of(runs, place_of)
    expected = brute(shards)
    assert index.n_rows == len(expected)
    shard, offset = index.locate(np.arange(index.n_rows))
    place = np.repeat(index.place, index.lengths)
    assert list(zip(place, shard, offset, strict=True)) == expected
    known = sum(place_of(f"r{recording}") >= 0 for rows in shards for recording, _ in rows)
    assert index.n_duplicates == known - len(expected)

    wanted = np.array([True, False, True, False])
    chosen = index.rows_of(wanted)
    np.testing.assert_array_equal(chosen, np.flatnonzero(np.isin(place, [0, 2])))
    for rows in (chosen, chosen[::-1], np.repeat(chosen, 2), chosen[:0]):
        places, code = index.recordings_of(rows)
        np.testing.assert_array_equal(places, np.unique(place[rows]))
        np.testing.assert_array_equal(places[code], place[rows])


def test_whole_recordings_are_one_run_each_and_one_extent_a_shard() -> None:
    lengths = np.array([700, 300, 500])
    runs = ShardRuns(
        ("r1", "r2", "r0"), np.arange(3, dtype=np.int32), np.cumsum(lengths) - lengths, lengths, np.zeros(3)
    )
    index = RowIndex.of([runs], place_of)
    assert len(index.place) == 3
    shard, offset = index.locate(np.array([0, 699, 700, 1499]))
    assert (shard.tolist(), offset.tolist()) == ([0, 0, 0, 0], [0, 699, 700, 1499])
    assert index.row_dtype is np.int32


def test_equal_starts_keep_the_order_on_disk(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.arrow", table([(1, 5), (1, 5), (1, 0)]), {})
    index = RowIndex.of([read_runs(tmp_path / "a.arrow")], place_of)
    assert index.locate(np.arange(3))[1].tolist() == [2, 0, 1]


def test_a_torn_shard_raises(tmp_path: Path) -> None:
    from embeddings.errors import StoreError

    path = tmp_path / "a.arrow"
    write_rows(path, table([(1, 0)]), {})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreError, match="torn"):
        read_runs(path)


@pytest.mark.parametrize("rows", [[3], [-1], [0, 5]])
def test_a_row_that_there_is_not_is_refused_rather_than_read_from_a_dropped_recording(tmp_path: Path, rows) -> None:
    from embeddings.errors import StoreError

    write_rows(tmp_path / "a.arrow", table([(1, 0), (1, 5), (1, 10), (4, 0), (4, 5)]), {})
    index = RowIndex.of([read_runs(tmp_path / "a.arrow")], place_of)
    assert index.n_rows == 3
    with pytest.raises(StoreError, match="there are 3"):
        index.locate(np.array(rows))
