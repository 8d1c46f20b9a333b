"""The online head: river's protocol, drift, streams, updates of fitted heads, and what is said of wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fakes import FakeBackbone, fake_catalogue, fake_decode
from river.checks import yield_checks
from test_heads import rows_of, sounds
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from cli.heads import app
from embeddings.errors import CisticolaError, InputError
from embeddings.extract import extract
from embeddings.files import _exchange
from embeddings.splits import Split
from embeddings.store import Store
from embeddings.windows import WindowPlan
from stage2_heads.heads import create_head, load_head
from stage2_heads.online_learner import OnlineClassifier, OnlineLogistic
from stage2_heads.progressive import ProgressiveScore
from stage2_heads.river_models import classifier_names, detector_names
from stage2_heads.updating import LineStream, new_classes, update_head

LABELS = ["ash", "birch", "cedar", "dogwood"]


@pytest.fixture(autouse=True)
def one_blas_thread():
    with threadpool_limits(1):
        yield


@pytest.mark.parametrize("check", list(yield_checks(OnlineClassifier())), ids=lambda check: check.__name__)
def test_rivers_own_checks_pass(check):
    check(OnlineClassifier())


def stream(n=400, dim=12, n_classes=4, seed=0, apart=2.0):
    """Rows scattered about a centre a class; `apart` says how far the centres lie from each other."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(n_classes, dim))
    labels = rng.integers(n_classes, size=n)
    return (centres[labels] * apart + rng.normal(size=(n, dim))).astype(np.float32), labels


def test_many_rows_teach_exactly_what_they_teach_one_by_one():
    X, y = stream()
    frame, labels = pd.DataFrame(X, columns=[f"f{i}" for i in range(12)]), pd.Series(y)
    one, many = OnlineClassifier(), OnlineClassifier()
    for row, label in zip(frame.to_dict("records"), labels, strict=True):
        one.learn_one(row, label)
    for start in range(0, 400, 150):
        many.learn_many(frame[start : start + 150], labels[start : start + 150])
    pd.testing.assert_frame_equal(
        many.predict_proba_many(frame), pd.DataFrame([one.predict_proba_one(r) for r in frame.to_dict("records")])
    )
    assert (many.predict_many(frame) == labels).mean() > 0.9


def test_the_fast_path_and_the_head_are_the_river_classifier():
    X, y = stream()
    head, river = create_head("online"), OnlineClassifier()
    names = [f"f{i:02d}" for i in range(12)]
    head.partial_fit(X[:4], np.eye(4)[[0, 1, 2, 3]], classes=LABELS)
    for i in range(4):
        river.learn_one(dict(zip(names, map(float, X[i]), strict=True)), LABELS[i])
    # The head had all four classes from the first row on; from here on both have learnt from the same rows.
    river._learner.weights[:], river._learner.squared_gradients[:] = (
        head.learner_.weights,
        head.learner_.squared_gradients,
    )
    for i in range(4, 200):
        river.learn_one(dict(zip(names, map(float, X[i]), strict=True)), LABELS[y[i]])
    head.partial_fit(X[4:200], np.eye(4)[y[4:200]])
    np.testing.assert_array_equal(river._learner.decide(X[200:]), head.decision(X[200:]))


def test_a_step_is_adagrad_on_the_logistic_loss():
    X, y = stream(60)
    learner = OnlineLogistic(12, 4, learning_rate=3.0)
    w, squares = np.zeros((4, 13)), np.full((4, 13), 1e-8)
    w[:, -1] = -2.0
    for i, (x, label) in enumerate(zip(X.astype(float), y, strict=True)):
        z = np.append((x - X[:i].mean(axis=0)) / X[:i].std(axis=0) if i > 1 else np.zeros(12), 1.0)
        z[:-1] = np.clip(z[:-1], -10, 10)
        gradient = np.outer(1 / (1 + np.exp(-w @ z)) - np.eye(4)[label], z)
        np.testing.assert_allclose(learner.learn_row(x, np.eye(4, dtype=np.float32)[label]), w @ z, atol=2e-3)
        squares += gradient**2
        w -= 3.0 / 12 * gradient / np.sqrt(squares)
    np.testing.assert_allclose(learner.weights, w, atol=2e-3)


def test_a_feature_that_is_unknown_lies_at_its_mean():
    X, y = stream()
    model = OnlineClassifier()
    for row, label in zip(X.tolist(), y, strict=True):
        model.learn_one(dict(enumerate(row)), label)
    mean = X[:, 3].astype(float).mean()
    known = dict(enumerate(X[0].tolist()))
    without = {name: value for name, value in known.items() if name != 3}
    expected = model.predict_proba_one({**known, 3: mean})
    assert model.predict_proba_one(without) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "loud", None])
def test_the_river_classifier_names_a_feature_that_is_no_number(value):
    model = OnlineClassifier()
    for learn in (
        lambda: model.learn_one({"a": 1.0, "b": value}, "ash"),
        lambda: model.predict_proba_one({"b": value}),
    ):
        with pytest.raises(InputError, match="feature 'b' is"):
            learn()
    assert model.predict_proba_one({"a": 1.0}) == {}


def swapped(head, n=600):
    """Teach a stream whose labels change places half-way. Returns which predictions were right."""
    X, y = stream(2 * n)
    y[n:] = (y[n:] + 1) % 4
    hits = []
    for row, label in zip(X, y, strict=True):
        before = head.progressive_.n_hits
        head.partial_fit(row[None], np.eye(4)[[label]], classes=LABELS)
        hits.append(head.progressive_.n_hits - before)
    return np.array(hits)


@pytest.mark.parametrize("detector", ["ADWIN", "DDM"])
def test_labels_that_swap_are_noticed_and_learnt_anew(detector):
    head = create_head("online", detector=detector)
    hits = swapped(head)
    worse = [d for d in head.progressive_.drifts if d.got_worse]
    assert hits[400:600].mean() > 0.9
    assert [600 < d.row < 700 for d in worse] == [True]
    assert worse[0].detector == detector
    assert worse[0].error_before < 0.05 < 0.1 < worse[0].error_after
    assert hits[-200:].mean() > 0.9


def test_steps_that_begin_anew_after_drift_learn_a_swap_sooner():
    X, y = stream(2400, dim=60, n_classes=8, apart=0.6)
    y[1200:] = (y[1200:] + 1) % 8
    right = {}
    for detector in ("NoDrift", "ADWIN"):
        head = create_head("online", detector=detector)
        for start in range(0, 2400, 1200):
            head.partial_fit(X[start : start + 1200], np.eye(8)[y[start : start + 1200]], classes=list("abcdefgh"))
            right[detector] = head.progressive_.n_hits - right.get("before", 0)
            right["before"] = head.progressive_.n_hits
        right.pop("before")
        assert bool(head.progressive_.drifts) == (detector == "ADWIN")
    assert right["ADWIN"] > right["NoDrift"] + 100


def test_progressive_scores_count_predictions_made_before_learning():
    rows = rows_of()
    head = create_head("online").fit(rows)
    score = head.progressive_
    assert (score.n_rows, score.n_new) == (rows.n_rows, rows.n_recordings)
    assert 0.4 < score.top_1 < 1
    assert score.n_new_hits <= min(score.n_hits, score.n_new)
    note = head.facts()["progressive"]
    assert (note["rows"], note["top_1"]) == (rows.n_rows, round(score.top_1, 4))
    more = create_head("online", passes=3).fit(rows)
    assert more.progressive_.n_rows == rows.n_rows
    assert not np.array_equal(more.learner_.weights, head.learner_.weights)


def test_a_window_without_species_is_right_when_no_class_is_likely():
    head = create_head("online")
    X, y = stream(300)
    head.partial_fit(X, np.eye(4)[y], classes=LABELS)
    before = head.progressive_.n_hits
    head.partial_fit(X[:40], np.zeros((40, 4)))
    assert head.progressive_.n_hits - before < 40
    for _ in range(5):
        head.partial_fit(X[:40], np.zeros((40, 4)))
    before = head.progressive_.n_hits
    head.partial_fit(X[:40], np.zeros((40, 4)))
    assert head.progressive_.n_hits - before > 30


def test_a_saved_head_goes_on_exactly_where_it_stopped(tmp_path):
    head = create_head("online")
    swapped(head, 300)
    head.save(tmp_path / "head")
    again = load_head(tmp_path / "head")
    assert again.progressive_.drifts == head.progressive_.drifts != []
    X, y = stream(200, seed=3)
    for one in (head, again):
        one.partial_fit(X, np.eye(4)[y])
    np.testing.assert_array_equal(again.decision(X), head.decision(X))
    assert again.progressive_.to_json() == head.progressive_.to_json()


@pytest.mark.parametrize("kind", ["online", "svm", "knn", "fused"])
def test_a_new_class_leaves_the_old_ones_as_they_were_and_is_learnt(kind):
    head = create_head(kind).fit(rows_of())
    vectors = sounds(seed=1)[0]
    before = head.decision(vectors)
    head.add_classes(["elm"])
    np.testing.assert_allclose(head.decision(vectors)[:, :4], before, atol=1e-12)
    assert (head.decision(vectors).argmax(axis=1) == before.argmax(axis=1)).all()
    elms = vectors[:40] * -1 + 10
    for _ in range(8):
        head.partial_fit(elms, np.tile([0, 0, 0, 0, 1], (40, 1)))
    assert (head.decision(elms).argmax(axis=1) == 4).mean() > 0.8
    with pytest.raises(InputError, match="already has the class elm"):
        head.add_classes(["elm"])


def test_online_heads_of_several_blocks_each_keep_their_score_and_are_updated(tmp_path):
    head = create_head("fused", head="online").fit(rows_of())
    assert set(head.facts()) == {"picture progressive", "sequence progressive"}
    head.save(tmp_path / "head")
    head = load_head(tmp_path / "head")
    new = rows_of(seed=1)
    update_head(head, new)
    assert [own.progressive_.n_new for own in head.heads_] == [96, 96]
    assert head.heard_.covers(new.recordings[0].recording)


def test_a_head_that_cannot_take_a_class_says_so():
    head = create_head("mlp", hidden=(4,), min_updates=5, max_epochs=1).fit(rows_of(12))
    with pytest.raises(InputError, match="a mlp head cannot take new classes"):
        head.add_classes(["elm"])
    assert head.labels_ == tuple(LABELS)


class TestRiverModels:
    @pytest.mark.parametrize(
        ("name", "settings"),
        [("linear_model.LogisticRegression", {"l2": 0.001}), ("naive_bayes.GaussianNB", {})],
    )
    def test_a_named_model_learns_and_is_saved_by_what_it_learnt(self, name, settings, tmp_path):
        head = create_head("online", model=name, model_settings=settings)
        X, y = stream(150)
        head.partial_fit(X, np.eye(4)[y], classes=LABELS)
        assert head.progressive_.top_1 > 0.6
        head.save(tmp_path / "head")
        again = load_head(tmp_path / "head")
        np.testing.assert_array_equal(again.decision(X[:20]), head.decision(X[:20]))
        for one in (head, again):
            one.add_classes(["elm"]).partial_fit(X[:20], np.eye(5)[np.full(20, 4)])
        np.testing.assert_array_equal(again.scores(X[:20]), head.scores(X[:20]))

    def test_beyond_what_is_kept_it_scores_but_is_not_saved(self, tmp_path, monkeypatch):
        monkeypatch.setattr("stage2_heads.river_models._ROWS_BYTES", 50 * 48)
        head = create_head("online", model="linear_model.LogisticRegression")
        X, y = stream(60)
        head.partial_fit(X[:50], np.eye(4)[y[:50]], classes=LABELS)
        head.save(tmp_path / "head")
        head.partial_fit(X[50:], np.eye(4)[y[50:]])
        assert head.progressive_.n_rows == 60
        with pytest.raises(InputError, match="cannot be saved without pickle"):
            head.save(tmp_path / "head")
        assert load_head(tmp_path / "head").progressive_.n_rows == 50

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"model": "os.system"}, "river has no classifier"),
            ({"model": "compat.SKL2RiverClassifier"}, "river has no classifier"),
            ({"model": "linear_model.LogisticRegresion"}, "Did you mean linear_model.LogisticRegression"),
            ({"model": "linear_model.LogisticRegression", "model_settings": {"depth": 3}}, "it has optimizer"),
            ({"model": "linear_model.LogisticRegression", "model_settings": {"loss": [1]}}, "no plain value"),
            ({"model": "linear_model.LogisticRegression", "model_settings": {"optimizer": "x"}}, "cannot learn with"),
            ({"model": "naive_bayes.MultinomialNB"}, "no negative values"),
            ({"model_settings": {"l2": 1}}, "without a model"),
            ({"detector": "ADVIN"}, "Did you mean ADWIN"),
            ({"detector_settings": {"delta": "x", "dleta": 1}}, "has no setting dleta"),
            ({"learning_rate": 0.0}, "learning_rate"),
            ({"passes": 0}, "passes"),
        ],
    )
    def test_wrong_names_and_settings_are_told_where_they_are_given(self, settings, words):
        with pytest.raises(InputError, match=words):
            create_head("online", **settings)

    def test_every_detector_that_is_offered_works(self):
        for name in detector_names():
            score = ProgressiveScore(name)
            for i in range(120):
                score.record(i < 60)
            assert score.n_hits == 60
        assert "linear_model.LogisticRegression" in classifier_names()


class TestLines:
    @pytest.fixture
    def lines(self):
        head = create_head("online")
        X, y = stream(200)
        head.partial_fit(X, np.eye(4)[y], classes=LABELS)
        return LineStream(head)

    def test_each_is_predicted_before_it_is_learnt(self, lines):
        X, y = stream(100, seed=5)
        for i, (row, label) in enumerate(zip(X.tolist(), y, strict=True)):
            expected = LABELS[lines.head.scores(np.array([row], np.float32))[0].argmax()]
            said = lines.answer(json.dumps({"vector": row, "label": LABELS[label]}))
            assert (said["line"], said["prediction"]) == (i + 1, expected)
        assert said["progressive"] == {"rows": 100, "top_1": lines.n_hits / 100}
        assert lines.n_hits > 80
        assert lines.head.progressive_.n_rows == 300

    def test_a_line_without_a_label_teaches_nothing(self, lines):
        before = lines.head.learner_.weights.copy()
        for label in ({}, {"label": None}):
            said = lines.answer(json.dumps({"vector": [1.0] * 12, **label}))
            assert set(said) == {"line", "prediction", "scores"}
        np.testing.assert_array_equal(lines.head.learner_.weights, before)
        assert lines.n_rows == 0

    def test_a_new_label_becomes_a_class_and_no_call_does_not(self, lines):
        said = lines.answer('{"vector": [9,9,9,9,9,9,9,9,9,9,9,9], "labels": ["elm", "ash"], "recording": "ab12"}')
        assert said["new_classes"] == ["elm"]
        assert lines.head.labels_ == (*LABELS, "elm")
        assert lines.head.heard_.covers("ab12")
        said = lines.answer('{"vector": [9,9,9,9,9,9,9,9,9,9,9,9], "label": "nocall"}')
        assert said["labels"] == []
        assert len(lines.head.labels_) == 5

    def test_drift_is_told_on_the_line_that_gave_it_away(self, lines):
        X, y = stream(300, seed=5)
        said = [
            lines.answer(json.dumps({"vector": row, "label": LABELS[(label + (i > 150)) % 4]}))
            for i, (row, label) in enumerate(zip(X.tolist(), y, strict=True))
        ]
        worse = [answer for answer in said if answer.get("drift", {}).get("got_worse")]
        assert [150 < answer["line"] < 250 for answer in worse] == [True]

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("", "not JSON"),
            ("{", "not JSON"),
            (b'{"label": "\xff"}', "not JSON"),
            ("[1, 2]", "no vector"),
            ('{"label": "ash"}', "no vector"),
            ('{"vector": [1, 2]}', "2 long; 12 numbers were expected"),
            ('{"vector": "1 2"}', "a str; 12 numbers"),
            ('{"vector": [1,1,1,NaN,1,1,1,1,1,1,1,1], "label": "ash"}', "number 3 of the vector is nan"),
            ('{"vector": [1,1,1,1e39,1,1,1,1,1,1,1,1], "label": "ash"}', "number 3 of the vector is 1e[+]39"),
            ('{"vector": [1,1,true,1,1,1,1,1,1,1,1,1], "label": "ash"}', "number 2 of the vector is True"),
            ('{"vector": [1,"1",1,1,1,1,1,1,1,1,1,1], "label": "ash"}', "number 1 of the vector is '1'"),
            ('{"vector": [0,0,0,0,0,0,0,0,0,0,0,0], "label": "ash"}', "all 12 numbers of the vector are 0"),
            ('{"vector": [1,1,1,1,1,1,1,1,1,1,1,1], "lable": "ash"}', "holds lable"),
            ('{"vector": [1,1,1,1,1,1,1,1,1,1,1,1], "label": ""}', "none of them empty"),
            ('{"vector": [1,1,1,1,1,1,1,1,1,1,1,1], "labels": "ash"}', "texts were expected"),
            ('{"vector": [1,1,1,1,1,1,1,1,1,1,1,1], "label": "ash", "labels": []}', "both label and labels"),
            ('{"vector": [1,1,1,1,1,1,1,1,1,1,1,1], "recording": 7}', "content hash"),
        ],
    )
    def test_a_bad_line_is_answered_and_nothing_is_learnt_from_it(self, lines, line, words):
        before = lines.head.learner_.weights.copy()
        said = lines.answer(line)
        assert set(said) == {"line", "error"}
        with pytest.raises(CisticolaError, match=words):
            raise CisticolaError(said["error"])
        np.testing.assert_array_equal(lines.head.learner_.weights, before)
        assert "prediction" in lines.answer(json.dumps({"vector": [1.0] * 12, "label": "ash"}))

    def test_a_head_without_room_for_a_class_refuses_its_line_alone(self):
        head = create_head("mlp", hidden=(4,), min_updates=5, max_epochs=1).fit(rows_of(12))
        lines = LineStream(head)
        assert "cannot take new classes" in lines.answer(json.dumps({"vector": [1.0] * 18, "label": "elm"}))["error"]
        assert lines.answer(json.dumps({"vector": [1.0] * 18, "label": "ash"}))["progressive"]["rows"] == 1


CONTENTS = [f"{6 + 4 * (i % 3)} {0.1 + 0.4 * (i % 2) + 0.01 * i}" for i in range(1, 25)]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """24 recordings, soft ones b and loud ones a, of which the first 16 are on the training side."""
    folder = tmp_path_factory.mktemp("online")
    catalogue = fake_catalogue(folder / "audio", CONTENTS)
    catalogue = catalogue.with_splits({r.recording: "train" if i < 16 else "valid" for i, r in enumerate(catalogue)})
    backbone = FakeBackbone()
    split = Split("all", 0, "", {})
    made = Store.create(folder / "store", [backbone], WindowPlan(), dtype="float32", split=split, link=False)
    extract(catalogue, [backbone], made, fake_decode)
    return folder / "store"


@pytest.fixture
def fitted_head(store, tmp_path) -> Path:
    said = heads("fit", store, "--head", "online", "--out", tmp_path / "head")
    assert "progressive: rows" in said
    return tmp_path / "head"


def heads(*words, expect=0, stdin=""):
    """Run `heads ...` in this process; returns what it prints. Errors on purpose count as exit code 2."""
    done = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    if isinstance(done.exception, CisticolaError):
        assert expect == 2, done.exception
        return str(done.exception)
    assert done.exit_code == expect, (done.output, done.exception)
    return done.output


def table(path: Path, *rows: tuple[str, str]) -> Path:
    path.write_text("filename,primary_label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    return path


class TestUpdateFromAStore:
    def test_recordings_of_a_table_are_learnt_and_never_scored_again(self, store, fitted_head, tmp_path):
        new = table(tmp_path / "new.csv", ("r016.wav", "c"), ("r017.wav", "b"), ("r000.wav", "a"), ("gone.wav", "a"))
        before = load_head(fitted_head)
        said = heads("update", fitted_head, store, "--labels", new, "--json", tmp_path / "said.json")
        head, summary = load_head(fitted_head), json.loads((tmp_path / "said.json").read_text())
        assert "Learnt 2 recordings" in said
        assert "gone.wav" in said
        assert (summary["n_recordings"], summary["n_heard"], summary["new_classes"]) == (2, 1, ["c"])
        assert head.labels_ == ("a", "b", "c")
        assert len(head.heard_.trained_on) == len(before.heard_.trained_on) + 2
        assert head.progressive_.n_rows == before.progressive_.n_rows + summary["n_windows"]
        assert summary["progressive"][""]["n_new"] == 2
        assert head.provenance["updates"][0]["n_recordings"] == 2
        assert "nothing to learn: of 3 recordings" in heads("update", fitted_head, store, "--labels", new, expect=2)
        heads("score", fitted_head, store, "--bootstrap", 10, "--json", tmp_path / "scores.json")
        assert json.loads((tmp_path / "scores.json").read_text())["left_out"]["heard"] == 18

    def test_without_a_table_a_side_of_the_store_is_learnt(self, store, fitted_head):
        assert "has heard 16" in heads("update", fitted_head, store, expect=2)
        assert "Learnt 8 recordings" in heads("update", fitted_head, store, "--split", "valid")
        assert len(load_head(fitted_head).heard_.trained_on) == 24

    def test_a_copy_and_a_dry_run_leave_the_head_as_it_is(self, store, fitted_head, tmp_path):
        before = contents(fitted_head)
        assert "Would learn 8 recordings" in heads("update", fitted_head, store, "--split", "valid", "--dry-run")
        heads("update", fitted_head, store, "--split", "valid", "--out", tmp_path / "copy")
        assert contents(fitted_head) == before
        assert len(load_head(tmp_path / "copy").heard_.trained_on) == 24

    @pytest.mark.parametrize("kind", ["svm", "knn"])
    def test_other_heads_go_on_learning_too(self, kind, store, tmp_path):
        settings = ["--set", "min_updates=20"] if kind == "svm" else []
        heads("fit", store, "--head", kind, *settings, "--out", tmp_path / kind)
        new = table(tmp_path / "new.csv", ("r016.wav", "c"))
        assert "1 new classes: c" in heads("update", tmp_path / kind, store, "--labels", new)
        assert load_head(tmp_path / kind).labels_ == ("a", "b", "c")

    def test_wrong_usage_is_told(self, store, fitted_head, tmp_path):
        for words, said in (
            ((fitted_head,), "name a store"),
            ((fitted_head, store, "--stream"), "name a store"),
            ((fitted_head, "--stream", "--split", "valid"), "--stream bring their own"),
            ((fitted_head, store, "--split", "both"), "choose train, valid or all"),
            ((fitted_head, store, "--out", store), "is not a head"),
            ((tmp_path / "none", store), "is not a head"),
        ):
            assert said in heads("update", *words, expect=2)

    def test_a_row_of_the_table_that_does_not_parse_ends_with_1_and_is_not_learnt(self, store, fitted_head, tmp_path):
        bad = tmp_path / "bad.csv"
        bad.write_text('filename,primary_label,secondary_labels\nr016.wav,a,"[1"\nr017.wav,b,[]\n')
        assert "line 2 (r016.wav)" in heads("update", fitted_head, store, "--labels", bad, expect=1)
        assert len(load_head(fitted_head).heard_.trained_on) == 17

    def test_rows_of_other_classes_or_learnt_before_are_refused(self):
        head = create_head("online").fit(rows_of())
        with pytest.raises(InputError, match="were learnt already"):
            update_head(head, rows_of())
        with pytest.raises(InputError, match="classes"):
            update_head(head, rows_of(seed=1, labels=["ash", "birch"]))
        shares: list[float] = []
        update_head(head, rows_of(seed=1), progress=shares.append)
        assert shares[-1] == 1.0
        assert new_classes(head, rows_of(seed=2, labels=["x"]).recordings) == ()


class TestUpdateFromAStream:
    LINES = (
        '{"vector": [0.5, 1.0, 1.5, 2.0], "label": "a"}\n',
        '{"vector": [0.1, 0.2, 0.3, 0.4]}\n',
        '{"vector": [0.1, 0.2, 0.3], "label": "b"}\n',
        '{"vector": [0.9, 1.8, 2.7, 3.6], "label": "c"}\n',
    )

    def test_lines_are_answered_in_order_and_the_head_is_saved_at_their_end(self, fitted_head):
        n_before = load_head(fitted_head).progressive_.n_rows
        said = [
            json.loads(line)
            for line in heads("update", fitted_head, "--stream", stdin="".join(self.LINES), expect=1).splitlines()
            if line.startswith("{")
        ]
        assert [answer["line"] for answer in said] == [1, 2, 3, 4]
        assert ["error" in answer for answer in said] == [False, False, True, False]
        assert "4 numbers were expected (fake 4)" in said[2]["error"]
        assert said[3]["progressive"]["rows"] == 2
        head = load_head(fitted_head)
        assert head.progressive_.n_rows == n_before + 2
        assert head.labels_ == ("a", "b", "c")

    def test_a_dry_run_scores_and_saves_nothing(self, fitted_head):
        before = contents(fitted_head)
        assert '"rows": 2' in heads("update", fitted_head, "--stream", "--dry-run", stdin="".join(self.LINES), expect=1)
        assert contents(fitted_head) == before

    @pytest.mark.parametrize(("number", "learnt"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGKILL, 0)])
    def test_an_interrupt_saves_and_a_kill_leaves_the_old_head_whole(self, number, learnt, fitted_head):
        before = load_head(fitted_head)
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.heads", "update", str(fitted_head), "--stream"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        process.stdin.write(self.LINES[0])
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["line"] == 1
        os.kill(process.pid, number)
        assert process.wait(timeout=120) == (0 if learnt else -signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()
        after = load_head(fitted_head)
        assert after.progressive_.n_rows == before.progressive_.n_rows + learnt
        assert [p.name for p in fitted_head.parent.iterdir()] == ["head"]

    def test_a_kill_while_a_head_is_replaced_leaves_a_whole_one_under_its_name(
        self, fitted_head, tmp_path, monkeypatch
    ):
        class Killed(BaseException):
            pass

        def killed(*_, **__):
            raise Killed

        for name in ("one", "two"):
            (tmp_path / "probe" / name).mkdir(parents=True)
        if not _exchange(tmp_path / "probe" / "one", tmp_path / "probe" / "two"):
            pytest.skip("this system cannot exchange two folders in one step")
        head = load_head(fitted_head)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", killed)  # the old head never gives up its name
            head.add_classes(["c"]).save(fitted_head)
        assert load_head(fitted_head).labels_ == ("a", "b", "c")
        with monkeypatch.context() as patched:
            patched.setattr("embeddings.files.shutil.rmtree", killed)
            with pytest.raises(Killed):
                head.add_classes(["d"]).save(fitted_head)
        assert load_head(fitted_head).labels_ == ("a", "b", "c", "d")

    def test_a_save_that_dies_half_way_leaves_the_old_head_whole(self, store, fitted_head, monkeypatch):
        before = contents(fitted_head)

        def full_disk(*_):
            raise OSError("no space left on device")

        monkeypatch.setattr("stage2_heads.head_files.write_json", full_disk)
        done = CliRunner().invoke(app, ["update", str(fitted_head), str(store), "--split", "valid"])
        assert isinstance(done.exception, OSError)
        assert contents(fitted_head) == before
        assert [p.name for p in fitted_head.parent.iterdir()] == ["head"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
