"""The two front ends: a 32 kHz log-mel picture for image networks, and 16 kHz VGGish patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import librosa
import numpy as np
import torch
from torch import Tensor, nn

from embeddings.errors import InputError

__all__ = [
    "CONTRASTS",
    "PictureFrontEnd",
    "PictureSettings",
    "VggishFrontEnd",
    "VggishSettings",
    "pcen",
    "vggish_mel_matrix",
]

CONTRASTS = ("window", "spread", "band", "pcen")
_PCEN_TIME_S, _PCEN_GAIN, _PCEN_BIAS, _PCEN_POWER, _PCEN_EPS = 0.4, 0.98, 2.0, 0.5, 1e-6


@dataclass(frozen=True)
class PictureSettings:
    """Numbers of the log-mel picture; they are part of a backbone's fingerprint.

    low_hz  lowest frequency; raised, it is a high-pass
    top_db  pixels further below the window's loudest one are lifted to it
    contrast  window: dB, standardised, then stretched to 0..1; spread: mean .5, deviation .25, however far the
            extremes lie; band: as spread, each mel band's mean over the window taken out before, which removes steady
            noise; pcen: as spread, per-channel energy normalisation instead of dB
    amin    smallest mel power that is told from silence
    eps     keeps standardising and scaling finite on digital silence
    """

    sample_rate_hz: int = 32_000
    n_fft: int = 2048
    hop_samples: int = 512
    n_mels: int = 128
    low_hz: float = 20.0
    high_hz: float = 16_000.0
    top_db: float = 80.0
    amin: float = 1e-10
    eps: float = 1e-6
    contrast: str = "window"

    def __post_init__(self) -> None:
        _require_positive(self, "sample_rate_hz", "n_fft", "hop_samples", "n_mels", "high_hz", "top_db", "amin", "eps")
        if self.contrast not in CONTRASTS:
            raise InputError(f"network.picture.contrast={self.contrast!r} is not known; choose {', '.join(CONTRASTS)}.")
        _require_band(self.low_hz, self.high_hz, self.sample_rate_hz)

    def n_frames(self, n_samples: int) -> int:
        """Columns of the picture of a window of `n_samples`; frames are centred on multiples of the hop."""
        return 1 + n_samples // self.hop_samples


@dataclass(frozen=True)
class VggishSettings:
    """Numbers of VGGish's front end; they are part of a backbone's fingerprint."""

    sample_rate_hz: int = 16_000
    window_samples: int = 400
    hop_samples: int = 160
    n_fft: int = 512
    n_mels: int = 64
    low_hz: float = 125.0
    high_hz: float = 7_500.0
    log_offset: float = 0.01
    patch_frames: int = 96

    def __post_init__(self) -> None:
        _require_positive(
            self,
            *("sample_rate_hz", "window_samples", "hop_samples", "n_fft", "n_mels"),
            *("high_hz", "log_offset", "patch_frames"),
        )
        _require_band(self.low_hz, self.high_hz, self.sample_rate_hz)
        if self.n_fft < self.window_samples:
            raise InputError(f"n_fft={self.n_fft} is below window_samples={self.window_samples}; frames would be cut.")

    def n_frames(self, n_samples: int) -> int:
        """Whole frames in `n_samples`; frames are not centred, so the first starts on the first sample."""
        return max(0, 1 + (n_samples - self.window_samples) // self.hop_samples)

    def n_patches(self, n_samples: int) -> int:
        """Whole patches in `n_samples`; frames after the last one go unheard."""
        return self.n_frames(n_samples) // self.patch_frames


class _FrontEnd(nn.Module):
    """Keeps window and mel matrix at their own precision, and out of weights files."""

    window: Tensor
    mel: Tensor

    def __init__(self, window: np.ndarray, mel: np.ndarray, dtype: torch.dtype) -> None:
        super().__init__()
        self._tables: Mapping[str, Tensor] = {
            "window": torch.from_numpy(window),
            "mel": torch.from_numpy(mel),
        }
        self._dtype = dtype
        for name, table in self._tables.items():
            self.register_buffer(name, table.to(dtype), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _FrontEnd:
        # `network.bfloat16()` or `.half()` must not round the mel matrix: only the device is followed.
        device = fn(torch.zeros(1)).device
        dtype = torch.float32 if device.type == "mps" else self._dtype  # Apple's GPUs have no float64
        for name, table in self._tables.items():
            setattr(self, name, table.to(device=device, dtype=dtype))
        return self

    def _each(self, waveforms: Tensor, spectrum_of: Callable[[Tensor], Tensor]) -> Tensor:
        """`spectrum_of` of the whole batch on a GPU; window by window on a CPU, where one fits the cache.

        That is 1.2 times as fast there, and a window's numbers cannot depend on its neighbours.
        """
        if waveforms.ndim != 2 or not waveforms.is_floating_point():
            raise InputError(
                f"waveforms of shape {tuple(waveforms.shape)} and type {waveforms.dtype} cannot be heard; "
                "a float tensor (n, samples) in [-1, 1] is expected."
            )
        waveforms = waveforms.to(self.window.dtype)
        with torch.autocast(device_type=waveforms.device.type, enabled=False):
            if not len(waveforms):  # some transforms refuse an empty batch
                return spectrum_of(waveforms.new_zeros(1, waveforms.shape[1]))[:0]
            if waveforms.device.type != "cpu" or len(waveforms) == 1:
                return spectrum_of(waveforms)
            return torch.cat([spectrum_of(one) for one in waveforms.split(1)])


class PictureFrontEnd(_FrontEnd):
    """Log-mel picture of each window, standardised and stretched to 0..1.

    Frames are centred, with zeros beyond both ends (librosa's default, `pad_mode="constant"`), Hann is
    periodic, mel filters are librosa's default (Slaney's scale and area norm).
    """

    def __init__(self, settings: PictureSettings | None = None) -> None:
        self.settings = settings = settings or PictureSettings()
        filters = librosa.filters.mel(
            sr=settings.sample_rate_hz,
            n_fft=settings.n_fft,
            n_mels=settings.n_mels,
            fmin=settings.low_hz,
            fmax=settings.high_hz,
            dtype=np.float64,
        )
        super().__init__(_periodic_hann(settings.n_fft), np.ascontiguousarray(filters.T), torch.float32)
        self._groups = _filled_parts(filters.T)

    def mel_power(self, waveforms: Tensor) -> Tensor:
        """Mel power of each window, equal to `librosa.feature.melspectrogram`.

        waveforms : (n, samples) float in [-1, 1].  Returns (n, n_mels, frames).
        """
        return self._each(waveforms, self._mel_power)

    def mel_db(self, waveforms: Tensor) -> Tensor:
        """Mel power in dB re 1, no lower than `top_db` below each window's peak.

        waveforms : (n, samples) float in [-1, 1].  Returns (n, n_mels, frames).
        """
        return self._each(waveforms, self._mel_db)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Draw each window.

        waveforms : (n, samples) float in [-1, 1] at `settings.sample_rate_hz`
        Returns float32 (n, 1, n_mels, frames) in [0, 1]: (n, 1, 128, 313) for 5 s. Digital silence is all 0.
        Raises InputError when `waveforms` is not a batch of floats.
        """
        return self._each(waveforms, self._picture)

    def _picture(self, waveforms: Tensor) -> Tensor:
        return self.picture_of(self._mel_power(waveforms))

    def picture_of(self, mel_power: Tensor) -> Tensor:
        """mel_power : (n, n_mels, frames).  Returns the pictures (n, 1, n_mels, frames) in [0, 1]."""
        if self.settings.contrast == "pcen":
            decibels = pcen(mel_power * 2.0**31, self.settings.hop_samples / self.settings.sample_rate_hz)
        else:
            decibels = self._db_of(mel_power)
        if self.settings.contrast == "band":
            decibels = decibels - decibels.mean(dim=2, keepdim=True)
        mean = decibels.mean(dim=(1, 2), keepdim=True)
        deviation = (decibels - mean).square().mean(dim=(1, 2), keepdim=True).sqrt()
        picture = (decibels - mean) / (deviation + self.settings.eps)
        if self.settings.contrast != "window":
            return (0.5 + 0.25 * picture).unsqueeze(1)
        low = picture.amin(dim=(1, 2), keepdim=True)
        high = picture.amax(dim=(1, 2), keepdim=True)
        return ((picture - low) / (high - low).clamp_min(self.settings.eps)).unsqueeze(1)

    def _mel_db(self, waveforms: Tensor) -> Tensor:
        return self._db_of(self._mel_power(waveforms))

    def _db_of(self, mel_power: Tensor) -> Tensor:
        decibels = 10.0 * torch.log10(mel_power.clamp_min(self.settings.amin))
        peak = decibels.amax(dim=(1, 2), keepdim=True)
        return torch.maximum(decibels, peak - self.settings.top_db)

    def _mel_power(self, waveforms: Tensor) -> Tensor:
        half, n_fft = self.settings.n_fft // 2, self.settings.n_fft
        frames = nn.functional.pad(waveforms, (half, half)).unfold(-1, n_fft, self.settings.hop_samples)
        spectrum = torch.fft.rfft(frames * self.window)
        power = spectrum.real.square() + spectrum.imag.square()
        bands = [power[..., bins] @ self.mel[bins, columns] for bins, columns in self._groups]
        return torch.cat(bands, dim=-1).transpose(-1, -2)


class VggishFrontEnd(_FrontEnd):
    """Log-mel patches exactly as VGGish cuts them.

    Magnitude, not power; frames not centred; periodic Hann of `window_samples`, zero-padded to `n_fft`.
    Computed in float64: log(x + 0.01) of the empty bands beside a loud tone is off by 1e-3 in float32.
    """

    def __init__(self, settings: VggishSettings | None = None) -> None:
        self.settings = settings = settings or VggishSettings()
        super().__init__(_periodic_hann(settings.window_samples), vggish_mel_matrix(settings), torch.float64)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Cut each window into patches.

        waveforms : (n, samples) float in [-1, 1] at `settings.sample_rate_hz`
        Returns float32 (n, patches, patch_frames, n_mels): (n, 5, 96, 64) for 5 s.
        Raises InputError when `waveforms` is not a batch of floats, or shorter than one patch.
        Source: VGGish's `mel_features`, of which this is an independent rendering.
        """
        settings = self.settings
        n_samples = waveforms.shape[-1] if waveforms.ndim else 0
        n_patches = settings.n_patches(n_samples)
        if n_patches == 0:
            needed = settings.window_samples + (settings.patch_frames - 1) * settings.hop_samples
            raise InputError(
                f"{n_samples} samples are shorter than one VGGish patch; at least {needed} samples "
                f"({needed / settings.sample_rate_hz:g} s at {settings.sample_rate_hz} Hz) are needed."
            )
        frames = self._each(waveforms, self._log_mel)[:, : n_patches * settings.patch_frames]
        return frames.reshape(len(waveforms), n_patches, settings.patch_frames, settings.n_mels)

    def _log_mel(self, waveforms: Tensor) -> Tensor:
        settings = self.settings
        frames = waveforms.unfold(-1, settings.window_samples, settings.hop_samples) * self.window
        magnitude = torch.fft.rfft(frames, n=settings.n_fft).abs()
        return torch.log(magnitude @ self.mel + settings.log_offset).float()


def pcen(mel_power: Tensor, frame_s: float) -> Tensor:
    """Per-channel energy normalisation: each band divided by its own slow loudness, then compressed.

    mel_power : (n, n_mels, n_frames), scaled as from 32-bit integers;  frame_s : seconds from frame to frame
    Returns the same shape.
    Source: Wang et al. 2017, "Trainable Frontend"; smoothing and defaults as in librosa.pcen.
    """
    t_frames = _PCEN_TIME_S / frame_s
    b = (math.sqrt(1 + 4 * t_frames**2) - 1) / (2 * t_frames**2)
    # The recursive smoother m[t] = (1 - b) m[t-1] + b x[t], from m[-1] = x[0], as one product: no loop over frames.
    steps = torch.arange(mel_power.shape[2], device=mel_power.device, dtype=torch.float64)
    lag = steps[None, :] - steps[:, None]
    smoother = torch.where(lag >= 0, b * (1 - b) ** lag.clamp_min(0), torch.zeros_like(lag))
    smoother[0] = (1 - b) ** steps
    smooth = mel_power @ smoother.to(mel_power.dtype)
    gained = mel_power / (_PCEN_EPS + smooth).pow(_PCEN_GAIN)
    return (gained + _PCEN_BIAS).pow(_PCEN_POWER) - _PCEN_BIAS**_PCEN_POWER


def _filled_parts(mel: np.ndarray) -> list[tuple[slice, slice]]:
    """Cut a mel matrix (n_bins, n_mels) into groups of bands, each with the bins in which it has weight.

    Most of the matrix is zero; multiplying the filled parts alone takes two thirds of the time.
    """
    parts = []
    for bands in np.array_split(np.arange(mel.shape[1]), min(8, mel.shape[1])):
        columns = slice(int(bands[0]), int(bands[-1]) + 1)
        filled = np.flatnonzero(mel[:, columns].any(axis=1))
        first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, 0)
        parts.append((slice(first, last + 1), columns))
    return parts


def vggish_mel_matrix(settings: VggishSettings) -> np.ndarray:
    """VGGish's mel weights: triangles that are linear in mel, not in Hz, without area norm, blind to DC.

    Returns float64 (n_fft // 2 + 1, n_mels). `librosa.filters.mel(htk=True, norm=None)` has triangles linear
    in Hz and differs by up to 0.0044.
    """
    bins = _hz_to_mel(np.linspace(0.0, settings.sample_rate_hz / 2, settings.n_fft // 2 + 1))[:, None]
    edges = np.linspace(_hz_to_mel(settings.low_hz), _hz_to_mel(settings.high_hz), settings.n_mels + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    weights = np.maximum(0.0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    weights[0] = 0.0
    return weights


def _hz_to_mel(frequency_hz: Any) -> Any:
    return 1127.0 * np.log1p(np.asarray(frequency_hz, dtype=np.float64) / 700.0)


def _periodic_hann(n: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n) / n)


def _require_positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not value > 0:
            raise InputError(f"{type(settings).__name__}.{name}={value!r} must be a positive number.")


def _require_band(low_hz: float, high_hz: float, sample_rate_hz: int) -> None:
    if not 0 <= low_hz < high_hz <= sample_rate_hz / 2:
        raise InputError(
            f"The band {low_hz:g}-{high_hz:g} Hz does not fit a sample rate of {sample_rate_hz} Hz; "
            f"0 <= low_hz < high_hz <= {sample_rate_hz / 2:g} is needed."
        )
