"""Species and kinds of call from one backbone: what is not known of a recording teaches nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli.backbones import app
from embeddings.errors import InputError
from embeddings.recordings import Recording
from stage1_backbones.losses import LOSSES, LossSettings, leaving_out_unknown, make_loss
from stage1_backbones.mixup import Mixing
from stage1_backbones.recipe import TrainingSettings
from stage1_backbones.registry import load_backbone
from stage1_backbones.targets import class_names, n_species, target_matrix, words_of

SIGMOIDS = [name for name, kind in LOSSES.items() if kind.output == "sigmoid"]


def recording(label: str, *types: str, secondary: tuple[str, ...] = ()) -> Recording:
    return Recording(f"{label}{types}", Path("a.ogg"), "a.ogg", label, secondary, types)


BIRDS = [
    recording("wren", "Song", secondary=("robin",)),
    recording("robin", "call, female"),
    recording("robin"),
    recording("wren", "male"),
    recording("nocall", "whirr"),
]


def test_classes_are_species_and_then_kinds_and_unknown_kinds_are_not_zero():
    names = class_names(BIRDS, with_types=True)
    assert names == ("robin", "wren", "type: call", "type: other", "type: song")
    assert n_species(names) == 2
    assert words_of(names) == "2 labels and 3 kinds of call"
    assert class_names(BIRDS) == ("robin", "wren")
    nan = np.nan
    np.testing.assert_array_equal(
        target_matrix(BIRDS, names, 0.5),
        [[0.5, 1, 0, 0, 1], [1, 0, 1, 0, 0], [1, 0, nan, nan, nan], [0, 1, nan, nan, nan], [0, 0, 0, 1, 0]],
    )
    with pytest.raises(InputError, match="`type` column"):
        class_names(BIRDS[2:4], with_types=True)


@pytest.mark.parametrize("name", SIGMOIDS)
def test_an_unknown_target_brings_no_loss_and_no_gradient_and_the_known_ones_the_same_as_without_it(name):
    settings = LossSettings(name, balance=0.4) if name == "cosine_bce" else LossSettings(name)
    loss = leaving_out_unknown(make_loss(settings, torch.tensor([0.3, 0.2, 0.5])))
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    targets = torch.eye(4, 3)
    targets[2, 1] = targets[3, 0] = torch.nan
    value = loss(logits, targets)
    value.backward()
    assert logits.grad is not None
    assert float(logits.grad[2, 1]) == 0 == float(logits.grad[3, 0])
    assert int((logits.grad != 0).sum()) == 10
    other = logits.detach().clone()
    other[2, 1], other[3, 0] = 9.0, -9.0
    torch.testing.assert_close(loss(other, targets), value.detach())
    known = torch.eye(4, 3)
    plain = make_loss(settings, torch.tensor([0.3, 0.2, 0.5]))
    torch.testing.assert_close(loss(other, known), plain(other, known))


def test_mixing_with_a_recording_of_unknown_kind_leaves_the_kind_unknown():
    targets = torch.tensor([[1.0, 0.0], [0.0, torch.nan]])
    mixed = Mixing("", torch.tensor([1, 0]), torch.tensor([0.7, 1.0]), "convex").targets(targets)
    torch.testing.assert_close(mixed, torch.tensor([[0.7, torch.nan], [0.0, torch.nan]]), equal_nan=True)


def test_softmax_cannot_tell_both_and_settings_without_types_are_those_of_before():
    with pytest.raises(InputError, match="with_types cannot go with loss"):
        TrainingSettings("efficientnet", with_types=True, loss=LossSettings("softmax"))
    assert "with_types" not in TrainingSettings("efficientnet").to_json()
    both = TrainingSettings("efficientnet", with_types=True)
    assert TrainingSettings.from_json(both.to_json()) == both


@pytest.fixture(scope="module")
def typed_table(synthetic_set) -> Path:
    with open(synthetic_set, newline="") as handle:
        rows = list(csv.DictReader(handle))
    for i, row in enumerate(rows):
        row["type"] = ["['song']", "['call', 'male']", "[]"][i % 3]
    path = synthetic_set.parent / "two_targets.csv"
    with open(path, "w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.slow
def test_one_training_learns_both_and_goes_by_its_settings(typed_table, tmp_path):
    command = ["train", typed_table, "--backbone", "vggish_bigru", "--epochs", 2, "--out", tmp_path / "b"]

    def run(*more: object) -> str:
        done = CliRunner().invoke(app, [*map(str, (*command, *more))], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert "of 4 labels and 2 kinds of call to train on" in run("--target", "species+type")
    backbone = load_backbone(tmp_path / "b", device="cpu")
    assert backbone.labels[-2:] == ("type: call", "type: song")
    with open(tmp_path / "b" / "metrics.csv", newline="") as handle:
        metrics = list(csv.DictReader(handle))
    assert all(np.isfinite(float(row["train_loss"])) for row in metrics)
    assert np.isfinite(json.loads((tmp_path / "b" / "summary.json").read_text())["best_cmap"])
    assert all(torch.isfinite(p).all() for p in backbone.network.parameters())
    with pytest.raises(InputError, match="with_types: True there"):
        run("--target", "species")
    before = typed_table.read_text()
    typed_table.write_text(before.replace("['call', 'male']", "['song', 'male']", 1))
    try:
        with pytest.raises(InputError, match="holds a training on other labels"):
            run("--target", "species+type")
    finally:
        typed_table.write_text(before)
    command[1] = untyped = typed_table.parent / "untyped.csv"
    untyped.write_text(typed_table.read_text().replace("secondary_labels,type", "secondary_labels,kind"))
    with pytest.raises(InputError, match="`type` column"):
        run("--target", "species+type", "--overwrite")


@pytest.mark.slow
def test_heads_of_either_target_are_compared_on_backbones_that_learnt_one_or_both(typed_table, tmp_path):
    import yaml

    small = {"epochs": 1, "min_steps": 0, "crops_per_recording": 1, "batch_size": 8}
    values = {
        "data": [str(typed_table)],
        "folds": 2,
        "base": {"vggish_bigru": small},
        "recipes": {"species": {"vggish_bigru": None}, "both": {"vggish_bigru": {"with_types": True}}},
    }
    n_judged = {"species": 24, "type": 16}  # every third recording says no kind of call
    for target, n in n_judged.items():
        path = tmp_path / f"{target}.yaml"
        path.write_text(yaml.safe_dump({**values, "target": target}, sort_keys=False))
        done = CliRunner().invoke(app, ["compare", str(path), "--out", str(tmp_path / "out")], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
        assert [(r["recipe"], r["n"]) for r in results] == [("species", n), ("both", n)]
        assert ("trained in" in done.output) == (target == "species")
    path.write_text(yaml.safe_dump({**values, "target": "age"}))
    with pytest.raises(InputError, match="choose species or type"):
        CliRunner().invoke(app, ["compare", str(path), "--out", str(tmp_path / "out")], catch_exceptions=False)
