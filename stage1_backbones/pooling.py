"""From a map over frequency and time to one vector: the average, a power mean, or attention over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["POOLINGS", "make_pooling"]

POOLINGS = ("average", "gem", "attention")
_GEM_EPS = 1e-6


class _Average(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3))


class _Gem(nn.Module):
    """Generalised mean, (mean of x^p)^(1/p) with a learnt p: between the average (1) and the maximum (infinity).

    Source: Radenovic et al. 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation".
    """

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, maps: Tensor) -> Tensor:
        powers = maps.clamp_min(_GEM_EPS).float().pow(self.p)
        return powers.mean(dim=(2, 3)).pow(1 / self.p).to(maps.dtype)


class _Attention(nn.Module):
    """The average over frequency, then over time with weights that each channel learns.

    Source: attention pooling as in sound-event detection (Kong et al. 2020, PANNs), before the classes instead of
    after them, because a vector is wanted.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attend = nn.Conv1d(dim, dim, 1)
        nn.init.zeros_(self.attend.weight)  # begins as the plain average
        nn.init.zeros_(self.attend.bias)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        over_time = maps.mean(dim=2)
        weights = torch.softmax(self.attend(over_time), dim=2)
        return (weights * over_time).sum(dim=2)


def make_pooling(name: str, dim: int) -> nn.Module:
    """name : one of POOLINGS.  The module takes (n, dim, frequency, time) and returns (n, dim)."""
    if name == "attention":
        return _Attention(dim)
    return _Gem() if name == "gem" else _Average()
