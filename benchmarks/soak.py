"""Kills an extraction at random instants, many times, and then counts what was lost: nothing may be.

    python -m benchmarks.soak --audio FOLDER [--backbone FOLDER] [--kills 50] [--workers 2] [--files 300] [--seed 0]

Each run of the extraction is killed with SIGKILL, now the whole of it, now one worker; a last run is left alone. The
store must then equal, bit for bit, one that was never interrupted. Every recording's decoding and every window that
went to a network is written down in a journal, so that work done twice is counted too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Soak", "SoakReport", "main", "soak"]


@dataclass(frozen=True)
class Soak:
    """What to torture: a list of recordings, a backbone, how often and with how many workers."""

    listing: Path
    backbone: str
    store: Path
    journal: Path
    engine: str = "auto"
    workers: int = 2
    seal_s: float = 0.3

    def to_arguments(self) -> list[str]:
        return [json.dumps({name: str(value) for name, value in asdict(self).items()})]

    @classmethod
    def from_argument(cls, text: str) -> Soak:
        value = json.loads(text)
        paths = {name: Path(value[name]) for name in ("listing", "store", "journal")}
        numbers = {"workers": int(value["workers"]), "seal_s": float(value["seal_s"])}
        return cls(**{**value, **paths, **numbers})


@dataclass
class SoakReport:
    """Counts of a soak. `lost` and `differing` must be 0."""

    n_files: int
    n_rows: int = 0
    kills_of_all: int = 0
    kills_of_a_worker: int = 0
    lost: int = 0
    differing: int = 0
    windows_embedded: int = 0
    windows_embedded_again: int = 0
    decoded_again: int = 0
    most_decodings_of_one: int = 0
    verify_problems: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def ok(self) -> bool:
        return not (self.lost or self.differing or self.verify_problems)


class _Journal:
    """Lines appended by many processes; each is written whole."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(self, word: str, value: object) -> None:
        os.write(self._descriptor, f"{word} {value}\n".encode())


class _CountingBackbone:
    def __init__(self, backbone: Any, journal: _Journal) -> None:
        self._backbone, self._journal = backbone, journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        vectors = self._backbone.embed(waveforms)
        self._journal.note("embedded", len(waveforms))
        return vectors


@dataclass(frozen=True)
class _CountingHearing:
    """Loads the backbones as an extraction does, and writes down what they are asked for."""

    hearing: Any
    journal: Path

    def __call__(self, names: Sequence[str], engines: Mapping[str, Any]) -> Any:
        backbones, decode = self.hearing(names, engines)
        journal = _Journal(self.journal)

        def counted(path: Path, plan: Any, rates_hz: Sequence[int]) -> Iterator[Any]:
            journal.note("decoded", path)
            yield from decode(path, plan, rates_hz)

        return [_CountingBackbone(backbone, journal) for backbone in backbones], counted


def extract_once(soak: Soak) -> None:
    """One extraction, to its end or to a kill: what `embed extract` does, with a journal."""
    from embeddings.catalogue_sources import read_catalogue
    from embeddings.extract import Workers, extract
    from embeddings.identity import HashCache
    from embeddings.layout import HASHES
    from embeddings.splits import Split
    from embeddings.store import Store
    from embeddings.windows import WindowPlan
    from embeddings.writing import Sealing
    from stage1_backbones.hearing import Hearing
    from stage1_backbones.machine import machine_name
    from stage1_backbones.registry import describe_backbone

    backbone = describe_backbone(soak.backbone)
    catalogue = read_catalogue(soak.listing, cache=HashCache(soak.store / HASHES))
    if not (soak.store / "store.json").is_file():
        Store.create(soak.store, [backbone], WindowPlan(), dtype="float16", split=Split("all", 0, "", {}), link=False)
    store, machine = Store(soak.store), machine_name("cpu")
    hearing = _CountingHearing(Hearing({backbone.name: soak.backbone}, "cpu", soak.engine), soak.journal)
    crew = Workers(
        soak.workers,
        hearing,
        engines=store.engines(machine, soak.engine),
        on_engines=lambda records: store.remember_engines(machine, soak.engine, records),
    )
    extract(catalogue, [backbone], store, workers=crew, sealing=Sealing(after_s=soak.seal_s))


def soak(task: Soak, n_kills: int, seed: int) -> SoakReport:
    """Kill `n_kills` extractions into `task.store`, let the next one end, and compare with an uninterrupted one."""
    from embeddings.store import Store
    from embeddings.verify import verify_store

    began = time.monotonic()
    rng = random.Random(seed)
    n_files = len(task.listing.read_text(encoding="utf-8").splitlines())
    report = SoakReport(n_files)
    quiet = replace(task, store=task.store.with_name("uninterrupted"), journal=task.journal.with_name("quiet.txt"))
    _finish(quiet)
    whole = Store(quiet.store)
    # An engine is chosen by the clock; both stores must have the same one.
    task = replace(task, engine=_engine_of(whole) or task.engine)

    while report.kills_of_all + report.kills_of_a_worker < n_kills:
        process = _run(task)
        # At any instant: on average each run gets its share of the windows done before it is killed.
        n_windows = _embedded(task) + rng.uniform(-0.2, 1.8) * whole.n_rows / n_kills
        while process.poll() is None and _embedded(task) < n_windows:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is not None:
            break  # nothing is left to torture
        workers = _workers_of(process)
        if workers and rng.random() < 0.3:
            report.kills_of_a_worker += _kill(rng.choice(workers))
            time.sleep(rng.uniform(0, 3))
        if process.poll() is None:
            process.kill()
            report.kills_of_all += 1
        process.wait()
    _finish(task)

    store = Store(task.store)
    report.n_rows = store.n_rows
    report.lost = whole.n_rows - store.n_rows
    report.differing = _n_differing(whole, store) if not report.lost else whole.n_rows
    report.verify_problems = verify_store(store).problems
    journal = [line.split(" ", 1) for line in task.journal.read_text(encoding="utf-8").splitlines()]
    decoded = Counter(value for word, value in journal if word == "decoded")
    report.windows_embedded = sum(int(value) for word, value in journal if word == "embedded")
    report.windows_embedded_again = report.windows_embedded - store.n_rows
    report.decoded_again = sum(decoded.values()) - len(decoded)
    report.most_decodings_of_one = max(decoded.values())
    report.elapsed_s = time.monotonic() - began
    return report


def _engine_of(store: Any) -> str:
    """The engine that made the store's one block; "" when its backbone has no choice of engines."""
    from embeddings.shards import shard_metadata

    (record,) = shard_metadata(store.row_path(store.shards[0]))["engines"].values()
    return record["engine"] if "reference" in record else ""


def _run(task: Soak) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.soak", "--one", *task.to_arguments()]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def _finish(task: Soak) -> None:
    if code := _run(task).wait():
        raise RuntimeError(f"an extraction that nobody killed ended with exit code {code}")


def _embedded(task: Soak) -> int:
    """Windows that have gone through the networks so far, in all runs."""
    if not task.journal.is_file():
        return 0
    lines = task.journal.read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("embedded "))


def _workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    import psutil

    try:
        children = psutil.Process(process.pid).children()
        return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def _kill(pid: int) -> int:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


def _n_differing(one: Any, other: Any) -> int:
    """Rows whose recording, place or any number is not the same."""
    differing = (one.rows.recording != other.rows.recording) | (one.rows.start_s != other.rows.start_s)
    ours, theirs = one.reader(), other.reader()
    for start in range(0, one.n_rows, 4096):
        rows = np.arange(start, min(start + 4096, one.n_rows))
        differing[rows] |= (ours.read(rows) != theirs.read(rows)).any(axis=1)
    return int(differing.sum())


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when nothing was lost and every row is the same, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--audio", type=Path, help="folder of recordings")
    parser.add_argument("--backbone", default="logmel_stats", help="a trained folder, or a frozen backbone's name")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        extract_once(Soak.from_argument(options.one))
        return 0
    if options.audio is None:
        parser.error("--audio is needed")
    from embeddings.catalogue_sources import AUDIO_SUFFIXES

    files = sorted(p.resolve() for p in options.audio.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
    chosen = sorted(random.Random(options.seed).sample(files, min(options.files, len(files))))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "recordings.txt").write_text("\n".join(map(str, chosen)) + "\n", encoding="utf-8")
        task = Soak(
            folder / "recordings.txt",
            options.backbone,
            folder / "killed",
            folder / "journal.txt",
            options.engine,
            options.workers,
        )
        report = soak(task, options.kills, options.seed)
    print(json.dumps({**asdict(report), "ok": report.ok}, indent=2))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
