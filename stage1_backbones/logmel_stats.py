"""Hand-made log-mel statistics: the floor that every network must beat."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from embeddings.contract import Fingerprint, Heard
from stage1_backbones.frozen import require_same_backbone, require_waveforms, save_description
from stage1_backbones.runtimes import one_torch_thread
from stage1_backbones.spectrogram import PictureFrontEnd, PictureSettings

__all__ = ["LogMelStatistics", "load"]


class LogMelStatistics:
    """Mean and standard deviation over time of each mel band in dB: nothing is learned, nothing was heard."""

    name = "logmel_stats"
    window_s = 5.0

    def __init__(self, device: str = "cpu") -> None:
        self._settings = PictureSettings()
        self._front_end = PictureFrontEnd(self._settings).to(device)
        self._device = device
        self.sample_rate_hz = self._settings.sample_rate_hz
        self.dim = 2 * self._settings.n_mels

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            {
                "kind": "logmel_stats",
                "weights": "none",
                "front_end": dataclasses.asdict(self._settings),
                "output": "mean, then standard deviation, over time of mel dB",
                "sample_rate_hz": self.sample_rate_hz,
                "window_s": self.window_s,
            }
        )

    @property
    def heard(self) -> Heard:
        return Heard()

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        """Describe windows.

        waveforms : (n, 160000) float32 in [-1, 1] at 32 kHz
        Returns float32 (n, 256): means in dB, then standard deviations in dB, low bands first.
        Raises InputError when the shape is another.
        """
        waveforms = require_waveforms(waveforms, self)
        vectors = np.empty((len(waveforms), self.dim), dtype=np.float32)
        with torch.inference_mode(), one_torch_thread():
            for vector, waveform in zip(vectors, torch.from_numpy(waveforms), strict=True):
                decibels = self._front_end.mel_db(waveform[None].to(self._device))[0]
                statistics = torch.cat([decibels.mean(dim=1), decibels.std(dim=1, correction=0)])
                vector[:] = statistics.cpu().numpy()
        return vectors

    def save(self, folder: Path) -> None:
        """Write a description that `load` checks; there are no weights."""
        save_description(
            self,
            folder,
            kind="logmel_stats",
            settings=dataclasses.asdict(self._settings),
            licence="Apache-2.0",
        )


def load(folder: Path | None, device: str) -> LogMelStatistics:
    """The statistics on a torch `device` ("cpu", "cuda").

    folder : a saved description that they must agree with, or None
    Raises ContractError when `folder` describes other statistics.
    """
    backbone = LogMelStatistics(device)
    if folder is not None:
        require_same_backbone(backbone, folder)
    return backbone
