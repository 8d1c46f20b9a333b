"""What is known of a backbone without running it: read from its folder, in no time and without torch."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np

from embeddings.contract import Fingerprint, Heard
from embeddings.errors import InputError
from embeddings.files import read_json, write_json
from embeddings.splits import Split

__all__ = ["FORMAT", "WEIGHTS", "DescribedBackbone", "weights_digest"]

FORMAT = "cisticola-backbone-1"
WEIGHTS = "weights.safetensors"


class DescribedBackbone:
    """A trained backbone as its folder describes it; follows `BlockSource`.

    Whoever only plans an extraction, or finds that nothing is left to do, need not wait for a network to load.
    """

    def __init__(self, folder: Path) -> None:
        """Raises InputError when the folder is not a whole backbone."""
        self.folder = Path(folder)
        described = read_json(self.folder / "backbone.json", what="backbone description")
        try:
            self.name: str = described["name"]
            self.sample_rate_hz: int = described["sample_rate_hz"]
            self.window_s: float = described["window_s"]
            self.dim: int = described["dim"]
            self.fingerprint = Fingerprint(described["fingerprint"])
            self.split = Split.from_json(described["split"]) if described["split"] else None
            self._weights_sha256: str = described["fingerprint"]["weights"]
        except (KeyError, TypeError) as error:
            raise InputError(f"backbone {self.folder} is damaged: {error}. Copy or train it again.") from None
        self.heard = Heard.from_json(read_json(self.folder / "heard.json", what="list of heard recordings"))

    def save(self, folder: Path) -> None:
        """Copy the backbone. Raises InputError when its weights are not those that it describes."""
        source = self.folder / WEIGHTS
        if weights_digest(source) != self._weights_sha256:
            raise InputError(
                f"{source} is not the file that backbone.json describes. Copy or train the backbone again."
            )
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / WEIGHTS)
        shutil.copyfile(self.folder / "heard.json", folder / "heard.json")
        described = read_json(self.folder / "backbone.json", what="backbone description")
        write_json(folder / "backbone.json", {**described, "name": self.name})


def weights_digest(path: Path) -> str:
    """SHA-256 over the names, shapes, types and numbers of a safetensors file, whatever their order in it.

    Raises InputError when the file is missing or cut short.
    """
    from safetensors import SafetensorError, safe_open

    digest = hashlib.sha256()
    try:
        with safe_open(str(path), framework="numpy") as tensors:
            for name in sorted(tensors.keys()):
                value = tensors.get_tensor(name)
                digest.update(f"{name} {value.shape} torch.{value.dtype.name};".encode())
                digest.update(np.ascontiguousarray(value).data)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; the backbone is not complete. Copy or train it again.") from None
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}. Copy or train the backbone again.") from None
    return digest.hexdigest()
