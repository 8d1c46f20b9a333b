"""`heads predict --pictures`: one picture a recording of what sang when; none twice, none lost, none made up."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
import zlib
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from PIL import Image
from typer.testing import CliRunner

from cli.overview import MOST_COLUMNS, overview_of
from cli.pictures import SAME
from cli.strips import Strips
from cli.time_axis import TimeAxis
from embeddings.errors import AudioError, InputError
from stage2_heads.heads import load_head
from stage2_heads.predict import Detecting
from stage2_heads.stretches import Stretch

RATE_HZ = 32_000
LOGMEL = ("--backbone", "logmel_stats", "--workers", "1")
QUICK = ("--head", "svm", "--set", "min_updates=300")


def heads(*words: object, code: int = 0) -> str:
    from cli.heads import app

    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def share_of(picture: Image.Image, colour: str) -> float:
    """Of the pixels, those that have this colour, or all but."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(np.asarray(picture.convert("RGB"), int) - wanted).max(axis=2) < 12).mean())


@pytest.fixture(scope="module")
def fitted(synthetic_set, tmp_path_factory) -> Path:
    from cli.embed import app

    folder = tmp_path_factory.mktemp("fitted")
    words = ["extract", str(synthetic_set), *LOGMEL, "--out", str(folder / "store")]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    heads("fit", folder / "store", *QUICK, "--split", "all", "--with-backbones", "--out", folder / "head")
    return folder / "head"


@pytest.fixture(scope="module")
def cards(synthetic_set, tmp_path_factory) -> Path:
    """Two recordings of one name and clock, one without, one shorter than a window, one silent."""
    folder = tmp_path_factory.mktemp("cards")
    songs = [sf.read(path)[0] for path in sorted((synthetic_set.parent / "train_audio").rglob("*.flac"))[::5]]
    for name, samples in {
        "A/20240501_043000.wav": np.concatenate(songs),
        "B/20240501_043000.wav": songs[1],
        "B/[bold]$a$ one.wav": songs[2],
        "B/鳥の声.wav": songs[2][:-1],
        "B/short.wav": songs[3][: 2 * RATE_HZ],
        "B/silent.wav": np.zeros(6 * RATE_HZ),
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        sf.write(folder / name, samples, RATE_HZ)
    return folder


@pytest.fixture(scope="module")
def drawn(fitted, cards, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "out"
    said = heads("predict", fitted, cards, "--out", out, "--threshold", "0.3", "--pictures", 9, "--workers", 1)
    assert "6 drawn" in said
    return out


def picture_of(out: Path, name: str) -> Path:
    (path,) = (out / "pictures").glob(f"{name}-????????.png")
    return path


def test_every_recording_has_its_picture_whatever_it_is_called_and_however_short_or_still_it_is(drawn):
    names = {path.name for path in (drawn / "pictures").iterdir()}
    called = sorted(name[: -len("-01234567.png")] for name in names)
    assert called == ["20240501_043000", "20240501_043000", "bold-a-one", "short", "silent", "鳥の声"]
    for name in names:
        picture = opened(drawn / "pictures" / name)
        assert picture.format == "PNG"
        assert picture.width > 1000
        assert "head@" in picture.info["Description"]
        assert "0.3 or more" in picture.info["Description"]


def test_detections_are_seen_and_silence_is_black(drawn):
    (longest,) = [path for path in (drawn / "pictures").glob("2024*") if share_of(opened(path), SAME) > 0.02][
        :1
    ] or pytest.fail("no picture shows a detection")
    assert share_of(opened(longest), "#000004") < 0.3  # the lowest colour of magma
    assert share_of(opened(picture_of(drawn, "silent")), "#000004") > 0.3


def test_the_same_command_draws_nothing_again_and_other_settings_do(fitted, cards, drawn, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(drawn, out)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (out / "pictures").iterdir()}
    words = ["predict", fitted, cards, "--out", out, "--workers", 1]
    assert "0 drawn, 6 were there" in heads(*words, "--threshold", "0.3", "--pictures", 9)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (out / "pictures").iterdir()} == before
    heads(*words, "--threshold", "0.3")  # none asked for: none lost
    assert {path: path.read_bytes() for path in before} == {path: content for path, (content, _) in before.items()}
    next(iter(before)).unlink()
    assert "1 drawn, 5 were there" in heads(*words, "--threshold", "0.3", "--pictures", 9)
    assert "2 drawn, in" in heads(*words, "--threshold", "0.9", "--pictures", 2)


def test_a_recording_whose_audio_is_gone_is_told_and_the_others_are_drawn(fitted, cards, tmp_path):
    shutil.copytree(cards / "B", tmp_path / "card")
    heads("predict", fitted, tmp_path / "card", "--out", tmp_path / "out", "--workers", 1)
    store = tmp_path / "out" / "store"
    (tmp_path / "card" / "short.wav").unlink()
    shutil.copy(
        tmp_path / "card" / "silent.wav", tmp_path / "card" / "20240501_043000.wav"
    )  # something else, in its place
    words = ["predict", fitted, store, "--out", tmp_path / "again", "--pictures", 9, "--json", tmp_path / "said.json"]
    said = heads(*words, code=1)
    assert "No picture can be drawn of (2)" in said
    assert "short.wav: its audio is no longer at" in said
    told = json.loads((tmp_path / "said.json").read_text())["pictures"]
    assert len(told["missing"]) == 2
    assert [Path(path).name.rsplit("-", 1)[0] for path in sorted(told["drawn"])] == ["bold-a-one", "silent", "鳥の声"]
    assert (tmp_path / "again" / "predictions.csv").is_file()


def test_what_no_prediction_drew_is_left_alone_and_a_number_below_zero_is_refused(fitted, cards, drawn, tmp_path):
    store = drawn / "store"
    with pytest.raises(InputError, match="--pictures -1"):
        heads("predict", fitted, cards, "--out", tmp_path / "none", "--pictures", -1)
    assert not (tmp_path / "none").exists()
    (tmp_path / "mine" / "pictures").mkdir(parents=True)
    with pytest.raises(InputError, match="says that it is a prediction"):
        heads("predict", fitted, store, "--out", tmp_path / "mine", "--pictures", 1)
    heads("predict", fitted, store, "--out", tmp_path / "out")
    (tmp_path / "out" / "pictures").write_text("mine")
    with pytest.raises(InputError, match="is a file, where a folder is to be written"):
        heads("predict", fitted, store, "--out", tmp_path / "out", "--pictures", 1)
    (tmp_path / "out" / "pictures").unlink()
    short, silent = (tmp_path / "out" / "pictures" / picture_of(drawn, name).name for name in ("short", "silent"))
    for path, content in {short: b"mine", silent: None}.items():
        path.parent.mkdir(exist_ok=True)
        if content is None:
            Image.new("RGB", (4, 4)).save(path)
        else:
            path.write_bytes(content)
    assert "no prediction drew it" in heads(
        "predict", fitted, store, "--out", tmp_path / "out", "--pictures", 9, code=1
    )
    assert short.read_bytes() == b"mine"
    assert opened(silent).size == (4, 4)


def png(width: int, height: int, chunk: bytes = b"") -> bytes:
    """The beginning of a picture as large as one likes."""

    def of(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = of(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + (of(b"zTXt", chunk) if chunk else b"") + of(b"IEND", b"")


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_pictures_that_are_made_to_be_unreadable_are_left_alone_and_named(fitted, cards, drawn, tmp_path):
    heads("predict", fitted, drawn / "store", "--out", tmp_path / "out")
    foreign = {
        "short": png(60_000, 60_000),
        "silent": png(11_000, 11_000),
        "bold-a-one": png(4, 4, b"k\0\0" + zlib.compress(b"a" * 100_000_000)),
    }
    (tmp_path / "out" / "pictures").mkdir()
    paths = {name: tmp_path / "out" / "pictures" / picture_of(drawn, name).name for name in foreign}
    for name, content in foreign.items():
        paths[name].write_bytes(content)
    said = heads("predict", fitted, drawn / "store", "--out", tmp_path / "out", "--pictures", 9, code=1)
    assert said.count("no prediction drew it") == 3
    assert {name: path.read_bytes() for name, path in paths.items()} == foreign


def test_only_the_species_that_are_looked_for_have_strips(fitted, drawn, tmp_path):
    label = load_head(fitted).labels_[0]
    heads("predict", fitted, drawn / "store", "--out", tmp_path / "one", "--species", label, "--pictures", 1)
    (one,) = (tmp_path / "one" / "pictures").iterdir()
    assert opened(one).height < opened(drawn / "pictures" / one.name).height


class TestStrips:
    def stretch(self, scores: list[list[float]]) -> Stretch:
        made = np.array(scores)
        start_s = np.arange(len(made)) * 5.0
        return Stretch(None, start_s, start_s + 5, made, made, made >= 0.5, is_last=True)  # type: ignore[arg-type]

    def detecting(self, looked_for: np.ndarray) -> Detecting:
        return Detecting(looked_for, np.full(len(looked_for), 0.5), None, "")

    def strips(self, scores: list[list[float]], looked_for: np.ndarray) -> Strips:
        made = self.stretch(scores)
        return Strips.of([made], self.detecting(looked_for), made.start_s, made.end_s)

    def test_detected_species_come_first_by_their_highest_score_then_those_that_come_near(self):
        rng = np.random.default_rng(0)
        low = rng.uniform(0, 0.04, (4, 20))
        low[1, 7], low[2, 3], low[0, 11], low[0, 12], low[0, 13] = 0.9, 0.6, 0.3, 0.26, 0.24
        strips = self.strips(low.tolist(), np.ones(20, bool))
        assert strips.columns.tolist() == [7, 3, 11, 12]
        assert strips.n_more == 0
        assert strips.found.any(axis=1).tolist() == [True, True, False, False]

    def test_more_than_eight_detected_species_are_counted_and_those_not_looked_for_left_out(self):
        scores = [[0.99 - 0.01 * i for i in range(12)]]
        looked_for = np.arange(12) != 0
        strips = self.strips(scores, looked_for)
        assert strips.columns.tolist() == list(range(1, 9))
        assert strips.n_more == 3

    def test_a_moment_has_the_score_of_the_window_whose_middle_is_nearest_and_none_where_there_is_no_window(self):
        start_s = np.array([0.0, 2.5, 5.0, 20.0])
        made = self.stretch([[0.2], [0.8], [0.1], [0.6]])
        strips = Strips.of([made], self.detecting(np.ones(1, bool)), start_s, start_s + 5)
        seconds = (np.arange(strips.scores.shape[1]) + 0.5) * 25.0 / strips.scores.shape[1]
        times = [seconds < 3.75, seconds < 6.25, seconds < 10, seconds < 20, seconds < 25]
        expected = np.select(times, [0.2, 0.8, 0.1, np.nan, 0.6])
        np.testing.assert_allclose(strips.scores[0], expected, rtol=1e-6)
        assert (strips.found[0] == (expected > 0.5)).all()

    def test_one_short_detection_in_a_day_is_still_there(self):
        scores = np.full((17_280, 1), 0.01)
        scores[9_000] = 0.95
        strips = self.strips(scores.tolist(), np.ones(1, bool))
        assert 1 <= strips.found.sum() <= 2
        assert strips.scores.max() == pytest.approx(0.95)


class TestOverview:
    def test_a_tone_stands_at_its_frequency_and_its_time(self, tmp_path):
        seconds = np.arange(10 * RATE_HZ) / RATE_HZ
        tone = np.where((seconds > 4) & (seconds < 5), np.sin(2 * np.pi * 3000 * seconds), 0)
        sf.write(tmp_path / "tone.wav", 0.5 * tone, RATE_HZ)
        seen = overview_of(tmp_path / "tone.wav")
        row, column = np.unravel_index(seen.power.argmax(), seen.power.shape)
        assert row / (seen.power.shape[0] - 1) * seen.highest_hz == pytest.approx(3000, abs=50)
        assert 4 <= column * seen.column_s <= 5
        assert seen.duration_s == pytest.approx(10)
        assert seen.power.shape[1] * seen.column_s == pytest.approx(10, abs=0.1)

    def test_it_is_librosas_spectrogram_with_columns_united(self, tmp_path):
        import librosa

        samples = np.random.default_rng(0).normal(0, 0.1, 20 * RATE_HZ).astype(np.float32)
        sf.write(tmp_path / "noise.wav", samples, RATE_HZ, subtype="FLOAT")
        seen = overview_of(tmp_path / "noise.wav")
        power = np.abs(librosa.stft(samples, n_fft=1024, hop_length=250, pad_mode="constant")) ** 2
        each = round(seen.column_s * RATE_HZ / 250)
        expected = [power[: len(seen.power), i : i + each].max(axis=1) for i in range(0, power.shape[1], each)]
        np.testing.assert_allclose(seen.power, np.stack(expected, axis=1), rtol=1e-3, atol=1e-6)

    def test_memory_and_columns_do_not_grow_with_the_recording(self, tmp_path):
        block = np.random.default_rng(0).normal(0, 0.1, 60 * 8000)
        peaks = []
        for minutes in (2, 40):
            with sf.SoundFile(tmp_path / f"{minutes}.wav", "w", 8000, 1) as file:
                for _ in range(minutes):
                    file.write(block)
            overview_of(tmp_path / f"{minutes}.wav")
            tracemalloc.start()
            seen = overview_of(tmp_path / f"{minutes}.wav")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert MOST_COLUMNS / 2 < seen.power.shape[1] <= MOST_COLUMNS
            assert seen.highest_hz == 4000
        assert peaks[1] < 1.1 * peaks[0]

    def test_what_decodes_is_shown_and_damage_is_not(self, tmp_path):
        rng = np.random.default_rng(0)
        samples = rng.normal(0, 0.1, 8 * RATE_HZ).astype(np.float32)
        samples[1000] = np.nan
        sf.write(tmp_path / "nan.wav", samples, RATE_HZ, subtype="FLOAT")
        assert np.isfinite(overview_of(tmp_path / "nan.wav").power).all()
        sf.write(tmp_path / "whole.wav", samples, RATE_HZ)
        (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[: 5 * RATE_HZ])
        cut = overview_of(tmp_path / "cut.wav")
        assert cut.problem
        assert 2 < cut.duration_s < 3
        (tmp_path / "none.wav").write_bytes(b"RIFF")
        with pytest.raises(AudioError):
            overview_of(tmp_path / "none.wav")

    def test_noise_is_dark_and_a_rare_call_is_bright_however_long_the_recording(self, tmp_path):
        rng = np.random.default_rng(0)
        samples = rng.normal(0, 0.02, 600 * 8000)
        samples[400 * 8000 : 402 * 8000] += 0.3 * np.sin(2 * np.pi * 2000 / 8000 * np.arange(16_000))
        sf.write(tmp_path / "a.wav", samples, 8000)
        levels = overview_of(tmp_path / "a.wav").levels(40)
        assert np.percentile(levels, 90) < -30
        assert levels.max() == 0
        assert levels.argmax() % levels.shape[1] == pytest.approx(401 / 600 * levels.shape[1], abs=4)

    def test_silence_is_black(self, tmp_path):
        sf.write(tmp_path / "a.wav", np.zeros(8000), 8000)
        assert (overview_of(tmp_path / "a.wav").levels(40) == -40).all()


@pytest.mark.parametrize(
    ("began", "length_s", "first", "last"),
    [
        (None, 60.0, "0:00", "1:00"),
        (None, 7200.0, "0:00:00", "2:00:00"),
        ("2024-05-01T04:30:07", 60.0, "04:30:10", "04:31:00"),
        ("2024-05-01T23:50:00+02:00", 3600.0, "23:50", "00:50"),
        ("2024-05-01T12:00:00", 86_400.0, "12:00", "12:00"),
        (None, 40 * 86_400.0, "0:00:00", None),
    ],
)
def test_ticks_stand_on_round_times_of_the_clock(began, length_s, first, last):
    axis = TimeAxis.of(datetime.fromisoformat(began) if began else None, length_s)
    assert 2 <= len(axis.ticks_s) <= 11
    assert axis.labels[0] == first
    assert last is None or axis.labels[-1] == last
    assert axis.ticks_s[-1] <= length_s + 1e-6
