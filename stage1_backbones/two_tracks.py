"""The front end of a network with two tracks: a picture, and beside it VGGish's patches or the samples themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from embeddings.errors import InputError
from stage1_backbones.spectrogram import PictureFrontEnd, VggishFrontEnd

__all__ = ["AUDIO", "PICTURE", "TwoTrackFrontEnd"]

PICTURE, AUDIO = TRACKS = "picture", "audio"
_TAPS, _KAISER_BETA = 193, 8.0  # flat up to VGGish's highest band, 80 dB down where it would fold back into one
_BLOCK = 128  # samples made in one product: five times as fast as one by one
_SILENT_RMS = 1e-5


class TwoTrackFrontEnd(nn.Module):
    """Waveforms -> what both tracks hear, in one tensor (n, segments, length): engines and mixing take one.

    A window is cut into `segments` in a row, and each is heard by itself. `length` holds a segment's picture and then,
    flattened, its patches, or its samples brought to a spread of 1, as the picture is.
    """

    low_passes: Tensor

    def __init__(
        self,
        picture: PictureFrontEnd,
        patches: VggishFrontEnd | None,
        *,
        segment_s: float,
        segments: int,
        parts: Sequence[nn.Module] | None = None,
    ) -> None:
        """patches : None where the audio track hears samples;  parts: modules that do what the two do, in their place

        Raises InputError when the patches' rate does not go into the picture's a whole number of times.
        """
        super().__init__()
        rate_hz = picture.settings.sample_rate_hz
        self.settings = (picture, patches, segment_s, segments)
        self.n_samples, self.segments = round(segment_s * rate_hz), segments
        self.picture, self.patches = parts or (picture, patches or nn.Identity())
        self._hears_samples = patches is None
        n_mels, n_frames = picture.settings.n_mels, picture.settings.n_frames(self.n_samples)
        self.shapes: dict[str, tuple[int, ...]] = {PICTURE: (1, n_mels, n_frames), AUDIO: (self.n_samples,)}
        self._every = 1
        if patches is not None:
            s = patches.settings
            self._every, rest = divmod(rate_hz, s.sample_rate_hz)
            if rest or not self._every:
                raise InputError(
                    f"network.front_end.sample_rate_hz={s.sample_rate_hz} must go a whole number of times into "
                    f"network.picture.sample_rate_hz={rate_hz}: both tracks hear one waveform."
                )
            n_patches = s.n_patches(self.n_samples // self._every)
            self.shapes[AUDIO] = (n_patches, s.patch_frames, s.n_mels)
        self._cut = int(np.prod(self.shapes[PICTURE]))
        self.register_buffer("low_passes", torch.from_numpy(_low_passes(self._every)), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """waveforms : (n, segments * samples) in [-1, 1].  Returns float32 (n, segments, length)."""
        pieces = waveforms.reshape(-1, self.n_samples)
        heard = [part.flatten(1) for part in (self.picture(pieces), self._audio(pieces))]
        return torch.cat(heard, dim=1).reshape(-1, self.segments, sum(part.shape[1] for part in heard))

    def track(self, inputs: Tensor, name: str) -> Tensor:
        """One track, (n * segments, ...): (1, n_mels, n_frames), and (n_patches, 96, 64) or (samples,)."""
        return self._part(inputs, name).reshape(-1, *self.shapes[name])

    def pictures_of(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Views (n, n_mels, n_frames) of both tracks of every segment; samples are a picture of one band."""
        views = []
        for segment in range(self.segments):
            views.append(self._part(inputs, PICTURE)[:, segment].unflatten(1, self.shapes[PICTURE][1:]))
            audio = self._part(inputs, AUDIO)[:, segment]
            views.append(
                audio[:, None] if self._hears_samples else audio.unflatten(1, (-1, self._bands)).transpose(1, 2)
            )
        return tuple(views)

    def silence(self, inputs: Tensor, name: str) -> Tensor:
        """The same inputs, but one track hears digital silence."""
        silent = self(inputs.new_zeros(1, self.segments * self.n_samples))
        inputs = inputs.clone()
        self._part(inputs, name)[:] = self._part(silent, name)
        return inputs

    @property
    def _bands(self) -> int:
        return self.shapes[AUDIO][-1]

    def _part(self, inputs: Tensor, name: str) -> Tensor:
        return inputs[..., : self._cut] if name == PICTURE else inputs[..., self._cut :]

    def _audio(self, waveforms: Tensor) -> Tensor:
        if self._hears_samples:
            return waveforms / waveforms.square().mean(dim=1, keepdim=True).sqrt().clamp_min(_SILENT_RMS)
        if self._every > 1:
            half, step = _TAPS // 2, self._every * _BLOCK
            padded = nn.functional.pad(waveforms, (half, half + -self.n_samples % step))
            blocks = nn.functional.conv1d(padded[:, None], self.low_passes.float(), stride=step)
            waveforms = blocks.transpose(1, 2).flatten(1)[:, : self.n_samples // self._every]
        return self.patches(waveforms)


def _low_passes(every: int) -> np.ndarray:
    """A windowed sinc that leaves what `every`-th samples can hold, for each sample of a block: (block, 1, length)."""
    t = np.arange(_TAPS) - _TAPS // 2
    taps = np.sinc(t / every) * np.kaiser(_TAPS, _KAISER_BETA)
    rows = np.zeros((_BLOCK, 1, _TAPS + every * (_BLOCK - 1)), np.float32)
    for i in range(_BLOCK):
        rows[i, 0, every * i : every * i + _TAPS] = taps / taps.sum()
    return rows
