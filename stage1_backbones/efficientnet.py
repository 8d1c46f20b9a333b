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
from embeddings.settings import from_fields
from stage1_backbones.network import OUTPUTS, TrainableNetwork, make_classifier, require_one_of
from stage1_backbones.pooling import POOLINGS, make_pooling
from stage1_backbones.spectrogram import PictureFrontEnd, PictureSettings
from stage1_backbones.weights import load_image_weights

__all__ = ["EfficientNet", "EfficientNetSettings", "create"]


@dataclass(frozen=True)
class EfficientNetSettings:
    """Which EfficientNet, over which picture.

    model       timm's name          pooling  average, gem or attention, from the last map to the vector
    classifier  linear or cosine     output   sigmoid or softmax, from logits to scores
    """

    model: str = "tf_efficientnet_lite0"
    window_s: float = 5.0
    pooling: str = "average"
    classifier: str = "linear"
    output: str = "sigmoid"
    picture: PictureSettings = field(default_factory=PictureSettings)

    def __post_init__(self) -> None:
        require_one_of("pooling", self.pooling, POOLINGS)
        require_one_of("output", self.output, OUTPUTS)
        known = timm.list_models("*efficientnet*")
        if self.model not in known:
            near = difflib.get_close_matches(self.model, known, n=5) or known[:5]
            raise InputError(
                f"{self.model!r} is not an EfficientNet of timm {timm.__version__}. Near it: {', '.join(near)}."
            )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EfficientNetSettings:
        picture = from_fields(PictureSettings, value.get("picture", {}), "network.picture")
        return from_fields(cls, {**value, "picture": picture}, "network")


class EfficientNet(TrainableNetwork):
    """Log-mel picture (128 x 313 for 5 s) -> EfficientNet -> pooling over frequency and time -> vector.

    The picture, in 0..1, is repeated to three channels and brought to the mean and spread that the ImageNet weights
    were trained with.
    """

    kind = "efficientnet"
    tracks = ("picture",)
    _mean: torch.Tensor
    _std: torch.Tensor

    def __init__(self, settings: EfficientNetSettings, n_labels: int) -> None:
        super().__init__()
        self.settings = settings
        self.sample_rate_hz = settings.picture.sample_rate_hz
        self.window_s = settings.window_s
        self.front_end = PictureFrontEnd(settings.picture)
        self.output = settings.output
        body: Any = timm.create_model(settings.model, pretrained=False, num_classes=0, global_pool="")
        self.body: Any = body
        self.dim = int(body.num_features)
        self.pooling = make_pooling(settings.pooling, self.dim)
        self.classifier = make_classifier(settings.classifier, self.dim, n_labels)
        config = body.pretrained_cfg
        for name, values in (("_mean", config["mean"]), ("_std", config["std"])):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.body.to(memory_format=torch.channels_last)

    def features_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs : (n, 1, n_mels, n_frames) in 0..1.  Returns (n, dim)."""
        return self.pooling(self.maps_of(self.coloured(inputs)))

    def coloured(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs : (n, 1, n_mels, n_frames) in 0..1.  Returns (n, 3, n_mels, n_frames), as ImageNet's are brought."""
        return (inputs - self._mean) / self._std

    def maps_of(self, pictures: torch.Tensor) -> torch.Tensor:
        """pictures : (n, 3, n_mels, n_frames).  Returns the last maps (n, dim, n_mels / 32, n_frames / 32)."""
        return self.body(pictures.contiguous(memory_format=torch.channels_last))

    def pictures_of(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (inputs.squeeze(1),)

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The stem, each stage of blocks, and the vector itself."""
        blocks = {f"blocks.{i}": block for i, block in enumerate(self.body.blocks)}
        return {"stem": self.body.bn1, **blocks, "vector": self.pooling}

    def settings_json(self) -> dict[str, Any]:
        return asdict(self.settings)

    def fingerprint_fields(self) -> dict[str, Any]:
        front_end = asdict(self.settings.picture)
        if front_end["contrast"] == "window":
            del front_end["contrast"]  # older backbones, which knew no other, keep their fingerprint
        return {
            "kind": self.kind,
            "model": self.settings.model,
            "front_end": front_end,
            "normalisation": {"mean": self._mean.flatten().tolist(), "std": self._std.flatten().tolist()},
            "pooling": "global average" if self.settings.pooling == "average" else self.settings.pooling,
        }


def create(settings: Mapping[str, Any], n_labels: int, weights: str) -> EfficientNet:
    """Build the network. weights : "none", "auto" (ImageNet), or a file of weights for the same architecture."""
    network = EfficientNet(EfficientNetSettings.from_json(settings), n_labels)
    load_image_weights(network.body, network.settings.model, weights)
    return network
