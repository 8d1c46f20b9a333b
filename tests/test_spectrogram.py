"""The two front ends against librosa and against a rendering of VGGish's front end in plain loops."""

from __future__ import annotations

import copy
import dataclasses

import librosa
import numpy as np
import pytest
import torch

from embeddings.errors import InputError
from stage1_backbones.spectrogram import (
    PictureFrontEnd,
    PictureSettings,
    VggishFrontEnd,
    VggishSettings,
    vggish_mel_matrix,
)

SIGNALS = ["noise", "quiet", "sweep", "loud_tone", "dc", "silence", "full_scale", "click", "denormal"]


def signal(name: str, rate_hz: int, seconds: float = 5.0) -> np.ndarray:
    rng = np.random.default_rng(7)
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    made = {
        "noise": rng.normal(0, 0.2, len(t)),
        "quiet": rng.normal(0, 1e-4, len(t)),
        "sweep": 0.5 * np.sin(2 * np.pi * (500 * t + 500 * t**2)),
        "loud_tone": np.sin(2 * np.pi * 3333 * t) + rng.normal(0, 1e-5, len(t)),
        "dc": np.ones(len(t)),
        "silence": np.zeros(len(t)),
        "full_scale": np.sign(np.sin(2 * np.pi * 1000 * t) + 1e-9),
        "click": (np.arange(len(t)) == len(t) // 2).astype(float),
        "denormal": np.full(len(t), 1e-40),
    }
    return made[name].astype(np.float32)


def vggish_by_hand(samples: np.ndarray) -> np.ndarray:
    """R2 written out frame by frame and band by band, in float64, with nothing of ours."""
    n_frames = (len(samples) - 400) // 160 + 1
    hann = [0.5 - 0.5 * np.cos(2 * np.pi * i / 400) for i in range(400)]
    mels = [1127 * np.log(1 + k * 16000 / 512 / 700) for k in range(257)]
    low, high = 1127 * np.log(1 + 125 / 700), 1127 * np.log(1 + 7500 / 700)
    edges = [low + (high - low) * i / 65 for i in range(66)]
    weights = np.zeros((257, 64))
    for k in range(1, 257):
        for band in range(64):
            left, middle, right = edges[band : band + 3]
            rise, fall = (mels[k] - left) / (middle - left), (right - mels[k]) / (right - middle)
            weights[k, band] = max(0.0, min(rise, fall))
    rows = []
    for i in range(n_frames):
        padded = np.zeros(512)
        padded[:400] = samples[i * 160 : i * 160 + 400].astype(np.float64) * hann
        rows.append(np.log(np.abs(np.fft.fft(padded)[:257]) @ weights + 0.01))
    n_patches = n_frames // 96
    return np.array(rows)[: n_patches * 96].reshape(n_patches, 96, 64)


@pytest.mark.parametrize("name", SIGNALS)
def test_vggish_patches_equal_an_independent_rendering(name: str) -> None:
    samples = signal(name, 16_000)
    patches = VggishFrontEnd()(torch.from_numpy(samples)[None])
    assert patches.shape == (1, 5, 96, 64)
    assert patches.dtype == torch.float32
    np.testing.assert_allclose(patches[0].numpy(), vggish_by_hand(samples), rtol=0, atol=1e-5)


def test_ninety_seconds_give_ninety_three_patches() -> None:
    # The reference system: 1,440,000 samples -> 8,998 frames -> [93, 96, 64].
    assert VggishSettings().n_frames(1_440_000) == 8_998
    assert VggishFrontEnd()(torch.zeros(1, 1_440_000)).shape == (1, 93, 96, 64)


def test_the_last_fifth_of_a_second_of_a_window_is_unheard_by_vggish() -> None:
    quiet = torch.zeros(1, 80_000)
    loud_end = quiet.clone()
    loud_end[:, 77_040:] = 1.0  # frame 479, the last one heard, ends at sample 479 * 160 + 400
    assert torch.equal(VggishFrontEnd()(quiet), VggishFrontEnd()(loud_end))
    loud_end[:, 77_039] = 1.0
    loud_end[:, 76_900] = 1.0
    assert not torch.equal(VggishFrontEnd()(quiet), VggishFrontEnd()(loud_end))


def test_vggish_mel_matrix_is_not_librosas_htk_one() -> None:
    ours = vggish_mel_matrix(VggishSettings())
    librosas = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=64, fmin=125, fmax=7500, htk=True, norm=None).T
    assert 0.001 < np.abs(ours - librosas).max() < 0.01
    assert not ours[0].any()


@pytest.mark.parametrize("n_samples", [0, 15_599])
def test_audio_shorter_than_a_patch_is_refused(n_samples: int) -> None:
    with pytest.raises(InputError, match="at least 15600 samples"):
        VggishFrontEnd()(torch.zeros(2, n_samples))
    assert VggishFrontEnd()(torch.zeros(2, 15_600)).shape == (2, 1, 96, 64)


@pytest.mark.parametrize("name", SIGNALS)
def test_mel_power_equals_librosas(name: str) -> None:
    samples = signal(name, 32_000)
    ours = PictureFrontEnd().mel_power(torch.from_numpy(samples)[None])[0].numpy()
    librosas = librosa.feature.melspectrogram(
        y=samples.astype(np.float64), sr=32_000, n_fft=2048, hop_length=512, n_mels=128, fmin=20, fmax=16_000
    )
    assert ours.shape == librosas.shape
    np.testing.assert_allclose(ours, librosas, rtol=0, atol=1e-5 * max(librosas.max(), 1e-30))


@pytest.mark.parametrize("name", ["noise", "sweep", "quiet", "click"])
def test_decibels_and_picture_follow_librosa_and_the_textbook(name: str) -> None:
    samples = signal(name, 32_000)
    front_end = PictureFrontEnd()
    power = librosa.feature.melspectrogram(
        y=samples.astype(np.float64), sr=32_000, n_fft=2048, hop_length=512, n_mels=128, fmin=20, fmax=16_000
    )
    decibels = librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=80)
    np.testing.assert_allclose(front_end.mel_db(torch.from_numpy(samples)[None])[0], decibels, atol=0.05)
    standard = (decibels - decibels.mean()) / (decibels.std() + 1e-6)
    picture = (standard - standard.min()) / (standard.max() - standard.min())
    np.testing.assert_allclose(front_end(torch.from_numpy(samples)[None])[0, 0], picture, atol=1e-3)


@pytest.mark.parametrize("name", SIGNALS)
def test_pictures_are_finite_and_between_zero_and_one(name: str) -> None:
    picture = PictureFrontEnd()(torch.from_numpy(signal(name, 32_000))[None].repeat(3, 1))
    assert picture.shape == (3, 1, 128, 313)
    assert picture.dtype == torch.float32
    assert torch.isfinite(picture).all()
    assert picture.min() >= 0
    assert picture.max() <= 1
    if name in ("noise", "sweep"):
        assert picture.min() == 0
        assert picture.max() > 0.999


def test_digital_silence_is_a_black_picture() -> None:
    assert not PictureFrontEnd()(torch.zeros(2, 160_000)).any()


def test_loudness_does_not_change_a_picture() -> None:
    samples = torch.from_numpy(signal("noise", 32_000))[None]
    front_end = PictureFrontEnd()
    torch.testing.assert_close(front_end(samples), front_end(samples * 0.25), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("front_end", "rate_hz"), [(PictureFrontEnd(), 32_000), (VggishFrontEnd(), 16_000)])
def test_a_window_looks_the_same_alone_and_in_any_batch(front_end: torch.nn.Module, rate_hz: int) -> None:
    windows = torch.stack([torch.from_numpy(signal(name, rate_hz)) for name in SIGNALS])
    together = front_end(windows)
    for i, window in enumerate(windows):
        assert torch.equal(front_end(window[None])[0], together[i])
    assert front_end(windows[:0]).shape == (0, *together.shape[1:])


@pytest.mark.parametrize("front_end", [PictureFrontEnd(), VggishFrontEnd()])
def test_front_ends_stay_out_of_weights_and_keep_their_precision(front_end: torch.nn.Module) -> None:
    window = torch.from_numpy(signal("sweep", 32_000))[None]
    before = front_end(window)
    network = torch.nn.Sequential(copy.deepcopy(front_end), torch.nn.Linear(2, 2)).bfloat16()
    assert not [name for name in network.state_dict() if name.startswith("0.")]
    assert torch.equal(network[0](window), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(front_end(window), before)


@pytest.mark.parametrize("front_end", [PictureFrontEnd(), VggishFrontEnd()])
@pytest.mark.parametrize("waveforms", [torch.zeros(160_000), torch.zeros(1, 160_000, dtype=torch.int16)])
def test_input_that_is_not_a_batch_of_floats_is_refused(front_end: torch.nn.Module, waveforms: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"float tensor \(n, samples\)"):
        front_end(waveforms)


def test_settings_are_plain_numbers_for_a_fingerprint() -> None:
    picture, vggish = dataclasses.asdict(PictureSettings()), dataclasses.asdict(VggishSettings())
    assert picture["n_fft"] == 2048
    assert PictureSettings(**picture) == PictureSettings()
    assert vggish["log_offset"] == 0.01
    assert VggishSettings(**vggish) == VggishSettings()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PictureSettings(high_hz=20_000), "does not fit a sample rate of 32000 Hz"),
        (lambda: PictureSettings(hop_samples=0), "PictureSettings.hop_samples=0 must be a positive"),
        (lambda: VggishSettings(n_fft=256), "frames would be cut"),
        (lambda: VggishSettings(low_hz=8_000), "does not fit"),
    ],
)
def test_settings_that_cannot_work_are_refused_where_they_are_made(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
