"""How blocks arrange recordings: known clouds, chance, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from stage2_heads.arrangement import arrangement_of, mean_vectors
from stage2_heads.rows import ArrayReader


def clouds(spread: float, n: int = 60, species: int = 4) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(species, 12))
    of = np.arange(n) % species
    return centres[of] + spread * rng.normal(size=(n, 12)), [f"s{i}" for i in of]


def test_species_that_lie_apart_are_told_from_species_that_lie_anywhere():
    apart, anywhere = (arrangement_of(["a"], *clouds(spread)) for spread in (0.1, 30.0))
    assert apart is not None
    assert anywhere is not None
    assert apart.silhouette.low > 0.8
    assert apart.mutual > 0.95
    assert anywhere.silhouette.high < 0.1
    assert abs(anywhere.mutual) < 0.15
    assert apart.places.shape == (60, 2)
    vectors, labels = clouds(0.1)
    assert apart.silhouette.value == pytest.approx(silhouette_score(vectors, labels, metric="cosine"))
    own = [np.linalg.norm(apart.places[0] - apart.places[i]) for i in range(4, 60, 4)]
    other = [np.linalg.norm(apart.places[0] - apart.places[i]) for i in range(60) if i % 4]
    assert max(own) < min(other)


def test_a_species_with_one_recording_is_left_out_and_one_species_alone_says_nothing():
    vectors, labels = clouds(0.5)
    found = arrangement_of(["a"], np.vstack([vectors, vectors[:1]]), [*labels, "alone"])
    assert found is not None
    assert "alone" not in found.labels
    assert arrangement_of(["a"], vectors, ["one"] * 60) is None
    assert arrangement_of(["a"], vectors[:3], ["x", "y", "z"]) is None


def test_many_recordings_are_sampled(monkeypatch):
    from stage2_heads import arrangement

    monkeypatch.setattr(arrangement, "_MOST_RECORDINGS", 20)
    found = arrangement_of(["a"], *clouds(0.1))
    assert found is not None
    assert len(found.labels) == found.silhouette.n <= 20


def test_a_recording_is_the_mean_of_its_windows_each_block_weighing_alike():
    rng = np.random.default_rng(0)
    windows = rng.normal(size=(9, 5)).astype(np.float32) * [1, 1, 1, 100, 100] + 3
    reader, group = ArrayReader(windows, (3, 2)), np.repeat([0, 1, 2], 3)
    found = mean_vectors(reader, np.arange(9), group, 3)
    centred = windows - windows.mean(axis=0)
    parts = [centred[:, :3], centred[:, 3:]]
    unit = np.hstack([p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts]) / np.sqrt(2)
    np.testing.assert_allclose(found, unit.reshape(3, 3, 5).mean(axis=1), atol=1e-6)
