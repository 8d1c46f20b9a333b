"""Mixup: two windows heard at once, with both their labels, mixed as sound, as pictures or inside the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embeddings.errors import InputError

__all__ = ["PLACES", "MixSettings", "Mixing", "draw_mixing"]

PLACES = ("off", "sound", "input", "manifold", "both")
_TARGETS = ("convex", "union")


@dataclass(frozen=True)
class MixSettings:
    """Where windows are mixed and how much.

    where   off; sound (waveforms); input (what the first layer sees); manifold (after a stage of the network that is
            drawn for each batch); both (input is one more place to draw)
    alpha   lambda ~ Beta(alpha, alpha) per window
    labels  convex: lambda * a + (1 - lambda) * b; union: the larger of the two, for both birds are there
    """

    where: str = "input"
    alpha: float = 0.4
    labels: str = "convex"

    def __post_init__(self) -> None:
        if self.where not in PLACES:
            raise InputError(f"mixup.where={self.where!r} is not a place to mix; choose {', '.join(PLACES)}.")
        if self.labels not in _TARGETS:
            raise InputError(f"mixup.labels={self.labels!r} is not a way to mix labels; choose {', '.join(_TARGETS)}.")
        if self.where != "off" and not self.alpha > 0:
            raise InputError(f"mixup.alpha={self.alpha} must be above 0; mixup.where=off switches mixing off.")


@dataclass(frozen=True)
class Mixing:
    """What is mixed with what in one batch.

    stage    name of the network's stage after which it happens; "" before the first layer
    partner  (n,) int64;  share : (n,) what remains of each window's own
    """

    stage: str
    partner: Tensor
    share: Tensor
    labels: str

    def values(self, values: Tensor) -> Tensor:
        """share * own + (1 - share) * partner's.

        values : (n * k, ...), k rows in a row for each window, as a network that cuts windows into patches has them
        """
        n = len(self.partner)
        per_window = values.reshape(n, -1, *values.shape[1:])
        share = self.share.to(values).view(n, *[1] * (per_window.dim() - 1))
        return (share * per_window + (1 - share) * per_window[self.partner]).reshape(values.shape)

    def targets(self, targets: Tensor) -> Tensor:
        """targets : (n, n_labels) in 0..1.  Returns those of the mixed windows."""
        if self.labels == "union":
            return torch.maximum(targets, targets[self.partner])
        share = self.share[:, None].to(targets)
        return share * targets + (1 - share) * targets[self.partner]

    @contextmanager
    def inside(self, stages: Mapping[str, nn.Module]) -> Iterator[None]:
        """While entered, the output of the drawn stage is mixed."""
        if not self.stage:
            yield
            return
        handle = stages[self.stage].register_forward_hook(self._mix_output)
        try:
            yield
        finally:
            handle.remove()

    def _mix_output(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        # A recurrent layer also gives its last state, which nothing here goes on with.
        return (self.values(output[0]), *output[1:]) if isinstance(output, tuple) else self.values(output)


def draw_mixing(
    settings: MixSettings, n: int, stages: Mapping[str, nn.Module], generator: torch.Generator | None = None
) -> Mixing:
    """Draw partners, shares and the place for a batch of `n`. `settings.where` must not be "off".

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization"; Verma et al. 2019, "Manifold Mixup".
    """
    names = {"sound": [""], "input": [""], "manifold": [*stages], "both": ["", *stages]}[settings.where]
    place = int(torch.randint(len(names), (1,), generator=generator))
    partner = torch.randperm(n, generator=generator)
    # Beta(a, a) from two Gamma(a), which torch draws from a given generator.
    gammas = torch._standard_gamma(torch.full((2, n), settings.alpha, dtype=torch.float64), generator=generator)
    share = (gammas[0] / gammas.sum(0).clamp_min(1e-300)).float()
    return Mixing(names[place], partner, share, settings.labels)
