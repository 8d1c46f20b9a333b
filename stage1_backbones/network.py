"""What every trainable network is to the recipe and to the files: inputs, features, logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["TrainableNetwork"]


class TrainableNetwork(nn.Module):
    """A network that hears windows and knows labels.

    sample_rate_hz, window_s  what `inputs` expects            dim  length of a window's vector
    A subclass sets these, `front_end` and `classifier`, and says how inputs become features.
    """

    kind: str
    sample_rate_hz: int
    window_s: float
    dim: int
    front_end: nn.Module
    classifier: nn.Linear

    def inputs(self, waveforms: torch.Tensor) -> torch.Tensor:
        """waveforms : (n, window_s * sample_rate_hz) in [-1, 1].  Returns what the first layer sees, n first."""
        with torch.no_grad():
            return self.front_end(waveforms)

    def features_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns (n, dim): the window's vector."""
        raise NotImplementedError

    def logits_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns (n, n_labels)."""
        return self.classifier(self.features_of(inputs))

    def features(self, waveforms: torch.Tensor) -> torch.Tensor:
        return self.features_of(self.inputs(waveforms))

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        return self.logits_of(self.inputs(waveforms))

    def settings_json(self) -> dict[str, Any]:
        """The settings that rebuild this network, as plain JSON values."""
        raise NotImplementedError

    def fingerprint_fields(self) -> Mapping[str, Any]:
        """What changes the meaning of a vector, but for the weights."""
        raise NotImplementedError
