"""File names made of labels and recordings' names: never too long, and told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from embeddings.file_names import LONGEST_BYTES, file_name, plain_word

HASHES = ("0123456789abcdef" * 2, "fedcba9876543210" * 2)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=300))
def test_a_name_fits_and_is_itself_when_it_did_or_has_the_recordings_hash(text: str) -> None:
    first, second = (file_name(text, ".wav", content=content) for content in HASHES)
    assert first.endswith(".wav")
    assert len(first.encode()) <= LONGEST_BYTES
    if len(text.encode()) <= LONGEST_BYTES - 4:
        assert first == second == f"{text}.wav"
    else:
        assert first != second
        assert first.endswith("-01234567.wav")
        assert text.startswith(first[: -len("-01234567.wav")])
        assert len(first.encode()) > LONGEST_BYTES - 4  # cut no more than a letter's bytes demand


@pytest.mark.parametrize("name", ["a" * 240, "鳥" * 80, "𠀀" * 60], ids=["ascii", "three bytes", "four bytes"])
def test_clips_and_label_tracks_of_recordings_with_long_names_are_written(name: str, tmp_path: Path) -> None:
    from cli.embed import app
    from stage2_heads.prediction_files import Provenance, open_writers
    from stage2_heads.stretches import Stretch

    folder = tmp_path / "audio" / plain_word(name)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for ending in ("wav", "flac"):
        sf.write(folder / f"{name}.{ending}", 0.1 * rng.standard_normal(6 * 16_000), 16_000)
    store, clips, page = (tmp_path / part for part in ("store", "clips", "page.html"))
    for words in (
        ["extract", folder.parent, "--label-folders", "--backbone", "logmel_stats", "--out", store, "--workers", 1],
        ["search", store, "--row", 0, "-k", 2, "--clips", clips, "--html", page],
    ):
        done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert len(list(clips.glob("*.wav"))) == 2
    assert page.is_file()

    from embeddings.store import Store

    about = Provenance("head", "blocks", "1", ["a"], {}, np.array([0.5]), 8000.0)
    with open_writers(["audacity"], tmp_path, about) as (writer,):
        for recording in Store(store).catalogue:
            times, ones = (np.array([0.0]), np.array([5.0])), np.ones((1, 1))
            writer.write(Stretch(recording, *times, ones, ones, ones > 0, is_last=True))
    assert len(list((tmp_path / "audacity").rglob("*.txt"))) == 2
