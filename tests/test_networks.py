"""Networks: vectors that depend on their window alone, weights that fit, and files that say what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from embeddings.contract import Backbone, Heard
from embeddings.errors import InputError
from embeddings.splits import Split
from stage1_backbones.registry import BACKBONES, create_network, list_backbones, load_backbone

TRAINABLE = [kind.name for kind in list_backbones() if kind.trainable]


def untrained(kind: str, seed: int = 0, **settings):
    import torch

    from stage1_backbones.trained import TrainedBackbone

    torch.manual_seed(seed)
    return TrainedBackbone(
        create_network(kind, settings, 3, "none"),
        name=kind,
        labels=("a", "b", "c"),
        heard=Heard(trained_on=frozenset({"r1"}), xeno_canto_ids=frozenset({"7"})),
        split=Split("stratified", 0, "", {"r1": "train"}),
        provenance={},
    )


NAMED = pytest.mark.parametrize("kind", [name for name, kind in BACKBONES.items() if not kind.reference])
"""Those that a name alone says; the others have their own tests, with networks to name."""


def backbone_of(kind: str) -> Backbone:
    if BACKBONES[kind].trainable:
        return untrained(kind)
    if not BACKBONES[kind].installed:
        pytest.skip(f"{kind} is not installed")
    return load_backbone(kind, device="cpu")


def waveforms_for(backbone: Backbone, n: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    levels = 10.0 ** rng.uniform(-4, -0.5, (n, 1))
    waveforms = rng.normal(size=(n, round(backbone.window_s * backbone.sample_rate_hz))) * levels
    waveforms[0] = 0  # silence among them
    return np.clip(waveforms, -1, 1).astype(np.float32)


@NAMED
def test_a_windows_vector_is_the_same_alone_in_a_batch_and_at_any_place(kind):
    backbone = backbone_of(kind)
    waveforms = waveforms_for(backbone, 5)
    together = backbone.embed(waveforms)
    assert together.shape == (5, backbone.dim)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    alone = np.concatenate([backbone.embed(waveforms[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5 * np.abs(together).max())
    np.testing.assert_array_equal(backbone.embed(waveforms[::-1]), together[::-1])


@NAMED
def test_every_backbone_follows_the_contract_and_comes_back_from_its_folder(kind, tmp_path):
    backbone = backbone_of(kind)
    assert isinstance(backbone, Backbone)
    backbone.save(tmp_path / "copy")
    copy = load_backbone(tmp_path / "copy", device="cpu")
    assert copy.fingerprint == backbone.fingerprint
    assert copy.heard == backbone.heard
    waveforms = waveforms_for(backbone, 2)
    np.testing.assert_array_equal(copy.embed(waveforms), backbone.embed(waveforms))


def test_other_weights_are_another_fingerprint():
    one, other = untrained("vggish_bigru", 0), untrained("vggish_bigru", 1)
    assert [line.split(":")[0] for line in one.fingerprint.differences(other.fingerprint)] == ["weights"]


def test_the_packaged_imagenet_weights_are_those_of_the_package():
    import timm
    import torch

    from stage1_backbones.weights import _packaged_file

    network = create_network("efficientnet", {}, 3, "auto")
    network.body.to(memory_format=torch.contiguous_format)  # the layout alone moves the last bit
    theirs = torch.load(_packaged_file(), weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0", num_classes=1000).eval()
    renamed = {f"classifier.{name.split('.')[1]}": theirs[name] for name in ("_fc.weight", "_fc.bias")}
    ours.load_state_dict({**network.body.state_dict(), **renamed})
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        logits = ours(pictures)
        network.eval()
        head = ours.classifier(network.pooling(network.body(pictures)))
    torch.testing.assert_close(head, logits, rtol=0, atol=0)
    np.testing.assert_array_equal(ours.conv_stem.weight.detach(), theirs["_conv_stem.weight"])
    np.testing.assert_array_equal(ours.bn2.running_var, theirs["_bn1.running_var"])


@pytest.mark.parametrize(
    ("width", "channels"), [("light", [32, 64, 128, 256]), ("original", [64, 128, 256, 256, 512, 512])]
)
def test_vggish_has_the_widths_of_its_name_and_learns_in_every_part(width, channels):
    import torch

    network = create_network("vggish_bigru", {"width": width}, 3)
    convolutions = [m.out_channels for m in network.convolutions if isinstance(m, torch.nn.Conv2d)]
    assert convolutions == channels
    inputs = network.inputs(torch.randn(2, 80_000) * 0.1)
    assert inputs.shape == (2, 5, 96, 64)
    network.logits_of(inputs).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters() if p.dim() > 1)


def test_a_name_that_is_no_efficientnet_and_a_width_that_is_none_are_refused_with_what_there_is():
    with pytest.raises(InputError, match="tf_efficientnet_lite0"):
        create_network("efficientnet", {"model": "tf_efficientnet_lite9"}, 3)
    with pytest.raises(InputError, match="light or original"):
        create_network("vggish_bigru", {"width": "huge"}, 3)
    with pytest.raises(InputError, match="Did you mean birdnet"):
        load_backbone("birdnets")
    for kind in ("onnx", "hear", "timm"):
        with pytest.raises(InputError, match="is named"):
            load_backbone(kind)
    with pytest.raises(InputError, match="must be trained first"):
        load_backbone("efficientnet")
    with pytest.raises(InputError, match="frozen"):
        create_network("logmel_stats", {}, 3)


def test_weights_of_another_architecture_are_refused_and_counted(tmp_path):
    from safetensors.torch import save_file

    other = create_network("efficientnet", {"model": "efficientnet_lite1"}, 3, "none")
    save_file({k: v.contiguous() for k, v in other.body.state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="another architecture"):
        create_network("efficientnet", {}, 3, str(tmp_path / "w.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as weights"):
        create_network("efficientnet", {}, 3, str(tmp_path / "cut.safetensors"))


class TestDamagedFolders:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        untrained("vggish_bigru").save(tmp_path / "b")
        return tmp_path / "b"

    def test_weights_cut_short(self, folder):
        weights = folder / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(InputError, match="damaged"):
            load_backbone(folder)

    def test_weights_exchanged(self, folder):
        untrained("vggish_bigru", seed=9).save(folder.parent / "other")
        (folder.parent / "other/weights.safetensors").replace(folder / "weights.safetensors")
        with pytest.raises(InputError, match="not the file that"):
            load_backbone(folder)

    def test_description_edited(self, folder):
        (folder / "backbone.json").write_text("{")
        with pytest.raises(InputError, match="cannot be read"):
            load_backbone(folder)
        (folder / "backbone.json").write_text(json.dumps({"kind": "vggish_bigru", "format": "cisticola-backbone-9"}))
        with pytest.raises(InputError, match="format"):
            load_backbone(folder)

    def test_a_checkpoint_is_not_a_backbone(self, folder):
        (folder / "last.ckpt").write_bytes(b"PK")
        with pytest.raises(InputError, match="not a backbone"):
            load_backbone(folder / "last.ckpt")
