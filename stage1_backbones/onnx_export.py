"""A trained network as an ONNX graph, for engines that are faster than the one it was trained with."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from stage1_backbones.network import TrainableNetwork

__all__ = ["OPSET", "onnx_of"]

OPSET = 17


class _WithOutputs(nn.Module):
    """Inputs -> embedding, and logits where they are wanted."""

    def __init__(self, network: TrainableNetwork, with_logits: bool, front_end: nn.Module | None) -> None:
        super().__init__()
        self.network, self.with_logits = network, with_logits
        self.front_end = front_end or nn.Identity()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        embedding = self.network.features_of(self.front_end(inputs))
        return (embedding, self.network.classifier(embedding)) if self.with_logits else embedding


def onnx_of(
    network: TrainableNetwork,
    example: torch.Tensor,
    *,
    with_logits: bool = False,
    front_end: nn.Module | None = None,
    dynamic: bool = False,
) -> bytes:
    """The network's graph: `inputs` -> `embedding` (and `logits`).

    example    (n, ...) what the first layer sees; n becomes the graph's fixed batch unless `dynamic`
    front_end  what turns the graph's input into that, to be put inside the graph; `example` is then its input
    """
    outputs = ["embedding", *(["logits"] if with_logits else [])]
    buffer: Any = io.BytesIO()
    with _quiet_exporter(), torch.inference_mode(False), torch.no_grad():
        torch.onnx.export(
            _WithOutputs(network, with_logits, front_end).eval(),
            (example.clone(),),
            buffer,
            input_names=["inputs"],
            output_names=outputs,
            opset_version=OPSET,
            dynamic_axes={name: {0: "windows"} for name in ("inputs", *outputs)} if dynamic else None,
            dynamo=False,  # the newer exporter needs one more package, and gives nothing here
        )
    return buffer.getvalue()


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns of its age and of batches of other sizes; parity is measured instead."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
