"""Tuning: calibration a class, thresholds, the top K, what they rest on, and how they live in a saved head."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_heads import ALL, DIMS, QUICK, rows_of, sounds

from embeddings.errors import InputError
from stage2_heads.calibration import NOTHING, Calibration, sigmoid
from stage2_heads.calibrators import (
    METHODS,
    Calibrator,
    fit_calibrator,
    fit_class_sigmoid,
    fit_temperature,
    isotonic_log_odds,
    vote_log_odds,
)
from stage2_heads.crossfit import HeldOut
from stage2_heads.heads import create_head, load_head
from stage2_heads.labels import RecordingLabels
from stage2_heads.leaks import guard
from stage2_heads.metrics import average_precision
from stage2_heads.reliability import draw_reliability, reliability
from stage2_heads.rows import ArrayReader, label_rows
from stage2_heads.scoring import evaluate
from stage2_heads.thresholds import Rule, choose_thresholds, detected
from stage2_heads.tuning import TuneSettings, heard_before_tuning, tune

BASE = Calibration(1.0, 0.0, NOTHING)


def drawn(n=4000, offsets=(0.0, -2.0, 1.0), slope=2.0, seed=0, windows=4):
    """Decisions of three classes whose true log-odds are slope * decision + offset; `windows` of each a recording."""
    rng = np.random.default_rng(seed)
    decisions = rng.normal(size=(n, len(offsets)))
    targets = (rng.random(decisions.shape) < sigmoid(slope * decisions + np.array(offsets))).astype(np.float32)
    recordings = np.arange(n) // windows
    known = np.ones(decisions.shape, bool)
    return HeldOut(decisions, targets, known, recordings, recordings % 5, True, n // windows)


def tuned(kind="svm", **kwargs):
    rows = rows_of()
    head = create_head(kind, **QUICK[kind]).fit(rows)
    return head, tune(head, rows, TuneSettings(n_folds=3, **kwargs))


class TestCalibrators:
    def test_a_class_sigmoid_without_expectations_is_logistic_regression(self):
        from sklearn.linear_model import LogisticRegression

        held = drawn()
        x, y = held.decisions[:, 1], held.targets[:, 1]
        found = fit_class_sigmoid(x, y, slope_deviation=np.inf, offset_deviation=np.inf)
        oracle = LogisticRegression(C=1e12, tol=1e-10).fit(x[:, None], y > 0)
        np.testing.assert_allclose(found, [oracle.coef_[0, 0], oracle.intercept_[0]], atol=1e-4)

    def test_fewer_recordings_stay_nearer_the_shared_sigmoid(self):
        held = drawn()
        shared = fit_calibrator("shared", held, BASE)
        distances = []
        for n in (40, 400, 4000):
            own = fit_calibrator("platt", held.of(np.arange(4000) < n), BASE)
            again = fit_calibrator("shared", held.of(np.arange(4000) < n), BASE)
            distances.append(abs(own.offsets[1] - again.offsets[1]))
        assert distances == sorted(distances)
        true_offset = fit_calibrator("platt", held, BASE).offsets[1]
        assert abs(true_offset + 2) < 0.2 < abs(shared.offsets[1] + 2)

    def test_windows_of_one_recording_count_as_one_witness(self):
        x, y = drawn(40).decisions[:, 1], drawn(40).targets[:, 1]
        assert abs(fit_class_sigmoid(x, y, evidence=0.1)[1]) < abs(fit_class_sigmoid(x, y)[1])

    def test_isotonic_equals_scikit_learn_where_it_has_learnt(self):
        from sklearn.isotonic import IsotonicRegression

        held = drawn(2000)
        x, y = np.round(held.decisions[:, 0], 2), held.targets[:, 0].astype(float)
        knots, values = isotonic_log_odds(x, y)
        oracle = np.clip(
            IsotonicRegression().fit(x, y).predict(x), 1 / ((1 - y).sum() + 2), (y.sum() + 1) / (y.sum() + 2)
        )
        np.testing.assert_allclose(sigmoid(np.interp(x, knots, values)), oracle, atol=1e-9)

    def test_isotonic_leans_on_the_class_as_its_recordings_grow(self):
        held = drawn(4000, windows=1)
        calibrator = fit_calibrator("isotonic", held, BASE)
        grid = np.linspace(-1.5, 1.5, 20)
        wanted = sigmoid(2 * grid - 2)
        shared = fit_calibrator("shared", held, BASE).apply(np.tile(grid[:, None], 3))[:, 1]
        found = calibrator.apply(np.tile(grid[:, None], 3))[:, 1]
        assert np.abs(found - wanted).mean() < 0.3 * np.abs(shared - wanted).mean()

    def test_temperature_is_the_inverse_of_what_the_log_odds_were_multiplied_by(self):
        rng = np.random.default_rng(0)
        log_odds = rng.normal(size=20_000)
        targets = (rng.random(20_000) < sigmoid(log_odds)).astype(float)
        assert fit_temperature(5 * log_odds, targets) == pytest.approx(0.2, abs=0.01)
        assert fit_temperature(-log_odds, targets) == 1.0
        assert fit_temperature(log_odds, np.zeros(20_000)) == 1.0

    @pytest.mark.parametrize("method", METHODS)
    def test_ranking_within_a_class_is_unchanged_even_outside_what_was_seen(self, method):
        calibrator = fit_calibrator(method, drawn(400), BASE)
        decisions = np.sort(np.random.default_rng(3).uniform(-8, 8, (5000, 3)), axis=0)
        scores = calibrator.apply(decisions)
        assert (np.diff(scores, axis=0) > 0).all()
        assert scores.min() >= 0
        assert scores.max() < 1

    @pytest.mark.parametrize("method", METHODS)
    def test_decisions_that_mislead_keep_their_order(self, method):
        held = drawn(slope=-2.0)
        calibrator = fit_calibrator(method, held, BASE)
        assert (calibrator.slopes > 0).all()
        assert (np.diff(calibrator.apply(np.tile(np.linspace(-3, 3, 50)[:, None], 3)), axis=0) > 0).all()

    @pytest.mark.parametrize("method", METHODS)
    def test_a_class_without_a_positive_keeps_the_shared_sigmoid_and_nothing_true_keeps_the_base(self, method):
        held = drawn(400)
        held.targets[:, 2] = 0
        calibrator = fit_calibrator(method, held, BASE)
        assert not calibrator.own[2]
        if method != "temperature":
            shared = fit_calibrator("shared", held, BASE)
            assert (calibrator.slopes[2], calibrator.offsets[2]) == (shared.slopes[2], shared.offsets[2])
        held.targets[:] = 0
        np.testing.assert_array_equal(
            fit_calibrator(method, held, BASE).apply(held.decisions), BASE.apply(held.decisions)
        )

    @pytest.mark.parametrize("method", METHODS)
    def test_a_class_with_one_positive_is_calibrated(self, method):
        held = drawn(400)
        held.targets[1:, 2] = 0
        held.targets[0, 2] = 1
        calibrator = fit_calibrator(method, held, BASE)
        assert calibrator.own[2] == (method in ("platt", "isotonic"))
        scores = calibrator.apply(held.decisions)
        assert np.isfinite(scores).all()
        if calibrator.own[2]:
            shared = fit_calibrator("shared", held, BASE).apply(held.decisions)
            assert 1 / 400 < scores[:, 2].mean() < shared[:, 2].mean()

    def test_votes_become_log_odds_without_a_tie(self):
        votes = np.linspace(0, 0.999, 5000)
        assert (np.diff(vote_log_odds(votes)) > 0).all()
        assert np.isfinite(vote_log_odds(np.array([0.0, 1.0]))).all()

    def test_numbers_that_would_reverse_a_ranking_are_refused(self):
        one, nothing = np.ones(1), np.zeros(0)
        with pytest.raises(InputError, match="slope"):
            Calibrator.of_sigmoids("platt", -one, one, one > 0)
        with pytest.raises(InputError, match="rise"):
            Calibrator("isotonic", one, one, one > 0, np.array([0.0, 1.0]), np.array([1.0, 0.0]), np.array([0, 2]))
        with pytest.raises(InputError, match="choose shared"):
            Calibrator("beta", one, one, one > 0, nothing, nothing, np.zeros(2, np.int64))


class TestThresholds:
    def test_best_f1_is_that_of_brute_force(self):
        held = drawn(600)
        scores, truth = sigmoid(held.decisions), held.targets > 0
        chosen = choose_thresholds(scores, truth, held.known, held.recordings, Rule())

        def f1(threshold, c):
            claimed = scores[:, c] >= threshold
            return 2 * (truth[:, c] & claimed).sum() / (claimed.sum() + truth[:, c].sum())

        for c in range(3):
            assert f1(chosen.values[c], c) == max(f1(t, c) for t in scores[:, c])
        assert chosen.own.all()

    def test_a_precision_asked_for_is_reached_on_recordings_that_had_no_say(self):
        held, fresh = drawn(20_000, slope=3.0), drawn(20_000, slope=3.0, seed=1)
        truth = fresh.targets > 0
        chosen = choose_thresholds(
            sigmoid(held.decisions), held.targets > 0, held.known, held.recordings, Rule(precision=0.9)
        )
        found = detected(sigmoid(fresh.decisions), chosen.values)
        precision = (found & truth).sum(axis=0) / found.sum(axis=0)
        np.testing.assert_allclose(precision, 0.9, atol=0.02)
        assert chosen.reached.all()
        lower = detected(sigmoid(held.decisions), chosen.values - 0.02)
        assert ((lower & (held.targets > 0)).sum(axis=0) / lower.sum(axis=0) < 0.9).all()

    def test_classes_with_few_recordings_share_one_threshold(self):
        held = drawn(400)
        few = held.targets.copy()
        few[:, 2] = 0
        few[:8, 2] = 1  # two recordings
        chosen = choose_thresholds(sigmoid(held.decisions), few > 0, held.known, held.recordings, Rule())
        assert list(chosen.own) == [True, True, False]
        assert chosen.values[2] == chosen.shared

    def test_a_precision_out_of_reach_detects_nothing_that_was_seen_and_says_so(self):
        held = drawn(400, slope=0.0, offsets=(0.0, 0.0, 0.0))
        scores = sigmoid(held.decisions)
        held.targets[np.argmax(scores, axis=0), np.arange(3)] = 0
        chosen = choose_thresholds(scores, held.targets > 0, held.known, held.recordings, Rule(precision=1.0))
        assert not chosen.reached.any()
        assert not detected(scores, chosen.values).any()
        assert (chosen.values < 1).all()

    def test_nothing_true_gives_one_half(self):
        held = drawn(100)
        chosen = choose_thresholds(
            sigmoid(held.decisions), np.zeros((100, 3), bool), held.known, held.recordings, Rule()
        )
        assert (chosen.values == 0.5).all()

    def test_the_top_k_are_kept_with_all_that_tie_then_cut_at_the_threshold(self):
        scores = np.array([[0.9, 0.8, 0.8, 0.1], [0.3, 0.2, 0.1, 0.0], [0.9, 0.8, 0.7, 0.6]])
        expected = [[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
        np.testing.assert_array_equal(detected(scores, 0.4, 2), np.array(expected, bool))
        np.testing.assert_array_equal(detected(scores, 0.4, 9), scores >= 0.4)

    @pytest.mark.parametrize("bad", [{"precision": 0.0}, {"precision": 1.5}, {"fewest_recordings": 0}])
    def test_rules_that_cannot_be_kept_are_refused(self, bad):
        with pytest.raises(InputError):
            Rule(**bad)


class TestReliability:
    def test_the_error_is_that_of_a_loop_over_bins(self):
        held = drawn(1000)
        scores, targets = sigmoid(held.decisions[:, 0]), held.targets[:, 0].astype(float)
        found = reliability(scores, targets, held.recordings, n_bootstrap=200)
        expected = 0.0
        for b in range(15):
            inside = (scores >= b / 15) & (scores < (b + 1) / 15)
            if inside.any():
                expected += inside.mean() * abs(scores[inside].mean() - targets[inside].mean())
        assert found.error.value == pytest.approx(expected, abs=1e-12)
        assert found.error.low <= found.error.value <= found.error.high
        assert found.counts.sum() == 1000

    def test_the_picture_is_drawn(self, tmp_path):
        held = drawn(300)
        found = reliability(sigmoid(held.decisions[:, 0]), held.targets[:, 0].astype(float), held.recordings)
        draw_reliability(found, found, tmp_path / "r.png", title="t", names=("before", "after"))
        assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("method", METHODS)
def test_a_head_whose_sigmoid_is_far_off_is_put_right_on_recordings_that_had_no_say(method):
    rows = rows_of(96)
    head = create_head("svm", **QUICK["svm"]).fit(rows_of(seed=7))
    head.calibration_ = Calibration(0.2, 0.0, NOTHING)
    report = tune(head, rows, TuneSettings(method), unheard=True)
    assert report.before.error.value > 0.2
    assert report.after.error.value < 0.3 * report.before.error.value
    assert report.after.log_loss < report.before.log_loss
    vectors, of_row, recordings = sounds(seed=3)
    truth = np.array([[label in (r.primary_label, *r.secondary_labels) for label in head.labels_] for r in recordings])
    fresh = reliability(head.scores(vectors).ravel(), truth[of_row].ravel().astype(float), np.repeat(of_row, 4))
    assert fresh.error.value < 0.3 * report.before.error.value  # and on recordings of neither


@ALL
@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_every_head_is_tuned_saved_and_ranks_within_a_class_as_before(kind, method, tmp_path):
    head, report = tuned(kind, calibration=method, top_k=2)
    vectors = sounds(seed=1, noise=2.0)[0]
    scores, decisions = head.scores(vectors), head.decision(vectors)
    truth = np.random.default_rng(0).random(scores.shape) < 0.3
    np.testing.assert_allclose(average_precision(truth, scores), average_precision(truth, decisions), atol=1e-12)
    assert (scores >= 0).all()
    assert (scores < 1).all()
    found = head.detections(vectors)
    np.testing.assert_array_equal(found, detected(scores, head.tuning_.window.values, 2))
    assert found.any()
    json.dumps(report.to_json(head.labels_), allow_nan=False)
    head.save(tmp_path / "h")
    again = load_head(tmp_path / "h")
    np.testing.assert_array_equal(again.scores(vectors), scores)
    np.testing.assert_array_equal(again.detections(vectors), found)
    assert again.tuning_.to_json(again.labels_) == head.tuning_.to_json(head.labels_)
    assert method in again.calibrated_on_


def test_tuning_twice_gives_the_same_and_fitting_again_forgets_it():
    rows = rows_of()
    head = create_head("svm", **QUICK["svm"]).fit(rows)
    first = tune(head, rows, TuneSettings("isotonic", n_folds=3)).to_json(head.labels_)
    tune(head, rows, TuneSettings("platt", Rule(precision=0.8), n_folds=3))
    assert tune(head, rows, TuneSettings("isotonic", n_folds=3)).to_json(head.labels_) == first
    assert head.fit(rows).tuning_ is None


def test_an_untuned_head_detects_at_one_half_and_is_saved_as_before(tmp_path):
    head = create_head("knn", **QUICK["knn"]).fit(rows_of())
    vectors = sounds(seed=1)[0]
    np.testing.assert_array_equal(head.detections(vectors), head.scores(vectors) >= 0.5)
    head.save(tmp_path / "h")
    described = json.loads((tmp_path / "h" / "head.json").read_text())
    assert described["version"] == 1
    assert "tuning" not in described
    assert load_head(tmp_path / "h").tuning_ is None


class TestEdited:
    @pytest.fixture(scope="class")
    def saved(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("tuned") / "h"
        tuned("knn")[0].save(folder)
        return folder

    @pytest.mark.parametrize(
        ("edit", "words"),
        [
            (lambda t: t["thresholds"]["window"]["classes"].update(ash=float("nan")), "threshold ash is nan"),
            (
                lambda t: t["thresholds"]["recording"]["classes"].update(ash=1.5),
                "per recording: the threshold ash is 1.5",
            ),
            (lambda t: t["thresholds"]["window"]["classes"].update(ash="high"), "above 0 and below 1"),
            (lambda t: t["thresholds"]["window"]["classes"].update(ash=True), "above 0 and below 1"),
            (lambda t: t["thresholds"]["window"].update(shared=0), "shared by classes is 0"),
            (lambda t: t["thresholds"]["window"]["classes"].pop("ash"), "without one: ash"),
            (lambda t: t["thresholds"]["window"]["classes"].update(oak=0.5), "unknown: oak"),
            (lambda t: t["thresholds"]["window"].update(sharing=["oak"]), "oak"),
            (lambda t: t.update(top_k=0), "top_k is 0"),
            (lambda t: t.update(calibration="beta"), "beta"),
            (lambda t: t.pop("rule"), "incomplete"),
        ],
    )
    def test_an_edited_tuning_is_refused_with_a_sentence(self, edit, words, saved, tmp_path):
        import shutil

        shutil.copytree(saved, tmp_path / "h")
        path = tmp_path / "h" / "head.json"
        described = json.loads(path.read_text())
        edit(described["tuning"])
        path.write_text(json.dumps(described))
        with pytest.raises(InputError, match=words) as told:
            load_head(tmp_path / "h")
        assert "head.json" in str(told.value)

    def test_an_edited_threshold_in_range_is_used(self, saved, tmp_path):
        import shutil

        shutil.copytree(saved, tmp_path / "h")
        path = tmp_path / "h" / "head.json"
        path.write_text(path.read_text().replace('"ash": 0.', '"ash": 0.99'))
        assert load_head(tmp_path / "h").tuning_.window.values[0] > 0.99

    def test_a_tuned_head_without_its_tuning_is_refused(self, saved, tmp_path):
        import shutil

        shutil.copytree(saved, tmp_path / "h")
        path = tmp_path / "h" / "head.json"
        described = json.loads(path.read_text())
        del described["tuning"]
        path.write_text(json.dumps(described))
        with pytest.raises(InputError, match="tuning"):
            load_head(tmp_path / "h")


def test_recordings_tuned_on_count_as_selected_on_and_are_never_scored(tmp_path):
    head = create_head("knn", **QUICK["knn"]).fit(rows_of(seed=7))
    vectors, of_row, recordings = sounds(96)
    recordings = [RecordingLabels(**{**vars(r), "xeno_canto_id": str(i)}) for i, r in enumerate(recordings)]
    reader = ArrayReader(vectors, DIMS)
    half = of_row < 48
    rows = label_rows(reader, np.flatnonzero(half), of_row[half], recordings, blocks=head.blocks_, labels=head.labels_)
    fitted_on = head.heard_
    first = tune(head, rows, TuneSettings(), unheard=True).to_json(head.labels_)
    assert "unheard recordings kept for tuning" in head.calibrated_on_
    tuned_on = {r.recording for r in recordings[:48]}
    assert head.heard_.selected_on >= tuned_on
    assert not guard(recordings, head.heard_, head.labels_).unheard[:48].any()
    report = evaluate(head, reader, np.arange(len(vectors)), of_row, recordings, n_bootstrap=20)
    assert report.left_out["heard"] == 48
    assert heard_before_tuning(head, recordings) == fitted_on
    assert tune(head, rows, TuneSettings(), unheard=True).to_json(head.labels_) == first
    head.save(tmp_path / "h")
    again = load_head(tmp_path / "h")
    assert (again.heard_, again.tuned_on_) == (head.heard_, frozenset(tuned_on))


def test_scoring_uses_tuned_thresholds_and_says_so_unless_one_is_asked_for():
    head, _ = tuned("knn", top_k=1)
    vectors, of_row, recordings = sounds(seed=1, noise=2.0)
    given = (head, ArrayReader(vectors, DIMS), np.arange(len(vectors)), of_row, recordings)
    report = evaluate(*given, n_bootstrap=20)
    assert report.threshold is None
    assert report.top_k == 1
    assert any("tuned thresholds" in note for note in report.notes)
    assert [row["threshold_window"] for row in report.per_class] == list(head.tuning_.window.values)
    truth = np.array([[label in (r.primary_label, *r.secondary_labels) for label in head.labels_] for r in recordings])
    found, truth = head.detections(vectors), truth[of_row]
    f1 = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert report.window["f1_micro"].value == pytest.approx(f1)
    assert evaluate(*given, n_bootstrap=20, threshold=0.5).threshold == 0.5
    pooled = evaluate(*given, n_bootstrap=20, pool="max")
    assert any("pooled by mean, not max" in note for note in pooled.notes)


def test_what_cannot_be_tuned_is_refused():
    rows = rows_of()
    head = create_head("knn", **QUICK["knn"]).fit(rows)
    with pytest.raises(InputError, match="2 recordings"):
        tune(head, rows.subset(np.arange(48) < 2))
    with pytest.raises(InputError, match="classes"):
        tune(head, rows_of(labels=["ash", "birch"]))
    with pytest.raises(InputError, match="nothing to tune by"):
        tune(
            head, rows_of(4, secondary_weight=0.0)
        )  # one recording a class: whoever is asked about it has never heard its like
    for bad in ({"calibration": "beta"}, {"top_k": 0}, {"n_folds": 1}, {"pool": "sum"}):
        with pytest.raises(InputError):
            TuneSettings(**bad)


def test_heard_backbones_are_admitted():
    heard = np.ones((48, len(DIMS)), bool)
    rows = rows_of(heard_by_block=heard)
    head = create_head("knn", **QUICK["knn"]).fit(rows)
    report = tune(head, rows, TuneSettings(n_folds=3))
    assert head.calibrated_on_.startswith("heard recordings")
    assert any("Backbones have heard" in note for note in report.notes)


def test_thresholds_that_lose_to_one_half_are_told():
    rows = rows_of(24)
    head = create_head("knn", **QUICK["knn"]).fit(rows)
    told = []
    for rule in (Rule(fewest_recordings=1), Rule(precision=0.9, fewest_recordings=1)):
        report = tune(head, rows, TuneSettings(rule=rule, n_folds=4))
        worse = [a.f1_micro.value < b.f1_micro.value for b, a in report.agreement.values()]
        notes = [note for note in report.notes if "too few to choose by" in note]
        assert len(notes) == (sum(worse) if rule.precision is None else 0)
        told += notes
    assert told
