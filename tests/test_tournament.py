"""Heads against blocks on one store: who is fitted, who is scored, and what the report says of it."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from embeddings.errors import InputError
from embeddings.recordings import Catalogue
from embeddings.store import Store
from stage2_heads.tournament import entries_of, run_contest


@pytest.fixture(scope="module")
def store(synthetic_set, tmp_path_factory) -> Path:
    from cli.embed import app

    path = tmp_path_factory.mktemp("stores") / "synthetic"
    done = CliRunner().invoke(
        app, ["extract", str(synthetic_set), "--backbone", "logmel_stats", "--out", str(path)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return path


@pytest.fixture(scope="module")
def contest(store):
    opened = Store(store)
    return run_contest(opened, entries_of(opened, ["knn", "svm"]), folds=3, seeds=(0, 1), n_bootstrap=200)


def test_every_recording_is_scored_once_by_a_head_that_did_not_hear_it(store, contest, monkeypatch):
    from stage2_heads import tournament

    asked: list[set] = []
    fit = tournament.Entry.unfitted

    def watched(self, seed):
        head = fit(self, seed)
        learn = head.fit

        def fit_and_remember(rows):
            asked.append({r.recording for r in rows.recordings})
            return learn(rows)

        head.fit = fit_and_remember
        return head

    monkeypatch.setattr(tournament.Entry, "unfitted", watched)
    opened = Store(store)
    names = {r.recording for r in opened.catalogue}
    found = run_contest(opened, entries_of(opened, ["knn"]), folds=3, n_bootstrap=20)
    left_out = [names - fitted for fitted in asked]
    assert set().union(*left_out) == names
    assert sum(map(len, left_out)) == len(names) == len(found.truth)


def test_the_best_comes_first_and_differences_are_paired(contest):
    values = [r.figures["cmap_present"].value for r in contest.results]
    assert values == sorted(values, reverse=True)
    best, other = contest.results
    difference = other.minus(best, "cmap_present")
    assert difference.value == pytest.approx(values[1] - values[0])
    assert difference.low <= difference.value <= difference.high
    assert best.minus(best, "cmap_present").low == best.minus(best, "cmap_present").high == 0
    assert best.entry.name in contest.verdict().split(" has the highest cmAP")[0]


def test_the_figures_are_those_of_the_scores(contest):
    from sklearn.metrics import average_precision_score

    (knn,) = (r for r in contest.results if r.entry.head == "knn")  # no seed moves it: its mean is itself
    expected = average_precision_score(contest.truth, knn.scores, average="macro")
    assert knn.figures["cmap_present"].value == pytest.approx(expected, abs=1e-12)


def test_the_command_writes_a_page_that_needs_nothing_else(store, tmp_path):
    from cli.heads import app

    out = tmp_path / "report"
    words = ["compare", str(store), "--head", "knn,svm", "--out", str(out), "--json", str(tmp_path / "c.json")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "has the highest cmAP" in done.output
    page = (out / "contest.html").read_text()
    assert page.count("<svg") == 7
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    with open(out / "contest.csv") as handle:
        rows = list(csv.DictReader(handle))
    facts = json.loads((tmp_path / "c.json").read_text())
    assert [row["head"] for row in rows] == [r["head"] for r in facts["results"]]
    assert float(rows[0]["cmap_present"]) == facts["results"][0]["figures"]["cmap_present"]["value"]
    assert "| svm |" in (out / "contest.md").read_text()
    (arranged,) = facts["arrangements"]
    assert arranged["blocks"] == ["logmel_stats"]
    assert -1 <= arranged["silhouette"]["low"] <= arranged["silhouette"]["value"] <= arranged["silhouette"]["high"] <= 1
    assert f"{arranged['adjusted_mutual_information']:.3f}" in page
    for result in facts["results"]:
        counts = [point["n_fitted"] for point in result["learning_curve"]]
        assert counts == sorted(set(counts))
        assert len(counts) == 4
        assert counts[-1] == facts["n_fitted"]
        assert result["learning_curve"][-1]["cmap_present"] == result["figures"]["cmap_present"]


def test_stores_of_several_folds_are_scored_together(synthetic_set, tmp_path):
    """Each store has its own side of the split; what both were asked is one table, with the heads of each alone."""
    from cli.embed import app
    from embeddings.recordings import save_catalogue

    stores = []
    for k in range(2):
        path = tmp_path / str(k)
        words = ["extract", str(synthetic_set), "--backbone", "logmel_stats", "--out", str(path)]
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
        recordings = [
            dataclasses.replace(r, split="valid" if i % 2 == k else "train")
            for i, r in enumerate(Store(path).catalogue.recordings)
        ]
        save_catalogue(path / "catalogue.arrow", recordings)
        stores.append(Store(path))
    entries = entries_of(stores[0], ["knn"])
    together = run_contest(stores, entries, n_bootstrap=20)
    alone = [run_contest(store, entries, n_bootstrap=20) for store in stores]
    assert len(together.truth) == sum(len(c.truth) for c in alone) == len(stores[0].catalogue.recordings)
    np.testing.assert_array_equal(together.results[0].scores, np.vstack([c.results[0].scores for c in alone]))
    assert together.how == "the validation side, of 2 stores"
    with pytest.raises(InputError, match="on the scored side of two stores"):
        run_contest([stores[0], stores[0]], entries)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--head", "tree"], "no head is called 'tree'"),
        (["--head", "fused"], "fused heads are made of others"),
        (["--head", "svm", "--blocks", "birdnet"], "has no block birdnet"),
        (["--head", "svm", "--folds", "1"], "must be 2 or more"),
        (["--head", "svm", "--seeds", "a"], "must be whole numbers"),
        (["--head", "svm", "--split", "valid"], "are for fitted heads"),
        (["--head", "svm", "--include-seen"], "are for fitted heads"),
        (["--folds", "3"], "name at least one head"),
    ],
)
def test_what_does_not_go_together_is_refused(store, options, words):
    from cli.heads import app

    with pytest.raises(InputError, match=words):
        CliRunner().invoke(app, ["compare", str(store), *options], catch_exceptions=False)


def test_a_store_without_unheard_recordings_says_so(store, monkeypatch):
    from embeddings.contract import Heard

    opened = Store(store)
    everyone = Heard(trained_on=frozenset(r.recording for r in opened.catalogue))
    monkeypatch.setattr(opened, "heard", lambda names=None: everyone)
    with pytest.raises(InputError, match="no recording to score that no backbone has heard"):
        run_contest(opened, entries_of(opened, ["knn"]), folds=3)


def test_labels_of_every_fold_are_the_same(contest):
    assert contest.truth.shape[1] == len(contest.labels) == contest.results[0].scores.shape[1]
    assert np.isfinite(contest.results[0].scores).all()


@pytest.mark.parametrize("folds", [2, 4, 8])
def test_learning_curves_draw_their_shares_whatever_the_folds(store, folds):
    opened = Store(store)
    found = run_contest(opened, entries_of(opened, ["knn"]), folds=folds, n_bootstrap=20, curves=1)
    counts = [n for n, _ in found.results[0].curve]
    assert counts == sorted(set(counts))
    assert counts[-1] == found.n_fitted
    assert len(counts) >= 2


def test_a_share_too_small_for_a_recording_is_left_out_of_the_curve(store):
    opened = Store(store)
    few = [
        dataclasses.replace(r, split="train" if i < 5 else "valid") for i, r in enumerate(opened.catalogue.recordings)
    ]
    opened.catalogue = Catalogue(tuple(few))
    found = run_contest(opened, entries_of(opened, ["knn"]), n_bootstrap=20, curves=1)
    assert [n for n, _ in found.results[0].curve][-1] == 5
