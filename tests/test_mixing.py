"""Mixup: the same share for sounds and labels, and mixed activations at every stage of every network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embeddings.errors import InputError
from stage1_backbones.mixup import Mixing, MixSettings, draw_mixing
from stage1_backbones.registry import create_network, list_backbones

TRAINABLE = [kind.name for kind in list_backbones() if kind.trainable]


def stages_of(kind: str) -> list[tuple[str, str]]:
    return [(kind, stage) for stage in create_network(kind, {}, 3, "none").stages]


EVERY_STAGE = [pair for kind in TRAINABLE for pair in stages_of(kind)]


def test_labels_are_mixed_by_the_share_of_the_inputs():
    mixing = draw_mixing(MixSettings(alpha=0.4), 6, {}, torch.Generator().manual_seed(0))
    mixed = mixing.values(torch.eye(6))
    torch.testing.assert_close(mixed, mixing.targets(torch.eye(6)))
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(6))
    assert ((mixed > 0).sum(dim=1) == 2).any()


def test_union_labels_keep_both_birds_whole():
    mixing = Mixing("", torch.tensor([1, 0]), torch.tensor([0.7, 0.2]), "union")
    torch.testing.assert_close(mixing.targets(torch.tensor([[1.0, 0.0], [0.0, 0.5]])), torch.tensor([[1.0, 0.5]] * 2))


def test_shares_follow_the_beta_distribution():
    from scipy.stats import beta, kstest

    drawn = draw_mixing(MixSettings(alpha=0.4), 4000, {}, torch.Generator().manual_seed(1)).share.numpy()
    assert kstest(drawn, beta(0.4, 0.4).cdf).pvalue > 0.01
    assert np.isfinite(draw_mixing(MixSettings(alpha=1e-3), 4000, {}).share.numpy()).all()


@pytest.mark.parametrize(("kind", "stage"), EVERY_STAGE)
def test_activations_are_mixed_at_the_drawn_stage_and_only_there(kind, stage):
    torch.manual_seed(0)
    network = create_network(kind, {}, 3, "none").eval()
    inputs = network.inputs(torch.randn(3, round(network.window_s * network.sample_rate_hz)) * 0.1)
    heard: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: heard.__setitem__(name, out[0] if isinstance(out, tuple) else out)
        )
        for name, module in network.stages.items()
    ]
    with torch.no_grad():
        network.logits_of(inputs)
        plain = dict(heard)
        mixing = Mixing(stage, torch.tensor([1, 2, 0]), torch.tensor([0.6, 0.3, 1.0]), "convex")
        # Hooks run in the order in which they were set: let the listeners hear what comes after the mixing.
        for hook in hooks:
            hook.remove()
        with mixing.inside(network.stages):
            for name, module in network.stages.items():
                module.register_forward_hook(
                    lambda _, __, out, name=name: heard.__setitem__(name, out[0] if isinstance(out, tuple) else out)
                )
            mixed_logits = network.logits_of(inputs)
    order = list(network.stages)
    for name in order[: order.index(stage)]:
        torch.testing.assert_close(heard[name], plain[name])
    whole, before = heard[stage].reshape(3, -1), plain[stage].reshape(3, -1)
    share = torch.tensor([0.6, 0.3, 1.0])[:, None]
    torch.testing.assert_close(whole, share * before + (1 - share) * before[[1, 2, 0]])
    assert not torch.allclose(whole, before)
    with torch.no_grad():
        plain_logits = network.logits_of(inputs)
    assert not torch.allclose(mixed_logits, plain_logits)


@pytest.mark.parametrize("kind", TRAINABLE)
def test_what_is_drawn_on_a_picture_is_what_the_network_hears(kind):
    network = create_network(kind, {}, 3, "none")
    inputs = network.inputs(torch.randn(2, round(network.window_s * network.sample_rate_hz)) * 0.1)
    shapes = {"efficientnet": [(128, 313)], "vggish_bigru": [(64, 480)], "fusion": [(128, 313), (64, 480)]}[kind]
    pictures = network.pictures_of(inputs)
    assert [tuple(picture.shape) for picture in pictures] == [(2, *shape) for shape in shapes]
    for picture in pictures:
        picture[1, 5] = 7.0
    assert int((inputs == 7.0).sum()) == sum(n_frames for _, n_frames in shapes)
    assert not (inputs[0] == 7.0).any()


def test_the_recurrent_track_can_be_mixed_inside():
    assert [stage for kind, stage in EVERY_STAGE if kind == "vggish_bigru"][-2:] == ["patches", "gru"]


@pytest.mark.parametrize(
    ("where", "expected"), [("input", {""}), ("manifold", {"a", "b"}), ("both", {"", "a", "b"}), ("sound", {""})]
)
def test_the_place_is_drawn_among_all_that_are_allowed(where, expected):
    stages = {"a": torch.nn.Identity(), "b": torch.nn.Identity()}
    generator = torch.Generator().manual_seed(0)
    drawn = {draw_mixing(MixSettings(where=where), 2, stages, generator).stage for _ in range(60)}
    assert drawn == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"where": "output"}, "off, sound, input, manifold, both"),
        ({"labels": "sum"}, "convex, union"),
        ({"alpha": 0}, "off"),
    ],
)
def test_settings_that_mix_nowhere_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        MixSettings(**settings)
