"""The picture track: any timm EfficientNet over a 32 kHz log-mel picture."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import timm
import torch
from torch import nn

from embeddings.errors import InputError
from stage1_backbones.network import TrainableNetwork
from stage1_backbones.spectrogram import PictureFrontEnd, PictureSettings
from stage1_backbones.weights import load_efficientnet_weights

__all__ = ["RECIPE", "EfficientNet", "EfficientNetSettings", "create"]


RECIPE = {"crops_per_recording": 2}


@dataclass(frozen=True)
class EfficientNetSettings:
    """Which EfficientNet, over which picture. `model` is timm's name."""

    model: str = "tf_efficientnet_lite0"
    window_s: float = 5.0
    picture: PictureSettings = field(default_factory=PictureSettings)

    def __post_init__(self) -> None:
        known = timm.list_models("*efficientnet*")
        if self.model not in known:
            near = difflib.get_close_matches(self.model, known, n=5) or known[:5]
            raise InputError(
                f"{self.model!r} is not an EfficientNet of timm {timm.__version__}. Near it: {', '.join(near)}."
            )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EfficientNetSettings:
        picture = value.get("picture", {})
        return cls(**{**value, "picture": PictureSettings(**picture)})


class EfficientNet(TrainableNetwork):
    """Log-mel picture (128 x 313 for 5 s) -> EfficientNet -> global average -> vector.

    The picture, in 0..1, is repeated to three channels and brought to the mean and spread that the ImageNet weights
    were trained with.
    """

    kind = "efficientnet"
    _mean: torch.Tensor
    _std: torch.Tensor

    def __init__(self, settings: EfficientNetSettings, n_labels: int) -> None:
        super().__init__()
        self.settings = settings
        self.sample_rate_hz = settings.picture.sample_rate_hz
        self.window_s = settings.window_s
        self.front_end = PictureFrontEnd(settings.picture)
        body: Any = timm.create_model(settings.model, pretrained=False, num_classes=0)
        self.body: nn.Module = body
        self.dim = int(body.num_features)
        self.classifier = nn.Linear(self.dim, n_labels)
        config = body.pretrained_cfg
        for name, values in (("_mean", config["mean"]), ("_std", config["std"])):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.body.to(memory_format=torch.channels_last)

    def features_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs : (n, 1, n_mels, n_frames) in 0..1.  Returns (n, dim)."""
        pictures = (inputs - self._mean) / self._std
        return self.body(pictures.contiguous(memory_format=torch.channels_last))

    def settings_json(self) -> dict[str, Any]:
        return asdict(self.settings)

    def fingerprint_fields(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "model": self.settings.model,
            "front_end": asdict(self.settings.picture),
            "normalisation": {"mean": self._mean.flatten().tolist(), "std": self._std.flatten().tolist()},
            "pooling": "global average",
        }


def create(settings: Mapping[str, Any], n_labels: int, weights: str) -> EfficientNet:
    """Build the network. weights : "none", "auto" (ImageNet), or a file of weights for the same architecture."""
    network = EfficientNet(EfficientNetSettings.from_json(settings), n_labels)
    load_efficientnet_weights(network.body, network.settings.model, weights)
    return network
