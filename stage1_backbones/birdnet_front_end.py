"""BirdNET's two spectrograms in torch: what its graph computes before its first convolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stage1_backbones.birdnet_graph import BirdnetGraph

__all__ = ["SPECTROGRAM_SHAPE", "BirdnetFrontEnd"]

SPECTROGRAM_SHAPE = (96, 511, 2)
_NOT_ZERO = 1e-6


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
    """

    def __init__(self, graph: BirdnetGraph) -> None:
        self._parts = [_Spectrogram(graph, tensors) for tensors in (_LOW, _HIGH)]

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """samples : (144000,) float32.  Returns float32 (96, 511, 2)."""
        low = samples.min()
        stretched = samples - low
        span = stretched.max() + _NOT_ZERO
        stretched = (stretched / span - 0.5) * 2.0
        silence = float(((-low / span - 0.5) * 2.0).clamp(-1.0, 1.0))
        return torch.stack([part(stretched, silence) for part in self._parts], dim=-1)


class _Spectrogram:
    def __init__(self, graph: BirdnetGraph, tensors: _Tensors) -> None:
        mel = graph.constant(tensors.mel)  # (96, bins), most of it zero
        filled = np.flatnonzero(mel.any(axis=0))
        self._bins = slice(int(filled[0]), int(filled[-1]) + 1)
        self._mel = torch.from_numpy(np.ascontiguousarray(mel[::-1, self._bins].T))
        self._window = torch.from_numpy(graph.constant(tensors.window).copy())
        self._hop = int(graph.constant(tensors.hop))
        self._exponent = float(graph.constant(tensors.exponent))
        constant = torch.fft.rfft(self._window.double()).real[self._bins]
        self._of_constant = constant @ self._mel.double()

    def __call__(self, samples: torch.Tensor, silence: float) -> torch.Tensor:
        """samples : (n,); silence : the sample of digital silence.  Returns (96, frames)."""
        frames = (samples - silence).unfold(-1, len(self._window), self._hop) * self._window
        real = torch.fft.rfft(frames).real[:, self._bins]
        bands = real @ self._mel + (silence * self._of_constant).float()
        return bands.square().pow(self._exponent).T
