"""Reading a store in order beside reading the same bytes from a plain file; and how fast rows are appended."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.timing import Result, compared, one_thread, ratio_of

NAME = "store"
_RECORDINGS, _WINDOWS, _DIM = 400, 100, 1152
_BATCH = 4096


class _Block:
    """A backbone in name only: the store asks for its name, size, fingerprint and a folder."""

    name, dim, sample_rate_hz, window_s = "random", _DIM, 32_000, 5.0

    def __init__(self) -> None:
        from embeddings.contract import Fingerprint, Heard

        self.fingerprint = Fingerprint({"kind": "random", "dim": _DIM})
        self.heard = Heard()

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        return np.zeros((len(waveforms), _DIM), np.float32)

    def save(self, folder: Path) -> None:
        from embeddings.files import write_json

        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "heard.json", self.heard.to_json())


def run() -> list[Result]:
    """40,000 windows of 1152 float16 numbers into float32 batches, one thread each side, from the page cache."""
    from embeddings.store import Store

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        appended_per_s = _fill(folder / "store")
        store = Store(folder / "store")
        reader, n_rows = store.reader(), store.n_rows
        plain_path = folder / "plain.f16"
        with open(plain_path, "wb") as handle:
            for start in range(0, n_rows, _BATCH):
                rows = np.arange(start, min(start + _BATCH, n_rows))
                handle.write(reader.read(rows).astype(np.float16).tobytes())
        plain = np.memmap(plain_path, np.float16, "r", shape=(n_rows, _DIM))
        buffer = np.empty((_BATCH, _DIM), np.float32)

        def theirs() -> None:
            for start in range(0, n_rows, _BATCH):
                part = plain[start : start + _BATCH]
                buffer[: len(part)] = part

        def ours() -> None:
            for start in range(0, n_rows, _BATCH):
                reader.read(np.arange(start, min(start + _BATCH, n_rows)), buffer)

        with one_thread():
            other_s, ours_s = ratio_of(theirs, ours)
    what = f"StoreReader.read in order with numpy.memmap of the same float16 numbers, {n_rows} x {_DIM}, 1 thread"
    speeds = {"rows_per_s": round(n_rows / ours_s), "appended_rows_per_s": round(appended_per_s)}
    return [compared(NAME, other_s, ours_s, 0.5, what, threads=1, **speeds)]


def _fill(path: Path) -> float:
    """Append whole recordings as extraction does. Returns rows a second, with every shard on disk."""
    from embeddings.recordings import Recording
    from embeddings.splits import Split
    from embeddings.store import Store
    from embeddings.windows import AudioWindow, WindowPlan
    from embeddings.writing import EmbeddedRecording, ShardWriter, row_table

    plan = WindowPlan()
    store = Store.create(path, [_Block()], plan, dtype="float16", split=Split("all", 0, "", {}), link=False)
    names = [f"{i:032x}" for i in range(_RECORDINGS)]
    store.add_recordings(Recording(name, path / name, filename=name) for name in names)
    windows = [AudioWindow(span, False, -30.0, {}) for span in plan.spans(_WINDOWS * plan.hop_s)]
    vectors = np.random.default_rng(0).standard_normal((_WINDOWS, _DIM)).astype(np.float16)
    embedded = [EmbeddedRecording(n, row_table(n, windows, partial=False), {_Block.name: vectors}) for n in names]
    began = time.perf_counter()
    writer = ShardWriter(store, {"engine": "none"})
    for recording in embedded:
        writer.add(recording)
    writer.seal()
    return _RECORDINGS * _WINDOWS / (time.perf_counter() - began)
