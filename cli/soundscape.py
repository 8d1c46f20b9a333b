"""Invented birds to try things on: `python -m cli.soundscape FOLDER` writes a labelled set and a minute of a wood."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cli.common import console, make_app, run
from cli.synthetic import RATE_HZ, SPECIES, draw_voice, noise_bed, write_synthetic_set

__all__ = ["write_soundscape"]

_FEWEST_GAP_S, _LARGEST_GAP_S = 1.5, 7.0
_COLUMNS = ("filename", "duration_s", "start_s", "end_s", "label", "scientific_name", "common_name")

app = make_app("Invented birds to try things on.")


def write_soundscape(
    folder: Path, *, n_species: int = 4, duration_s: float = 60.0, name: str = "20240501_043000.wav", seed: int = 0
) -> Path:
    """Write a recording in which birds sing now and then over wind, and where each phrase lies.

    folder  gets the recording (32 kHz) and annotations.csv with a box a phrase: filename, start_s, end_s, label, names
    The same arguments write the same bytes. Returns the table's path.
    """
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, n_species))
    n = round(duration_s * RATE_HZ)
    sound = 0.01 * noise_bed("pink", n, rng) + 0.01 * noise_bed("wind", n, rng)
    voices = [draw_voice(rng) for _ in SPECIES[:n_species]]
    rows = []
    at = round(rng.uniform(0.5, 2.0) * RATE_HZ)
    while True:
        number = int(rng.integers(n_species))
        phrase = SPECIES[number].phrase(voices[number], rng)
        if at + len(phrase) > n:
            break
        sound[at : at + len(phrase)] += rng.uniform(0.1, 0.3) * phrase
        species, start_s, end_s = SPECIES[number], at / RATE_HZ, (at + len(phrase)) / RATE_HZ
        names = (species.label, species.scientific_name, species.common_name)
        rows.append((name, f"{duration_s:g}", f"{start_s:.3f}", f"{end_s:.3f}", *names))
        at += len(phrase) + round(rng.uniform(_FEWEST_GAP_S, _LARGEST_GAP_S) * RATE_HZ)
    soundfile.write(folder / name, sound, RATE_HZ, subtype="PCM_16")
    table = folder / "annotations.csv"
    with open(table, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(_COLUMNS)
        writer.writerows(rows)
    return table


@app.command()
def birds(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    n_species: Annotated[int, typer.Option(help="2 to 12; the first four are easy.")] = 4,
    individuals: Annotated[int, typer.Option(help="Birds of each.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Other birds.")] = 0,
    woods: Annotated[int, typer.Option(help="Minutes of other woods, with other birds of the same species.")] = 0,
) -> None:
    """Write train_metadata.csv, train_audio/ and soundscape/, a minute of a wood and its annotations."""
    from embeddings.errors import InputError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists; name a new folder.")
    table = write_synthetic_set(
        folder, n_species=n_species, individuals=individuals, recordings_per_individual=2, seed=seed
    )
    boxes = write_soundscape(folder / "soundscape", n_species=n_species, seed=seed)
    for number in range(1, woods + 1):
        other = folder / "woods" / f"{number:02d}"
        write_soundscape(other, n_species=n_species, name=f"wood{number:02d}.wav", seed=seed + 1000 * number)
    console().print(f"Labelled recordings: {table}. A soundscape and its boxes: {boxes}.", soft_wrap=True)


if __name__ == "__main__":
    run(app)
