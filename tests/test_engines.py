"""Engines: the same vectors as the reference, bit for bit the same whatever comes beside them, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embeddings.contract import Heard
from embeddings.errors import EngineError, InputError
from stage1_backbones import engines as engines_module
from stage1_backbones.engines import COSINES, choose_engine
from stage1_backbones.hearing import Hearing, SettlingBackbone
from stage1_backbones.registry import create_network, load_backbone
from stage1_backbones.runtimes import usable_engines
from stage1_backbones.trained import TrainedBackbone

NETWORKS = {
    "lite0": ("efficientnet", {}, "auto"),
    "b0": ("efficientnet", {"model": "tf_efficientnet_b0"}, "none"),
    "vggish_bigru": ("vggish_bigru", {}, "none"),
}


def make_backbone(name: str) -> TrainedBackbone:
    kind, settings, weights = NETWORKS[name]
    torch.manual_seed(0)
    network = create_network(kind, settings, 6, weights)
    if weights == "none":  # the vectors of untrained networks vanish through the layers
        with torch.no_grad():
            network.train()(torch.from_numpy(windows(network, 4)))
    return TrainedBackbone(network, name=name, labels=list("abcdef"), heard=Heard(), split=None, provenance={})


def windows(network: Any, n: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    t = np.arange(round(network.window_s * network.sample_rate_hz)) / network.sample_rate_hz
    chirps = [0.3 * np.sin(2 * np.pi * (800 + 500 * (i % 9)) * t * (1 + 0.1 * t)) * (t % 1 < 0.4) for i in range(n)]
    return (np.stack(chirps) + rng.normal(0, 0.01, (n, len(t)))).astype(np.float32)


@pytest.fixture(scope="module", params=NETWORKS)
def backbone(request: pytest.FixtureRequest) -> TrainedBackbone:
    return make_backbone(request.param)


def test_every_installed_engine_is_offered_and_the_reference_comes_last() -> None:
    pytest.importorskip("openvino", reason="the fast extra is not installed")
    assert usable_engines("cpu")[-3:] == ("openvino", "onnxruntime", "torch")


def test_engines_give_the_references_vectors_on_sound_and_silence(backbone: TrainedBackbone) -> None:
    batch = windows(backbone.network, 9)
    batch[2], batch[5] = 0.0, np.clip(30 * batch[5], -1, 1)
    backbone.use_engine("torch")
    expected = backbone.embed(batch)
    for engine in backbone.engines[:-1]:
        trial = engines_module.trial_of(backbone, engine, batch, expected, 1)
        if trial.precision == "bf16":  # whether it passes depends on the network: lite0's ImageNet weights lose most
            assert trial.min_cosine > 0.99
            assert bool(trial.why_not) == (trial.min_cosine < COSINES["bf16"])
        else:
            assert trial.why_not == "", trial
            assert trial.min_cosine >= COSINES["fp32"]


def test_a_window_has_the_same_bits_whatever_comes_with_it_and_however_many_threads(backbone: TrainedBackbone) -> None:
    batch = windows(backbone.network, 19)
    order = np.random.default_rng(0).permutation(len(batch))
    for engine in backbone.engines:
        backbone.use_engine(engine, 1)
        together = backbone.embed(batch)
        np.testing.assert_array_equal(backbone.embed(batch[order]), together[order])
        np.testing.assert_array_equal(backbone.embed(batch[7:8]), together[7:8])
        backbone.use_engine(engine, 2)
        np.testing.assert_array_equal(backbone.embed(batch), together)


class Stubborn:
    """A backbone whose other engines are as wrong, or as slow, as they are told to be."""

    name, sample_rate_hz, window_s = "stubborn", 10, 5.0
    engines = ("broken", "rough-bf16", "wrong", "good", "plain")

    def __init__(self) -> None:
        self.engine = "plain"

    def use_engine(self, name: str, threads: int | None = None) -> None:
        if name == "broken":
            raise RuntimeError("no such instruction")
        self.engine = name

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        vectors = np.asarray(waveforms[:, :6], np.float32).copy()
        if self.engine == "plain":
            sum(i * i for i in range(200_000))  # slower than the others
        if self.engine == "rough-bf16":
            vectors += 0.01 * np.random.default_rng(1).normal(size=vectors.shape).astype(np.float32)
        if self.engine == "wrong":
            vectors[0, 0] += 5.0
        return vectors


BATCH = np.random.default_rng(0).normal(size=(12, 50)).astype(np.float32)


def test_auto_takes_the_fastest_that_passes_and_tells_of_those_that_did_not() -> None:
    backbone = Stubborn()
    choice = choose_engine(backbone, BATCH)
    assert choice.engine == backbone.engine
    assert choice.engine in ("rough-bf16", "good")
    why = {trial.engine: trial.why_not for trial in choice.trials}
    assert "no such instruction" in why["broken"]
    assert "smallest cosine" in why["wrong"]
    assert why["good"] == ""
    assert choice.windows_per_s > choice.reference_windows_per_s
    assert json.loads(json.dumps(choice.to_json()))["engine"] == choice.engine


def test_an_engine_asked_for_by_name_is_refused_with_its_figure() -> None:
    with pytest.raises(EngineError, match=r"smallest cosine 0\.\d+, 0\.9999 is needed"):
        choose_engine(Stubborn(), BATCH, "wrong")
    with pytest.raises(InputError, match="Did you mean good"):
        choose_engine(Stubborn(), BATCH, "goods")
    assert choose_engine(Stubborn(), BATCH, "plain").min_cosine == 1.0
    assert choose_engine(Stubborn(), BATCH, "reference").engine == "plain"


def test_probabilities_count_where_there_is_a_classifier() -> None:
    class Classifying(Stubborn):
        def scores(self, vectors: np.ndarray) -> np.ndarray:
            return 1 / (1 + np.exp(-50 * vectors))

    with pytest.raises(EngineError, match="a probability differs"):
        choose_engine(Classifying(), BATCH, "rough-bf16")


def test_silent_windows_do_not_fail_the_gate() -> None:
    batch = BATCH.copy()
    batch[3] = 0
    assert choose_engine(Stubborn(), batch, "good").min_cosine == pytest.approx(1.0)


def test_a_worker_settles_on_its_first_batch_or_takes_an_earlier_choice(tmp_path: Path) -> None:
    backbone = make_backbone("vggish_bigru")
    batch = windows(backbone.network, 3)
    backbone.save(tmp_path / "b")
    (first,), _ = Hearing({"vggish_bigru": str(tmp_path / "b")}, "cpu", "auto")(["vggish_bigru"], {})
    assert isinstance(first, SettlingBackbone)
    assert first.engine_record is None
    vectors = first.embed(batch)
    record = first.engine_record
    assert record is not None
    assert record["n_windows"] == 3
    (second,), _ = Hearing({"vggish_bigru": str(tmp_path / "b")}, "cpu")(["vggish_bigru"], {"vggish_bigru": record})
    assert second.engine_record == record  # type: ignore[attr-defined]
    np.testing.assert_array_equal(second.embed(batch), vectors)


def test_an_engine_that_is_not_there_is_named_with_the_remedy() -> None:
    backbone = make_backbone("vggish_bigru")
    with pytest.raises(InputError, match=r"pip install 'cisticola\[fast\]'"):
        backbone.use_engine("warp")
    assert load_backbone("logmel_stats", device="cpu").embed(np.zeros((1, 160_000), np.float32)).shape == (1, 256)


@pytest.mark.parametrize("from_waveform", [False, True])
@pytest.mark.parametrize("name", ["lite0", "vggish_bigru"])
def test_an_exported_network_gives_torchs_vectors_and_logits_at_any_batch(
    name: str, from_waveform: bool, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the fast extra is not installed")
    from stage1_backbones.model_card import export_backbone

    backbone = make_backbone(name)
    batch = windows(backbone.network, 5)
    done = export_backbone(backbone, tmp_path, batch, source="chirps", from_waveform=from_waveform)
    assert done.ok
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["labels"] == list("abcdef")
    assert {p["engine"] for p in card["parity"]["engines"]} == set(backbone.engines[:-1])
    session = onnxruntime.InferenceSession(str(tmp_path / "backbone.onnx"))
    with torch.inference_mode():
        inputs = batch if from_waveform else backbone.network.inputs(torch.from_numpy(batch)).numpy()
        expected = backbone.network(torch.from_numpy(batch)).numpy()
    assert card["input"]["shape"][1:] == list(inputs.shape[1:])
    for n in (1, 5):
        embedding, logits = session.run(["embedding", "logits"], {"inputs": inputs[:n]})
        assert embedding.shape == (n, backbone.dim)
        np.testing.assert_allclose(logits, expected[:n], atol=2e-3)


def test_the_front_ends_as_matrices_equal_the_front_ends() -> None:
    from stage1_backbones.dft import graph_front_end

    for kind, settings, _ in (NETWORKS["lite0"], NETWORKS["vggish_bigru"], ("fusion", {}, "none")):
        network: Any = create_network(kind, settings, 2, "none")
        batch = torch.from_numpy(windows(network, 3))
        torch.testing.assert_close(graph_front_end(network.front_end)(batch), network.inputs(batch), atol=2e-3, rtol=0)


def test_a_frozen_backbone_is_not_exported(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from cli.backbones import app

    result = CliRunner().invoke(app, ["export", "logmel_stats", "--out", str(tmp_path / "x")])
    assert isinstance(result.exception, InputError)
    assert "not Cisticola's to export" in str(result.exception)
