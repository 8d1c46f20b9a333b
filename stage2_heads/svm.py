"""Linear support vectors for many species at once."""

from __future__ import annotations

from dataclasses import dataclass

from embeddings.errors import InputError
from stage2_heads.linear import LinearHead, LinearSettings

__all__ = ["SvmHead", "SvmSettings"]


@dataclass(frozen=True)
class SvmSettings(LinearSettings):
    """As every linear head's, and loss: "squared_hinge" or "hinge"."""

    loss: str = "squared_hinge"

    def __post_init__(self) -> None:
        if self.loss not in ("squared_hinge", "hinge"):
            raise InputError(f"loss={self.loss!r} is not one of squared_hinge, hinge.")
        super().__post_init__()


class SvmHead(LinearHead):
    """One-against-the-rest linear SVM; decisions are signed margins."""

    kind = "svm"
    settings_type = SvmSettings
    default_slope = 3.0  # puts the margins -1 and 1 at .05 and .95
    settings: SvmSettings

    @property
    def loss(self) -> str:
        return self.settings.loss
