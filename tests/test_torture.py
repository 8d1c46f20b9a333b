"""Short versions of the soak and the fuzz: kills at random instants, and recordings damaged in every way."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import fuzz
from benchmarks.soak import Soak, soak


@pytest.mark.slow
def test_an_extraction_killed_again_and_again_ends_like_one_that_was_not(synthetic_set: Path, tmp_path: Path) -> None:
    pytest.importorskip("psutil", reason="needed to find the workers")
    files = sorted((synthetic_set.parent / "train_audio").rglob("*.flac"))
    (tmp_path / "recordings.txt").write_text("\n".join(map(str, files)) + "\n")
    task = Soak(tmp_path / "recordings.txt", "logmel_stats", tmp_path / "killed", tmp_path / "journal.txt", seal_s=0.0)
    report = soak(task, n_kills=3, seed=0)
    assert report.kills_of_all + report.kills_of_a_worker > 0
    assert report.n_rows > 0
    assert (report.lost, report.differing, report.verify_problems) == (0, 0, [])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_damaged_recordings_end_in_the_store_or_in_quarantine(seed: int, synthetic_set: Path, tmp_path: Path) -> None:
    report = fuzz(synthetic_set.parent / "train_audio", 80, seed, tmp_path)
    assert report.wrong == []
    assert report.n_stored + report.n_quarantined == report.n_files == 80
    assert min(report.n_stored, report.n_partial, report.n_quarantined) > 0
