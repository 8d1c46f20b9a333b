"""The front ends with their Fourier transform as matrices, for graphs that are to hear waveforms by themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stage1_backbones.spectrogram import PictureFrontEnd, VggishFrontEnd
from stage1_backbones.two_tracks import TwoTrackFrontEnd

__all__ = ["graph_front_end"]


def graph_front_end(front_end: nn.Module) -> nn.Module:
    """What does a front end's work inside a graph: (n, samples) in, what the network's first layer sees out."""
    if isinstance(front_end, TwoTrackFrontEnd):
        picture, patches, segment_s, segments = front_end.settings
        parts = [_DftFrontEnd(picture), _DftFrontEnd(patches) if patches else nn.Identity()]
        return TwoTrackFrontEnd(picture, patches, segment_s=segment_s, segments=segments, parts=parts)
    assert isinstance(front_end, PictureFrontEnd | VggishFrontEnd)
    return _DftFrontEnd(front_end)


class _DftFrontEnd(nn.Module):
    """What a front end makes of a waveform, with products and convolutions only.

    Slower than the transform, and in float32 throughout; ONNX has no transform that every engine runs.
    """

    kernels: Tensor
    mel: Tensor

    def __init__(self, front_end: PictureFrontEnd | VggishFrontEnd) -> None:
        super().__init__()
        self._front_end = front_end
        settings = front_end.settings
        window = front_end.window.double().cpu()
        self._hop, self._n_bins = settings.hop_samples, settings.n_fft // 2 + 1
        cycles = torch.outer(torch.arange(self._n_bins), torch.arange(len(window))).double()
        angles = 2.0 * math.pi * (cycles % settings.n_fft) / settings.n_fft
        kernels = torch.cat([angles.cos() * window, -angles.sin() * window])
        self.register_buffer("kernels", kernels.float().unsqueeze(1), persistent=False)
        self.register_buffer("mel", front_end.mel.float().cpu().T.contiguous(), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """waveforms : (n, samples) float32.  Returns what the network's first layer sees, as `front_end` does."""
        front_end, settings = self._front_end, self._front_end.settings
        if isinstance(front_end, PictureFrontEnd):
            half = settings.n_fft // 2
            power = self._power(nn.functional.pad(waveforms, (half, half)))
            return front_end.picture_of(self.mel @ power)
        assert isinstance(front_end, VggishFrontEnd)
        magnitudes = self._power(waveforms).sqrt()
        log_mel = torch.log(self.mel @ magnitudes + front_end.settings.log_offset).transpose(1, 2)
        rows = front_end.settings.patch_frames
        n_patches = log_mel.shape[1] // rows
        return log_mel[:, : n_patches * rows].reshape(-1, n_patches, rows, log_mel.shape[2])

    def _power(self, waveforms: Tensor) -> Tensor:
        """Returns (n, bins, frames)."""
        spectrum = nn.functional.conv1d(waveforms.unsqueeze(1), self.kernels, stride=self._hop)
        return spectrum[:, : self._n_bins].square() + spectrum[:, self._n_bins :].square()
