"""Invented birds: a small set of lifelike recordings in BirdCLEF's layout, for the demo and the tests.

Species come in groups of three that share a frequency band and differ in the order of time only (a sweep that rises,
falls or turns; a slow, a fast and a quickening trill), so that long-term spectra do not tell them apart.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embeddings.errors import InputError

__all__ = [
    "NOISE_BEDS",
    "RATE_HZ",
    "SPECIES",
    "Species",
    "Voice",
    "chirp",
    "draw_voice",
    "noise_bed",
    "trill",
    "write_synthetic_set",
]

RATE_HZ = 32_000
NOISE_BEDS = ("pink", "rain", "wind", "hum")

_SHORTEST_S, _LONGEST_S = 6.0, 10.0
_OVERLAP_SHARE = 0.35  # of the recordings hold a second species
_TENTH = RATE_HZ // 10  # samples; recordings are whole tenths of a second, which Fourier transforms quickly
_EDGE_S = 0.012  # a syllable swells and fades, or its edges would click
_COLUMNS = (
    *("primary_label", "secondary_labels", "type", "latitude", "longitude", "scientific_name", "common_name"),
    *("author", "license", "rating", "url", "filename", "source"),
)


@dataclass(frozen=True)
class Voice:
    """What tells one individual from another of its species.

    pitch, tempo  factors on frequencies and speeds       harmonics  amplitudes of the overtones, the first included
    """

    pitch: float = 1.0
    tempo: float = 1.0
    harmonics: tuple[float, ...] = (1.0, 0.15)


@dataclass(frozen=True)
class Species:
    """An invented species; `phrase` sings once: (voice, rng) -> float64 (n,) at RATE_HZ, at most about 1 loud."""

    label: str
    scientific_name: str
    common_name: str
    phrase: Callable[[Voice, np.random.Generator], np.ndarray]


def chirp(start_hz: float, end_hz: float, duration_s: float, harmonics: Sequence[float] = (1.0,)) -> np.ndarray:
    """A syllable that glides from one frequency to another.

    harmonics  amplitudes of the fundamental and its overtones; those above the Nyquist frequency are left out
    Returns float64 (round(duration_s * RATE_HZ),), no louder than 1.
    """
    n = round(duration_s * RATE_HZ)
    return _tone(np.linspace(start_hz, end_hz, n), harmonics)


def trill(
    start_hz: float,
    end_hz: float,
    rates_per_s: tuple[float, float],
    duration_s: float,
    harmonics: Sequence[float] = (1.0,),
) -> np.ndarray:
    """Glides in quick succession; each sounds for half of its turn, so that every trill is sound for half its time.

    rates_per_s  glides a second at the beginning and at the end
    Returns float64 (about duration_s * RATE_HZ,), no louder than 1.
    """
    parts, passed_s = [], 0.0
    while passed_s < duration_s:
        share = passed_s / duration_s
        turn_s = 1.0 / (rates_per_s[0] * (1 - share) + rates_per_s[1] * share)
        parts += [chirp(start_hz, end_hz, turn_s / 2, harmonics), _pause(turn_s / 2)]
        passed_s += turn_s
    return np.concatenate(parts)


def noise_bed(kind: str, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Background of one kind: pink, rain (drops on leaves), wind (gusts of rumble) or hum (mains).

    Returns float64 (n_samples,) with a root mean square of 1. Raises InputError for another kind.
    """
    if kind not in NOISE_BEDS:
        raise InputError(f"noise bed {kind!r} is not known; choose {', '.join(NOISE_BEDS)}.")
    white = rng.standard_normal(n_samples)
    if kind == "pink":
        noise = _coloured(white, lambda hz: 1 / np.sqrt(np.maximum(hz, 60.0)))
    elif kind == "rain":
        drops = white * (rng.random(n_samples) < 60 / RATE_HZ) * 40
        noise = _coloured(drops + 0.5 * white, lambda hz: np.exp(-(((hz - 4500) / 3500) ** 2)))
    elif kind == "wind":
        gusts = _coloured(rng.standard_normal(n_samples), lambda hz: hz < 0.7)
        rumble = _coloured(white, lambda hz: 1 / (1 + (hz / 150) ** 2))
        noise = rumble * (0.3 + np.abs(gusts) / max(float(np.abs(gusts).max()), 1e-9))
    else:
        seconds = np.arange(n_samples) / RATE_HZ
        tones = (np.sin(2 * np.pi * 50 * k * seconds + rng.uniform(0, 6)) / k for k in range(1, 13))
        noise = sum(tones, start=0.05 * white)
    return noise / np.sqrt(np.mean(noise**2))


def write_synthetic_set(
    folder: Path, *, n_species: int = 12, individuals: int = 8, recordings_per_individual: int = 3, seed: int = 0
) -> Path:
    """Write recordings of invented birds as BirdCLEF has them.

    folder                     gets train_metadata.csv and train_audio/<label>/<file>.flac (32 kHz, 6 to 10 s)
    n_species                  2 to 12; the first four are one of each group, and easy
    individuals                birds of each species; `source` names the bird, so that a split keeps it on one side
    recordings_per_individual  with other noise, level, distance and overlapping species each
    The same arguments write the same bytes. Returns the table's path.
    Raises InputError when a number is out of range.
    """
    if not 2 <= n_species <= len(SPECIES):
        raise InputError(f"n_species={n_species} must lie in 2..{len(SPECIES)}.")
    if individuals < 1 or recordings_per_individual < 1:
        raise InputError(f"individuals={individuals} and recordings_per_individual={recordings_per_individual}: 1 up.")
    import soundfile

    chosen = SPECIES[:n_species]
    rows = []
    for place, species in enumerate(chosen):
        (folder / "train_audio" / species.label).mkdir(parents=True, exist_ok=True)
        for bird in range(individuals):
            bird_rng = np.random.default_rng((seed, place, bird))
            voice, author = draw_voice(bird_rng), f"recordist {bird_rng.integers(6) + 1}"
            for take in range(recordings_per_individual):
                rng = np.random.default_rng((seed, place, bird, take))
                others = [s for s in chosen if s is not species]
                guest = others[rng.integers(len(others))] if rng.random() < _OVERLAP_SHARE else None
                filename = f"{species.label}/{species.label}-{bird + 1:02d}-{take + 1}.flac"
                sound = _recording(species, voice, guest, rng)
                soundfile.write(folder / "train_audio" / filename, sound, RATE_HZ, subtype="PCM_16")
                rows.append(
                    {
                        "primary_label": species.label,
                        "secondary_labels": str([guest.label] if guest else []),
                        "type": "['song']",
                        "latitude": f"{rng.uniform(-4, 4):.3f}",
                        "longitude": f"{rng.uniform(33, 40):.3f}",
                        "scientific_name": species.scientific_name,
                        "common_name": species.common_name,
                        "author": author,
                        "license": "CC0-1.0",
                        "rating": "5.0",
                        "url": "",
                        "filename": filename,
                        "source": f"{species.label}-{bird + 1:02d}",
                    }
                )
    table = folder / "train_metadata.csv"
    with open(table, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return table


def draw_voice(rng: np.random.Generator) -> Voice:
    """A bird of its own: pitch, tempo and overtones drawn."""
    overtones = rng.uniform(0.02, 0.5) ** np.arange(4)
    return Voice(rng.uniform(0.86, 1.16), rng.uniform(0.85, 1.18), tuple(float(a) for a in overtones))


def _recording(species: Species, voice: Voice, guest: Species | None, rng: np.random.Generator) -> np.ndarray:
    """Phrases of a bird, perhaps of a guest, some distance away, over a noise bed. Peaks well below full scale."""
    n = round(rng.uniform(_SHORTEST_S, _LONGEST_S) * 10) * _TENTH
    birds = _singing(species, voice, n, rng)
    if guest is not None:
        birds += 10 ** (-rng.uniform(4, 12) / 20) * _singing(guest, draw_voice(rng), n, rng)
    birds = _distant(birds, rng)
    loud = np.sqrt(np.mean(birds**2)) + 1e-9
    bed = noise_bed("pink", n, rng) + rng.uniform(0.2, 1.5) * noise_bed(str(rng.choice(NOISE_BEDS)), n, rng)
    bed /= np.sqrt(np.mean(bed**2))
    sound = birds / loud + 10 ** (-rng.uniform(0, 18) / 20) * bed
    return sound * (rng.uniform(0.08, 0.9) / np.abs(sound).max())


def _singing(species: Species, voice: Voice, n: int, rng: np.random.Generator) -> np.ndarray:
    track = np.zeros(n)
    at = round(rng.uniform(0.05, 0.7) * RATE_HZ)
    while at < n:
        phrase = species.phrase(voice, rng) * rng.uniform(0.6, 1.0)
        end = min(n, at + len(phrase))
        track[at:end] += phrase[: end - at]
        at = end + round(rng.uniform(0.35, 1.0) * RATE_HZ)
    return track


def _distant(birds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The woods between bird and microphone: fewer high frequencies, some echo."""
    tilt = rng.uniform(0.0, 1.0)
    echo = rng.standard_normal(_TENTH) * np.exp(-np.arange(_TENTH) / (0.03 * RATE_HZ))
    echo *= rng.uniform(0.0, 0.5) / np.sqrt(np.sum(echo**2))
    echo[0] += 1.0
    size = len(birds) + _TENTH
    spectrum = np.fft.rfft(birds, size) * np.fft.rfft(echo, size)
    spectrum *= (1 + np.fft.rfftfreq(size, 1 / RATE_HZ) / 2000) ** -tilt
    return np.fft.irfft(spectrum, size)[: len(birds)]


def _tone(hz: np.ndarray, harmonics: Sequence[float]) -> np.ndarray:
    """A tone whose frequency runs through `hz`, one value a sample."""
    if not len(hz):
        return np.zeros(0)
    phase = 2 * np.pi * np.cumsum(hz) / RATE_HZ
    heard = [(k, a) for k, a in enumerate(harmonics, start=1) if k * hz.max() < RATE_HZ / 2]
    sound = sum((a * np.sin(k * phase) for k, a in heard), start=np.zeros(len(hz)))
    edge = min(round(_EDGE_S * RATE_HZ), len(hz) // 3)
    swell = np.sin(np.linspace(0, np.pi / 2, edge, endpoint=False)) ** 2
    sound[:edge] *= swell
    sound[len(sound) - edge :] *= swell[::-1]
    return sound / max(1.0, float(sum(a for _, a in heard)))


def _pause(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE_HZ))


def _coloured(noise: np.ndarray, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Filter by a gain over frequency in Hz."""
    hz = np.fft.rfftfreq(len(noise), 1 / RATE_HZ)
    return np.fft.irfft(np.fft.rfft(noise) * gain(hz), len(noise))


def _sweeps(*turns_hz: float) -> Callable[[Voice, np.random.Generator], np.ndarray]:
    """Two to four sweeps of a third of a second through the same frequencies."""

    def phrase(voice: Voice, rng: np.random.Generator) -> np.ndarray:
        n = round(0.34 / voice.tempo * RATE_HZ)
        hz = np.interp(np.linspace(0, len(turns_hz) - 1, n), np.arange(len(turns_hz)), turns_hz) * voice.pitch
        sweep = _tone(hz, voice.harmonics)
        return np.concatenate([part for _ in range(rng.integers(2, 5)) for part in (sweep, _pause(0.1 / voice.tempo))])

    return phrase


def _trills(first_per_s: float, last_per_s: float) -> Callable[[Voice, np.random.Generator], np.ndarray]:
    """Trills of about a second between 5.7 and 4.7 kHz."""

    def phrase(voice: Voice, rng: np.random.Generator) -> np.ndarray:
        rates = (first_per_s * voice.tempo, last_per_s * voice.tempo)
        return trill(5700 * voice.pitch, 4700 * voice.pitch, rates, rng.uniform(0.9, 1.5), voice.harmonics)

    return phrase


def _motif(order: str, note_s: float) -> Callable[[Voice, np.random.Generator], np.ndarray]:
    """Motifs of a low and a high whistle, close together, with a pause between motifs."""

    def phrase(voice: Voice, rng: np.random.Generator) -> np.ndarray:
        notes = {"A": 1900 * voice.pitch, "B": 2600 * voice.pitch}
        motif = [
            part
            for name in order
            for part in (
                chirp(notes[name], notes[name] * 0.98, note_s / voice.tempo, voice.harmonics),
                _pause(0.02 / voice.tempo),
            )
        ]
        return np.concatenate([*motif, _pause(0.3 / voice.tempo)] * int(rng.integers(2, 4)))

    return phrase


def _wobble(per_s: float, buzz_per_s: float = 0.0) -> Callable[[Voice, np.random.Generator], np.ndarray]:
    """Nasal calls, rich in overtones from 800 Hz up, that waver in pitch or buzz in loudness."""

    def phrase(voice: Voice, rng: np.random.Generator) -> np.ndarray:
        seconds = np.arange(round(rng.uniform(0.7, 1.1) * RATE_HZ)) / RATE_HZ
        hz = 820 * voice.pitch * (1 + 0.14 * np.sin(2 * np.pi * per_s * voice.tempo * seconds + rng.uniform(0, 6)))
        call = _tone(hz, tuple(0.85**k for k in range(7)))
        if buzz_per_s:
            call *= 0.5 - 0.5 * np.cos(2 * np.pi * buzz_per_s * voice.tempo * seconds)
        return call

    return phrase


# One of each group in turn, so that a set of few species is easy and a set of all twelve is not.
SPECIES = (
    Species("glaris1", "Fictavis ascendens", "Rising Glasswing", _sweeps(2700, 4600)),
    Species("ticlen1", "Crepitornis lentus", "Slow Tickerbird", _trills(7, 7)),
    Species("belhol1", "Binotus collinus", "Hollow Bellwether", _motif("AB", 0.17)),
    Species("reedro1", "Nasicanor undans", "Drowsy Reedpipe", _wobble(3)),
    Species("glafal1", "Fictavis cadens", "Falling Glasswing", _sweeps(4600, 2700)),
    Species("ticrap1", "Crepitornis rapidus", "Rapid Tickerbird", _trills(19, 19)),
    Species("belrev1", "Binotus inversus", "Contrary Bellwether", _motif("BA", 0.17)),
    Species("reeque1", "Nasicanor tremulus", "Quavering Reedpipe", _wobble(11)),
    Species("glaarc1", "Fictavis arcuatus", "Arching Glasswing", _sweeps(2700, 4600, 2700)),
    Species("ticacc1", "Crepitornis festinans", "Hastening Tickerbird", _trills(4, 24)),
    Species("belshu1", "Binotus alternans", "Shuttling Bellwether", _motif("ABAB", 0.075)),
    Species("reebuz1", "Nasicanor stridens", "Buzzing Reedpipe", _wobble(3, 24)),
)
