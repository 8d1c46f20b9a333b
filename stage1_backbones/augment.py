"""Ways to vary a batch of windows so that no network can learn them by heart: noise, beds, filters, masks, cutmix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from embeddings.errors import InputError

__all__ = [
    "AugmentSettings",
    "add_background",
    "add_gain",
    "add_noise",
    "augment_pictures",
    "augment_waveforms",
    "cutmix",
    "filter_randomly",
    "mask_bands",
    "mask_frames",
    "read_beds",
    "shift_in_time",
]

_SILENCE = 1e-10  # mean square below which a window has no level to set a noise against
_FILTER_KNOTS = 8  # points, evenly spaced in octaves, between which a random filter is drawn smooth
_FILTER_LOW_HZ = 100.0


@dataclass(frozen=True)
class AugmentSettings:
    """How often (probability per window, `_p`) and how strongly a training window is varied. All are off at 0.

    noise_snr_db         Gaussian noise, so far below the window's own level
    background_folder    recordings of wind, rain, other places; background_snr_db: how far below the window's level
    gain_db              louder or softer by so much
    shift_p              the window is turned round in time by any part of its length
    filter_db            a smooth random filter over octaves lifts or lowers a band by up to so much
    time_mask_share, frequency_mask_share   largest part of the picture that a mask covers; masks have its mean
    cutmix_p             a stretch of time comes from another window of the batch, and so does its share of the labels
    """

    noise_p: float = 0.0
    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    background_p: float = 0.0
    background_snr_db: tuple[float, float] = (-3.0, 15.0)
    background_folder: str = ""
    gain_p: float = 0.0
    gain_db: tuple[float, float] = (-18.0, 6.0)
    shift_p: float = 0.0
    filter_p: float = 0.0
    filter_db: float = 10.0
    time_mask_p: float = 0.0
    time_mask_share: float = 0.2
    frequency_mask_p: float = 0.0
    frequency_mask_share: float = 0.2
    cutmix_p: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_p") and not 0 <= value <= 1:
                raise InputError(f"augment.{field.name}={value} is a probability; give 0 (off) to 1 (always).")
            if field.name.endswith("_share") and not 0 < value < 1:
                raise InputError(f"augment.{field.name}={value} must lie between 0 and 1.")
            if field.name in ("noise_snr_db", "background_snr_db", "gain_db"):
                if isinstance(value, str) or len(value) != 2 or not value[0] <= value[1]:
                    raise InputError(f"augment.{field.name}={value} must be two numbers, the lower one first.")
                object.__setattr__(self, field.name, (float(value[0]), float(value[1])))
        if not 0 <= self.filter_db <= 40:
            raise InputError(f"augment.filter_db={self.filter_db} must lie in 0..40 dB.")
        if self.background_p > 0 and not self.background_folder:
            raise InputError("augment.background_p is above 0 without background_folder; name a folder of noise beds.")
        if self.background_folder and self.background_p == 0:
            raise InputError("augment.background_folder is named, but background_p is 0; set it, or leave both out.")


def augment_waveforms(
    waveforms: Tensor,
    settings: AugmentSettings,
    sample_rate_hz: int,
    rng: np.random.Generator,
    beds: Sequence[np.ndarray] = (),
) -> Tensor:
    """Everything that happens to sound, in the order in which it would outdoors.

    waveforms : (n, samples) float32 in [-1, 1];  beds : noise to mix in, each at least as long as a window
    Returns (n, samples); the input is left alone. The same `rng` gives the same windows on every machine.
    """
    s = settings
    waveforms = waveforms.clone()
    for probability, vary in (
        (s.shift_p, lambda chosen: shift_in_time(chosen, rng)),
        (s.filter_p, lambda chosen: filter_randomly(chosen, sample_rate_hz, s.filter_db, rng)),
        (s.background_p, lambda chosen: add_background(chosen, beds, s.background_snr_db, rng)),
        (s.noise_p, lambda chosen: add_noise(chosen, s.noise_snr_db, rng)),
        (s.gain_p, lambda chosen: add_gain(chosen, s.gain_db, rng)),
    ):
        chosen = _chosen(len(waveforms), probability, rng)
        if len(chosen):
            waveforms[chosen] = vary(waveforms[chosen])
    return waveforms


def augment_pictures(
    pictures: Sequence[Tensor], targets: Tensor, settings: AugmentSettings, rng: np.random.Generator
) -> Tensor:
    """Cutmix and masks, drawn on the pictures in place (they may be views of what the network hears).

    pictures : (n, n_mels, n_frames) each, of the same windows: what is cut or covered is the same stretch of time in
               all of them; bands of frequencies are drawn for each, and not where there is but one
    targets : (n, n_labels)
    Returns the targets, mixed where cutmix mixed.
    """
    n = len(targets)
    chosen = _chosen(n, settings.cutmix_p, rng)
    if len(chosen):
        targets = cutmix(pictures, targets, chosen, rng)
    for i in _chosen(n, settings.time_mask_p, rng):
        mask_frames([picture[i] for picture in pictures], settings.time_mask_share, rng)
    for i in _chosen(n, settings.frequency_mask_p, rng):
        for picture in pictures:
            if picture.shape[1] > 1:
                mask_bands(picture[i], settings.frequency_mask_share, rng)
    return targets


def shift_in_time(waveforms: Tensor, rng: np.random.Generator) -> Tensor:
    """Turn each window round by any part of its length: what leaves at the end comes in at the beginning."""
    n_samples = waveforms.shape[1]
    steps = rng.integers(0, n_samples, len(waveforms))
    return torch.stack([torch.roll(one, int(step)) for one, step in zip(waveforms, steps, strict=True)])


def filter_randomly(waveforms: Tensor, sample_rate_hz: int, most_db: float, rng: np.random.Generator) -> Tensor:
    """Colour each window with a smooth random response, as another microphone or a wood in between would.

    most_db : the response lies within +-most_db, drawn at points evenly spaced in octaves and linear in dB between
    """
    n_samples = waveforms.shape[1]
    octaves = np.log2(np.fft.rfftfreq(n_samples, 1 / sample_rate_hz).clip(_FILTER_LOW_HZ) / _FILTER_LOW_HZ)
    knots = np.linspace(0.0, octaves[-1], _FILTER_KNOTS)
    drawn_db = rng.uniform(-most_db, most_db, (len(waveforms), _FILTER_KNOTS))
    response = np.stack([10 ** (np.interp(octaves, knots, one) / 20) for one in drawn_db]).astype(np.float32)
    return torch.fft.irfft(torch.fft.rfft(waveforms) * torch.from_numpy(response).to(waveforms), n=n_samples)


def add_background(
    waveforms: Tensor, beds: Sequence[np.ndarray], snr_db: tuple[float, float], rng: np.random.Generator
) -> Tensor:
    """Mix a stretch of a random bed into each window, at a level drawn from `snr_db` below the window's own.

    beds : (samples,) each at least as long as a window
    Raises InputError when there are none.
    """
    if not beds:
        raise InputError("there are no noise beds to mix in; give at least one.")
    n_samples = waveforms.shape[1]
    stretches = []
    for place in rng.integers(0, len(beds), len(waveforms)):
        start = int(rng.integers(0, len(beds[place]) - n_samples + 1))
        stretches.append(beds[place][start : start + n_samples])
    noise = torch.from_numpy(np.stack(stretches)).to(waveforms)
    return waveforms + noise * _noise_scale(waveforms, noise, snr_db, rng)


def add_noise(waveforms: Tensor, snr_db: tuple[float, float], rng: np.random.Generator) -> Tensor:
    """Gaussian noise, at a level drawn from `snr_db` below each window's own."""
    noise = torch.from_numpy(rng.standard_normal(tuple(waveforms.shape), dtype=np.float32)).to(waveforms)
    return waveforms + noise * _noise_scale(waveforms, noise, snr_db, rng)


def add_gain(waveforms: Tensor, gain_db: tuple[float, float], rng: np.random.Generator) -> Tensor:
    """Louder or softer; what would leave [-1, 1] is clipped, as a recorder clips."""
    factors = 10 ** (rng.uniform(*gain_db, (len(waveforms), 1)) / 20)
    return (waveforms * torch.from_numpy(factors).to(waveforms)).clamp(-1.0, 1.0)


def mask_frames(pictures: Sequence[Tensor], most_share: float, rng: np.random.Generator) -> None:
    """Cover a random stretch of time, at most `most_share` of it, with each picture's mean, in place.

    pictures : (n_mels, n_frames) each, of the same window.  Source: Park et al. 2019, SpecAugment.
    """
    n_frames = pictures[0].shape[1]
    start, stop = _stretch(n_frames, most_share, rng)
    for picture in pictures:
        picture[:, _same_time(start, stop, n_frames, picture.shape[1])] = picture.mean()


def mask_bands(picture: Tensor, most_share: float, rng: np.random.Generator) -> None:
    """Cover a random band of frequencies, at most `most_share` of them, with the picture's mean, in place.

    picture : (n_mels, n_frames).  Source: Park et al. 2019, SpecAugment.
    """
    start, stop = _stretch(picture.shape[0], most_share, rng)
    picture[start:stop] = picture.mean()


def cutmix(pictures: Sequence[Tensor], targets: Tensor, chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Put a stretch of another window of the batch into each chosen one, in place.

    pictures : (n, n_mels, n_frames) each, of the same windows;  targets : (n, n_labels);  chosen : row numbers
    The stretch covers all frequencies, so that calls keep their pitch; any share of the time is as likely as another.
    Returns the targets, mixed by shares of time.  Source: Yun et al. 2019, CutMix.
    """
    n_frames = pictures[0].shape[2]
    before, mixed = [picture.clone() for picture in pictures], targets.clone()
    for i in chosen:
        partner = int(rng.integers(0, len(targets)))
        length = round(float(rng.uniform()) * n_frames)
        start = int(rng.integers(0, n_frames - length + 1))
        for picture, whole in zip(pictures, before, strict=True):
            stretch = _same_time(start, start + length, n_frames, picture.shape[2])
            picture[i, :, stretch] = whole[partner, :, stretch]
        share = length / n_frames
        mixed[i] = (1 - share) * targets[i] + share * targets[partner]
    return mixed


def read_beds(folder: Path, sample_rate_hz: int, window_s: float, most_s: float = 1800.0) -> list[np.ndarray]:
    """Noise beds of a folder, each at least a window long (shorter ones are repeated), at most `most_s` in all.

    Raises InputError when the folder does not exist or holds no audio that decodes.
    """
    from embeddings.catalogue_sources import AUDIO_SUFFIXES
    from embeddings.errors import CisticolaError
    from stage1_backbones.audio import read_audio

    if not folder.is_dir():
        raise InputError(f"augment.background_folder {folder} is not a folder; name one with recordings of noise.")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
    beds: list[np.ndarray] = []
    problems: list[str] = []
    n_samples, left_s = round(window_s * sample_rate_hz), most_s
    for path in paths:
        if left_s <= 0:
            break
        try:
            samples = read_audio(path, sample_rate_hz, duration_s=left_s)
        except (CisticolaError, OSError) as error:
            problems.append(f"{path.name}: {error}")
            continue
        if len(samples) and float(np.square(samples).mean()) > _SILENCE:
            left_s -= len(samples) / sample_rate_hz
            beds.append(np.resize(samples, max(len(samples), n_samples)))
    if not beds:
        reason = f" ({problems[0]})" if problems else ""
        raise InputError(
            f"augment.background_folder {folder} holds no audio to mix in: {len(paths)} files, none of which "
            f"decodes to sound{reason}. Put recordings of wind, rain or other places there, or set background_p to 0."
        )
    return beds


def _noise_scale(waveforms: Tensor, noise: Tensor, snr_db: tuple[float, float], rng: np.random.Generator) -> Tensor:
    """(n, 1) factors that bring the noise to its level; 0 for a silent window, which has none."""
    ratio = torch.from_numpy(10 ** (-rng.uniform(*snr_db, (len(waveforms), 1)) / 10)).to(waveforms)
    level, noise_level = waveforms.square().mean(1, keepdim=True), noise.square().mean(1, keepdim=True)
    scale = (ratio * level / noise_level.clamp_min(_SILENCE)).sqrt()
    return torch.where((level > _SILENCE) & (noise_level > _SILENCE), scale, torch.zeros_like(scale))


def _stretch(length: int, most_share: float, rng: np.random.Generator) -> tuple[int, int]:
    n = max(1, math.floor(float(rng.uniform(0, most_share)) * length))
    start = int(rng.integers(0, length - n + 1))
    return start, start + n


def _same_time(start: int, stop: int, n_frames: int, other_frames: int) -> slice:
    """Frames start..stop of `n_frames`, in a picture that cuts the same time into `other_frames`."""
    return slice(round(start * other_frames / n_frames), round(stop * other_frames / n_frames))


def _chosen(n: int, probability: float, rng: np.random.Generator) -> np.ndarray:
    return np.flatnonzero(rng.random(n) < probability) if probability > 0 else np.zeros(0, int)
