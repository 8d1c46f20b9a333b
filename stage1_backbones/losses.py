"""What a network is told about its mistakes: a loss for each way of reading its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus

from embeddings.errors import InputError

__all__ = ["LOSSES", "LossKind", "LossSettings", "leaving_out_unknown", "make_loss", "smoothed"]

_SURELY_NOT = -50.0  # a logit whose loss is nothing beside any other, and so is its gradient
_NO_LABEL = 1e-6  # targets that sum to less are those of a window in which nothing calls

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (n, c), targets (n, c) in 0..1) -> a mean over windows, a number to make small."""


@dataclass(frozen=True)
class LossKind:
    """classifier, output : what the network's last layer must be, and how its logits become scores."""

    classifier: str
    output: str
    summary: str


LOSSES: Mapping[str, LossKind] = {
    "bce": LossKind("linear", "sigmoid", "binary cross-entropy, each species by itself"),
    "weighted_bce": LossKind("linear", "sigmoid", "the same, a positive weighing more the rarer its species"),
    "cosine_bce": LossKind("cosine", "sigmoid", "scaled cosines, positives against negatives by a drawn balance"),
    "focal": LossKind("linear", "sigmoid", "binary cross-entropy that forgets what is already right"),
    "softmax": LossKind("linear", "softmax", "cross-entropy over species that exclude each other"),
}


@dataclass(frozen=True)
class LossSettings:
    """name            one of LOSSES
    most_positive_weight  weighted_bce: a positive weighs negatives / positives of its species, at most this
    balance            cosine_bce: lambda, the weight of positives; None draws it from U(0, 1) for each batch
    gamma, alpha       focal: Lin et al. 2017;  alpha below 0 switches the weighing of positives off
    smoothing          share of each target that is spread over all classes
    """

    name: str = "bce"
    most_positive_weight: float = 20.0
    balance: float | None = None
    gamma: float = 2.0
    alpha: float = -1.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise InputError(f"loss.name={self.name!r} is not a loss; choose {', '.join(LOSSES)}.")
        if not 0 <= self.smoothing < 1:
            raise InputError(f"loss.smoothing={self.smoothing} must lie in 0..1 (1 excluded).")
        if self.balance is not None and not 0 < self.balance < 1:
            raise InputError(f"loss.balance={self.balance} must lie between 0 and 1; leave it out to draw it.")
        if self.gamma < 0 or self.most_positive_weight < 1 or self.alpha > 1:
            raise InputError("loss.gamma must be 0 or more, loss.most_positive_weight 1 or more, loss.alpha at most 1.")
        unused = {"balance": "cosine_bce", "gamma": "focal", "alpha": "focal", "most_positive_weight": "weighted_bce"}
        for field, loss in unused.items():
            if self.name != loss and getattr(self, field) != type(self).__dataclass_fields__[field].default:
                raise InputError(
                    f"loss.{field} belongs to loss.name={loss}, not to {self.name}; leave one of them out."
                )

    @property
    def kind(self) -> LossKind:
        return LOSSES[self.name]


def make_loss(settings: LossSettings, class_shares: Tensor) -> Loss:
    """class_shares : (c,) sum of each class's targets over the training recordings / their number, in 0..1."""
    if settings.name == "softmax":
        return softmax_cross_entropy
    if settings.name == "cosine_bce":
        return lambda logits, targets: cosine_bce(logits, targets, settings.balance)
    if settings.name == "focal":
        return lambda logits, targets: focal(logits, targets, settings.gamma, settings.alpha)
    if settings.name == "weighted_bce":
        shares = class_shares.clamp(1e-6, 1.0)
        weight = ((1 - shares) / shares).clamp(1.0, settings.most_positive_weight)
        return lambda logits, targets: binary_cross_entropy_with_logits(
            logits, targets, pos_weight=weight.to(logits.device)
        )
    return binary_cross_entropy_with_logits


def leaving_out_unknown(loss: Loss) -> Loss:
    """The same loss, to which targets that are NaN bring nothing, nor any gradient; for losses of sigmoids."""

    def known_only(logits: Tensor, targets: Tensor) -> Tensor:
        unknown = targets.isnan()
        return loss(logits.masked_fill(unknown, _SURELY_NOT), targets.masked_fill(unknown, 0.0))

    return known_only


def smoothed(targets: Tensor, smoothing: float) -> Tensor:
    """targets : (n, c).  Returns (1 - smoothing) * targets + smoothing / c."""
    return targets if smoothing == 0 else (1 - smoothing) * targets + smoothing / targets.shape[1]


def cosine_bce(logits: Tensor, targets: Tensor, balance: float | None = None) -> Tensor:
    """lambda * y * -log sigma(z) + (1 - lambda) * (1 - y) * -log sigma(-z), summed over classes, mean over windows.

    logits : (n, c) scaled cosines z = r * cos;  balance : lambda; None draws one from U(0, 1) for the batch
    Source: the balanced loss of the BirdCLEF 2023 reference, in its form for mixed labels.
    """
    share = torch.rand((), device=logits.device) if balance is None else balance
    terms = share * targets * softplus(-logits) + (1 - share) * (1 - targets) * softplus(logits)
    return terms.sum(dim=1).mean()


def focal(logits: Tensor, targets: Tensor, gamma: float, alpha: float) -> Tensor:
    """Binary cross-entropy times (1 - p of the right answer) ** gamma, for targets between 0 and 1 too.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", through torchvision.
    """
    from torchvision.ops import sigmoid_focal_loss

    return sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma, reduction="mean")


def softmax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy to each window's labels, sharing it evenly; a window without any should look like all alike.

    Source: the entropic open-set loss of Dhamija et al. 2018, "Reducing Network Agnostophobia".
    """
    sums = targets.sum(dim=1, keepdim=True)
    shares = torch.where(sums > _NO_LABEL, targets / sums.clamp_min(_NO_LABEL), 1 / targets.shape[1])
    return cross_entropy(logits, shares)
