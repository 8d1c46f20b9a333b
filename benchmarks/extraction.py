"""Extraction beside the plain loops that people write, beside its own parts, in one process and in two.

Writes `docs/performance.md`. The recordings are made once, below `.bench`, and reused.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import store as store_benchmark
from benchmarks.measured_runs import (
    Run,
    extract_command,
    run_measured,
    saved_network,
    write_long_recordings,
    write_short_recordings,
)
from benchmarks.performance_page import EXTRACTION, write_page
from benchmarks.timing import Result

NAME = "extraction"
SCRATCH = Path(__file__).resolve().parent.parent / ".bench"
_REPEATS = 3
_RESUMED = 10_000


def run() -> list[Result]:
    """Every target of extraction, in one run."""
    from stage1_backbones.machine import usable_cores

    SCRATCH.mkdir(exist_ok=True)
    minutes = _made("minutes", lambda folder: write_long_recordings(folder, 300, 60.0))
    few = _made("few_minutes", lambda folder: write_long_recordings(folder, 40, 60.0))
    networks = {
        "EfficientNet default (lite0)": _network("lite0", {}),
        "EfficientNet-B0": _network("b0", {"model": "tf_efficientnet_b0"}),
    }
    cores = usable_cores()
    results: list[Result] = []
    for title, backbone in networks.items():
        results += _speed(title, backbone, minutes, few, cores)
    results += _birdnet(minutes, few, cores)
    results += store_benchmark.run()
    results += _memory(networks["EfficientNet default (lite0)"], few)
    results.append(_resume(networks["EfficientNet default (lite0)"]))
    results.append(_two_workers(networks["EfficientNet default (lite0)"], minutes))
    write_page(EXTRACTION, results)
    return results


def _made(name: str, make: Callable[[Path], Path]) -> Path:
    """A folder below the scratch, made whole or not at all."""
    folder = SCRATCH / name
    if not folder.is_dir():
        unfinished = folder.with_name(f".{name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        make(unfinished)
        unfinished.rename(folder)
    return folder


def _network(name: str, settings: dict[str, Any]) -> str:
    """ImageNet weights where the project has them: whether an engine passes the gate depends on the weights."""
    return str(_made(name, lambda folder: Path(saved_network("efficientnet", settings, folder))))


def _speed(title: str, backbone: str, minutes: Path, few: Path, cores: int) -> list[Result]:
    """One network: beside the plain loop, and beside what its parts cost."""
    engines, engine = _chosen_engine(backbone, few)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(_REPEATS):
        theirs.append(_peer("efficientnet", few, backbone)["windows_per_s"])
        ours.append(_extract(minutes, backbone, engines).steady_windows_per_s)
    parts = _busy_parts(few, backbone, engine, cores)
    bound = cores * 1e3 / (parts["decode_ms"] + parts["embed_ms"])
    speed, plain = statistics.median(ours), statistics.median(theirs)
    compared = (
        f"{title}, ogg files in, store out, {cores} workers of 1 thread on {engine} ({speed:.0f} windows/s), with a "
        f"loop of librosa.load and eager fp32 torch, {cores} threads ({plain:.0f} windows/s)"
    )
    share = (
        f"{title}: the same {speed:.0f} windows/s as a share of cores / core-seconds a window, all cores busy: decode "
        f"{parts['decode_ms']:.2f} ms, front end {parts['front_end_ms']:.2f} ms, engine "
        f"{parts['embed_ms'] - parts['front_end_ms']:.2f} ms"
    )
    return [
        _result(f"extraction: {title}", speed / plain, 2.0, compared, windows_per_s=speed, plain_windows_per_s=plain),
        _result(f"share of the bound: {title}", speed / bound, 0.85, share, bound_windows_per_s=bound, **parts),
    ]


def _birdnet(minutes: Path, few: Path, cores: int) -> list[Result]:
    """BirdNET, where its weights and interpreter are installed."""
    from embeddings.errors import InputError
    from stage1_backbones.registry import describe_backbone

    try:
        describe_backbone("birdnet")
    except InputError as error:
        sys.stderr.write(f"BirdNET is left out: {error}\n")
        return []
    engines, engine = _chosen_engine("birdnet", few)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(_REPEATS):
        theirs.append(_peer("birdnet", few)["windows_per_s"])
        ours.append(_extract(minutes, "birdnet", engines).steady_windows_per_s)
    speed, plain = statistics.median(ours), statistics.median(theirs)
    record = engines["birdnet"]
    compared = (
        f"BirdNET V2.4, ogg files in, store out, {cores} workers of 1 thread on {engine} ({speed:.0f} windows/s, "
        f"smallest cosine {record['min_cosine']:.5f}), with librosa.load and the tflite interpreter fed window by "
        f"window, {cores} threads ({plain:.0f} windows/s)"
    )
    return [_result("extraction: BirdNET", speed / plain, 4.0, compared, windows_per_s=speed)]


def _memory(backbone: str, few: Path) -> list[Result]:
    """Anonymous memory of one worker and its parent: many short files, one long one; few rows, many rows."""
    engines, _ = _chosen_engine(backbone, few)
    hundred = _made("hundred_minutes", lambda folder: write_long_recordings(folder, 100, 60.0))
    one = _made("one_of_100_minutes", lambda folder: write_long_recordings(folder, 1, 6000.0))
    peaks = [
        statistics.median(_extract(folder, backbone, engines, "--workers", "1").peak_bytes for _ in range(_REPEATS))
        for folder in (hundred, one)
    ]
    growth = max(peaks) / min(peaks)
    files = (
        f"peak anonymous memory of 100 files of 1 minute ({peaks[0] / 1e6:.0f} MB) and 1 file of 100 minutes "
        f"({peaks[1] / 1e6:.0f} MB), parent and one worker: smaller over larger"
    )
    rows = store_benchmark.memory_of_rows((1_000, 100_000))
    stored = (
        f"peak anonymous memory of a process that stores 1,000 rows of 1152 ({rows[0] / 1e6:.0f} MB) and 100,000 "
        f"({rows[1] / 1e6:.0f} MB): smaller over larger"
    )
    return [
        _result("memory: long files", 1 / growth, 1 / 1.1, files),
        _result("memory: many rows", min(rows) / max(rows), 1 / 1.1, stored),
    ]


def _resume(backbone: str) -> Result:
    """The same command over a complete store, after every byte of audio was overwritten: it reads none."""
    engines, _ = _chosen_engine(backbone, _made("few_minutes", lambda f: write_long_recordings(f, 40, 60.0)))
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        audio = write_short_recordings(Path(scratch) / "audio", _RESUMED)
        store = Path(scratch) / "store"
        first = _extract(audio, backbone, engines, store=store)
        for path in audio.iterdir():  # same size and time, other content
            status = path.stat()
            path.write_bytes(bytes(status.st_size))
            _set_time(path, status.st_mtime_ns)
        again = [_extract(audio, backbone, engines, store=store) for _ in range(_REPEATS)]
        if any(run.summary["n_embedded"] or run.summary["n_already"] != _RESUMED for run in again):
            raise RuntimeError("a resume over a complete store embedded something")
    seconds = statistics.median(run.elapsed_s for run in again)
    compared = (
        f"extraction of {_RESUMED} recordings of 1 s ({first.elapsed_s:.1f} s) with the same command again "
        f"({seconds:.2f} s, whole process), the audio overwritten in between: nothing was read, nothing embedded"
    )
    return _result("resume", first.elapsed_s / seconds, 20.0, compared)


def _two_workers(backbone: str, minutes: Path) -> Result:
    engines, engine = _chosen_engine(backbone, SCRATCH / "few_minutes")
    one, two = [], []
    for _ in range(_REPEATS):
        one.append(_extract(minutes, backbone, engines, "--workers", "1", cores=1).steady_windows_per_s)
        two.append(_extract(minutes, backbone, engines, "--workers", "2", cores=2).steady_windows_per_s)
    ratio = statistics.median(two) / statistics.median(one)
    compared = f"two workers on two cores with one on one, lite0 on {engine}, windows/s"
    return _result("two workers", ratio, 1.5, compared)


def _chosen_engine(backbone: str, few: Path) -> tuple[dict[str, Any], str]:
    """What `--engine auto` takes here for this backbone, with the figures of its gate."""
    known = _CHOSEN.get(backbone)
    if known is None:
        with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
            store = Path(scratch) / "store"
            summary = run_measured(extract_command(few, backbone, store)).summary
            _CHOSEN[backbone] = known = summary["engines"]
            shutil.copyfile(store / "engines.json", SCRATCH / f"engines-{Path(backbone).name}.json")
    return known, next(iter(known.values()))["engine"]


_CHOSEN: dict[str, dict[str, Any]] = {}


def _extract(
    audio: Path,
    backbone: str,
    engines: dict[str, Any],
    *options: str,
    cores: int | None = None,
    store: Path | None = None,
) -> Run:
    """One extraction by the command, into a new store unless one is given. Its engine was chosen before."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        out = store or Path(scratch) / "store"
        out.mkdir(exist_ok=True)
        shutil.copyfile(SCRATCH / f"engines-{Path(backbone).name}.json", out / "engines.json")
        return run_measured(extract_command(audio, backbone, out, *options), cores=cores)


def _peer(*words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.peers", *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _busy_parts(audio: Path, backbone: str, engine: str, cores: int) -> dict[str, float]:
    """Core milliseconds of each part, one measurement a core at the same time: as busy as an extraction is."""
    command = [sys.executable, "-m", "benchmarks.peers", "parts", str(audio), backbone, engine]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(cores)]
    found = [json.loads(process.communicate()[0]) for process in running]
    return {name: statistics.mean(one[name] for one in found) for name in found[0]}


def _set_time(path: Path, mtime_ns: int) -> None:
    import os

    os.utime(path, ns=(mtime_ns, mtime_ns))


def _result(name: str, ratio: float, target: float, compared: str, **more: float) -> Result:
    rounded = {key: round(value, 3) for key, value in more.items()}
    return {
        "name": name,
        "ratio": round(ratio, 3),
        "target": round(target, 3),
        "ok": ratio >= target,
        "compared": compared,
        **rounded,
    }
