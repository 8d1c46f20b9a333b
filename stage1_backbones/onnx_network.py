"""Somebody else's network as an ONNX file, with a small card that says what it hears."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from embeddings.contract import Fingerprint, Heard
from embeddings.errors import InputError
from embeddings.files import read_json
from embeddings.settings import from_fields
from stage1_backbones.frozen import require_same_backbone, require_waveforms, save_description
from stage1_backbones.inner_windows import OURS_S, inner_starts_s, inner_windows
from stage1_backbones.machine import usable_cores

__all__ = ["OnnxCard", "OnnxNetwork", "load", "load_named"]

_FILE = "network.onnx"
_POOLS = ("", "mean")


@dataclass(frozen=True)
class OnnxCard:
    """What stands beside an ONNX file, as JSON.

    name            of the block
    sample_rate_hz  that the network expects;  window_s: seconds that go in at once
    output          which of the graph's outputs is the embedding
    pool            "mean" over all axes between windows and numbers; "" when there is none
    licence         of the weights, shown to whoever uses them;  training_data: a sentence on what it has heard
    """

    name: str
    sample_rate_hz: int
    window_s: float
    output: str
    pool: str = ""
    licence: str = ""
    training_data: str = ""

    def __post_init__(self) -> None:
        if not 1000 <= self.sample_rate_hz <= 1_000_000:
            raise InputError(f"card: sample_rate_hz={self.sample_rate_hz} is no sample rate; such as 32000.")
        if not 0 < self.window_s <= 3600:
            raise InputError(f"card: window_s={self.window_s} must be above 0, in seconds.")
        if self.pool not in _POOLS:
            raise InputError(f"card: pool={self.pool!r} is not known; leave it out, or mean.")

    @classmethod
    def beside(cls, path: Path) -> OnnxCard:
        """The card of `path`: the same name with .json. Raises InputError that says what is missing in it."""
        place = path.with_suffix(".json")
        if not place.is_file():
            raise InputError(
                f"{path} has no card; write {place.name} beside it, such as "
                '{"name": "net", "sample_rate_hz": 32000, "window_s": 5.0, "output": "embedding"}'
            )
        return from_fields(cls, read_json(place, what="ONNX card"), f"card {place}:")


class OnnxNetwork:
    """A graph from waveforms to vectors, run by ONNX Runtime window by window.

    A network whose windows are shorter than 5 s hears a window of 5 s as the mean over its own, evenly spaced; one with
    longer windows makes a store of its own length. The graph's input is (windows, samples), (windows, 1, samples) or
    (samples).
    """

    engine = "onnxruntime"
    engines = ("onnxruntime",)

    def __init__(self, path: Path, card: OnnxCard) -> None:
        """Raises InputError when the file is no graph, or the card and the graph contradict each other."""
        if find_spec("onnxruntime") is None:
            raise InputError("an ONNX file needs ONNX Runtime; get it with: pip install 'cisticola[fast]'")
        self._path, self._card = path, card
        self.name = card.name
        self.sample_rate_hz = card.sample_rate_hz
        self.window_s = max(OURS_S, card.window_s)
        self.licence_notice = f"weights of {path.name}: {card.licence}" if card.licence else ""
        self._weights_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self._threads = 1
        self._session = _session(path)
        self._input, self._shape = self._require_input()
        self.dim = self._require_output()

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            {
                "kind": "onnx",
                "weights": self._weights_sha256,
                "front_end": "inside the graph",
                "output": self._card.output,
                "pool": self._card.pool,
                "sample_rate_hz": self.sample_rate_hz,
                "window_s": self.window_s,
                "inner_window_s": self._card.window_s,
                "inner_starts_s": list(inner_starts_s(self._card.window_s, self.window_s)),
                "inner_pooling": "mean",
            }
        )

    @property
    def heard(self) -> Heard:
        return Heard(unpublished=self._card.training_data or f"What {self._card.name} was trained on is not known.")

    def use_engine(self, name: str, threads: int | None = None) -> None:
        """There is one engine; `threads` windows are heard at a time."""
        if name != self.engine:
            raise InputError(f"engine {name!r} cannot run an ONNX file; there is {self.engine}.")
        self._threads = threads or usable_cores()

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        """Embed windows.

        waveforms : (n, window_s * sample_rate_hz) float32 in [-1, 1]
        Returns float32 (n, dim).
        Raises InputError when the shape is another.
        """
        waveforms = require_waveforms(waveforms, self)
        if self._threads == 1 or len(waveforms) < 2:
            vectors = [self._vector(waveform) for waveform in waveforms]
        else:
            with ThreadPoolExecutor(self._threads, thread_name_prefix="onnx") as pool:
                vectors = list(pool.map(self._vector, waveforms))
        return np.array(vectors, np.float32).reshape(len(waveforms), self.dim)

    def save(self, folder: Path) -> None:
        """Copy the graph, with a description that holds the card."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._path, folder / _FILE)
        save_description(self, folder, kind="onnx", settings=asdict(self._card), licence=self._card.licence)

    def _vector(self, waveform: np.ndarray) -> np.ndarray:
        own = inner_windows(waveform, self._card.window_s, self.sample_rate_hz)
        return np.mean([self._run(samples) for samples in own], axis=0)

    def _run(self, samples: np.ndarray) -> np.ndarray:
        (found,) = self._session.run([self._card.output], {self._input: samples.reshape(self._shape)})
        if self._card.pool == "mean":
            found = found.reshape(-1, found.shape[-1]).mean(axis=0)
        return np.asarray(found, np.float32).reshape(-1)

    def _require_input(self) -> tuple[str, tuple[int, ...]]:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            kinds = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise InputError(f"{self._path} takes {kinds}; one float32 waveform is expected.")
        shape, n_own = inputs[0].shape, round(self._card.window_s * self.sample_rate_hz)
        wanted = {1: (n_own,), 2: (1, n_own), 3: (1, 1, n_own)}.get(len(shape))
        if wanted is None or any(isinstance(s, int) and s not in (w, -1) for s, w in zip(shape, wanted, strict=True)):
            raise InputError(
                f"{self._path} takes an array {shape}, but its card says {self._card.window_s:g} s at "
                f"{self.sample_rate_hz} Hz, {n_own} samples. Correct window_s or sample_rate_hz; a graph of the "
                "waveform, one window at a time or any number, is expected."
            )
        return inputs[0].name, wanted

    def _require_output(self) -> int:
        """The length of a vector, by hearing silence once."""
        names = [output.name for output in self._session.get_outputs()]
        if self._card.output not in names:
            raise InputError(
                f"{self._path} has no output {self._card.output!r}, which its card names; it has {', '.join(names)}."
            )
        n_own = round(self._card.window_s * self.sample_rate_hz)
        try:
            (found,) = self._session.run(
                [self._card.output], {self._input: np.zeros(n_own, np.float32).reshape(self._shape)}
            )
        except Exception as error:  # ONNX Runtime's errors share no base
            raise InputError(f"{self._path} cannot hear {n_own} samples: {str(error).splitlines()[0]}") from None
        found = np.asarray(found)
        several = self._card.pool == "" and found.size != found.shape[-1]
        if found.dtype.kind != "f" or not found.ndim or several:
            raise InputError(
                f"output {self._card.output!r} of {self._path} is {found.dtype} {found.shape}; one float vector a "
                'window is expected. "pool": "mean" in the card averages what stands between.'
            )
        return int(found.shape[-1])


def load_named(reference: str, device: str) -> OnnxNetwork:
    """A network from a `.onnx` file that has its card beside it. Raises InputError when either is wrong."""
    path = Path(reference)
    return OnnxNetwork(path, OnnxCard.beside(path))


def load(folder: Path | None, device: str) -> OnnxNetwork:
    """A network that was saved into `folder`. Raises InputError, or ContractError when its graph was exchanged."""
    if folder is None:
        raise InputError("an ONNX network is named by its file: --backbone path/to/network.onnx")
    described = read_json(folder / "backbone.json", what="backbone description")
    settings: Mapping[str, Any] = described.get("settings", {})
    network = OnnxNetwork(folder / _FILE, from_fields(OnnxCard, settings, f"{folder / 'backbone.json'}: settings"))
    require_same_backbone(network, folder)
    return network


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # windows side by side use the cores better
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base
        raise InputError(f"{path} is not a network that ONNX Runtime can load: {str(error).splitlines()[0]}") from None
