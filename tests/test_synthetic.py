"""Invented birds: the same each time, unclipped, truthfully labelled, and different from each other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cli.synthetic import NOISE_BEDS, RATE_HZ, SPECIES, Voice, chirp, noise_bed, trill, write_synthetic_set
from embeddings.catalogue_sources import read_catalogue
from embeddings.errors import InputError
from embeddings.splits import make_split


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_other_sounds(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_synthetic_set(tmp_path / name, n_species=2, individuals=1, recordings_per_individual=1, seed=seed)
    first, again, other = (bytes_below(tmp_path / name) for name in "abc")
    assert first == again
    assert list(first) == list(other)
    audio = [name for name in first if name.endswith(".flac")]
    assert len(audio) == 2
    assert all(first[name] != other[name] for name in audio)


def test_the_catalogue_reads_every_species_and_bird_without_a_complaint(synthetic_set):
    catalogue = read_catalogue(synthetic_set)
    assert catalogue.problems == ()
    assert catalogue.rejected == ()
    assert catalogue.counts == {species.label: 6 for species in SPECIES[:4]}
    assert set(Counter(r.source for r in catalogue).values()) == {2}
    assert len({r.source for r in catalogue}) == 12
    assert {r.common_name for r in catalogue} == {species.common_name for species in SPECIES[:4]}


def test_a_split_keeps_a_bird_on_one_side(synthetic_set):
    catalogue = read_catalogue(synthetic_set)
    sides = make_split(catalogue.recordings).assignments
    by_bird = {(r.source, sides[r.recording]) for r in catalogue}
    assert len(by_bird) == 12
    assert {side for _, side in by_bird} == {"train", "valid"}


def test_recordings_are_6_to_10_s_at_32_khz_loud_enough_and_never_clipped(synthetic_set):
    for path in synthetic_set.parent.rglob("*.flac"):
        samples, rate_hz = soundfile.read(path)
        assert rate_hz == RATE_HZ
        assert 6.0 <= len(samples) / rate_hz <= 10.0
        assert 0.05 < np.abs(samples).max() < 0.95


def test_secondary_labels_name_exactly_the_species_that_were_mixed_in(tmp_path, monkeypatch):
    heard: list[set[str]] = []
    singing = write_synthetic_set.__globals__["_singing"]
    recording = write_synthetic_set.__globals__["_recording"]

    def listening_singing(species, *rest):
        heard[-1].add(species.label)
        return singing(species, *rest)

    def listening_recording(*given):
        heard.append(set())
        return recording(*given)

    monkeypatch.setitem(write_synthetic_set.__globals__, "_singing", listening_singing)
    monkeypatch.setitem(write_synthetic_set.__globals__, "_recording", listening_recording)
    table = write_synthetic_set(tmp_path, n_species=3, individuals=2, recordings_per_individual=2)
    labels = [set(r.labels) for r in read_catalogue(table)]
    assert sorted(map(sorted, labels)) == sorted(map(sorted, heard))
    assert {len(names) for names in labels} == {1, 2}


def test_a_chirp_moves_from_its_first_to_its_last_frequency():
    sound = chirp(2000, 4000, 0.5)
    assert len(sound) == RATE_HZ // 2
    for piece, hz in ((sound[1000:3000], 2250), (sound[-3000:-1000], 3750)):
        spectrum = np.abs(np.fft.rfft(piece * np.hanning(len(piece))))
        assert abs(np.fft.rfftfreq(len(piece), 1 / RATE_HZ)[spectrum.argmax()] - hz) < 100


def test_a_trill_sounds_for_half_of_its_time_whatever_its_rate():
    for rates in ((6.0, 6.0), (18.0, 18.0), (4.0, 20.0)):
        loud = np.convolve(np.abs(trill(5000, 4500, rates, 1.0)), np.ones(64) / 64, "same") > 0.05
        assert 0.35 < loud.mean() < 0.55
        starts = int(np.sum(loud[1:] & ~loud[:-1]))
        assert abs(starts - np.mean(rates)) <= 3


@pytest.mark.parametrize("kind", NOISE_BEDS)
def test_noise_beds_are_of_unit_loudness(kind):
    noise = noise_bed(kind, 2 * RATE_HZ, np.random.default_rng(0))
    assert np.isfinite(noise).all()
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(1.0)


@pytest.mark.parametrize("species", SPECIES, ids=lambda species: species.label)
def test_every_species_sings_within_full_scale_and_below_16_khz(species):
    phrase = species.phrase(Voice(pitch=1.16, harmonics=(1.0, 0.5, 0.25, 0.125)), np.random.default_rng(1))
    power = np.abs(np.fft.rfft(phrase)) ** 2
    hz = np.fft.rfftfreq(len(phrase), 1 / RATE_HZ)
    assert 0.1 < np.abs(phrase).max() <= 1.0
    assert power[(hz > 300) & (hz < 7500)].sum() > 0.8 * power.sum()


@pytest.mark.parametrize("wrong", [{"n_species": 1}, {"n_species": 13}, {"individuals": 0}])
def test_numbers_out_of_range_are_refused_by_name(tmp_path, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        write_synthetic_set(tmp_path / "x", **wrong)
    assert not (tmp_path / "x").exists()


def test_an_unknown_noise_bed_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="pink, rain, wind, hum"):
        noise_bed("traffic", 100, np.random.default_rng(0))
