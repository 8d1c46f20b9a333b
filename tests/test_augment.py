"""Augmentation: each variation does what its name and its strength say, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from embeddings.errors import InputError
from stage1_backbones import augment
from stage1_backbones.augment import AugmentSettings, augment_pictures, augment_waveforms, read_beds

RATE_HZ = 16_000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tones(n: int = 4, seconds: float = 1.0) -> torch.Tensor:
    t = torch.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return torch.stack([0.1 * torch.sin(2 * torch.pi * 500 * (i + 1) * t) for i in range(n)])


def snr_db(clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    return 10 * torch.log10(clean.square().mean(1) / (noisy - clean).square().mean(1))


def test_noise_lies_as_far_below_the_window_as_drawn():
    clean = tones()
    torch.testing.assert_close(
        snr_db(clean, augment.add_noise(clean, (12.0, 12.0), rng())), torch.full((4,), 12.0), atol=1e-3, rtol=0
    )
    spread = snr_db(clean, augment.add_noise(clean, (0.0, 30.0), rng()))
    assert ((spread > 0) & (spread < 30)).all()
    assert spread.std() > 1


def test_beds_are_mixed_at_their_ratio_from_anywhere_in_them():
    clean, beds = tones(), [rng(1).normal(size=3 * RATE_HZ).astype(np.float32), np.ones(RATE_HZ, np.float32)]
    mixed = augment.add_background(clean, beds, (-3.0, -3.0), rng())
    torch.testing.assert_close(snr_db(clean, mixed), torch.full((4,), -3.0), atol=1e-3, rtol=0)
    with pytest.raises(InputError, match="no noise beds"):
        augment.add_background(clean, [], (0.0, 0.0), rng())


def test_silence_stays_silent_under_noise_because_it_has_no_level():
    silence = torch.zeros(2, RATE_HZ)
    assert not augment.add_noise(silence, (0.0, 0.0), rng()).any()


def test_gain_changes_the_level_by_so_many_db_and_clips_like_a_recorder():
    louder = augment.add_gain(tones(), (6.0, 6.0), rng())
    torch.testing.assert_close(louder, tones() * 10 ** (6 / 20))
    assert augment.add_gain(tones(), (60.0, 60.0), rng()).abs().max() == 1.0


def test_a_shift_turns_the_window_round_and_loses_nothing():
    clean = torch.arange(100.0)[None].repeat(3, 1)
    shifted = augment.shift_in_time(clean, rng())
    assert not torch.equal(shifted, clean)
    assert torch.equal(shifted.sort(dim=1).values, clean)
    assert torch.equal((shifted[:, 1:] - shifted[:, :-1] == 1).sum(1), torch.full((3,), 98))


def test_a_filter_stays_within_its_strength_in_every_band():
    noise = torch.from_numpy(rng(2).normal(size=(3, RATE_HZ)).astype(np.float32)) * 0.1
    filtered = augment.filter_randomly(noise, RATE_HZ, 10.0, rng())
    ratio_db = 20 * torch.log10(torch.fft.rfft(filtered).abs() / torch.fft.rfft(noise).abs())
    assert ratio_db.abs().max() <= 10.01
    assert ratio_db.std() > 2
    torch.testing.assert_close(augment.filter_randomly(noise, RATE_HZ, 0.0, rng()), noise, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("mask", "axis"), [(augment.mask_frames, 0), (augment.mask_bands, 1)])
def test_a_mask_covers_a_stretch_with_the_mean_over_the_whole_other_axis(mask, axis):
    for seed in range(20):
        before = torch.rand(40, 60, generator=torch.Generator().manual_seed(seed))
        after = before.clone()
        mask([after] if mask is augment.mask_frames else after, 0.3, rng(seed))
        changed = (after != before).all(dim=axis)
        covered = int(changed.sum())
        assert 1 <= covered <= 0.3 * len(changed)
        first = int(changed.int().argmax())
        assert changed[first : first + covered].all()
        assert torch.equal((after != before).any(dim=axis), changed)
        assert torch.all(after[after != before] == before.mean())


def test_cutmix_takes_a_stretch_of_time_and_its_share_of_the_labels():
    pictures = torch.arange(4.0)[:, None, None].repeat(1, 5, 200)
    targets = augment.cutmix([pictures], torch.eye(4), np.arange(4), rng())
    for i in range(4):
        for j in range(4):
            share = float((pictures[i, 0] == j).float().mean())
            assert float(targets[i, j]) == pytest.approx(share, abs=1e-6)
    torch.testing.assert_close(pictures.std(dim=1), torch.zeros(4, 200))  # all frequencies alike


def test_nothing_happens_when_all_is_off_and_the_same_draws_give_the_same_windows():
    clean, pictures, targets = tones(), torch.rand(4, 8, 20), torch.eye(4)
    torch.testing.assert_close(augment_waveforms(clean, AugmentSettings(), RATE_HZ, rng()), clean)
    same = pictures.clone()
    same_targets = augment_pictures([same], targets, AugmentSettings(), rng())
    assert torch.equal(same, pictures)
    assert torch.equal(same_targets, targets)
    busy = AugmentSettings(noise_p=0.5, gain_p=0.5, shift_p=0.5, filter_p=0.5)
    one, two = (augment_waveforms(clean, busy, RATE_HZ, rng(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, clean)
    assert torch.equal(clean, tones())  # the input is left alone


def test_a_probability_is_the_share_of_windows_that_are_varied():
    clean = tones(400, 0.01)
    varied = augment_waveforms(clean, AugmentSettings(gain_p=0.3, gain_db=(-6.0, -6.0)), RATE_HZ, rng())
    share = float((varied != clean).any(dim=1).float().mean())
    assert share == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"noise_p": 1.5}, "noise_p=1.5"),
        ({"time_mask_share": 0.0}, "time_mask_share"),
        ({"noise_snr_db": (30.0, 5.0)}, "lower one first"),
        ({"background_p": 0.5}, "without background_folder"),
        ({"background_folder": "beds"}, "background_p is 0"),
        ({"filter_db": 90.0}, "filter_db"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        AugmentSettings(**settings)


def test_a_folder_of_beds_must_hold_sound(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        read_beds(tmp_path / "none", RATE_HZ, 1.0)
    (tmp_path / "notes.txt").write_text("no audio")
    with pytest.raises(InputError, match="holds no audio to mix in: 0 files"):
        read_beds(tmp_path, RATE_HZ, 1.0)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE_HZ), RATE_HZ)
    with pytest.raises(InputError, match="2 files, none of which"):
        read_beds(tmp_path, RATE_HZ, 1.0)
    soundfile.write(tmp_path / "wind.wav", 0.1 * rng().normal(size=RATE_HZ // 2), RATE_HZ)
    (bed,) = read_beds(tmp_path, RATE_HZ, 1.0)
    assert len(bed) == RATE_HZ  # shorter than a window: repeated
