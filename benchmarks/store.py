"""Appending to a store and reading it in order, beside a plain file and beside perch-hoplite's database."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measured_runs import peak_anonymous_bytes
from benchmarks.timing import Result, compared, one_thread, ratio_of

__all__ = ["NAME", "memory_of_rows", "run"]

NAME = "store"
_RECORDINGS, _WINDOWS, _DIM = 400, 100, 1152
_PEER_RECORDINGS = 40  # hoplite's rows a second hardly change with more, and it needs half a minute for all
_BATCH = 4096


class _Block:
    """A backbone in name only: the store asks for its name, size, fingerprint and a folder."""

    name, dim, sample_rate_hz, window_s = "random", _DIM, 32_000, 5.0

    def __init__(self) -> None:
        from embeddings.contract import Fingerprint, Heard

        self.fingerprint = Fingerprint({"kind": "random", "dim": _DIM})
        self.heard = Heard()

    def save(self, folder: Path) -> None:
        from embeddings.files import write_json

        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "heard.json", self.heard.to_json())


def run() -> list[Result]:
    """40,000 windows of 1152 float16 numbers, appended and read into float32 batches; one thread each side."""
    from embeddings.store import Store

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        appended_per_s = fill_store(folder / "store", _RECORDINGS)
        store = Store(folder / "store")
        reader, n_rows = store.reader(), store.n_rows
        plain_path = folder / "plain.f16"
        with open(plain_path, "wb") as handle:
            for start in range(0, n_rows, _BATCH):
                rows = np.arange(start, min(start + _BATCH, n_rows))
                handle.write(reader.read(rows).astype(np.float16).tobytes())
        plain = np.memmap(plain_path, np.float16, "r", shape=(n_rows, _DIM))
        buffer = np.empty((_BATCH, _DIM), np.float32)

        def from_a_plain_file() -> None:
            for start in range(0, n_rows, _BATCH):
                part = plain[start : start + _BATCH]
                buffer[: len(part)] = part

        def ours() -> None:
            for start in range(0, n_rows, _BATCH):
                reader.read(np.arange(start, min(start + _BATCH, n_rows)), buffer)

        with one_thread():
            other_s, ours_s = ratio_of(from_a_plain_file, ours)
            peer = _hoplite(folder / "hoplite")
    size = f"{n_rows} x {_DIM} float16, 1 thread"
    what = f"StoreReader.read in order with numpy.memmap of the same bytes, {size}, from the page cache"
    read_per_s = n_rows / ours_s
    results = [
        compared("store: sequential read", other_s, ours_s, 0.7, what, threads=1, rows_per_s=round(read_per_s)),
        {
            "name": "store: rows appended a second, in 20,000",
            "ratio": round(appended_per_s / 20_000, 3),
            "target": 1.0,
            "ok": appended_per_s >= 20_000,
            "compared": f"{appended_per_s:,.0f} rows/s appended, sealed and on disk, each recording checked against "
            f"those in the store, {size}",
        },
    ]
    if peer:
        results += [
            _against(f"store: {verb} beside hoplite", ours_per_s, peer[verb], target, verb, size)
            for verb, ours_per_s, target in (("append", appended_per_s, 10.0), ("read", read_per_s, 1.0))
        ]
    return results


def _against(name: str, ours_per_s: float, theirs_per_s: float, target: float, verb: str, size: str) -> Result:
    how = "insert_windows_batch, duplicates refused, and commit" if verb == "append" else "get_embeddings_batch"
    ratio = ours_per_s / theirs_per_s
    return {
        "name": name,
        "ratio": round(ratio, 3),
        "target": target,
        "ok": ratio >= target,
        "compared": f"{ours_per_s:,.0f} rows/s with {theirs_per_s:,.0f} of perch-hoplite's SQLiteUSearchDB "
        f"({how}), {size}",
    }


def fill_store(path: Path, n_recordings: int, n_windows: int = _WINDOWS) -> float:
    """Append whole recordings as extraction does. Returns rows a second, with every shard on disk."""
    from embeddings.pipeline import EmbeddedPart
    from embeddings.recordings import Recording
    from embeddings.splits import Split
    from embeddings.store import Store
    from embeddings.windows import AudioWindow, WindowPlan
    from embeddings.writing import ShardWriter

    plan = WindowPlan()
    store = Store.create(path, [_Block()], plan, dtype="float16", split=Split("all", 0, "", {}), link=False)
    recordings = [Recording(f"{i:032x}", path / str(i), filename=str(i)) for i in range(n_recordings)]
    store.add_recordings(recordings)
    windows = [AudioWindow(span, False, -30.0, {}) for span in plan.spans(n_windows * plan.hop_s)]
    vectors = np.random.default_rng(0).standard_normal((n_windows, _DIM)).astype(np.float32)
    began = time.perf_counter()
    writer = ShardWriter(store, dict)
    embedded = store.embedded
    for recording in recordings:
        if recording.recording in embedded:
            continue
        writer.add(EmbeddedPart(recording, windows, {_Block.name: vectors}, is_last=True))
        writer.finish(partial=False)
        if writer.is_full:
            writer.seal()
    writer.seal()
    return n_recordings * n_windows / (time.perf_counter() - began)


def _hoplite(path: Path) -> dict[str, float]:
    """Rows a second appended and read by perch-hoplite's database, as its own embedding loop uses it."""
    try:
        from perch_hoplite.db import sqlite_usearch_impl
    except ImportError as error:
        sys.stderr.write(f"perch-hoplite is left out ({error}); `make bench` installs it.\n")
        return {}
    database = sqlite_usearch_impl.SQLiteUSearchDB.create(
        str(path), usearch_cfg=sqlite_usearch_impl.get_default_usearch_config(_DIM)
    )
    deployment = database.insert_deployment("deployment", "project")
    vectors = np.random.default_rng(0).standard_normal((_WINDOWS, _DIM)).astype(np.float32)
    ids: list[int] = []
    began = time.perf_counter()
    for i in range(_PEER_RECORDINGS):
        recording = database.insert_recording(str(i), deployment_id=deployment)
        windows: list[dict[str, Any]] = [
            {"recording_id": recording, "offsets": [5.0 * w, 5.0 * w + 5.0]} for w in range(_WINDOWS)
        ]
        ids += database.insert_windows_batch(windows, vectors, handle_duplicates="error")
    database.commit()
    append_per_s = len(ids) / (time.perf_counter() - began)

    def read() -> None:
        for start in range(0, len(ids), _BATCH):
            database.get_embeddings_batch(ids[start : start + _BATCH]).astype(np.float32)

    seconds, _ = ratio_of(read, lambda: None)
    return {"append": append_per_s, "read": len(ids) / seconds}


def memory_of_rows(counts: Sequence[int]) -> list[int]:
    """Peak anonymous bytes of a process that stores so many rows, for each count."""
    peaks = []
    for count in counts:
        command = [sys.executable, "-m", "benchmarks.store", str(count)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peaks.append(int(done.stdout))
    return peaks


def main(count: int) -> None:
    """Store so many rows and print the peak of this process's anonymous memory, in bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        print(peak_anonymous_bytes(lambda: fill_store(Path(scratch) / "store", count // _WINDOWS)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
