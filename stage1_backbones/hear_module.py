"""A Python module with the three functions of the HEAR 2021 challenge, as a block."""

from __future__ import annotations

import hashlib
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embeddings.contract import Fingerprint, Heard
from embeddings.errors import InputError
from embeddings.files import read_json
from stage1_backbones.frozen import require_waveforms, save_description
from stage1_backbones.inner_windows import OURS_S
from stage1_backbones.runtimes import one_torch_thread

__all__ = ["HearModule", "load", "load_named"]

_FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")


class HearModule:
    """`get_scene_embeddings` of each window of 5 s.

    Source: HEAR 2021 (Turian et al. 2022), the common API: `load_model(path)` gives an object with `sample_rate` and
    `scene_embedding_size`; `get_scene_embeddings(audio (n, samples) in [-1, 1], model)` gives (n, size).
    """

    window_s = OURS_S

    def __init__(self, module: str, weights: str, device: str) -> None:
        """module : as in `import`;  weights : a file for its `load_model`, or "".

        Importing the module runs its code: this is only ever done for a name that the user gave.
        Raises InputError when it cannot be imported, lacks a function, or gives vectors of another shape than it says.
        """
        self._module_name, self._weights, self._device = module, weights, device
        self._module = _imported(module)
        missing = [name for name in _FUNCTIONS if not callable(getattr(self._module, name, None))]
        if missing:
            raise InputError(
                f"module {module} lacks {', '.join(missing)}: HEAR's API asks for {', '.join(_FUNCTIONS)}."
            )
        if weights and not Path(weights).is_file():
            raise InputError(f"hear:{module}:{weights}: there is no such file of weights.")
        try:
            self._model: Any = self._module.load_model(weights) if weights else self._module.load_model()
        except Exception as error:  # somebody else's code
            raise InputError(f"load_model of {module} failed: {type(error).__name__}: {error}") from error
        self.name = module.rpartition(".")[2]
        self.sample_rate_hz = self._require_number("sample_rate", 1000)
        self.dim = self._require_number("scene_embedding_size", 1)
        if isinstance(self._model, torch.nn.Module):
            self._model.to(device).eval()
        self._require_vectors()

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            {
                "kind": "hear",
                "module": self._module_name,
                "code": _code_digest(self._module),
                "weights": hashlib.sha256(Path(self._weights).read_bytes()).hexdigest() if self._weights else "its own",
                "front_end": "inside the module",
                "output": "scene embedding",
                "sample_rate_hz": self.sample_rate_hz,
                "window_s": self.window_s,
            }
        )

    @property
    def heard(self) -> Heard:
        return Heard(unpublished=f"What {self._module_name} was trained on is not known.")

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        """Embed windows, one by one, so that none depends on its neighbours.

        waveforms : (n, 5 * sample_rate_hz) float32 in [-1, 1]
        Returns float32 (n, dim).
        Raises InputError when the shape is another, or the module gives something else than it promised.
        """
        waveforms = require_waveforms(waveforms, self)
        vectors = np.empty((len(waveforms), self.dim), np.float32)
        with torch.inference_mode(), one_torch_thread():
            for vector, waveform in zip(vectors, torch.from_numpy(waveforms), strict=True):
                vector[:] = self._vector(waveform[None].to(self._device))
        return vectors

    def save(self, folder: Path) -> None:
        """Write a description: whoever embeds more with it must name the module again."""
        settings = {"module": self._module_name}
        save_description(self, folder, kind="hear", settings=settings, licence="the module's")

    def _vector(self, audio: torch.Tensor) -> np.ndarray:
        try:
            found = self._module.get_scene_embeddings(audio, self._model)
        except Exception as error:  # somebody else's code
            raise InputError(
                f"get_scene_embeddings of {self._module_name} failed on {tuple(audio.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != (1, self.dim):
            shape = tuple(found.shape) if hasattr(found, "shape") else type(found).__name__
            raise InputError(
                f"get_scene_embeddings of {self._module_name} gave {shape} for one window, not (1, {self.dim}): "
                f"its scene_embedding_size is {self.dim}."
            )
        return found[0].float().cpu().numpy()

    def _require_vectors(self) -> None:
        """Hear a window of noise before any work."""
        n_samples = round(self.window_s * self.sample_rate_hz)
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, (1, n_samples)).astype(np.float32)
        if not np.isfinite(self.embed(noise)).all():
            raise InputError(f"get_scene_embeddings of {self._module_name} gave values that are not finite for noise.")

    def _require_number(self, attribute: str, least: int) -> int:
        value = getattr(self._model, attribute, None)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1_000_000:
            raise InputError(
                f"{attribute} of {self._module_name}'s model is {value!r}; a whole number from {least} is expected."
            )
        return value


def load_named(reference: str, device: str) -> HearModule:
    """`MODULE` or `MODULE:WEIGHTS`, as the user named it."""
    module, _, weights = reference.partition(":")
    return HearModule(module, weights, device)


def load(folder: Path | None, device: str) -> HearModule:
    """Never imports what a file names: raises InputError that says how to name the module."""
    if folder is None:
        raise InputError("a HEAR module is named with its import path: --backbone hear:package.module[:weights]")
    described = read_json(folder / "backbone.json", what="backbone description")
    module = described.get("settings", {}).get("module", "MODULE")
    raise InputError(
        f"block {described.get('name')!r} was made by the Python module {module}, which is only run when you name it: "
        f"--backbone {described.get('name')}=hear:{module}"
    )


def _imported(module: str) -> Any:
    sys.path.insert(0, "")  # as `python -m` does: modules beside the user
    try:
        return import_module(module)
    except Exception as error:  # somebody else's code
        raise InputError(
            f"hear:{module} cannot be imported: {type(error).__name__}: {error}. Install it, or run from its folder."
        ) from error
    finally:
        sys.path.remove("")


def _code_digest(module: Any) -> str:
    """SHA-256 of the module's own file: other code may mean other numbers."""
    path = getattr(module, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else "unknown"
