"""An exported network and its card: what goes in, what comes out, and how exactly other engines reproduce it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embeddings.files import write_atomically, write_json
from stage1_backbones.dft import graph_front_end
from stage1_backbones.engines import COSINES, SCORE_DIFFERENCES, cosines
from stage1_backbones.onnx_export import OPSET, onnx_of
from stage1_backbones.trained import TrainedBackbone

__all__ = ["Export", "Parity", "export_backbone"]

_PRECISIONS = {"onnxruntime": "fp32", "openvino": "fp32", "openvino-bf16": "bf16"}


@dataclass(frozen=True)
class Parity:
    """How close an engine that runs the exported file comes to torch. `passed` by the thresholds of the engines."""

    engine: str
    n_windows: int
    min_cosine: float
    max_score_difference: float
    passed: bool


@dataclass(frozen=True)
class Export:
    """What was written. `ok` when every float32 engine passed: bfloat16 may fail, and is then not to be used."""

    folder: Path
    parities: tuple[Parity, ...]

    @property
    def ok(self) -> bool:
        return all(p.passed for p in self.parities if _PRECISIONS[p.engine] == "fp32")


def export_backbone(
    backbone: TrainedBackbone, folder: Path, waveforms: np.ndarray, *, source: str, from_waveform: bool
) -> Export:
    """Write `backbone.onnx`, `card.json` and `README.md`.

    waveforms     (n, n_samples) float32 on which parity is measured; `source` says in words what they are
    from_waveform  put the front end into the graph: its input is then the waveform
    """
    network = backbone.network.eval().to("cpu")
    example = torch.from_numpy(waveforms[:2])
    if from_waveform:
        graph = onnx_of(network, example, with_logits=True, front_end=graph_front_end(network.front_end), dynamic=True)
        inputs = waveforms
    else:
        inputs = network.inputs(torch.from_numpy(waveforms)).numpy()
        graph = onnx_of(network, torch.from_numpy(inputs[:2]), with_logits=True, dynamic=True)
    backbone.use_engine("torch")
    expected = backbone.embed(waveforms)
    parities = tuple(_parity(engine, graph, inputs, backbone, expected) for engine in backbone.engines[:-1])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "backbone.onnx", lambda path: _write(path, graph))
    card = _card(backbone, list(inputs.shape[1:]), from_waveform, source, parities)
    write_json(folder / "card.json", card)
    write_atomically(folder / "README.md", lambda path: _write(path, _readme(card).encode()))
    return Export(folder, parities)


def _parity(engine: str, graph: bytes, inputs: np.ndarray, backbone: TrainedBackbone, expected: np.ndarray) -> Parity:
    vectors = _run(engine, graph, inputs)
    precision = _PRECISIONS[engine]
    cosine = float(cosines(vectors, expected).min())
    difference = float(np.abs(backbone.scores(vectors) - backbone.scores(expected)).max())
    passed = cosine >= COSINES[precision] and difference <= SCORE_DIFFERENCES[precision]
    return Parity(engine, len(inputs), cosine, difference, passed)


def _run(engine: str, graph: bytes, inputs: np.ndarray) -> np.ndarray:
    if engine == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        return session.run(["embedding"], {"inputs": inputs})[0]
    from stage1_backbones.runtimes import openvino_core

    core = openvino_core()
    hint = "bf16" if engine.endswith("bf16") else "f32"
    model = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return np.array(model(inputs)["embedding"])


def _card(
    backbone: TrainedBackbone, shape: list[int], from_waveform: bool, source: str, parities: tuple[Parity, ...]
) -> dict[str, Any]:
    heard = backbone.heard
    front_end = dict(backbone.fingerprint.fields)["front_end"]
    if from_waveform:
        meaning = f"mono waveform in [-1, 1] at {backbone.sample_rate_hz} Hz, {backbone.window_s:g} s"
    else:
        meaning = (
            f"what the front end makes of {backbone.window_s:g} s of mono sound at {backbone.sample_rate_hz} Hz; its "
            "numbers are under front_end"
        )
    return {
        "file": "backbone.onnx",
        "onnx_opset": OPSET,
        "name": backbone.name,
        "kind": backbone.network.kind,
        "input": {"name": "inputs", "type": "float32", "shape": ["windows", *shape], "meaning": meaning},
        "outputs": {
            "embedding": ["windows", backbone.dim],
            "logits": ["windows", len(backbone.labels)],
        },
        "logits_to_scores": backbone.network.output,
        "labels": list(backbone.labels),
        "front_end": front_end,
        "fingerprint": dict(backbone.fingerprint.fields),
        "heard": {
            "trained_on": len(heard.trained_on),
            "selected_on": len(heard.selected_on),
            "xeno_canto_ids": sorted(heard.xeno_canto_ids),
        },
        "provenance": backbone.provenance,
        "parity": {
            "reference": "torch, float32",
            "windows": source,
            "cosine_thresholds": COSINES,
            "score_thresholds": SCORE_DIFFERENCES,
            "engines": [asdict(parity) for parity in parities],
        },
    }


_HOW = {"sigmoid": "sigmoid for each of", "softmax": "softmax over"}


def _readme(card: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {p['engine']} | {p['n_windows']} | {p['min_cosine']:.6f} | {p['max_score_difference']:.6f} | "
        f"{'yes' if p['passed'] else 'NO: do not use'} |"
        for p in card["parity"]["engines"]
    )
    settings = "\n".join(f"- {name}: {value}" for name, value in card["front_end"].items())
    shape = ", ".join(map(str, card["input"]["shape"]))
    return (
        f"# {card['name']}\n\n"
        f"A bird-sound network exported by Cisticola as ONNX (opset {card['onnx_opset']}), kind {card['kind']}.\n\n"
        f"- input `inputs`: float32 ({shape}); {card['input']['meaning']}\n"
        f"- output `embedding`: float32 (windows, {card['outputs']['embedding'][1]})\n"
        f"- output `logits`: float32 (windows, {card['outputs']['logits'][1]}); apply a "
        f"{_HOW[card['logits_to_scores']]} the {len(card['labels'])} labels\n\n"
        f"Labels: {', '.join(card['labels'])}.\n\n"
        f"Trained on {card['heard']['trained_on']} recordings, selected on {card['heard']['selected_on']}; never score "
        f"it on those. `card.json` lists their xeno-canto numbers.\n\n"
        f"## Front end\n\n{settings}\n\n"
        f"## Parity with torch\n\nOn {card['parity']['windows']}.\n\n"
        f"| engine | windows | smallest cosine | largest difference of a score | passes |\n"
        f"|---|---|---|---|---|\n{rows}\n"
    )


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
