"""`backbones compare`: cells are made once, found again, and add up to honest figures; wrong files are told at once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from cli.backbones import app
from cli.experiment import Arm, Trial, read_experiment
from cli.experiment_cells import CellScores
from cli.experiment_report import results_of
from embeddings.errors import InputError
from embeddings.recordings import Catalogue, Recording

SMALL = {"epochs": 1, "min_steps": 0, "crops_per_recording": 1, "batch_size": 8}


def written(folder: Path, table: Path, **changes) -> Path:
    values = {
        "title": "A small one",
        "data": [str(table)],
        "folds": 2,
        "frozen": ["logmel_stats"],
        "fusions": ["late", "early"],
        "base": {"vggish_bigru": SMALL},
        "recipes": {"plain": {"vggish_bigru": None}, "softmax": {"vggish_bigru": {"loss": {"name": "softmax"}}}},
        **changes,
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def finished(synthetic_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    return written(folder, synthetic_set), folder / "out", run(written(folder, synthetic_set), "--out", folder / "out")


@pytest.mark.slow
def test_it_trains_scores_and_writes_table_picture_and_figures(finished):
    _, out, printed = finished
    results = json.loads((out / "results.json").read_text())["results"]
    assert len(results) == 7  # two recipes x (alone, late, early), and the frozen block alone
    for result in results:
        assert result["n"] == 24
        for figure in result["figures"].values():
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert {r["recipe"] for r in results if "first" in r["against"]} == {"softmax"}
    assert all(("best block" in r["against"]) == (len(r["blocks"]) > 1) for r in results)
    late = [r for r in results if r["fusion"] == "late"]
    assert all(sum(r["block_weights"]) == pytest.approx(1) for r in late)
    with open(out / "results.csv", newline="") as handle:
        assert len(list(csv.DictReader(handle))) == 7
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "results.md").read_text().count("\n| softmax") == 3
    assert "waited for data" in printed


@pytest.mark.slow
def test_a_second_run_finds_everything_and_a_lost_cell_is_made_again_alike(finished):
    path, out, _ = finished
    before = (out / "results.json").read_bytes()
    cells = sorted((out / "scores").iterdir())
    stamps = [cell.stat().st_mtime_ns for cell in cells]
    cells[0].unlink()
    printed = run(path, "--out", out)
    assert "trained in" not in printed
    assert (out / "results.json").read_bytes() == before
    assert [cell.stat().st_mtime_ns for cell in cells[1:]] == stamps[1:]


@pytest.mark.slow
def test_a_dry_run_says_what_is_left_and_makes_nothing(finished, tmp_path):
    path, out, _ = finished
    assert "About 0 minutes" in " ".join(run(path, "--out", out, "--dry-run").split())
    printed = run(path, "--out", tmp_path / "new", "--dry-run")
    assert "24 recordings" in printed
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipes": {}}, "at least one recipe"),
        ({"recipes": {"a": {"vggish_bigru": {"los": {"name": "bce"}}}}}, "no setting 'los'.*Did you mean loss"),
        ({"recipes": {"a": {"vggish_bigru": {"loss": {"nam": "bce"}}}}}, r"recipe\.loss has no setting 'nam'"),
        ({"recipes": {"a": {"vggish_bigru": {"epochs": "many"}}}}, "must be a whole number"),
        ({"recipes": {"a": {"vggish": {}}}}, "neither a folder nor a backbone"),
        ({"recipes": {"a": {"vggish_bigru": {"weights": "w.pth"}}}}, "starts from random weights"),
        ({"folds": 1}, "folds=1"),
        ({"folds": "published"}, "no `fold` column"),
        ({"fusions": ["middle"]}, "late, equal, early, unheard"),
        ({"heads": ["tree"]}, "no head is called"),
        ({"pool": "median"}, "mean, lme, max"),
        ({"blocks": [["birdnet"]]}, "must be a list of blocks among"),
        ({"group": "weather"}, "not a column to group by"),
        ({"folds": 7, "group": "common_name"}, "no recording to train on in some fold"),
        ({"colour": 1}, "no setting 'colour'"),
    ],
)
def test_wrong_files_are_told_before_any_training(synthetic_set, tmp_path, changes, words):
    path = written(tmp_path, synthetic_set, **changes)
    with pytest.raises(InputError, match=words):
        CliRunner().invoke(
            app, ["compare", str(path), "--out", str(tmp_path / "out")], catch_exceptions=False, standalone_mode=False
        )
    assert not (tmp_path / "out" / "backbones").exists()


@pytest.mark.slow
def test_an_interrupted_extraction_is_never_scored(synthetic_set, tmp_path, monkeypatch):
    from embeddings import extract

    monkeypatch.setattr(extract, "extract", lambda *_, **__: extract.ExtractionSummary("", interrupted=True))
    path = written(tmp_path, synthetic_set, recipes={"plain": {"vggish_bigru": None}})
    result = CliRunner().invoke(app, ["compare", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code != 0
    assert "trained in" in result.output
    assert not (tmp_path / "out" / "scores").exists()


def test_figures_are_means_over_seeds_of_all_folds_together(tmp_path):
    """Two seeds, two folds: top-1 by hand, and the paired difference of an arm with itself is nothing."""
    catalogue = Catalogue(tuple(Recording(f"r{i}", Path(f"r{i}.wav"), primary_label="ab"[i % 2]) for i in range(8)))
    recipes = {"one": {"vggish_bigru": {}}, "two": {"vggish_bigru": {}}}
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({"data": ["x.csv"], "folds": 2, "seeds": [0, 1], "recipes": recipes}))
    experiment = read_experiment(path)
    right = np.array([[0.9, 0.1], [0.1, 0.9]] * 2)
    wrong = right[:, ::-1]
    cells = {}
    for recipe in recipes:
        arm = Arm(recipe, ("vggish_bigru",), "svm")
        for seed, second in ((0, right), (1, wrong)):
            names = [tuple(f"r{i}" for i in range(4)), tuple(f"r{i}" for i in range(4, 8))]
            cells[Trial(recipe, seed, "1"), arm] = CellScores(names[0], ("a", "b"), right, 1.0)
            cells[Trial(recipe, seed, "2"), arm] = CellScores(names[1], ("a", "b"), second, 2.0)
    one, two = results_of(experiment, catalogue, cells)
    assert one.by_seed["top_1"] == [1.0, 0.5]
    assert one.figures["top_1"].value == 0.75
    assert one.minutes == 1.5
    assert two.against["first"]["top_1"].to_json() == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 8}
    del cells[Trial("two", 1, "2"), Arm("two", ("vggish_bigru",), "svm")]
    assert [result.arm.recipe for result in results_of(experiment, catalogue, cells)] == ["one"]
