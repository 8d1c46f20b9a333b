"""Any network that timm knows by name, frozen, over the log-mel picture."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch.nn import functional

from embeddings.contract import Fingerprint, Heard
from embeddings.errors import InputError
from embeddings.files import read_json
from stage1_backbones.described import WEIGHTS, weights_digest
from stage1_backbones.frozen import require_same_backbone, require_waveforms, save_description
from stage1_backbones.inner_windows import OURS_S
from stage1_backbones.runtimes import one_torch_thread
from stage1_backbones.spectrogram import PictureFrontEnd, PictureSettings
from stage1_backbones.weights import load_image_weights

__all__ = ["TimmNetwork", "load", "load_named"]


class TimmNetwork:
    """Log-mel picture of 5 s -> a network that was trained on photographs -> its pooled features.

    The picture is repeated to the network's channels, brought to the mean and spread that its weights were trained
    with, and resized where the network takes one size only.
    """

    window_s = OURS_S

    def __init__(self, model: str, weights: str, device: str) -> None:
        """weights : "auto" (timm's own, fetched if they are not there), "none" (random, seeded), or a file.

        Raises InputError when timm has no such model, or the weights cannot be had or fit another one.
        """
        self._model, self._settings, self._device = model, PictureSettings(), device
        known = timm.list_models()
        if model.partition(".")[0] not in known:
            near = difflib.get_close_matches(model, known, n=3)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise InputError(f"timm {timm.__version__} has no model {model!r}.{hint}")
        torch.manual_seed(0)
        self._body: Any = timm.create_model(model, pretrained=False, num_classes=0)
        load_image_weights(self._body, model, weights)
        self._body.eval().to(device)
        config: Any = self._body.pretrained_cfg
        self._size = tuple(config["input_size"][1:]) if config.get("fixed_input_size") else None
        self._channels = int(config["input_size"][0])
        self._mean, self._std = (torch.tensor(config[key], device=device).view(1, -1, 1, 1) for key in ("mean", "std"))
        self._front_end = PictureFrontEnd(self._settings).to(device)
        self.name = model.partition(".")[0]
        self.sample_rate_hz = self._settings.sample_rate_hz
        self.dim = int(self._vector(torch.zeros(1, round(self.window_s * self.sample_rate_hz), device=device)).size)
        self._weights_sha256 = ""

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            {
                "kind": "timm",
                "model": self.name,
                "weights": self._digest(),
                "front_end": dataclasses.asdict(self._settings),
                "output": "pooled features",
                "sample_rate_hz": self.sample_rate_hz,
                "window_s": self.window_s,
            }
        )

    @property
    def heard(self) -> Heard:
        return Heard()

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        """Embed windows, one by one, so that none depends on its neighbours.

        waveforms : (n, 160000) float32 in [-1, 1] at 32 kHz
        Returns float32 (n, dim).
        Raises InputError when the shape is another.
        """
        waveforms = require_waveforms(waveforms, self)
        vectors = np.empty((len(waveforms), self.dim), np.float32)
        for vector, waveform in zip(vectors, torch.from_numpy(waveforms), strict=True):
            vector[:] = self._vector(waveform[None].to(self._device))
        return vectors

    def save(self, folder: Path) -> None:
        """Copy the weights, with a description."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(_plain(self._body), folder / WEIGHTS)
        save_description(self, folder, kind="timm", settings={"model": self._model}, licence="the weights' maker's")

    def _vector(self, waveform: torch.Tensor) -> np.ndarray:
        with torch.inference_mode(), one_torch_thread():
            picture = self._front_end(waveform).expand(-1, self._channels, -1, -1)
            if self._size is not None:
                picture = functional.interpolate(picture, self._size, mode="bilinear", antialias=True)
            return self._body((picture - self._mean) / self._std)[0].float().cpu().numpy()

    def _digest(self) -> str:
        if not self._weights_sha256:
            import tempfile

            from safetensors.torch import save_file

            with tempfile.TemporaryDirectory() as folder:
                save_file(_plain(self._body), Path(folder) / WEIGHTS)
                self._weights_sha256 = weights_digest(Path(folder) / WEIGHTS)
        return self._weights_sha256


def load_named(reference: str, device: str) -> TimmNetwork:
    """`MODEL`, with timm's own weights, or `MODEL:WEIGHTS` (a file, or none)."""
    model, _, weights = reference.partition(":")
    return TimmNetwork(model, weights or "auto", device)


def load(folder: Path | None, device: str) -> TimmNetwork:
    """A network that was saved into `folder`. Raises ContractError when its weights were exchanged."""
    if folder is None:
        raise InputError("a timm network is named with its model: --backbone timm:resnet18")
    described = read_json(folder / "backbone.json", what="backbone description")
    network = TimmNetwork(described.get("settings", {}).get("model", ""), str(folder / WEIGHTS), device)
    require_same_backbone(network, folder)
    return network


def _plain(body: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in body.state_dict().items()}
