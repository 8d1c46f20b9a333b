"""The audio track: VGGish's convolutions on 0.96 s patches, then a bidirectional GRU over the patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from embeddings.errors import InputError
from embeddings.settings import from_fields
from stage1_backbones.network import OUTPUTS, TrainableNetwork, make_classifier, require_one_of
from stage1_backbones.spectrogram import VggishFrontEnd, VggishSettings

__all__ = ["WIDTHS", "VggishBigru", "VggishBigruSettings", "create"]

# Channels of each convolution; a tuple is a stage, and a max-pooling ends it.
WIDTHS: dict[str, tuple[tuple[int, ...], ...]] = {
    "light": ((32,), (64,), (128,), (256,)),
    "original": ((64,), (128,), (256, 256), (512, 512)),
}


@dataclass(frozen=True)
class VggishBigruSettings:
    """width       light, or original: VGGish's own channels, without its dense layers
    classifier  linear or cosine     output  sigmoid or softmax, from logits to scores
    """

    width: str = "light"
    window_s: float = 5.0
    patch_dim: int = 128
    gru_dim: int = 128
    classifier: str = "linear"
    output: str = "sigmoid"
    front_end: VggishSettings = field(default_factory=VggishSettings)

    def __post_init__(self) -> None:
        require_one_of("output", self.output, OUTPUTS)
        if self.width not in WIDTHS:
            raise InputError(f"--width {self.width} is not known; choose {' or '.join(WIDTHS)}.")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> VggishBigruSettings:
        front_end = from_fields(VggishSettings, value.get("front_end", {}), "network.front_end")
        return from_fields(cls, {**value, "front_end": front_end}, "network")


class VggishBigru(TrainableNetwork):
    """Log-mel patches -> convolutions -> 1x1 to 128 channels -> average per patch -> BiGRU -> mean over patches.

    Batch normalisation follows each convolution: the original has none, but it was trained on millions of hours, and
    from scratch on a few hundred recordings it does not start to learn without.
    """

    kind = "vggish_bigru"
    tracks = ("audio",)

    def __init__(self, settings: VggishBigruSettings, n_labels: int) -> None:
        super().__init__()
        self.settings = settings
        self.sample_rate_hz = settings.front_end.sample_rate_hz
        self.window_s = settings.window_s
        self.dim = 2 * settings.gru_dim
        self.front_end = VggishFrontEnd(settings.front_end)
        layers: list[nn.Module] = [nn.BatchNorm2d(1)]
        channels = 1
        for stage in WIDTHS[settings.width]:
            for width in stage:
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.convolutions = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.shrink = nn.Conv2d(channels, settings.patch_dim, 1)
        self.gru = nn.GRU(settings.patch_dim, settings.gru_dim, batch_first=True, bidirectional=True)
        self.output = settings.output
        self.classifier = make_classifier(settings.classifier, self.dim, n_labels)

    def features_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs : (n, n_patches, 96, 64) log-mel.  Returns (n, dim)."""
        return self.states_of(inputs).mean(dim=1)

    def states_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs : (n, n_patches, 96, 64) log-mel.  Returns the recurrent layer's states (n, n_patches, dim)."""
        n, n_patches = inputs.shape[:2]
        patches = inputs.reshape(n * n_patches, 1, *inputs.shape[2:]).contiguous(memory_format=torch.channels_last)
        maps = torch.relu(self.shrink(self.convolutions(patches)))
        steps = maps.mean(dim=(2, 3)).reshape(n, n_patches, -1)
        states, _ = self.gru(steps)
        return states

    def pictures_of(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        n, _, _, n_mels = inputs.shape
        return (inputs.view(n, -1, n_mels).transpose(1, 2),)

    @property
    def stages(self) -> dict[str, nn.Module]:
        """Each stage of convolutions (its max-pooling), the patches' vectors and the recurrent layer's states."""
        poolings = [m for m in self.convolutions if isinstance(m, nn.MaxPool2d)]
        stages: dict[str, nn.Module] = {f"convolutions.{i}": pooling for i, pooling in enumerate(poolings)}
        return {**stages, "patches": self.shrink, "gru": self.gru}

    def settings_json(self) -> dict[str, Any]:
        return asdict(self.settings)

    def fingerprint_fields(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "width": self.settings.width,
            "front_end": asdict(self.settings.front_end),
            "normalisation": "learned, at the input",
            "pooling": "average per patch, bidirectional GRU, mean over patches",
        }


def create(settings: Mapping[str, Any], n_labels: int, weights: str) -> VggishBigru:
    """Build the network. weights : "none" or "auto", which mean the same here: nobody publishes any for it."""
    if weights not in ("none", "auto"):
        raise InputError(f"--weights {weights}: vggish_bigru starts from random weights; use none or auto.")
    return VggishBigru(VggishBigruSettings.from_json(settings), n_labels)
