"""Losses against their formulas, and the last layers that they need."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from embeddings.errors import InputError
from stage1_backbones.losses import LOSSES, LossSettings, make_loss, smoothed
from stage1_backbones.recipe import TrainingSettings
from stage1_backbones.registry import create_network

RNG = torch.Generator().manual_seed(0)
LOGITS = torch.randn(5, 4, generator=RNG) * 3
TARGETS = torch.rand(5, 4, generator=RNG)
SHARES = torch.tensor([0.5, 0.1, 0.01, 0.0])


def loss_of(name: str, **settings) -> float:
    return float(make_loss(LossSettings(name, **settings), SHARES)(LOGITS, TARGETS))


def test_bce_is_each_class_by_itself():
    expected = -(TARGETS * logsigmoid(LOGITS) + (1 - TARGETS) * logsigmoid(-LOGITS)).mean()
    assert loss_of("bce") == pytest.approx(float(expected), rel=1e-6)


def test_weighted_bce_weighs_positives_by_rarity_up_to_a_limit():
    weight = torch.tensor([1.0, 9.0, 20.0, 20.0])
    expected = -(weight * TARGETS * logsigmoid(LOGITS) + (1 - TARGETS) * logsigmoid(-LOGITS)).mean()
    assert loss_of("weighted_bce") == pytest.approx(float(expected), rel=1e-5)


def test_cosine_bce_is_the_reference_form_for_one_label_and_for_mixed_ones():
    one_hot = torch.eye(4)[[0, 1, 2, 3, 0]]
    expected = []
    for z, y in zip(LOGITS, one_hot, strict=True):
        own = int(y.argmax())
        others = sum(float(torch.log1p(torch.exp(z[i]))) for i in range(4) if i != own)
        expected.append(0.3 * float(torch.log1p(torch.exp(-z[own]))) + 0.7 * others)
    loss = make_loss(LossSettings("cosine_bce", balance=0.3), SHARES)
    assert float(loss(LOGITS, one_hot)) == pytest.approx(np.mean(expected), rel=1e-5)
    mixed = -(0.3 * TARGETS * logsigmoid(LOGITS) + 0.7 * (1 - TARGETS) * logsigmoid(-LOGITS)).sum(1).mean()
    assert float(loss(LOGITS, TARGETS)) == pytest.approx(float(mixed), rel=1e-5)


def test_an_open_balance_is_drawn_anew_for_each_batch():
    loss = make_loss(LossSettings("cosine_bce"), SHARES)
    torch.manual_seed(0)
    drawn = [float(loss(LOGITS, TARGETS)) for _ in range(5)]
    assert len(set(drawn)) == 5


def test_focal_forgets_what_is_right_and_is_bce_without_focus():
    assert loss_of("focal", gamma=0.0) == pytest.approx(loss_of("bce"), rel=1e-6)
    easy, hard = torch.tensor([[6.0]]), torch.tensor([[-6.0]])
    one = torch.ones(1, 1)
    focal = make_loss(LossSettings("focal"), SHARES)
    assert float(focal(easy, one)) < 1e-4 * float(make_loss(LossSettings("bce"), SHARES)(easy, one))
    assert float(focal(hard, one)) == pytest.approx(6.0, rel=0.02)


def test_softmax_shares_each_target_among_its_labels():
    shares = TARGETS / TARGETS.sum(1, keepdim=True)
    expected = -(shares * torch.log_softmax(LOGITS, 1)).sum(1).mean()
    assert loss_of("softmax") == pytest.approx(float(expected), rel=1e-6)


def test_softmax_wants_a_window_without_a_call_to_look_like_nothing_in_particular():
    loss = make_loss(LossSettings("softmax"), SHARES)
    nothing = torch.zeros(1, 4)
    assert float(loss(torch.zeros(1, 4), nothing)) == pytest.approx(np.log(4))
    assert float(loss(torch.tensor([[9.0, 0, 0, 0]]), nothing)) > 2


def test_smoothing_spreads_a_share_over_all_classes():
    torch.testing.assert_close(smoothed(torch.eye(4), 0.1), torch.eye(4) * 0.9 + 0.025)
    assert smoothed(TARGETS, 0.0) is TARGETS


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["efficientnet", "vggish_bigru"])
def test_a_recipe_builds_the_last_layer_that_its_loss_reads(name, kind):
    settings = TrainingSettings(kind=kind, loss=LossSettings(name))
    network = create_network(kind, settings.network, 3, "none").eval()
    logits = network.classifier(torch.randn(6, network.dim, generator=RNG))
    scores = network.scores_of(logits * 50)
    assert scores.dtype == torch.float64
    assert ((scores >= 0) & (scores < 1)).all()
    if name == "softmax":
        torch.testing.assert_close(network.scores_of(logits).sum(1), torch.ones(6, dtype=torch.float64))
    if name == "cosine_bce":
        assert logits.abs().max() <= 30.0001


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "hinge"}, "bce, weighted_bce, cosine_bce, focal, softmax"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"name": "cosine_bce", "balance": 1.0}, "balance"),
        ({"balance": 0.5}, "belongs to loss.name=cosine_bce"),
        ({"name": "softmax", "gamma": 1.0}, "belongs to loss.name=focal"),
    ],
)
def test_loss_settings_that_do_nothing_or_make_no_sense_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        LossSettings(**settings)
