"""Other people's networks as blocks: an ONNX file that this test writes, and a HEAR module."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from embeddings.contract import Backbone
from embeddings.errors import ContractError, InputError
from embeddings.store import Store
from stage1_backbones.inner_windows import inner_starts_s, inner_windows
from stage1_backbones.registry import describe_backbone, load_backbone

pytest.importorskip("onnxruntime", reason="ONNX Runtime is an extra")
pytest.importorskip("onnx", reason="torch needs it to write the file")
RATE = 8000


class Envelope(nn.Module):
    """Loudness of eight parts of the sound, twice over, and their logarithms."""

    def forward(self, sound: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = sound.reshape(sound.shape[0], 8, -1).abs().mean(dim=2)
        return torch.cat([parts, 2 * parts], dim=1), parts[:, :, None].repeat(1, 1, 3)


def export(folder: Path, *, window_s: float = 5.0, dynamic: bool = True, **card) -> Path:
    path = folder / "net.onnx"
    axes = {name: {0: "n"} for name in ("sound", "embedding", "frames")} if dynamic else None
    torch.onnx.export(
        Envelope(),
        (torch.zeros(1, round(window_s * RATE)),),
        str(path),
        input_names=["sound"],
        output_names=["embedding", "frames"],
        dynamic_axes=axes,
        dynamo=False,
    )
    given = {"name": "envelope", "sample_rate_hz": RATE, "window_s": window_s, "output": "embedding", **card}
    path.with_suffix(".json").write_text(json.dumps({k: v for k, v in given.items() if v is not None}))
    return path


def noise(n: int = 4) -> np.ndarray:
    return np.random.default_rng(3).uniform(-1, 1, (n, 5 * RATE)).astype(np.float32)


@pytest.mark.parametrize("dynamic", [True, False])
def test_an_onnx_file_gives_the_vectors_of_its_network(tmp_path, dynamic):
    network = load_backbone(str(export(tmp_path, dynamic=dynamic, licence="CC0")))
    assert isinstance(network, Backbone)
    assert (network.name, network.sample_rate_hz, network.window_s, network.dim) == ("envelope", RATE, 5.0, 16)
    expected = Envelope()(torch.from_numpy(noise()))[0].numpy()
    np.testing.assert_allclose(network.embed(noise()), expected, rtol=1e-5)
    for threads in (1, 3):
        network.use_engine("onnxruntime", threads)
        np.testing.assert_array_equal(network.embed(noise())[2:], network.embed(noise()[2:]))
    assert network.embed(noise()[:0]).shape == (0, 16)
    assert "CC0" in network.licence_notice
    assert "not known" in network.heard.unpublished


def test_a_network_with_short_windows_hears_ours_as_the_mean_over_its_own(tmp_path):
    network = load_backbone(str(export(tmp_path, window_s=2.0)))
    assert network.window_s == 5.0
    starts = [round(s * RATE) for s in (0.0, 1.5, 3.0)]
    own = [Envelope()(torch.from_numpy(noise()[:, s : s + 2 * RATE]))[0].numpy() for s in starts]
    np.testing.assert_allclose(network.embed(noise()), np.mean(own, axis=0), rtol=1e-5)


def test_frames_are_averaged_when_the_card_says_so(tmp_path):
    network = load_backbone(str(export(tmp_path, output="frames", pool="mean")))
    expected = Envelope()(torch.from_numpy(noise()))[1].mean(dim=1).numpy()
    np.testing.assert_allclose(network.embed(noise()), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"output": "vector"}, "has no output 'vector', which its card names; it has embedding, frames"),
        ({"output": "frames"}, "one float vector a window is expected"),
        ({"window_s": 3.0, "dynamic": False, "graph_s": 5.0}, r"its card says 3 s at 8000 Hz, 24000 samples"),
        ({"sample_rate_hz": 44_100}, r"220500 samples"),
        ({"sample_rate_hz": 0}, "is no sample rate"),
        ({"window_s": -1.0, "graph_s": 5.0}, "must be above 0"),
        ({"pool": "max"}, "pool='max' is not known"),
        ({"sample_rate": 8000}, "Did you mean sample_rate_hz"),
        ({"output": None}, "lacks output"),
    ],
)
def test_a_card_that_contradicts_the_file_is_refused_before_any_work(tmp_path, card, words):
    path = export(tmp_path, window_s=card.pop("graph_s", 5.0), dynamic=card.pop("dynamic", True))
    given = json.loads(path.with_suffix(".json").read_text()) | card
    path.with_suffix(".json").write_text(json.dumps({k: v for k, v in given.items() if v is not None}))
    with pytest.raises(InputError, match=words):
        load_backbone(str(path))


def test_a_missing_card_a_missing_file_and_a_file_that_is_no_network_are_told_apart(tmp_path):
    path = export(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"write net\.json beside it"):
        load_backbone(str(path))
    with pytest.raises(InputError, match="no such file"):
        load_backbone(str(tmp_path / "other.onnx"))
    export(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="not a network that ONNX Runtime can load"):
        load_backbone(str(path))


def extracted(audio: Path, reference: str, out: Path) -> Store:
    from cli.embed import app

    words = ["extract", str(audio), "--backbone", reference, "--out", str(out), "--workers", "1"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return Store(out)


@pytest.fixture
def few(synthetic_set, tmp_path) -> Path:
    """A folder of three recordings."""
    import shutil

    folder = tmp_path / "few"
    folder.mkdir()
    sounds = [path for path in sorted(synthetic_set.parent.rglob("*.*")) if path.suffix != ".csv" and path.is_file()]
    for path in sounds[:3]:
        shutil.copy(path, folder / path.name)
    return folder


def test_a_store_keeps_the_network_and_goes_on_without_the_file(few, tmp_path):
    path = export(tmp_path)
    store = extracted(few, str(path), tmp_path / "store")
    n, before = store.n_rows, store.reader().read(np.arange(store.n_rows))
    path.unlink()
    again = load_backbone(store.backbone_path(store.blocks["envelope"]))
    assert again.fingerprint.digest == store.blocks["envelope"].fingerprint.digest
    from cli.embed import app

    source = next(few.iterdir())
    (few / f"copy{source.suffix}").write_bytes(source.read_bytes()[:-400])  # another recording, hardly
    done = CliRunner().invoke(app, ["extract", str(few), "--out", str(tmp_path / "store"), "--workers", "1"])
    assert done.exit_code == 0, done.output
    grown = Store(tmp_path / "store")
    assert grown.n_rows > n
    assert before.shape[1] == 16
    other = store.path / "backbones" / "envelope" / "network.onnx"
    other.write_bytes(export(tmp_path, window_s=2.0).read_bytes())
    with pytest.raises((InputError, ContractError)):
        load_backbone(store.backbone_path(store.blocks["envelope"]))


HEAR = """
import torch

class Model(torch.nn.Module):
    sample_rate = {rate}
    scene_embedding_size = {size}
    timestamp_embedding_size = 4

def load_model(path=""):
    return Model()

def get_scene_embeddings(audio, model):
    parts = audio.reshape(audio.shape[0], 4, -1)
    return {result}

def get_timestamp_embeddings(audio, model):
    return audio.reshape(audio.shape[0], -1, 4), torch.zeros(audio.shape[0], 1)
"""


def write_hear(folder: Path, name: str, rate: object = RATE, size: object = 4, result: str = "parts.abs().mean(dim=2)"):
    (folder / f"{name}.py").write_text(HEAR.format(rate=rate, size=size, result=result))


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Run from the folder in which modules are written."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("hear_"):
            del sys.modules[name]


def test_a_hear_module_is_a_block_and_its_code_is_in_the_fingerprint(beside):
    write_hear(beside, "hear_a")
    network = load_backbone("hear:hear_a")
    assert isinstance(network, Backbone)
    assert (network.name, network.sample_rate_hz, network.dim) == ("hear_a", RATE, 4)
    expected = np.abs(noise().reshape(4, 4, -1)).mean(axis=2)
    np.testing.assert_allclose(network.embed(noise()), expected, rtol=1e-5)
    digest = network.fingerprint.digest
    del sys.modules["hear_a"]
    write_hear(beside, "hear_a", result="parts.abs().amax(dim=2)")
    assert load_backbone("hear:hear_a").fingerprint.digest != digest


def test_a_module_is_run_only_when_the_user_names_it(beside, few):
    write_hear(beside, "hear_b")
    store = extracted(few, "hear:hear_b", beside / "store")
    folder = store.backbone_path(store.blocks["hear_b"])
    del sys.modules["hear_b"]
    for asked in (load_backbone, describe_backbone):
        with pytest.raises(InputError, match="--backbone hear_b=hear:hear_b"):
            asked(folder)
    assert "hear_b" not in sys.modules
    assert extracted(few, "hear_b=hear:hear_b", beside / "store").n_rows == store.n_rows


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rate": "'fast'"}, "sample_rate of hear_c's model is 'fast'"),
        ({"rate": 0}, "sample_rate of hear_c's model is 0"),
        ({"size": 5}, r"gave \(1, 4\) for one window, not \(1, 5\)"),
        ({"result": "parts.abs()"}, r"gave \(1, 4, 10000\) for one window"),
        ({"result": "None"}, "gave NoneType"),
        ({"result": "parts.mean(dim=2) / 0"}, "not finite"),
        ({"result": "model.missing"}, "failed on .*AttributeError"),
    ],
)
def test_a_hear_module_that_breaks_its_promise_is_refused_before_any_work(beside, changed, words):
    write_hear(beside, "hear_c", **changed)
    with pytest.raises(InputError, match=words):
        load_backbone("hear:hear_c")


def test_a_module_that_cannot_be_imported_or_lacks_a_function_is_named(beside):
    with pytest.raises(InputError, match="hear:hear_nowhere cannot be imported: ModuleNotFoundError"):
        load_backbone("hear:hear_nowhere")
    (beside / "hear_d.py").write_text("def load_model(path=''):\n    return None\n")
    with pytest.raises(InputError, match="lacks get_scene_embeddings, get_timestamp_embeddings"):
        load_backbone("hear:hear_d")
    write_hear(beside, "hear_e")
    with pytest.raises(InputError, match="no such file of weights"):
        load_backbone("hear:hear_e:weights.pt")
    assert "" not in sys.path[:1] or sys.path.count("") <= 1


@pytest.mark.parametrize(
    ("own_s", "starts"), [(5.0, (0.0,)), (3.0, (0.0, 2.0)), (1.0, (0.0, 1.0, 2.0, 3.0, 4.0)), (9.0, (0.0,))]
)
def test_inner_windows_cover_ours_evenly(own_s, starts):
    assert inner_starts_s(own_s) == pytest.approx(starts)
    waveform = np.arange(5 * RATE)
    if own_s <= 5:
        own = inner_windows(waveform, own_s, RATE)
        assert [len(w) for w in own] == [round(own_s * RATE)] * len(starts)
        assert (own[0][0], own[-1][-1]) == (0, 5 * RATE - 1)


def test_a_timm_network_is_a_block_that_comes_back_from_its_copy(tmp_path):
    network = load_backbone("timm:test_resnet:none")
    assert isinstance(network, Backbone)
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, (3, 160_000)).astype(np.float32)
    vectors = network.embed(sound)
    assert vectors.shape == (3, network.dim)
    np.testing.assert_array_equal(network.embed(sound[1:2])[0], vectors[1])
    network.save(tmp_path / "copy")
    again = load_backbone(tmp_path / "copy")
    assert again.fingerprint.digest == network.fingerprint.digest
    np.testing.assert_array_equal(again.embed(sound), vectors)
    other = load_backbone("timm:test_vit:none")  # takes one size only
    assert other.fingerprint.digest != network.fingerprint.digest
    other.save(tmp_path / "other")
    (tmp_path / "copy" / "weights.safetensors").write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match="another architecture"):
        load_backbone(tmp_path / "copy")


def test_a_timm_network_takes_a_file_with_its_classifier_and_refuses_what_there_is_not(tmp_path):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(5)
    whole = timm.create_model("test_resnet", num_classes=7)
    save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, tmp_path / "w.safetensors")
    network = load_backbone(f"timm:test_resnet:{tmp_path / 'w.safetensors'}")
    assert network.fingerprint.digest != load_backbone("timm:test_resnet:none").fingerprint.digest
    with pytest.raises(InputError, match=r"Did you mean .*resnet18"):
        load_backbone("timm:resnet81")
    with pytest.raises(InputError, match="is not a file"):
        load_backbone("timm:test_resnet:nowhere.safetensors")
