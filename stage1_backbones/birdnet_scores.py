"""BirdNET V2.4's own class scores as a block."""

from __future__ import annotations

from pathlib import Path

from stage1_backbones.birdnet import BirdNet
from stage1_backbones.frozen import require_same_backbone

__all__ = ["BirdNetScores", "load"]


class BirdNetScores(BirdNet):
    """BirdNET's logits of its 6,522 classes, in the order of its list, averaged over its windows as its vector is.

    One linear layer reads them off the vector, so they hold nothing that it lacks; what they bring to a head with few
    recordings is what thousands of hours taught that layer. Beside the vector's block the network runs twice.
    """

    name = "birdnet_scores"
    dim = 6522
    _output, _output_name = "scores", "class logits"


def load(folder: Path | None, device: str) -> BirdNetScores:
    """As `birdnet.load`, which raises the same errors."""
    backbone = BirdNetScores()
    if folder is not None:
        require_same_backbone(backbone, folder)
    return backbone
