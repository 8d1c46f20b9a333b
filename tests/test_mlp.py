"""The small network's losses against their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from embeddings.errors import InputError
from stage2_heads.heads import create_head
from stage2_heads.mlp import MlpSettings, _loss

LOGITS = np.array([[-3.0, 0.5], [2.0, -0.2]])
TARGETS = np.array([[0.0, 1.0], [0.25, 0.0]])


def score(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("settings", "present", "absent"),
    [
        ({"loss": "bce"}, lambda p: -np.log(p), lambda p: -np.log(1 - p)),
        (
            {"loss": "focal", "gamma": 2.0},
            lambda p: -((1 - p) ** 2) * np.log(p),
            lambda p: -(p**2) * np.log(1 - p),
        ),
        (
            {"loss": "asymmetric", "gamma": 3.0, "margin": 0.1},
            lambda p: -np.log(p),
            lambda p: -(np.maximum(p - 0.1, 0) ** 3) * np.log(1 - np.maximum(p - 0.1, 0)),
        ),
    ],
)
def test_losses_are_what_their_papers_say(settings, present, absent):
    import torch

    p = score(LOGITS)
    expected = (TARGETS * present(p) + (1 - TARGETS) * absent(p)).mean()
    found = _loss(MlpSettings(**settings), torch.tensor(LOGITS), torch.tensor(TARGETS))
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", ["focal", "asymmetric"])
def test_they_forget_an_absence_that_is_already_right(loss):
    import torch

    logits = torch.tensor([[-4.0, 1.0]], requires_grad=True)
    steepness = {}
    for name in ("bce", loss):
        _loss(MlpSettings(loss=name), logits, torch.zeros(1, 2)).backward()
        steepness[name] = logits.grad.clone().numpy()[0]
        logits.grad = None
    easy, hard = steepness[loss] / steepness["bce"]
    assert easy < 0.1 * hard


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "hinge"}, "loss='hinge' is not one of bce, focal, asymmetric"),
        ({"margin": 1.0}, "margin=1.0 must lie"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        create_head("mlp", **settings)
