"""Thousands of damaged recordings through an extraction: each ends in the store or in quarantine, never both.

    python -m benchmarks.fuzz --audio FOLDER [--n 2000] [--seed 0]

Real recordings are mutated: bytes flipped, pieces cut out, doubled or zeroed, ends cut off, header fields that lie,
names that lie. Exit code 1 when a worker crashed, a file hung for ten seconds, or a file is missing or in both places.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

__all__ = ["FuzzReport", "fuzz", "main", "write_mutants"]

_HANG_S = 10.0
_WORDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)


@dataclass
class FuzzReport:
    """What became of the mutants. `wrong` names everything that must not happen."""

    n_files: int = 0
    n_stored: int = 0
    n_partial: int = 0
    n_quarantined: int = 0
    n_windows: int = 0
    elapsed_s: float = 0.0
    mutations: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def fuzz(audio: Path, n: int, seed: int, scratch: Path, *, workers: int = 2) -> FuzzReport:
    """Mutate `n` files made of the recordings below `audio`, extract them all, and account for each."""
    from embeddings.catalogue_sources import read_catalogue
    from embeddings.extract import Workers, extract
    from embeddings.splits import Split
    from embeddings.store import Store
    from embeddings.verify import verify_store
    from embeddings.windows import WindowPlan
    from stage1_backbones.hearing import Hearing
    from stage1_backbones.registry import describe_backbone

    began = time.monotonic()
    report = FuzzReport(mutations=write_mutants(audio, n, seed, scratch / "mutants"))
    backbone = describe_backbone("logmel_stats")
    catalogue = read_catalogue(scratch / "mutants")
    store = Store.create(
        scratch / "store", [backbone], WindowPlan(), dtype="float16", split=Split("all", 0, "", {}), link=False
    )
    crew = Workers(workers, Hearing({backbone.name: backbone.name}, "cpu", "torch"), stalled_s=_HANG_S)
    summary = extract(catalogue, [backbone], store, workers=crew)

    store = Store(store.path)
    embedded = store.embedded
    stored = {p for r in catalogue if r.recording in embedded for p in (r.path, *r.other_paths)}
    refused_paths = {Path(entry.path).resolve() for entry in store.quarantine.files()}
    twins = {p for r in catalogue if r.path in refused_paths for p in r.other_paths}
    files = {path.resolve() for path in (scratch / "mutants").iterdir()}
    report.n_files, report.n_stored, report.n_quarantined = len(files), len(stored), len(refused_paths | twins)
    report.n_windows = store.n_rows
    report.n_partial = len({store.place_of_row[i] for i in np.flatnonzero(store.rows.partial)})
    report.wrong += [f"{p.name} is in the store and in quarantine" for p in stored & refused_paths]
    report.wrong += [f"{p.name} is nowhere" for p in files - stored - refused_paths - twins]
    report.wrong += summary.problems if any("worker" in p for p in summary.problems) else []
    report.wrong += [f"{p}: {why}" for p, why in summary.quarantined.items() if "workers" in why]
    report.wrong += verify_store(store).problems
    if store.n_rows and not np.isfinite(store.reader().read(np.arange(store.n_rows))).all():
        report.wrong.append("the store holds values that are not finite")
    report.elapsed_s = time.monotonic() - began
    return report


def write_mutants(audio: Path, n: int, seed: int, folder: Path) -> dict[str, int]:
    """Write `n` mutated files. Returns how often each mutation was used."""
    from embeddings.catalogue_sources import AUDIO_SUFFIXES

    rng = random.Random(seed)
    sound = sorted(p for p in audio.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
    folder.mkdir(parents=True)
    seeds = _other_formats(rng.sample(sound, min(6, len(sound))), folder.parent / "seeds")
    used: Counter[str] = Counter()
    for i in range(n):
        source = rng.choice(sound if i % 2 else seeds)
        content = bytearray(source.read_bytes())
        suffix = source.suffix
        for _ in range(rng.choice((1, 1, 2, 4))):
            mutate = rng.choice(_MUTATIONS)
            used[mutate.__name__.strip("_")] += 1
            mutate(content, rng)
        if rng.random() < 0.05:
            used["other_name"] += 1
            suffix = rng.choice((".wav", ".mp3", ".ogg", ".flac", ".m4a", ".aiff"))
        (folder / f"{i:05d}{suffix}").write_bytes(content)
    return dict(used)


def _other_formats(recordings: Sequence[Path], folder: Path) -> list[Path]:
    """The first seconds of some recordings in formats that field recorders and archives use."""
    import soundfile

    from stage1_backbones.audio import read_audio

    folder.mkdir(parents=True)
    made = []
    formats = [
        ("wav", "WAV", "PCM_16"),
        ("wav", "WAV", "PCM_24"),
        ("wav", "WAV", "FLOAT"),
        ("wav", "WAVEX", "PCM_16"),
        ("wav", "RF64", "PCM_16"),
        ("w64", "W64", "PCM_16"),
        ("aiff", "AIFF", "PCM_16"),
        ("au", "AU", "PCM_16"),
        ("caf", "CAF", "PCM_16"),
        ("flac", "FLAC", "PCM_16"),
        ("ogg", "OGG", "VORBIS"),
        ("opus", "OGG", "OPUS"),
        ("mp3", "MP3", "MPEG_LAYER_III"),
    ]
    for i, recording in enumerate(recordings):
        samples = read_audio(recording, 48_000, duration_s=6.0)
        for suffix, container, encoding in formats[i % 2 :: 2]:
            path = folder / f"{i}-{container}-{encoding}.{suffix}"
            soundfile.write(path, samples, 48_000, format=container, subtype=encoding)
            made.append(path)
    return made


def _flip_bytes(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 3, 30, 300))):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _flip_header(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 8))):
        if content:
            content[rng.randrange(min(200, len(content)))] = rng.randrange(256)


def _lie_in_header(content: bytearray, rng: random.Random) -> None:
    size = rng.choice((2, 4, 8))
    at = rng.randrange(max(1, min(120, len(content) - size)))
    word = rng.choice((*_WORDS, rng.getrandbits(32))) & ((1 << 8 * size) - 1)
    content[at : at + size] = word.to_bytes(size, rng.choice(("little", "big")))  # type: ignore[arg-type]


def _cut_end(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content) + 1) :]


def _cut_piece(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content) + 1)
    del content[start : start + rng.choice((1, 7, 512, 9000))]


def _double_piece(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content) + 1)
    content[start:start] = content[start : start + rng.choice((1, 64, 5000))]


def _zero_piece(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content) + 1)
    piece = content[start : start + rng.choice((4, 400, 40_000))]
    content[start : start + len(piece)] = bytes(len(piece))


def _insert_noise(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content) + 1)
    content[start:start] = rng.randbytes(rng.choice((1, 100, 4000)))


_MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip_bytes,
    _flip_header,
    _lie_in_header,
    _cut_end,
    _cut_piece,
    _double_piece,
    _zero_piece,
    _insert_noise,
)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when every file is accounted for, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--audio", type=Path, required=True, help="folder of sound recordings")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        report = fuzz(options.audio, options.n, options.seed, Path(scratch))
    print(json.dumps(asdict(report), indent=2))
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
