"""What extraction is compared with: the plain loops that people write today, and what each stage costs one core.

    python -m benchmarks.peers {efficientnet|birdnet|parts} FOLDER [BACKBONE] [ENGINE]

Each prints one line of JSON. Loading and a warm-up are never timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["main", "parts", "plain_birdnet", "plain_efficientnet"]

_WINDOW_S = 5.0


def plain_efficientnet(folder: Path, backbone: str, threads: int) -> dict[str, Any]:
    """A loop of `librosa.load` and the network in eager float32, a file's windows at once, on `threads` threads.

    The log-mel picture is ours, in torch: librosa's would make this loop slower still.
    """
    import librosa
    import torch

    from stage1_backbones.registry import load_backbone

    torch.set_num_threads(threads)
    network: Any = load_backbone(backbone, device="cpu")
    network = network.network
    rate_hz = network.sample_rate_hz

    def embed(path: Path) -> int:
        samples, _ = librosa.load(path, sr=rate_hz, mono=True)
        windows = _windows(samples, round(_WINDOW_S * rate_hz))
        with torch.inference_mode():
            vectors = network.features(torch.from_numpy(windows)).numpy()
        return len(vectors)

    return _timed(embed, folder)


def plain_birdnet(folder: Path, threads: int) -> dict[str, Any]:
    """A loop of `librosa.load` and the tflite interpreter fed window by window, as birdnetlib does.

    Two of BirdNET's own 3 s windows for each of ours, at 0 and 2 s, so that both sides give the same vectors.
    """
    import librosa
    from ai_edge_litert.interpreter import Interpreter

    from stage1_backbones.birdnet_graph import BirdnetGraph, locate_weights

    weights = locate_weights()
    assert weights is not None
    # Its output moved to the embedding: preserving inner tensors instead would make this loop slower still.
    interpreter = Interpreter(model_content=BirdnetGraph(weights).sound_to_embedding(), num_threads=threads)
    interpreter.allocate_tensors()
    audio_in = interpreter.get_input_details()[0]["index"]
    embedding = interpreter.get_output_details()[0]["index"]
    rate_hz = 48_000

    def inner(samples: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(audio_in, samples[None])
        interpreter.invoke()
        return interpreter.get_tensor(embedding)[0]

    def embed(path: Path) -> int:
        samples, _ = librosa.load(path, sr=rate_hz, mono=True)
        windows = _windows(samples, round(_WINDOW_S * rate_hz))
        vectors = [(inner(w[: 3 * rate_hz]) + inner(w[2 * rate_hz :])) / 2 for w in windows]
        return len(vectors)

    return _timed(embed, folder)


def parts(folder: Path, backbone: str, engine: str) -> dict[str, Any]:
    """Core milliseconds a window, in one thread: decoding with resampling, and the network with its front end."""
    import torch

    from embeddings.windows import WindowPlan
    from stage1_backbones.audio import stream_windows
    from stage1_backbones.registry import load_backbone

    torch.set_num_threads(1)
    loaded: Any = load_backbone(backbone, device="cpu")
    loaded.use_engine(engine, 1)
    paths = sorted(folder.iterdir())
    decoded: list[np.ndarray] = []
    rate_hz = loaded.sample_rate_hz
    list(stream_windows(paths[0], WindowPlan(), [rate_hz]))
    began = time.process_time()
    for path in paths[:10]:
        decoded += [w.waveforms[rate_hz] for w in stream_windows(path, WindowPlan(), [rate_hz])]
    decode_ms = 1e3 * (time.process_time() - began) / len(decoded)
    batch = np.stack(decoded[:64])
    loaded.embed(batch)
    began = time.process_time()
    for _ in range(3):
        loaded.embed(batch)
    embed_ms = 1e3 * (time.process_time() - began) / (3 * len(batch))
    found = {"decode_ms": decode_ms, "embed_ms": embed_ms}
    if hasattr(loaded, "network"):
        windows = torch.from_numpy(batch)
        with torch.inference_mode():
            loaded.network.inputs(windows)
            began = time.process_time()
            for _ in range(3):
                loaded.network.inputs(windows)
        found["front_end_ms"] = 1e3 * (time.process_time() - began) / (3 * len(batch))
    return found


def _windows(samples: np.ndarray, length: int) -> np.ndarray:
    n = max(1, len(samples) // length)
    return np.resize(samples, (n, length)) if len(samples) < length else samples[: n * length].reshape(n, length)


def _timed(embed: Callable[[Path], int], folder: Path) -> dict[str, Any]:
    paths = sorted(folder.iterdir())
    embed(paths[0])
    began = time.perf_counter()
    n = sum(embed(path) for path in paths[:_MOST_FILES])
    return {"n_windows": n, "windows_per_s": n / (time.perf_counter() - began)}


_MOST_FILES = 24


def main(arguments: list[str]) -> int:
    """Run one of them; threads are as many as there are cores."""
    from stage1_backbones.machine import usable_cores

    what, folder, *rest = arguments
    if what == "efficientnet":
        found = plain_efficientnet(Path(folder), rest[0], usable_cores())
    elif what == "birdnet":
        found = plain_birdnet(Path(folder), usable_cores())
    else:
        found = parts(Path(folder), *rest)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
