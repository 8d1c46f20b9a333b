"""Decoding: equal to whole-file decoding, honest about damaged files, and flat in memory."""

from __future__ import annotations

import itertools
import os
import re
import struct
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from embeddings.errors import AudioError, InputError
from embeddings.windows import AudioWindow, WindowPlan
from stage1_backbones.audio import duration_s, read_audio, stream_windows

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FORMATS = ["wav", "flac", "ogg", "mp3"]
# libsndfile's mp3 samples differ by up to 2.4e-7 with the number of samples asked for at a time.
TOLERANCE = {"wav": 0.0, "flac": 0.0, "ogg": 0.0, "mp3": 1e-6}


def song(seconds: float, rate_hz: int, channels: int = 1, seed: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    sweep = 0.3 * np.sin(2 * np.pi * (300 * t + 150 * t**2))
    samples = sweep[:, None] + rng.normal(0, 0.05, (len(t), channels))
    return samples.astype(np.float32)


def written(path: Path, samples: np.ndarray, rate_hz: int, subtype: str | None = None) -> Path:
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return path


def cut(path: Path, share: float, name: str | None = None) -> Path:
    content = path.read_bytes()
    target = path.with_name(name or f"cut_{path.name}")
    target.write_bytes(content[: int(share * len(content))])
    return target


def listen(path: Path, plan: WindowPlan | None = None, rates_hz: tuple[int, ...] = (16_000,)):
    """All windows that came, and the error that ended them, if any."""
    windows: list[AudioWindow] = []
    try:
        for window in stream_windows(path, plan or WindowPlan(), rates_hz):
            windows.append(window)
    except AudioError as error:
        return windows, str(error)
    return windows, ""


# Equal to decoding the whole file at once


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("source_hz", [22_050, 32_000, 48_000])
def test_streamed_windows_equal_whole_file_decoding(tmp_path: Path, suffix: str, source_hz: int) -> None:
    path = written(tmp_path / f"a.{suffix}", song(13.37, source_hz, channels=2), source_hz)
    whole = soundfile.read(path, dtype="float32")[0].mean(axis=1)
    plan = WindowPlan(window_s=5.0, hop_s=2.0, last="shift")
    windows, problem = listen(path, plan, (16_000, 32_000, 48_000))
    assert problem == ""
    assert [w.span for w in windows] == plan.spans(len(whole) / source_hz)
    for rate_hz in (16_000, 32_000, 48_000):
        at_once = soxr.resample(whole, source_hz, rate_hz, quality="HQ")
        for window in windows:
            waveform = window.waveforms[rate_hz]
            assert waveform.dtype == np.float32
            assert waveform.shape == (5 * rate_hz,)
            start = min(round(window.span.start_s * rate_hz), len(at_once) - len(waveform))
            expected = at_once[start : start + len(waveform)]
            np.testing.assert_allclose(waveform, expected, rtol=0, atol=TOLERANCE[suffix])


@pytest.mark.parametrize("hop_s", [0.0, -1.0, 1e-9, float("nan")])
def test_a_hop_that_can_only_be_a_slip_is_refused(hop_s):
    with pytest.raises(InputError, match=r"0\.01 s or more"):
        WindowPlan(hop_s=hop_s)


@pytest.mark.parametrize("last", ["shift", "pad", "drop"])
@pytest.mark.parametrize("seconds", [0.2, 4.99, 5.0, 5.00001, 9.3, 10.0, 12.34567])
@pytest.mark.parametrize("hop_s", [0.7, 5.0, 7.5])
def test_every_last_window_policy_gives_the_planned_windows(
    tmp_path: Path, last: str, seconds: float, hop_s: float
) -> None:
    rate_hz = 8_000
    path = written(tmp_path / "a.wav", song(seconds, rate_hz), rate_hz, "FLOAT")
    whole = soundfile.read(path, dtype="float32")[0]
    plan = WindowPlan(window_s=5.0, hop_s=hop_s, last=last)
    windows, problem = listen(path, plan, (rate_hz, 16_000))
    assert problem == ""
    assert [w.span for w in windows] == plan.spans(len(whole) / rate_hz)
    for window in windows:
        start, end = round(window.span.start_s * rate_hz), round(window.span.end_s * rate_hz)
        own = whole[start:end]
        expected = np.resize(own, 40_000) if window.span.repeated else np.pad(own, (0, 40_000 - len(own)))
        np.testing.assert_array_equal(window.waveforms[rate_hz], expected)
        assert window.waveforms[16_000].shape == (80_000,)
        assert window.rms_dbfs == pytest.approx(10 * np.log10(np.mean(own.astype(np.float64) ** 2)), abs=1e-3)


def test_a_file_already_at_the_wanted_rate_is_passed_through_unchanged(tmp_path: Path) -> None:
    samples = song(10, 32_000)
    path = written(tmp_path / "a.wav", samples, 32_000, "FLOAT")
    windows, _ = listen(path, rates_hz=(32_000,))
    np.testing.assert_array_equal(np.concatenate([w.waveforms[32_000] for w in windows]), samples[:, 0])


def test_windows_do_not_share_memory(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", song(12, 16_000), 16_000)
    windows, _ = listen(path, WindowPlan(hop_s=1.0), (16_000,))
    for one, other in itertools.pairwise(windows):
        assert not np.shares_memory(one.waveforms[16_000], other.waveforms[16_000])


@pytest.mark.parametrize(("rate_hz", "channels"), [(96_000, 2), (384_000, 1), (44_100, 8), (8_000, 3)])
def test_any_rate_and_any_number_of_channels(tmp_path: Path, rate_hz: int, channels: int) -> None:
    samples = song(6.0, rate_hz, channels)
    path = written(tmp_path / "a.wav", samples, rate_hz, "FLOAT")
    windows, problem = listen(path, rates_hz=(32_000,))
    assert problem == ""
    expected = soxr.resample(samples.mean(axis=1), rate_hz, 32_000, quality="HQ")
    np.testing.assert_allclose(windows[0].waveforms[32_000], expected[:160_000], atol=1e-6)
    np.testing.assert_allclose(windows[1].waveforms[32_000], expected[-160_000:], atol=1e-6)


def test_float_samples_beyond_one_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", 20 * song(5, 16_000), 16_000, "FLOAT")
    windows, problem = listen(path)
    assert problem == ""
    assert windows[0].waveforms[16_000].max() > 5


def test_many_recordings_decode_at_once_in_threads(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / f"{i}.{suffix}", song(7, 32_000, seed=i), 32_000) for i, suffix in enumerate(FORMATS * 3)
    ]
    alone = [listen(path)[0] for path in paths]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda path: listen(path)[0], paths))
    for one, other in zip(alone, together, strict=True):
        assert [w.span for w in one] == [w.span for w in other]
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.waveforms[16_000], b.waveforms[16_000])


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    def peak_bytes(seconds: int) -> int:
        path = tmp_path / f"{seconds}.wav"
        with soundfile.SoundFile(path, "w", 48_000, 2) as file:
            minute = song(min(60, seconds), 48_000, 2)
            for _ in range(max(1, seconds // 60)):
                file.write(minute)
        tracemalloc.start()
        for _ in stream_windows(path, WindowPlan(hop_s=2.5), (16_000, 32_000)):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        path.unlink()
        return peak

    short, long = peak_bytes(60), peak_bytes(900)
    assert long < 1.1 * short
    assert short < 40e6


# Flags


def test_a_clip_shorter_than_a_window_is_repeated_and_flagged(tmp_path: Path) -> None:
    samples = song(0.2, 32_000)
    windows, problem = listen(written(tmp_path / "a.wav", samples, 32_000, "FLOAT"), rates_hz=(32_000,))
    assert problem == ""
    assert len(windows) == 1
    assert windows[0].span.repeated
    assert windows[0].span.end_s == pytest.approx(0.2)
    np.testing.assert_array_equal(windows[0].waveforms[32_000], np.tile(samples[:, 0], 25))


@pytest.mark.parametrize(("peak", "silent"), [(0, True), (2, True), (3, False)])
def test_only_what_stays_within_two_steps_of_a_recorder_is_silent(tmp_path: Path, peak: int, silent: bool) -> None:
    samples = np.zeros(80_000, dtype=np.int16)
    samples[1000] = -peak
    windows, problem = listen(written(tmp_path / "a.wav", samples, 16_000))
    assert problem == ""
    assert windows[0].silent is silent
    assert windows[0].rms_dbfs == (-200.0 if peak == 0 else pytest.approx(20 * np.log10(peak / 32768) - 49.03, abs=0.1))


# Damaged files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.wav", b"", "is empty"),
        ("a.mp3", b"", "is empty"),
        ("a.ogg", b"This is a text, not a sound.\n" * 40, "cannot be decoded as audio"),
        ("a.mp3", b"This is a text, not a sound.\n" * 40, "cannot be decoded as audio: Format not recognised"),
        ("a.wav", b"RIFF" + bytes(range(256)) * 20, "cannot be decoded as audio"),
        ("a.raw", b"no header", "cannot be decoded as audio"),
        ("a.m4a", b"This is a text, not a sound.\n" * 40, "m4a|cannot be decoded"),
    ],
)
def test_what_is_not_audio_is_refused_with_the_reason(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    windows, problem = listen(path)
    assert windows == []
    assert str(path) in problem
    assert re.search(message, problem)
    with pytest.raises(AudioError, match=message):
        read_audio(path, 16_000)
    with pytest.raises(AudioError, match=message):
        duration_s(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert "No such file" in listen(tmp_path / "none.wav")[1]
    assert "cannot be opened" in listen(tmp_path)[1]


def test_a_header_without_samples_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", np.zeros(0, dtype=np.float32), 16_000)
    assert listen(path) == ([], f"{path} is audio, but holds no samples.")


@pytest.mark.parametrize("suffix", [*FORMATS, "aiff", "w64", "rf64"])
def test_a_truncated_file_gives_its_good_windows_and_then_an_error(tmp_path: Path, suffix: str) -> None:
    whole = written(tmp_path / f"a.{suffix}", song(30, 32_000), 32_000)
    path = cut(whole, 0.6)
    windows, problem = listen(path, rates_hz=(32_000,))
    assert "cut short" in problem or "stops decoding" in problem
    assert 14 < windows[-1].span.end_s < 22
    assert windows[-1].span.end_s - windows[-1].span.start_s == pytest.approx(5)
    intact, none = listen(whole, rates_hz=(32_000,))
    assert none == ""
    for good, reference in zip(windows[:-1], intact, strict=False):
        np.testing.assert_allclose(good.waveforms[32_000], reference.waveforms[32_000], atol=TOLERANCE.get(suffix, 0))
    assert len(read_audio(path, 32_000)) == round(windows[-1].span.end_s * 32_000)


def test_a_truncated_recording_shorter_than_a_window_is_repeated(tmp_path: Path) -> None:
    path = cut(written(tmp_path / "a.mp3", song(6, 32_000), 32_000), 0.5)
    windows, problem = listen(path)
    assert "cut short" in problem
    assert [w.span.repeated for w in windows] == [True]


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_damage_in_the_middle_keeps_what_comes_before(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a.{suffix}", song(30, 32_000), 32_000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 6000] = np.random.default_rng(0).bytes(6000)
    path.write_bytes(content)
    windows, problem = listen(path)
    assert str(path) in problem
    assert windows[-1].span.end_s > 10


def test_decoders_remarks_about_truncated_mp3_stay_off_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = cut(written(tmp_path / "a.mp3", song(10, 32_000), 32_000), 0.6)
    assert "cut short" in listen(path)[1]
    text = tmp_path / "b.mp3"
    text.write_bytes(os.urandom(5000))
    listen(text)
    assert capfd.readouterr().err == ""


def test_a_header_that_could_not_know_the_length_is_no_truncation(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", song(6, 16_000), 16_000)
    content = bytearray(path.read_bytes())
    for unknown in (0xFFFF_FFFF, 0x7FFF_F000):
        struct.pack_into("<I", content, 4, unknown)
        struct.pack_into("<I", content, content.find(b"data") + 4, unknown)
        path.write_bytes(content)
        windows, problem = listen(path)
        assert (len(windows), problem) == (2, "")


def test_a_flac_without_a_length_is_heard_to_its_end(tmp_path: Path) -> None:
    path = written(tmp_path / "a.flac", song(12, 32_000), 32_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    windows, problem = listen(path)
    assert (windows[-1].span.end_s, problem) == (12.0, "")
    assert duration_s(path) == 12.0


def test_an_mp3_of_variable_bit_rate_without_a_xing_tag_is_heard_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    quiet_after_loud = np.concatenate([song(5, 48_000), 0.01 * song(25, 48_000)])
    soundfile.write(path, quiet_after_loud, 48_000, bitrate_mode="VARIABLE", compression_level=0.5)
    content = path.read_bytes()
    second_frame = content.index(content[:2], 4)
    assert b"Xing" in content[:second_frame]
    path.write_bytes(content[second_frame:])
    with soundfile.SoundFile(path) as file:
        assert file.frames < 25 * 48_000  # libsndfile's guess, which it would stop at
    windows, problem = listen(path)
    assert problem == ""
    assert windows[-1].span.end_s == pytest.approx(30, abs=0.1)
    assert duration_s(path) == pytest.approx(30, abs=0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_windows_with_unusable_samples_are_left_out_and_counted(tmp_path: Path, bad: float) -> None:
    samples = song(20, 32_000)
    samples[7 * 32_000] = bad
    path = written(tmp_path / "a.wav", samples, 32_000, "FLOAT")
    windows, problem = listen(path)
    assert [w.span.start_s for w in windows] == [0.0, 10.0, 15.0]
    assert "1 of the 4 windows" in problem
    assert all(np.isfinite(w.waveforms[16_000]).all() for w in windows)
    with pytest.raises(AudioError, match="louder" if bad == 1e30 else "not finite"):
        read_audio(path, 16_000)
    assert len(read_audio(path, 16_000, start_s=8.0)) == 12 * 16_000


def test_finite_samples_that_are_no_sound_are_called_too_loud_and_not_infinite(tmp_path: Path) -> None:
    samples = song(15, 16_000)
    samples[:16_000] *= 1e30
    samples[12 * 16_000] = np.inf
    path = written(tmp_path / "huge.wav", samples, 16_000, "FLOAT")
    windows, problem = listen(path)
    assert [w.span.start_s for w in windows] == [5.0]
    loud = "samples that are louder than any recording (beyond 1e+09; sound lies between -1 and 1); left out."
    assert f"1 of the 3 windows of {path} hold {loud}" in problem
    assert f"1 of the 3 windows of {path} hold samples that are not finite; left out." in problem
    with pytest.raises(AudioError, match="louder than any recording"):
        read_audio(path, 16_000, duration_s=1.0)


def test_a_recording_of_nothing_but_nan_gives_no_window(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", np.full(96_000, np.nan, dtype=np.float32), 16_000, "FLOAT")
    windows, problem = listen(path)
    assert windows == []
    assert "2 of the 2 windows" in problem


@pytest.mark.parametrize("suffix", [*FORMATS, "aiff", "m4a"])
def test_no_damage_raises_anything_but_an_audio_error(
    tmp_path: Path, suffix: str, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "m4a":
        request.getfixturevalue("write_aac")(path, song(7, 16_000), 16_000, movflags="faststart")
    else:
        written(path, song(7, 16_000), 16_000)
    intact = path.read_bytes()
    rng = np.random.default_rng(5)
    n_refused = 0
    for i in range(40):
        content = bytearray(intact)
        reach = len(content) if i % 2 else 200  # half of the damage falls on the header
        for at in rng.integers(0, reach, 4):
            content[at] = rng.integers(0, 256)
        path.write_bytes(content[: rng.integers(1, len(content)) if i % 4 == 3 else None])
        windows, problem = listen(path)
        n_refused += problem != ""
        assert all(np.isfinite(w.waveforms[16_000]).all() for w in windows)
    assert n_refused > 0


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared recordings are not beside this checkout")
def test_intact_real_recordings_decode_without_complaint() -> None:
    paths = [p for p in sorted(SHARED.rglob("*")) if p.suffix in (".mp3", ".ogg", ".wav")]
    assert len(paths) > 600
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda path: (path, *listen(path, WindowPlan(hop_s=60.0))), paths)
        assert [(path, problem) for path, windows, problem in results if problem or not windows] == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared recordings are not beside this checkout")
@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
def test_truncated_real_recordings_are_noticed(tmp_path: Path, suffix: str) -> None:
    n_kept = 0
    sources = sorted(SHARED.rglob(f"*.{suffix}"))[::20]
    for i, source in enumerate(sources):
        path = tmp_path / f"{i}.{suffix}"
        path.write_bytes(source.read_bytes()[: int(0.6 * source.stat().st_size)])
        windows, problem = listen(path)
        assert "cut short" in problem
        n_kept += bool(windows)
    # A short Vorbis file may hold all its sound in one page, of which nothing decodes unless it is whole.
    assert n_kept >= (len(sources) if suffix == "mp3" else 0.8 * len(sources))


# Reading one stretch


@pytest.mark.parametrize("suffix", FORMATS)
def test_reading_a_stretch_equals_that_stretch_of_the_whole(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a.{suffix}", song(9, 32_000, 2), 32_000)
    whole = read_audio(path, 32_000)
    assert len(whole) == 9 * 32_000
    part = read_audio(path, 32_000, start_s=2.5, duration_s=3.0)
    np.testing.assert_allclose(part, whole[80_000:176_000], atol=TOLERANCE[suffix])
    assert read_audio(path, 16_000, start_s=2.5, duration_s=3.0).shape == (48_000,)
    assert len(read_audio(path, 32_000, start_s=8.0, duration_s=3.0)) == 32_000
    with pytest.raises(AudioError, match=r"no audio at 9\.5 s"):
        read_audio(path, 32_000, start_s=9.5)
    assert duration_s(path) == 9.0


def test_a_sample_rate_of_zero_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", song(5, 16_000), 16_000)
    with pytest.raises(InputError, match="positive"):
        read_audio(path, 0)
    with pytest.raises(InputError, match="positive"):
        next(stream_windows(path, WindowPlan(), (-16_000,)))


# m4a and aac


@pytest.fixture
def write_aac() -> Callable[..., Path]:
    av = pytest.importorskip("av", reason="PyAV is an extra")

    def write(path: Path, samples: np.ndarray, rate_hz: int, **options: str) -> Path:
        layout = "stereo" if samples.shape[1] == 2 else "mono"
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream("aac", rate=rate_hz)
            stream.layout = layout
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
            frame.sample_rate = rate_hz
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
        return path

    return write


@pytest.mark.parametrize("suffix", ["m4a", "aac", "mp4"])
@pytest.mark.parametrize("channels", [1, 2])
def test_aac_is_decoded_like_any_other_format(
    tmp_path: Path, write_aac: Callable[..., Path], suffix: str, channels: int
) -> None:
    path = write_aac(tmp_path / f"a.{suffix}", song(12, 32_000, channels), 32_000)
    windows, problem = listen(path, rates_hz=(32_000, 16_000))
    assert problem == ""
    assert windows[-1].span.end_s == pytest.approx(12, abs=0.1)
    assert duration_s(path) == pytest.approx(12, abs=0.1)
    loudness = [20 * np.log10(w.waveforms[32_000].std()) for w in windows]
    assert loudness == pytest.approx([w.rms_dbfs for w in windows], abs=0.01)
    assert windows[0].rms_dbfs == pytest.approx(-13.4, abs=0.5)
    whole = read_audio(path, 32_000)
    np.testing.assert_array_equal(windows[1].waveforms[32_000], whole[160_000:320_000])
    np.testing.assert_array_equal(read_audio(path, 32_000, start_s=3.0, duration_s=2.0), whole[96_000:160_000])


def test_truncated_m4a_gives_its_good_windows_and_then_an_error(tmp_path: Path, write_aac: Callable[..., Path]) -> None:
    path = write_aac(tmp_path / "a.m4a", song(20, 32_000), 32_000, movflags="faststart")
    windows, problem = listen(cut(path, 0.6))
    assert "stops decoding" in problem or "cut short" in problem
    assert 10 < windows[-1].span.end_s < 15
    no_index = write_aac(tmp_path / "b.m4a", song(20, 32_000), 32_000)
    assert listen(cut(no_index, 0.6))[0] == []


def test_m4a_without_its_extra_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "a.m4a"
    path.write_bytes(b"\0\0\0\x18ftypM4A " + bytes(100))
    assert "pip install 'cisticola[m4a]'" in listen(path)[1]
