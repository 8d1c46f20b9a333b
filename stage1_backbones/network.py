"""What every trainable network is to the recipe and to the files: inputs, stages, features, logits, scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from embeddings.errors import InputError

__all__ = ["CLASSIFIERS", "OUTPUTS", "CosineClassifier", "TrainableNetwork", "make_classifier", "require_one_of"]

CLASSIFIERS = ("linear", "cosine")
OUTPUTS = ("sigmoid", "softmax")
_COSINE_SCALE = 30.0


class CosineClassifier(nn.Module):
    """Logits are r times the cosines between a window's vector and each class's, r = 30: features lie on a sphere."""

    def __init__(self, dim: int, n_labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(n_labels, dim)))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """vectors : (n, dim).  Returns (n, n_labels) in -r..r."""
        normalize = nn.functional.normalize
        return _COSINE_SCALE * nn.functional.linear(normalize(vectors, dim=1), normalize(self.weight, dim=1))


def make_classifier(kind: str, dim: int, n_labels: int) -> nn.Module:
    """The last layer, "linear" or "cosine"."""
    require_one_of("classifier", kind, CLASSIFIERS)
    return nn.Linear(dim, n_labels) if kind == "linear" else CosineClassifier(dim, n_labels)


def require_one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises InputError that names the field and what it may be."""
    if value not in allowed:
        raise InputError(f"network.{field}={value!r} is not known; choose {', '.join(allowed)}.")


class TrainableNetwork(nn.Module):
    """A network that hears windows and knows labels.

    sample_rate_hz, window_s  what `inputs` expects            dim  length of a window's vector
    output                    how logits become scores: "sigmoid" each by itself, "softmax" together
    tracks, silenced          the ways in which it hears a window, and one that is made to hear silence, if any
    A subclass sets these, `front_end` and `classifier`, and says how inputs become features.
    """

    kind: str
    sample_rate_hz: int
    window_s: float
    dim: int
    output: str
    front_end: nn.Module
    classifier: nn.Module
    tracks: tuple[str, ...]
    silenced: str = ""

    def inputs(self, waveforms: torch.Tensor) -> torch.Tensor:
        """waveforms : (n, window_s * sample_rate_hz) in [-1, 1].  Returns what the first layer sees, n first."""
        with torch.no_grad():
            return self.front_end(torch.zeros_like(waveforms) if self.silenced in self.tracks else waveforms)

    def pictures_of(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the first layers see, each (n, n_mels, n_frames) of the same time.

        They are views, so that what is drawn on them is seen. A track that hears samples is a picture of one band.
        """
        raise NotImplementedError

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        """The layers, front to back, after which two windows may be mixed: name -> layer.

        Each gives (n * k, ...), or a tuple that begins with it, k rows in a row for each of n windows.
        """
        raise NotImplementedError

    def features_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns (n, dim): the window's vector."""
        raise NotImplementedError

    def logits_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns (n, n_labels)."""
        return self.classifier(self.features_of(inputs))

    def scores_of(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities, float64 (n, n_labels), below 1: in float32 a sigmoid of 17 is already 1."""
        logits = logits.double()
        scores = torch.softmax(logits, dim=1) if self.output == "softmax" else torch.sigmoid(logits)
        return scores.clamp_max(1 - 2.0**-53)

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
