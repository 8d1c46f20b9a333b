"""A trained backbone on disk and in use: safetensors and JSON, all that is needed to embed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embeddings.contract import Fingerprint, Heard
from embeddings.errors import InputError
from embeddings.files import read_json, write_atomically, write_json
from embeddings.splits import Split
from stage1_backbones.described import FORMAT, WEIGHTS
from stage1_backbones.network import TrainableNetwork
from stage1_backbones.runtimes import REFERENCE, RuntimeFactory, WindowRunner, usable_engines

__all__ = ["TrainedBackbone", "resolve_device"]


class TrainedBackbone:
    """A network that embeds; follows the `Backbone` protocol.

    It runs batches of one fixed shape, the last one padded with zeros, so that a window's vector does not depend on
    which windows came with it, nor on how many. It starts on plain torch; `use_engine` changes that.
    """

    def __init__(
        self,
        network: TrainableNetwork,
        *,
        name: str,
        labels: Sequence[str],
        heard: Heard,
        split: Split | None,
        provenance: Mapping[str, Any],
        device: str = "cpu",
        folder: Path | None = None,
    ) -> None:
        self.network = network.eval().to(device)
        self.name = name
        self.labels = tuple(labels)
        self.sample_rate_hz = network.sample_rate_hz
        self.window_s = network.window_s
        self.dim = network.dim
        self.split = split
        self.provenance = dict(provenance)
        self.folder = folder
        self._heard = heard
        self._device = device
        self._weights_sha256 = _digest(self._state())
        self.engine = REFERENCE if device == "cpu" else device.split(":")[0]
        self._runtimes = RuntimeFactory(self.network, device)
        self._runner: WindowRunner | None = None

    @property
    def heard(self) -> Heard:
        return self._heard

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            {
                **self.network.fingerprint_fields(),
                "weights": self._weights_sha256,
                "sample_rate_hz": self.sample_rate_hz,
                "window_s": self.window_s,
            }
        )

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines that can run it here, expected fastest first, the reference last."""
        return usable_engines(self._device)

    def use_engine(self, name: str, threads: int | None = None) -> None:
        """Run on another engine from now on, with at most so many threads. Raises InputError when it cannot be had."""
        self._runner = WindowRunner(self.network, self._runtimes.build(name, threads), threads)
        self.engine = name

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        """waveforms : (n, window_s * sample_rate_hz) float32 in [-1, 1].  Returns float32 (n, dim)."""
        n_samples = round(self.window_s * self.sample_rate_hz)
        if waveforms.ndim != 2 or waveforms.shape[1] != n_samples:
            raise InputError(f"waveforms have shape {waveforms.shape}; (n, {n_samples}) was expected by {self.name!r}.")
        if self._runner is None:
            self.use_engine(self.engine)
        assert self._runner is not None
        return self._runner(np.ascontiguousarray(waveforms, dtype=np.float32))

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Probabilities of its own classifier. vectors : (n, dim) float32.  Returns float32 (n, len(labels))."""
        with torch.inference_mode():
            device = next(self.network.classifier.parameters()).device
            logits = self.network.classifier(torch.from_numpy(vectors).to(device))
            return self.network.scores_of(logits.cpu()).float().numpy()

    def save(self, folder: Path) -> None:
        """Write backbone.json, weights.safetensors and heard.json."""
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        contents = save(self._state())  # written by us: save_file leaves a file that only its owner may read
        write_atomically(folder / WEIGHTS, lambda temporary: _write_bytes(temporary, contents))
        write_json(folder / "heard.json", self._heard.to_json())
        write_json(
            folder / "backbone.json",
            {
                "format": FORMAT,
                "kind": self.network.kind,
                "name": self.name,
                "settings": self.network.settings_json(),
                "labels": list(self.labels),
                "sample_rate_hz": self.sample_rate_hz,
                "window_s": self.window_s,
                "dim": self.dim,
                "fingerprint": dict(self.fingerprint.fields),
                "split": self.split.to_json() if self.split else None,
                "provenance": self.provenance,
            },
        )

    @classmethod
    def load(cls, folder: Path, description: Mapping[str, Any], create: Any, device: str) -> TrainedBackbone:
        """Read what `save` wrote. Raises InputError when a file is cut short or the weights are not those described."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / WEIGHTS
        try:
            network = create(description["settings"], len(description["labels"]), "none")
            network.load_state_dict(load_file(path))
            backbone = cls(
                network,
                name=description["name"],
                labels=description["labels"],
                heard=Heard.from_json(read_json(folder / "heard.json", what="list of heard recordings")),
                split=Split.from_json(description["split"]) if description["split"] else None,
                provenance=description["provenance"],
                device=device,
                folder=folder,
            )
            expected = description["fingerprint"]["weights"]
        except FileNotFoundError:
            raise InputError(f"{path} is missing; the backbone is not complete. Copy or train it again.") from None
        except (SafetensorError, RuntimeError, KeyError, TypeError) as error:
            raise InputError(f"backbone {folder} is damaged: {error}. Copy or train it again.") from None
        if backbone._weights_sha256 != expected:
            raise InputError(f"{path} is not the file that backbone.json describes. Copy or train the backbone again.")
        return backbone

    def _state(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}


def resolve_device(device: str) -> str:
    """ "auto" becomes the best device there is; any other name must be usable. Raises InputError otherwise."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def _write_bytes(path: Path, contents: bytes) -> None:
    path.write_bytes(contents)


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and numbers; the same for equal weights whatever file holds them."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)} {state[name].dtype};".encode())
        digest.update(state[name].numpy().data)
    return digest.hexdigest()
