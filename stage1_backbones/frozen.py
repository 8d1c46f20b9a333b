"""What the frozen backbones share: how one is described in a folder, without any weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embeddings.contract import Backbone, Fingerprint
from embeddings.errors import ContractError, InputError
from embeddings.files import read_json, write_json

__all__ = ["require_same_backbone", "require_waveforms", "save_description"]

_FORMAT = 1


def save_description(backbone: Backbone, folder: Path, *, kind: str, settings: Mapping[str, Any], licence: str) -> None:
    """Write `backbone.json` and `heard.json`: enough to know the block again, nothing of anybody's weights."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "backbone.json",
        {
            "format": _FORMAT,
            "kind": kind,
            "name": backbone.name,
            "settings": dict(settings),
            "labels": [],
            "sample_rate_hz": backbone.sample_rate_hz,
            "window_s": backbone.window_s,
            "dim": backbone.dim,
            "fingerprint": dict(backbone.fingerprint.fields),
            "provenance": {"frozen": True, "licence": licence},
            "split": None,
        },
    )
    write_json(folder / "heard.json", backbone.heard.to_json())


def require_same_backbone(backbone: Backbone, folder: Path) -> None:
    """Refuse to stand in for a saved backbone whose vectors mean something else.

    Raises ContractError that names the differing fields; InputError when the folder's description cannot be read.
    """
    path = folder / "backbone.json"
    described = read_json(path, what="backbone description")
    fields = described.get("fingerprint")
    if not isinstance(fields, dict):
        raise InputError(f"backbone description {path} has no fingerprint; it was edited. Save the backbone anew.")
    saved = Fingerprint(fields)
    if saved.digest != backbone.fingerprint.digest:
        raise ContractError(
            f"{folder} was saved from another {backbone.name} than the one installed here: "
            f"{'; '.join(saved.differences(backbone.fingerprint))}. Extract anew with the installed one."
        )


def require_waveforms(waveforms: np.ndarray, backbone: Backbone) -> np.ndarray:
    """The windows as contiguous float32.  Raises InputError unless they are (n, window_s * sample_rate_hz)."""
    n_samples = round(backbone.window_s * backbone.sample_rate_hz)
    waveforms = np.asarray(waveforms)
    if waveforms.ndim != 2 or waveforms.shape[1] != n_samples:
        raise InputError(
            f"{backbone.name} hears windows of {backbone.window_s:g} s at {backbone.sample_rate_hz} Hz, an array "
            f"(n, {n_samples}); one of shape {waveforms.shape} was given."
        )
    return np.ascontiguousarray(waveforms, dtype=np.float32)
