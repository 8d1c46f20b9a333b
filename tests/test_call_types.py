"""Raw values of the `type` column in one vocabulary, and heads that tell kinds of call apart."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from embeddings.call_types import KINDS, OTHER, call_types, meanings_of
from embeddings.errors import InputError
from embeddings.recordings import Recording
from stage2_heads.heads import load_head


@pytest.mark.parametrize(
    ("raw", "kinds", "sex", "age", "unmapped"),
    [
        ("song", ("song",), "", "", ()),
        ("Song", ("song",), "", "", ()),
        (" SONGS ", ("song",), "", "", ()),
        ("Flightcall", ("flight call",), "", "", ()),
        ("flight-calls", ("flight call",), "", "", ()),
        ("nocturnal flightcall", ("nocturnal flight call",), "", "", ()),
        ("call, female, male", ("call",), "female and male", "", ()),
        ("male call", ("call",), "male", "", ()),
        ("female", (), "female", "", ()),
        ("adult male song", ("song",), "male", "adult", ()),
        ("hatchling or nestling", (), "", "nestling", ()),
        ("begging calls; juvenile", ("begging call",), "", "juvenile", ()),
        ("call and song", ("call", "song"), "", "", ()),
        ("uncertain", (), "", "", ()),
        ("sex uncertain", (), "", "", ()),
        ("song?", ("song",), "", "", ()),
        ("wing beats", ("wing beats",), "", "", ()),
        ("quacking, song", ("song",), "", "", ("quacking",)),
        ("", (), "", "", ()),
    ],
)
def test_a_raw_value_is_read_whatever_its_spelling(raw, kinds, sex, age, unmapped):
    meaning = meanings_of(raw)
    assert (meaning.kinds, meaning.sex, meaning.age, meaning.unmapped) == (kinds, sex, age, unmapped)


def test_every_word_of_the_vocabulary_means_its_kind_in_singular_plural_and_capitals():
    for kind, words in KINDS.items():
        for word in words:
            assert meanings_of(word).kinds == (kind,), word
            assert meanings_of(word.upper()).kinds == (kind,)
            if word.endswith(("call", "song")):
                assert meanings_of(f"{word}s").kinds == (kind,)


def recording(i: int, *types: str) -> Recording:
    return Recording(
        f"{i:032x}", Path(f"{i}.ogg"), f"{i}.ogg", "robin", ("wren",), types, "Erithacus rubecula", "Robin"
    )


def test_nothing_is_lost_and_nothing_falls_on_the_first_kind():
    found = call_types(
        [
            recording(0, "Song", "call"),
            recording(1, "quacking"),
            recording(2),
            recording(3, "female"),
            recording(4, "song"),
        ]
    )
    assert [r.labels for r in found.recordings] == [("song", "call"), (OTHER,), (), (), ("song",)]
    assert (found.n_without, found.n_other) == (2, 1)
    assert found.counts == {"Song": 1, "call": 1, "quacking": 1, "female": 1, "song": 1}
    assert set(found.meanings) == set(found.counts)
    assert all(r.scientific_name == r.common_name == "" for r in found.recordings)
    assert OTHER not in KINDS


def test_without_any_type_the_column_is_asked_for():
    with pytest.raises(InputError, match="needs a table with a `type` column"):
        call_types([recording(0), recording(1)])


@pytest.fixture(scope="module")
def typed_store(synthetic_set, tmp_path_factory) -> Path:
    """The synthetic birds, every second species' recordings said to be calls, some of both kinds."""
    from cli.embed import app

    folder = tmp_path_factory.mktemp("typed")
    with open(synthetic_set) as handle:
        rows = list(csv.DictReader(handle))
    species = sorted({row["primary_label"] for row in rows})
    for i, row in enumerate(rows):
        kind = ("Song", "calls")[species.index(row["primary_label"]) % 2]
        row["type"] = "" if i == 0 else str([kind, "male"] if i % 3 else [kind])
    table = synthetic_set.parent / "typed.csv"
    with open(table, "w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    words = ["extract", str(table), "--backbone", "logmel_stats", "--out", str(folder / "store")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder / "store"


def heads(*words):
    from cli.heads import app

    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_species_and_kinds_of_call_are_told_apart_on_one_store(typed_store, tmp_path):
    for target in ("species", "type"):
        done = heads("fit", typed_store, "--head", "svm", "--target", target, "--out", tmp_path / target)
        assert done.exit_code == 0, done.output
        assert ("kind of call" in done.output) == (target == "type")
    assert load_head(tmp_path / "type").labels_ == ("call", "song")
    assert len(load_head(tmp_path / "species").labels_) > 2
    scored = heads("score", tmp_path / "type", typed_store, "--bootstrap", 20)  # the head knows its target
    assert scored.exit_code == 0
    assert "1 recordings say no kind of call" in scored.output
    with pytest.raises(InputError, match="compare those of one kind"):
        heads("compare", tmp_path / "type", tmp_path / "species", typed_store)
    compared = heads("compare", typed_store, "--head", "knn", "--target", "type", "--bootstrap", 20)
    assert "knn on logmel_stats has the highest cmAP" in compared.output


def test_a_target_that_there_is_not_and_a_store_without_types_are_refused(typed_store, tmp_path):
    from embeddings.recordings import save_catalogue
    from embeddings.store import Store

    with pytest.raises(InputError, match="choose species or type"):
        heads("fit", typed_store, "--head", "svm", "--target", "sex", "--out", tmp_path / "h")
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(typed_store, bare)
    save_catalogue(bare / "catalogue.arrow", [dataclasses.replace(r, types=()) for r in Store(bare).catalogue])
    with pytest.raises(InputError, match="has a type"):
        heads("fit", bare, "--head", "svm", "--target", "type", "--out", tmp_path / "h")
    assert not (tmp_path / "h").exists()


def test_cells_are_those_of_scikit_learn_on_cut_scores():
    from sklearn.metrics import average_precision_score, f1_score

    from cli.type_ablation import cells_of

    rng = np.random.default_rng(2)
    truth = (rng.random((40, 6)) < 0.3).astype(np.float32)
    scores = rng.dirichlet(np.ones(6), (2, 40)) * 0.99
    found = {(c.epoch, c.top_k, c.threshold): c for c in cells_of(truth, scores, [1, 3], [0.1, 0.3])}
    assert len(found) == 8
    for (epoch, k, threshold), cell in found.items():
        of_epoch = scores[epoch - 1]
        kept = (of_epoch >= np.sort(of_epoch, axis=1)[:, -k][:, None]) & (of_epoch >= threshold)
        expected = {
            "whole": average_precision_score(truth, of_epoch, average="macro"),
            "cut": average_precision_score(truth, np.where(kept, of_epoch, 0), average="macro"),
        }
        assert cell.whole["cmap_present"].value == pytest.approx(expected["whole"])
        assert cell.cut["cmap_present"].value == pytest.approx(expected["cut"])
        assert cell.cut["f1_micro"].value == pytest.approx(f1_score(truth, kept, average="micro"))
        assert cell.cut["f1_macro"].value == pytest.approx(f1_score(truth, kept, average="macro"))


def test_the_ablation_is_one_command_that_goes_on_where_it_was_cut_short(typed_store, synthetic_set, tmp_path):
    from cli.backbones import app

    table = synthetic_set.parent / "typed.csv"
    words = [
        *("ablate-types", str(table), "--backbone", "vggish_bigru", "--out", str(tmp_path / "out"), "--folds", "2"),
        *("--epochs", "2", "--top-k", "1,2", "--thresholds", "0.3", "--set", "crops_per_recording=1"),
        *("--json", str(tmp_path / "t.json")),
    ]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert {p.suffix for p in (tmp_path / "out").glob("types.*")} == {".csv", ".md", ".png"}
    facts = json.loads((tmp_path / "t.json").read_text())
    assert facts["labels"] == ["call", "song"]
    assert [(c["epoch"], c["top_k"]) for c in facts["cells"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    (tmp_path / "out" / "types.md").unlink()
    for path in list((tmp_path / "out").glob("fold-2-*")):
        path.unlink()
    again = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "fold 2 of 2" in again.output
    assert "fold 1 of 2" not in again.output
    assert json.loads((tmp_path / "t.json").read_text()) == facts
    for option, value in (("--top-k", "0"), ("--thresholds", "1.5"), ("--epochs", "100"), ("--top-k", "many")):
        with pytest.raises(InputError, match=option):
            CliRunner().invoke(app, [*words, option, value], catch_exceptions=False)


def test_a_backbone_is_trained_on_types(typed_store, synthetic_set, tmp_path):
    from cli.backbones import app

    words = ["train", str(synthetic_set.parent / "typed.csv"), "--backbone", "efficientnet", "--target", "type"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "b"), "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "of 2 labels to train on" in done.output
    with pytest.raises(InputError, match="choose species or type"):
        CliRunner().invoke(app, [*words, "--target", "age", "--out", str(tmp_path / "b")], catch_exceptions=False)
