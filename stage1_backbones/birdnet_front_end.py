"""BirdNET's two spectrograms in torch: what its graph computes before its first convolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stage1_backbones.birdnet_graph import BirdnetGraph

__all__ = ["SPECTROGRAMS_SHAPE", "BirdnetFrontEnd"]

SPECTROGRAMS_SHAPE = (96, 511, 2)
_BANDS, _FRAMES, _SPECTROGRAMS = SPECTROGRAMS_SHAPE
_NOT_ZERO = 1e-6  # the graph adds it to the span of the samples
_BAND_GROUPS = 8


@dataclass(frozen=True)
class _Tensors:
    """Where the graph keeps the constants of one spectrogram."""

    window: int
    hop: int
    mel: int
    exponent: int


_LOW, _HIGH = _Tensors(window=129, hop=155, mel=166, exponent=165), _Tensors(126, 159, 168, 167)


class BirdnetFrontEnd:
    """Sound of 3 s at 48 kHz -> two mel spectrograms, low and high, as BirdNET V2.4's graph makes them.

    The sound is stretched to -1..1 first. Of the spectrum only the real part goes on, through the mel matrix; it is
    squared and raised to a learned power; high bands come first. All constants are read from the graph.

    Up to the squaring all is linear. Hence the stretching, `gain * samples + constant`, is done on the bands, with the
    constant's own bands known to float64: the graph's, in float32, are lost in rounding where a window is silent.
    """

    def __init__(self, graph: BirdnetGraph) -> None:
        self._parts = [_RealMel(graph, tensors) for tensors in (_LOW, _HIGH)]
        powers = [2.0 * float(graph.constant(tensors.exponent)) for tensors in (_LOW, _HIGH)]
        self._powers = torch.tensor(powers).reshape(_SPECTROGRAMS, 1, 1)
        self._of_constant = torch.stack([part.of_constant for part in self._parts]).unsqueeze(-1)

    def __call__(self, samples: np.ndarray, into: np.ndarray) -> None:
        """Hear one of BirdNET's windows, in the calling thread's torch.

        samples : (144000,) float32 in [-1, 1], or beyond
        into    : (96, 511, 2) float32, written over
        """
        low, high = float(samples.min()), float(samples.max())
        span = high - low + _NOT_ZERO
        # Digital silence, or what is nearest to it, goes through as zeros: they stay zeros in every band.
        base = min(max(0.0, low), high)
        constant = 2.0 * (base - low) / span - 1.0
        with torch.inference_mode():
            sound = torch.from_numpy(samples if base == 0.0 else samples - np.float32(base))
            bands = torch.empty(_SPECTROGRAMS, _BANDS, _FRAMES)
            for part, rows in zip(self._parts, bands, strict=True):
                part(sound, rows)
            bands.mul_(2.0 / span).add_(self._of_constant * constant)
            # |x| ** power; `pow` takes half as long again.
            bands.abs_().log2_().mul_(self._powers).exp2_()
            torch.from_numpy(into).copy_(bands.permute(1, 2, 0))


class _RealMel:
    """Frames, window, real part of the spectrum, mel bands.

    Most of the mel matrix is zero: its bands go in groups, each with the bins in which it has weight, which takes a
    quarter of the whole product's time.
    """

    def __init__(self, graph: BirdnetGraph, tensors: _Tensors) -> None:
        self._window = torch.from_numpy(graph.constant(tensors.window).copy())
        self._hop = int(graph.constant(tensors.hop))
        mel = graph.constant(tensors.mel)[::-1]  # (96, bins)
        spectrum = torch.fft.rfft(self._window.double()).real
        self.of_constant = (torch.from_numpy(mel.astype(np.float64)) @ spectrum).float()
        first, last = _filled(mel)
        self._bins = slice(first, last + 1)
        self._groups = []
        for rows in np.array_split(np.arange(_BANDS), _BAND_GROUPS):
            group = mel[rows[0] : rows[-1] + 1]
            begin, end = _filled(group)
            weights = torch.from_numpy(np.ascontiguousarray(group[:, begin : end + 1]))
            self._groups.append((slice(rows[0], rows[-1] + 1), slice(begin - first, end + 1 - first), weights))

    def __call__(self, samples: torch.Tensor, into: torch.Tensor) -> None:
        """samples : (n,).  into : (96, frames), written over."""
        frames = samples.unfold(-1, len(self._window), self._hop) * self._window
        real = torch.fft.rfft(frames).real[:, self._bins].contiguous().T
        for rows, bins, weights in self._groups:
            torch.mm(weights, real[bins], out=into[rows])


def _filled(mel: np.ndarray) -> tuple[int, int]:
    """First and last bin in which bands have weight."""
    filled = np.flatnonzero(mel.any(axis=0))
    return int(filled[0]), int(filled[-1])
