"""`heads predict` as a user types it: beside extraction alone, on a soundscape of ten minutes, on a whole day."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measured_runs import extract_command, run_measured, saved_network, write_long_recordings
from benchmarks.timing import Result, compared

__all__ = ["NAME", "run"]

NAME, GROUP = "field_prediction", "field"
_LABELS = 264
_REPEATS = 3
_LONG, _LONG_S = 4, 1800.0
_SOUNDSCAPE_S, _SHARE = 600.0, 0.02
_DAY_S, _HOUR_S = 86_400.0, 3600.0


def run() -> list[Result]:
    """EfficientNet at its default size, a linear SVM of 264 species, two cores; clock seconds of whole commands."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        backbone = saved_network("efficientnet", {}, folder / "backbone")
        head = _head(folder, backbone)
        return [_beside_extraction(folder, backbone, head), _soundscape(folder, head), _memory(folder, head)]


def _head(folder: Path, backbone: str) -> Path:
    """A head of many species, with its backbone in it, fitted on invented vectors."""
    from stage1_backbones.registry import describe_backbone
    from stage2_heads.heads import create_head
    from stage2_heads.labels import RecordingLabels
    from stage2_heads.rows import ArrayReader, label_rows

    source = describe_backbone(backbone)
    rng = np.random.default_rng(0)
    n = 4 * _LABELS
    vectors = rng.standard_normal((n, source.dim)).astype(np.float32)
    recordings = [RecordingLabels(f"{i:032x}", f"species{i % _LABELS:03d}") for i in range(n)]
    reader, every = ArrayReader(vectors, [source.dim]), np.arange(n)
    rows = label_rows(reader, every, every, recordings, blocks=(("efficientnet", source.fingerprint),))
    head = create_head("svm").fit(rows)
    head.save(folder / "head")
    source.save(folder / "head" / "backbones" / "efficientnet")
    return folder / "head"


def _beside_extraction(folder: Path, backbone: str, head: Path) -> Result:
    audio = write_long_recordings(folder / "long", _LONG, _LONG_S)
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(_REPEATS):
        extracted = run_measured(extract_command(audio, backbone, folder / f"e{i}"))
        predicted = run_measured(["heads", "predict", str(head), str(audio), "--out", str(folder / f"p{i}")])
        seconds[0].append(extracted.elapsed_s)
        seconds[1].append(predicted.elapsed_s)
    extract_s, predict_s = map(statistics.median, seconds)
    windows = _LONG * _LONG_S / 5
    what = (
        f"{_LONG} recordings of {_LONG_S / 60:g} min: embed extract with heads predict, which extracts, scores "
        f"{_LABELS} species and writes CSV ({windows / extract_s:.0f} and {windows / predict_s:.0f} windows/s, all of "
        "each command)"
    )
    return compared("predicting beside extracting", extract_s, predict_s, 0.9, what)


def _soundscape(folder: Path, head: Path) -> Result:
    audio = write_long_recordings(folder / "soundscape", 1, _SOUNDSCAPE_S)
    command = ["heads", "predict", str(head), str(audio), "--format", "all", "--threshold", "0.01"]
    seconds = [run_measured([*command, "--out", str(folder / f"s{i}")]).elapsed_s for i in range(_REPEATS)]
    took_s = statistics.median(seconds)
    what = (
        f"a soundscape of {_SOUNDSCAPE_S / 60:g} min, every 5 s, all formats, from the command's start to its end: "
        f"{took_s:.1f} s, {took_s / _SOUNDSCAPE_S:.1%} of its length; {_SHARE:.0%} are allowed"
    )
    return compared("a soundscape in all formats", _SHARE * _SOUNDSCAPE_S, took_s, 1.0, what)


def _write_repeated(folder: Path, duration_s: float) -> Path:
    """One recording that says the same minute over and over: a day of it is written in a minute, too."""
    import soundfile

    minute = write_long_recordings(folder / "minute", 1, 60.0) / "r00000.ogg"
    samples, rate_hz = soundfile.read(minute, dtype="int16")
    (folder / "long").mkdir()
    with soundfile.SoundFile(folder / "long" / "r.flac", "w", rate_hz, 1) as sink:
        for _ in range(round(duration_s / 60)):
            sink.write(samples)
    return folder / "long"


def _memory(folder: Path, head: Path) -> Result:
    peaks = []
    for name, duration_s in (("hour", _HOUR_S), ("day", _DAY_S)):
        audio = _write_repeated(folder / name, duration_s)
        done = run_measured(["heads", "predict", str(head), str(audio), "--out", str(folder / f"m{name}")])
        peaks.append(done.peak_bytes)
    what = (
        f"peak memory of predicting on an hour with a file of 24 h ({peaks[0] >> 20} and {peaks[1] >> 20} MB, parent "
        "and workers)"
    )
    return compared("memory, an hour and a day", float(peaks[0]), float(peaks[1]), 0.9, what)
