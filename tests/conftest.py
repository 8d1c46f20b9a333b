"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.synthetic import write_synthetic_set


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings, which lie beside the project where there are any."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real recordings are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def synthetic_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of 24 invented recordings: four easy species, three birds each, two recordings a bird."""
    folder = tmp_path_factory.mktemp("synthetic")
    return write_synthetic_set(folder, n_species=4, individuals=3, recordings_per_individual=2)
