"""How a trained network runs on each engine: compiled once, then batches of one fixed shape."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch

from embeddings.errors import InputError
from stage1_backbones.machine import usable_cores
from stage1_backbones.network import TrainableNetwork

__all__ = [
    "REFERENCE",
    "Runtime",
    "RuntimeFactory",
    "WindowRunner",
    "cpu_has_bf16",
    "one_torch_thread",
    "openvino_core",
    "usable_engines",
]

REFERENCE = "torch"
_BATCH_WINDOWS = 16


class Runtime(Protocol):
    """A compiled network.

    batch   windows that go in at once, always; what is missing is filled with zeros
    device  where the front end runs
    """

    batch: int
    device: str

    def __call__(self, inputs: torch.Tensor) -> np.ndarray:
        """inputs : (batch, ...) what the first layer sees.  Returns float32 (batch, dim)."""
        ...


def usable_engines(device: str) -> tuple[str, ...]:
    """Engines that can run here, expected fastest first, the reference last."""
    if device != "cpu":
        return (device.split(":")[0], REFERENCE)
    engines = []
    if find_spec("openvino") is not None:
        engines += ["openvino-bf16", "openvino"] if cpu_has_bf16() else ["openvino"]
    if find_spec("onnxruntime") is not None:
        engines.append("onnxruntime")
    if find_spec("onnx") is None:  # torch needs it to export the graph that both of them read
        engines = []
    return (*engines, REFERENCE)


class RuntimeFactory:
    """Compiles a network for one engine or another; the graph that they read is made once."""

    def __init__(self, network: TrainableNetwork, device: str) -> None:
        self._network, self._device = network, device
        self._graph = b""

    def build(self, engine: str, threads: int | None) -> Runtime:
        """threads : cores that it may use; None leaves that to the engine.

        Raises InputError when the engine is not one of `usable_engines(device)`, with the remedy.
        """
        if engine not in usable_engines(self._device):
            raise InputError(
                f"engine {engine!r} cannot run here; there are {', '.join(usable_engines(self._device))}. OpenVINO and "
                f"ONNX Runtime come with: pip install 'cisticola[fast]'"
            )
        if engine in (REFERENCE, self._device.split(":")[0]):
            return _TorchRuntime(self._network, "cpu" if engine == REFERENCE else self._device)
        if not self._graph:
            from stage1_backbones.onnx_export import onnx_of

            network = self._network.to("cpu")
            silence = torch.zeros(1, round(network.window_s * network.sample_rate_hz))
            self._graph = onnx_of(network, network.inputs(silence), dynamic=True)
        if engine == "onnxruntime":
            return _OnnxRuntime(self._graph, threads)
        return _OpenVinoRuntime(self._graph, threads, "bf16" if engine.endswith("bf16") else "f32")


class _TorchRuntime:
    """Eager torch. On a CPU one window at a time: in a batch, a window's last bits would depend on its place."""

    def __init__(self, network: TrainableNetwork, device: str) -> None:
        self._network, self.device = network.to(device), device
        self.batch = 1 if device == "cpu" else _BATCH_WINDOWS

    def __call__(self, inputs: torch.Tensor) -> np.ndarray:
        return self._network.features_of(inputs.to(self.device)).float().cpu().numpy()


class _OnnxRuntime:
    batch, device = _BATCH_WINDOWS, "cpu"

    def __init__(self, graph: bytes, threads: int | None) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: torch.Tensor) -> np.ndarray:
        return self._session.run(None, {"inputs": inputs.cpu().numpy()})[0]


class _OpenVinoRuntime:
    batch, device = _BATCH_WINDOWS, "cpu"

    def __init__(self, graph: bytes, threads: int | None, precision: str) -> None:
        core = openvino_core()
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        model = core.read_model(graph)
        shape = model.inputs[0].get_partial_shape()
        shape[0] = self.batch
        model.reshape(shape)
        self._model = core.compile_model(model, "CPU", settings)

    def __call__(self, inputs: torch.Tensor) -> np.ndarray:
        return self._model(inputs.cpu().numpy())[0].copy()


def openvino_core() -> Any:
    """OpenVINO's entrance. Its conversion tools, which report usage over the network, are not used."""
    import openvino

    return openvino.Core()


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 by itself; emulated, it is slower than float32."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class WindowRunner:
    """Takes windows through front end and network, with so many threads.

    On a CPU each window goes through the front end by itself in one thread, several side by side: torch's own threads
    share out one window's work, and its last bits would then depend on their number.
    """

    def __init__(self, network: TrainableNetwork, runtime: Runtime, threads: int | None) -> None:
        self._network, self._runtime = network, runtime
        n = threads or usable_cores()
        self._pool = ThreadPoolExecutor(n, thread_name_prefix="front_end") if n > 1 else None

    def __call__(self, waveforms: np.ndarray) -> np.ndarray:
        """waveforms : (n, n_samples) float32.  Returns float32 (n, dim)."""
        vectors = np.empty((len(waveforms), self._network.dim), np.float32)
        if self._runtime.device != "cpu":
            batch = self._runtime.batch
            for start in range(0, len(waveforms), batch):
                inputs = self._inputs(waveforms[start : start + batch])
                vectors[start : start + len(inputs)] = self._run(inputs)
            return vectors
        with one_torch_thread():
            if self._runtime.batch == 1:
                for i, vector in enumerate(self._map(lambda one: self._run(self._inputs(one)), waveforms)):
                    vectors[i] = vector[0]
                return vectors
            for start in range(0, len(waveforms), self._runtime.batch):
                chunk = waveforms[start : start + self._runtime.batch]
                vectors[start : start + len(chunk)] = self._run(torch.cat(list(self._map(self._inputs, chunk))))
        return vectors

    def _inputs(self, waveforms: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            return self._network.inputs(torch.from_numpy(waveforms).to(self._runtime.device))

    def _run(self, inputs: torch.Tensor) -> np.ndarray:
        """The network on one batch, filled up with zeros."""
        n = len(inputs)
        with torch.inference_mode():
            if n < self._runtime.batch:
                inputs = torch.cat([inputs, inputs.new_zeros(self._runtime.batch - n, *inputs.shape[1:])])
            return self._runtime(inputs)[:n]

    def _map(self, function: Callable[[np.ndarray], Any], waveforms: np.ndarray) -> Iterable[Any]:
        each = (waveforms[i : i + 1] for i in range(len(waveforms)))
        return self._pool.map(function, each) if self._pool else map(function, each)


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch works in the calling thread only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
