"""Heads that answer together: their classes, their scores, and what they were fitted on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_heads import QUICK, rows_of, sounds
from typer.testing import CliRunner

from embeddings.errors import InputError
from stage2_heads.combined import combine_heads
from stage2_heads.heads import create_head, load_head


def log_odds(scores: np.ndarray) -> np.ndarray:
    scores = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.log(scores / (1 - scores))


@pytest.fixture(scope="module")
def heads():
    """An svm on both blocks and four species; a logistic head on the second block and two species, on other birds."""
    svm = create_head("svm", **QUICK["svm"]).fit(rows_of())
    few = rows_of(seed=3, labels=("birch", "dogwood")).block(1)
    return svm, create_head("logistic", **QUICK["logistic"]).fit(few)


def test_a_class_is_the_weighted_mean_of_those_who_know_it(heads):
    svm, logistic = heads
    X = sounds(seed=1)[0]
    combined = combine_heads(heads, [3.0, 1.0])
    both, alone = log_odds(svm.scores(X)), log_odds(logistic.scores(X[:, 12:]))
    assert combined.labels_ == ("ash", "birch", "cedar", "dogwood")
    expected = both.copy()
    expected[:, [1, 3]] = (3 * both[:, [1, 3]] + alone) / 4
    np.testing.assert_allclose(log_odds(combined.scores(X)), expected, atol=1e-6)


def test_it_has_heard_what_any_member_has(heads):
    combined = combine_heads(heads)
    assert combined.heard_.covers("s0r0")
    assert combined.heard_.covers("s3r1")
    assert combined.calibrated_on_ == heads[0].calibrated_on_


def test_it_survives_saving_with_its_members(heads, tmp_path):
    combined = combine_heads(heads, [2.0, 1.0])
    combined.save(tmp_path / "c")
    loaded = load_head(tmp_path / "c")
    X = sounds(seed=1)[0]
    np.testing.assert_array_equal(loaded.scores(X), combined.scores(X))
    assert loaded.facts() == combined.facts()
    (tmp_path / "c/members/1/head.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="cut short or changed"):
        load_head(tmp_path / "c")


def test_it_learns_nothing_by_itself(heads):
    combined = combine_heads(heads)
    with pytest.raises(InputError, match="made of fitted heads"):
        combined.fit(rows_of())
    with pytest.raises(InputError, match="update its members"):
        combine_heads(heads).partial_fit(np.zeros((1, 18)), np.zeros((1, 4)))
    with pytest.raises(InputError, match="heads combine"):
        create_head("combined")


@pytest.mark.parametrize(
    ("weights", "words"), [([1.0], "do not fit 2 heads"), ([1.0, 0.0], "above 0"), ([1.0, np.nan], "above 0")]
)
def test_weights_that_do_not_fit_are_refused(heads, weights, words):
    with pytest.raises(InputError, match=words):
        combine_heads(heads, weights)


def test_one_head_or_an_unfitted_one_is_refused(heads):
    with pytest.raises(InputError, match="at least two"):
        combine_heads(heads[:1])
    with pytest.raises(InputError, match="must be fitted"):
        combine_heads([heads[0], create_head("svm")])


def test_the_command_combines_and_says_what(heads, tmp_path):
    from cli.heads import app

    paths: list[Path] = []
    for name, head in zip(("a", "b"), heads, strict=True):
        head.save(tmp_path / name)
        paths.append(tmp_path / name)
    words = ["combine", *map(str, paths), "--weights", "2,1", "--out", str(tmp_path / "both")]
    dry = CliRunner().invoke(app, [*words, "--dry-run"], catch_exceptions=False)
    assert "Would combine 2 heads, 4 classes" in dry.output
    assert not (tmp_path / "both").exists()
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "Combined 2 heads, 4 classes, blocks picture + sequence" in done.output
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "both")], catch_exceptions=False).output
    assert "member 1" in shown
    with pytest.raises(InputError, match="must be numbers"):
        CliRunner().invoke(app, [*words[:3], "--weights", "much", "--out", str(tmp_path / "x")], catch_exceptions=False)
