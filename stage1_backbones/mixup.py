"""Mixup: two windows heard at once, with both their labels."""

from __future__ import annotations

import torch

__all__ = ["mix"]


def mix(inputs: torch.Tensor, targets: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each window of a batch with another of the same batch.

    inputs : (n, ...)    targets : (n, n_labels) in 0..1    alpha : lambda ~ Beta(alpha, alpha) per window; 0 is off
    Returns lambda * a + (1 - lambda) * b of both. Draws from torch's global generator.
    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization"; it stands in for birds calling at once.
    """
    if alpha == 0:
        return inputs, targets
    partner = torch.randperm(len(inputs), device=inputs.device)
    drawn = torch.distributions.Beta(alpha, alpha).sample((len(inputs),)).to(inputs)
    share = drawn.view(-1, *[1] * (inputs.dim() - 1))
    mixed_targets = drawn[:, None] * targets + (1 - drawn[:, None]) * targets[partner]
    return share * inputs + (1 - share) * inputs[partner], mixed_targets
