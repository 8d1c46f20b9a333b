"""Fusions: both tracks are heard, learn, and can be silenced; weights are counted; half a fusion is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli.backbones import app
from embeddings.contract import Heard
from embeddings.errors import InputError
from stage1_backbones import augment
from stage1_backbones.audio import read_audio
from stage1_backbones.fusion import FUSIONS, PLANES, Fusion
from stage1_backbones.joins import JOINS
from stage1_backbones.registry import create_network, load_backbone
from stage1_backbones.spectrogram import VggishFrontEnd
from stage1_backbones.trained import TrainedBackbone
from stage1_backbones.two_tracks import AUDIO, PICTURE

SMALL = {"picture": {"n_mels": 64, "hop_samples": 1024}, "front_end": {}}
EVERY = pytest.mark.parametrize("how", FUSIONS)


def network_of(how: str, n_labels: int = 3) -> Fusion:
    torch.manual_seed(0)
    network = create_network("fusion", {**SMALL, "how": how}, n_labels, "none")
    assert isinstance(network, Fusion)
    return network


def windows(network: Any, n: int) -> torch.Tensor:
    rng = np.random.default_rng(3)
    t = np.arange(round(network.window_s * network.sample_rate_hz)) / network.sample_rate_hz
    chirps = [0.3 * np.sin(2 * np.pi * (800 + 500 * i) * t * (1 + 0.1 * t)) * (t % 1 < 0.4) for i in range(n)]
    return torch.from_numpy((np.stack(chirps) + rng.normal(0, 0.01, (n, len(t)))).astype(np.float32))


@EVERY
def test_gradients_reach_both_tracks_and_every_weight_learns(how):
    network = network_of(how).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    inputs = network.inputs(windows(network, 3)).requires_grad_()
    for _ in range(2):  # layers that begin at zero hide those before them for one step
        inputs.grad = None
        optimizer.zero_grad()
        network.logits_of(inputs).square().mean().backward()
        optimizer.step()
    assert inputs.grad is not None
    for track in network.tracks:
        assert float(network.front_end.track(inputs.grad, track).abs().sum()) > 0, track
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # A softmax does not feel what it adds to all; a normalisation takes out the bias before it.
    assert [name for name in dead if not name.endswith(("weigh.bias", "keys.bias"))] == []


@EVERY
def test_a_silenced_track_hears_silence_and_the_other_what_it_heard(how):
    network = network_of(how).eval()
    sound = windows(network, 2)
    whole = network.inputs(sound)
    silent = network.inputs(torch.zeros_like(sound))
    for track, other in ((PICTURE, AUDIO), (AUDIO, PICTURE)):
        network.silenced = track
        inputs = network.inputs(sound)
        torch.testing.assert_close(network.front_end.track(inputs, track), network.front_end.track(silent, track))
        torch.testing.assert_close(network.front_end.track(inputs, other), network.front_end.track(whole, other))
        assert not torch.allclose(network.features_of(inputs), network.features_of(whole), atol=1e-7)


@pytest.mark.parametrize(("kind", "track"), [("efficientnet", "picture"), ("vggish_bigru", "audio")])
def test_a_network_of_one_track_hears_silence_only_when_its_own_is_silenced(kind, track):
    network = create_network(kind, {}, 3, "none").eval()
    sound = windows(network, 1)
    for silenced in ("picture", "audio"):
        network.silenced = silenced
        heard = sound if silenced != track else torch.zeros_like(sound)
        torch.testing.assert_close(network.inputs(sound), network.front_end(heard))


def test_all_fusions_have_about_as_many_weights_and_two_networks_too():
    def count(network: Any) -> int:
        return sum(p.numel() for name, p in network.named_parameters() if not name.startswith("classifier"))

    counts = {how: count(create_network("fusion", {"how": how}, 20, "none")) for how in FUSIONS}
    counts["two networks"] = sum(
        count(create_network(kind, {}, 20, "none")) for kind in ("efficientnet", "vggish_bigru")
    )
    assert max(counts.values()) <= 1.2 * min(counts.values()), counts


def test_planes_are_the_first_samples_in_order_of_time():
    network = network_of("early")
    samples = torch.arange(1.0, 160_001.0)[None]
    planes = network._planes(samples)
    assert planes.shape == (1, 3, 64, 157)
    torch.testing.assert_close(planes.flatten(), samples[0, : 3 * 64 * 157])
    moved = network_of("early_permuted")._planes(samples)
    torch.testing.assert_close(moved, planes[:, [2, 0, 1]])
    placed = network_of("early_placed")
    with torch.no_grad():
        placed.placing.copy_(torch.tensor([[0.0, 99, 0], [99, 0, 0], [0, 0, 99]]))
    torch.testing.assert_close(placed._planes(samples), planes[:, [1, 0, 2]])


def test_the_audio_track_hears_what_a_track_of_its_own_rate_hears(synthetic_set):
    path = sorted((synthetic_set.parent / "train_audio").rglob("*.*"))[0]
    network = network_of("deep")
    at_32, at_16 = (read_audio(path, rate, duration_s=5.0) for rate in (32_000, 16_000))
    sound = torch.from_numpy(np.resize(at_32, 160_000))[None]
    patches = network.front_end.track(network.inputs(sound), AUDIO)
    expected = VggishFrontEnd()(torch.from_numpy(np.resize(at_16, 80_000))[None])
    differences = (patches - expected).abs()
    assert float(differences.mean()) < 0.01
    assert float(differences.max()) < 0.3  # where a stretch that was repeated to fill the window is joined


def test_what_is_cut_and_covered_is_the_same_time_in_every_track():
    for how in ("early", "deep", "hierarchical"):
        network = network_of(how)
        inputs = network.inputs(windows(network, 2))
        views = network.pictures_of(inputs)
        assert len(views) == 2 * (network.settings.segments or 1)
        for view in views:
            view[:] = torch.arange(2.0)[:, None, None]
        assert torch.equal(inputs, torch.arange(2.0)[:, None, None].expand_as(inputs))  # all of the inputs is seen
        targets = augment.cutmix(views, torch.eye(2), np.array([0]), np.random.default_rng(5))
        share = float(targets[0, 1])
        assert 0.05 < share < 0.95
        for view in views:
            assert float((view[0, 0] == 1).float().mean()) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("how", "from_waveform"),
    [("early_placed", True), ("deep", False), ("cross_attention", False), ("hierarchical", True)],
)
def test_an_exported_fusion_gives_torchs_vectors(how, from_waveform, tmp_path):
    pytest.importorskip("onnxruntime", reason="the fast extra is not installed")
    from stage1_backbones.model_card import export_backbone

    network = network_of(how)
    with torch.no_grad():  # the vectors of untrained networks vanish through the layers
        network.train()(windows(network, 4))
    backbone = TrainedBackbone(network, name=how, labels=list("abc"), heard=Heard(), split=None, provenance={})
    done = export_backbone(
        backbone, tmp_path / "x", windows(network, 3).numpy(), source="chirps", from_waveform=from_waveform
    )
    assert done.ok, done.parities
    backbone.save(tmp_path / "b")
    again = load_backbone(tmp_path / "b", device="cpu")
    np.testing.assert_array_equal(again.embed(windows(network, 2).numpy()), backbone.embed(windows(network, 2).numpy()))


@pytest.mark.parametrize("how", JOINS)
def test_joins_differ_from_plain_concatenation_in_what_their_names_say(how):
    network = network_of(how).eval()
    maps, states = torch.rand(6, 1280, 2, 5), torch.rand(6, 5, 256)
    vectors = network.join(maps, states)
    assert vectors.shape == (6 // (network.settings.segments or 1), network.dim)
    swapped = network.join(maps, states[:, [1, 0, 2, 3, 4]])
    torch.testing.assert_close(swapped, vectors, rtol=1e-4, atol=1e-5)  # no join knows the order of steps: states do
    other = network.join(maps, states.flip(0))
    picture_part = slice(0, 1280)
    if how in ("deep", "crossing"):
        torch.testing.assert_close(other[:, picture_part], vectors[:, picture_part])
    elif how != "hierarchical":  # there the segments' weights begin alike
        assert not torch.allclose(other[:, picture_part], vectors[:, picture_part])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"how": "stirred"}, "cross_attention"),
        ({"picture": None}, "without its picture track"),
        ({"front_end": False}, "without its audio track"),
        ({"how": "hierarchical", "segments": 1}, "segments=1"),
        ({"how": "deep", "segments": 2}, "segments=2"),
        ({"front_end": {"sample_rate_hz": 22_050, "n_fft": 1024}}, "whole number of times"),
    ],
)
def test_half_a_fusion_and_wrong_ones_are_refused_with_what_to_do(settings, words):
    with pytest.raises(InputError, match=words):
        create_network("fusion", settings, 3, "none")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_a_fusion_is_trained_by_a_command_and_refused_before_any_work(synthetic_set, tmp_path):
    command = ["train", synthetic_set, "--backbone", "fusion", "--how", "gated", "--epochs", 1, "--batch-size", 8]
    small = ["--set", "network.picture.n_mels=32", "--set", "network.picture.hop_samples=2048", "--set", "weights=none"]
    with pytest.raises(InputError, match="without its picture track"):
        run(*command, "--set", "network.picture=false", "--out", tmp_path / "half")
    assert not (tmp_path / "half" / "settings.json").exists()
    with pytest.raises(InputError, match="--how gated belongs to --backbone fusion"):
        run("train", synthetic_set, "--backbone", "efficientnet", "--how", "gated", "--out", tmp_path / "none")
    assert "gated" not in run(*command, *small, "--out", tmp_path / "b", "--dry-run").splitlines()[0]
    run(*command, *small, "--out", tmp_path / "b")
    backbone = load_backbone(tmp_path / "b", device="cpu")
    assert isinstance(backbone, TrainedBackbone)
    assert backbone.network.settings_json()["how"] == "gated"
    assert backbone.dim == 1536


@pytest.mark.slow
def test_a_table_of_fusions_says_what_each_track_brings(synthetic_set, tmp_path):
    import yaml

    picture = {"network": {"picture": {"n_mels": 32, "hop_samples": 2048}}, "weights": "none"}
    small = {"epochs": 1, "min_steps": 0, "crops_per_recording": 1, "batch_size": 8}
    values = {
        "data": [str(synthetic_set)],
        "folds": 2,
        "against": "first row",
        "silenced": ["picture", "audio"],
        "fusions": ["early"],
        "blocks": [["efficientnet", "vggish_bigru"], ["efficientnet"], ["fusion"]],
        "base": {"all": small, "efficientnet": picture, "fusion": picture},
        "recipes": {
            "two networks": {"efficientnet": None, "vggish_bigru": None},
            "early": {"fusion": {"network": {"how": PLANES[0]}}},
        },
    }
    path = tmp_path / "fusions.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    run("compare", path, "--out", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [r["blocks"] for r in results] == [["efficientnet", "vggish_bigru"], ["efficientnet"], ["fusion"]]
    together, alone, fused = results
    assert together["parameters"] > alone["parameters"] > 3e6
    assert "first" not in together["against"]
    assert {"picture silenced", "audio silenced"} <= set(together["against"])
    assert set(alone["against"]) == {"first"}  # one track: there is nothing left to hear
    for track in ("picture", "audio"):
        figure = fused["against"][f"{track} silenced"]["cmap_present"]
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert figure["value"] != 0
    header = Path(tmp_path / "out" / "results.md").read_text().splitlines()[2]
    assert "cmAP - first row" in header
    assert "cmAP, audio silenced" in header
    values["silenced"] = ["smell"]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(InputError, match="'smell' is not a track"):
        run("compare", path, "--out", tmp_path / "out")
    values |= {"silenced": [], "against": "nothing"}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(InputError, match="first row"):
        run("compare", path, "--out", tmp_path / "out")
