"""A head's score report: joins, the leak guard, intervals, baselines, and the shape of its JSON."""

import dataclasses
import io
import json

import numpy as np
import pytest

from embeddings.contract import Heard
from embeddings.errors import InputError, ScoreRangeError
from stage2_heads.bootstrap import bayesian_weights, interval, rule_of_three
from stage2_heads.comparison import compare_reports
from stage2_heads.labels import RecordingLabels, target_matrix
from stage2_heads.leaks import guard
from stage2_heads.levels import METRICS, Level
from stage2_heads.metrics import average_precision, padded_cmap, present_cmap
from stage2_heads.pooling import pool_windows
from stage2_heads.score_table import ScoreTable
from stage2_heads.scoring import score_rows

LABELS = ("a", "b", "c", "d")


def made_up(n=30, windows=3, seed=0, skill=1.5):
    """Recordings of species a, b and c (d is absent), with scores of middling skill for each of their windows."""
    rng = np.random.default_rng(seed)
    recordings = [
        RecordingLabels(f"r{i}", LABELS[i % 3], ("b", "elsewhere") if i % 7 == 0 else (), xeno_canto_id=str(i))
        for i in range(n)
    ]
    truth = target_matrix(recordings, LABELS)
    row = np.repeat(np.arange(n), windows)
    scores = 1 / (1 + np.exp(-rng.normal(skill * truth[row] - 1)))
    return recordings, [f"r{i}" for i in row], scores


def report_of(*args, **kwargs):
    recordings, rows, scores = made_up()
    return score_rows(scores, LABELS, rows, recordings, *args, **{"n_bootstrap": 50, **kwargs})


def test_the_json_has_the_documented_shape_and_no_nan():
    value = report_of().to_json()
    json.dumps(value, allow_nan=False)
    for level, n in (("recording", 30), ("window", 90)):
        assert set(METRICS) <= set(value[level])
        for figure in value[level].values():
            assert set(figure) == {"value", "low", "high", "n"}
            assert figure["n"] == n
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert value["left_out"]["heard"] == value["left_out"]["no_label"] == 0
    assert value["absent_classes"] == 1
    assert set(METRICS) <= set(value["random_baseline"])
    assert value["random_baseline"]["auroc"] == pytest.approx(0.5, abs=0.1)
    assert [row["support"] for row in value["per_class"]] == [10, 13, 10, 0]
    assert value["per_class"][3]["ap"] is None


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_figures_are_those_of_the_pooled_table(pool):
    recordings, _, scores = made_up()
    report = report_of(pool=pool)
    windows = scores.reshape(30, 3, 4)
    pooled = windows.mean(axis=1) if pool == "mean" else windows.max(axis=1)
    truth = target_matrix(recordings, LABELS) > 0
    assert report.recording["cmap_padded_5"].value == pytest.approx(padded_cmap(truth, pooled), abs=1e-12)
    assert report.recording["cmap_padded_3"].value == pytest.approx(padded_cmap(truth, pooled, padding=3), abs=1e-12)
    assert report.recording["cmap_present"].value == pytest.approx(present_cmap(truth, pooled), abs=1e-12)
    micro = average_precision(truth.reshape(-1, 1), pooled.reshape(-1, 1))[0]
    assert report.recording["ap_micro"].value == pytest.approx(micro, abs=1e-12)
    assert report.window["cmap_present"].value == pytest.approx(present_cmap(np.repeat(truth, 3, 0), scores), abs=1e-12)
    hits = pooled.argmax(axis=1) == [LABELS.index(r.primary_label) for r in recordings]
    assert report.recording["top_1"].value == pytest.approx(hits.mean())


def test_rows_are_joined_by_recording_and_columns_by_name():
    recordings, rows, scores = made_up()
    straight = report_of().to_json()
    rng = np.random.default_rng(3)
    order, columns = rng.permutation(len(rows)), [2, 0, 3, 1]
    shuffled = score_rows(
        scores[order][:, columns], [LABELS[c] for c in columns], [rows[i] for i in order], recordings, n_bootstrap=50
    ).to_json()
    for level in ("recording", "window"):
        for name in METRICS:
            for part in ("value", "low", "high"):
                assert shuffled[level][name][part] == pytest.approx(straight[level][name][part], abs=1e-9)


def test_recordings_missing_from_the_truth_are_named():
    recordings, rows, scores = made_up()
    with pytest.raises(InputError, match="r29"):
        score_rows(scores, LABELS, rows, recordings[:-1])


def test_heard_recordings_are_left_out_by_hash_and_by_xeno_canto_id():
    heard = Heard(trained_on=frozenset({"r0"}), selected_on=frozenset({"r1"}), xeno_canto_ids=frozenset({"2"}))
    report = report_of(heard=heard)
    assert report.left_out["heard"] == 3
    assert report.recording["auroc"].n == 27
    assert not {"r0", "r1", "r2"} & set(report.recordings)
    assert any("3 recordings heard" in note for note in report.notes)


def test_include_seen_scores_heard_recordings_and_says_so_on_every_line():
    from rich.console import Console

    from stage2_heads.report import class_table, comparison_table, score_table

    report = report_of(heard=Heard(trained_on=frozenset({"r0"})), include_seen=True)
    assert (report.recording["auroc"].n, report.n_seen, report.left_out["heard"]) == (30, 1, 0)
    comparison = comparison_table(compare_reports({"svm": report}))
    for table, n_lines in ((score_table(report), len(METRICS)), (class_table(report), len(LABELS)), (comparison, 1)):
        console = Console(width=300, record=True, file=io.StringIO())
        console.print(table)
        assert console.export_text().count("incl. 1 heard in training") == n_lines


def test_species_without_an_unheard_recording_are_named():
    recordings = made_up()[0]
    heard = Heard(trained_on=frozenset(r.recording for r in recordings if r.primary_label == "a"))
    report = report_of(heard=heard)
    assert any("no unheard recording: a, d" in note for note in report.notes)
    assert report.absent_classes == 2


def test_nothing_unheard_left_is_an_error_that_names_the_way_out():
    recordings = made_up()[0]
    everything = Heard(trained_on=frozenset(r.recording for r in recordings))
    with pytest.raises(InputError, match="--include-seen"):
        guard(recordings, everything, LABELS)
    assert guard(recordings, everything, LABELS, include_seen=True).scored.all()


def test_what_a_backbone_does_not_publish_becomes_a_note():
    sentence = "BirdNET does not list its training recordings."
    assert sentence in report_of(heard=Heard(unpublished=sentence)).notes


def test_unlabelled_and_windowless_recordings_are_counted():
    recordings, rows, scores = made_up()
    more = [*recordings, RecordingLabels("silent", "a"), RecordingLabels("nobody knows")]
    report = score_rows(scores, LABELS, rows, more, n_bootstrap=20)
    assert report.left_out == {"heard": 0, "no_label": 1, "no_windows": 1}


def test_recordings_of_unknown_species_are_negatives_but_not_in_top_k():
    recordings, rows, scores = made_up()
    other = [dataclasses.replace(recordings[0], primary_label="zebra", secondary_labels=()), *recordings[1:]]
    report = score_rows(scores, LABELS, rows, other, n_bootstrap=20)
    assert report.recording["top_1"].n == 29
    assert report.recording["cmap_present"].n == 30


def test_scores_that_saturate_are_refused():
    recordings, rows, scores = made_up()
    scores[0, 0] = 1.0
    with pytest.raises(ScoreRangeError):
        score_rows(scores, LABELS, rows, recordings)


def test_pooled_means_of_scores_just_below_one_stay_below_one():
    scores = np.full((9, 2), 1 - 2.0**-53)
    assert (pool_windows(scores, np.repeat([0, 1, 2], 3), 3, "mean") < 1).all()


def test_bootstrap_keeps_every_recording_and_mean_weight_one():
    weights = bayesian_weights(20, 300, seed=1)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights.sum(axis=0), 20)
    np.testing.assert_array_equal(weights, bayesian_weights(20, 300, seed=1))
    # Dirichlet(1, ..., 1): variance of a share is (n - 1) / (n^2 (n + 1))
    assert (weights / 20).var() == pytest.approx(19 / (400 * 21), rel=0.1)


def test_class_set_is_frozen_so_no_replicate_is_undefined():
    report = report_of(n_bootstrap=200)
    for values in report.replicates.values():
        assert np.isfinite(values).all()


def test_intervals_cover_the_share_of_hits_about_as_often_as_they_promise():
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(120):
        n = 40
        scores = np.full((n, 2), 0.4)
        scores[:, 0] = np.where(rng.random(n) < 0.7, 0.6, 0.2)
        level = Level(np.eye(2, dtype=bool)[np.zeros(n, int)], ScoreTable.of(scores), np.zeros(n, int), np.arange(n))
        values = level.figures(np.hstack([np.ones((n, 1)), bayesian_weights(n, 200, seed)])).metrics["top_1"]
        low, high = interval(values[1:], values[0])
        covered.append(low <= 0.7 <= high)
    assert 0.86 <= np.mean(covered) <= 0.99


def test_windows_of_one_recording_do_not_narrow_the_interval():
    recordings, rows, scores = made_up(windows=1)
    once = score_rows(scores, LABELS, rows, recordings, n_bootstrap=200).window["top_1"]
    many = score_rows(np.repeat(scores, 5, 0), LABELS, np.repeat(rows, 5), recordings, n_bootstrap=200).window["top_1"]
    assert (many.value, many.low, many.high) == pytest.approx((once.value, once.low, once.high))


def test_a_perfect_score_carries_the_rule_of_three():
    recordings, rows, _ = made_up()
    truth = target_matrix(recordings, LABELS)[[int(r[1:]) for r in rows]]
    report = score_rows(0.1 + 0.8 * truth, LABELS, rows, recordings, n_bootstrap=20)
    assert report.recording["auroc"].low == report.recording["auroc"].high == 1.0
    assert any("rule of three" in note and "0.100" in note for note in report.notes)
    assert rule_of_three(30) == pytest.approx(0.1)


def test_paired_difference_is_narrower_than_unpaired_and_zero_to_itself():
    recordings, rows, scores = made_up()
    report = report_of(n_bootstrap=300)
    better = score_rows(
        np.clip(scores + 0.05 * target_matrix(recordings, LABELS)[[int(r[1:]) for r in rows]], 0, 0.99),
        LABELS, rows, recordings, n_bootstrap=300,
    )  # fmt: skip
    comparison = compare_reports({"first": report, "same": report, "better": better})
    same, gain = comparison.differences["same"]["cmap_present"], comparison.differences["better"]["cmap_present"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert gain.value > 0
    own = report.recording["cmap_present"]
    assert gain.high - gain.low < own.high - own.low
    json.dumps(comparison.to_json(), allow_nan=False)


def test_heads_scored_on_different_recordings_are_not_paired():
    other = report_of(heard=Heard(trained_on=frozenset({"r0"})))
    comparison = compare_reports({"first": report_of(), "other": other})
    assert comparison.differences == {}
    assert "different recordings" in comparison.notes[0]


def test_brackets_in_names_are_shown_as_they_are():
    from rich.console import Console

    from stage2_heads.report import class_table

    recordings, rows, scores = made_up()
    names = {"a": ("Parus major", "song [red]")}
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(class_table(score_rows(scores, LABELS, rows, recordings, n_bootstrap=20, names=names)))
    assert "song [red]" in console.export_text()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_secondary_labels_count_what_they_are_told_to(weight):
    """Oracle: scikit-learn with a weight a cell."""
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    recordings, _, _ = made_up(windows=1)
    scores = np.random.default_rng(3).random((len(recordings), len(LABELS))) * 0.99
    rows = [r.recording for r in recordings]
    report = score_rows(scores, LABELS, rows, recordings, n_bootstrap=20, secondary_weight=weight)
    truth = target_matrix(recordings, LABELS) > 0
    cells = np.where(truth & ~(target_matrix(recordings, LABELS, 0.0) > 0), weight, 1.0)
    assert (cells != 1).any() == (weight < 1)

    def mean_of(metric, predicted=scores):
        return np.mean([metric(truth[:, c], predicted[:, c], sample_weight=cells[:, c]) for c in range(3)])

    flat = {"sample_weight": cells.ravel()}
    expected = {
        "cmap_present": mean_of(average_precision_score),
        "auroc": mean_of(roc_auc_score),
        "ap_micro": average_precision_score(truth.ravel(), scores.ravel(), **flat),
        "f1_macro": mean_of(f1_score, scores >= 0.5),
        "f1_micro": f1_score(truth.ravel(), (scores >= 0.5).ravel(), **flat),
    }
    for level in (report.recording, report.window):
        assert {name: level[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    plain = score_rows(scores, LABELS, rows, recordings, n_bootstrap=20)
    assert report.recording["top_1"] == plain.recording["top_1"]
    assert report.per_class[1]["support"] == (10 if weight == 0 else 13)
    told = {
        0.0: "3 secondary labels are ignored",
        0.3: "each as 0.3 of a recording",
        1.0: "3 secondary labels count as",
    }
    assert any(told[weight] in note for note in report.notes)
    assert report.to_json()["secondary_weight"] == weight
    if weight == 0:  # whatever an ignored cell scores, nothing changes but the primary label's rank
        moved = np.where(cells == 0, 0.999, scores)
        again = score_rows(moved, LABELS, rows, recordings, n_bootstrap=20, secondary_weight=0.0)
        for name in ("cmap_padded_5", "ap11", "ap11_confidence", "f1_macro"):
            assert again.recording[name] == report.recording[name]


def test_a_class_that_is_everywhere_once_secondary_labels_are_ignored_does_not_spoil_the_mean():
    recordings = [
        RecordingLabels("a", "x"),
        RecordingLabels("b", "y", ("x",)),
        RecordingLabels("c", "y", ("x",)),
        RecordingLabels("d", "z", ("x",)),
    ]
    scores = np.random.default_rng(0).random((4, 3)) * 0.9
    report = score_rows(scores, ("x", "y", "z"), list("abcd"), recordings, n_bootstrap=20, secondary_weight=0.0)
    from sklearn.metrics import roc_auc_score

    expected = np.mean([roc_auc_score([0, 1, 1, 0], scores[:, 1]), roc_auc_score([0, 0, 0, 1], scores[:, 2])])
    assert report.recording["auroc"].value == pytest.approx(expected)
    assert report.random_baseline["auroc"] is not None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"secondary_weight": -0.5}, "secondary_weight=-0.5"), ({"secondary_weight": float("nan")}, "nan")],
)
def test_a_weight_outside_0_to_1_is_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        report_of(**wrong)


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.5, np.array([0.2, 0.5, 0.4, 0.9])])
def test_detections_and_hits_are_those_of_the_whole_table_with_ties_and_all(top_k, threshold):
    from stage2_heads.metrics import top_k_hits
    from stage2_heads.thresholds import detected

    rng = np.random.default_rng(top_k)
    scores = np.round(rng.random((60, 4)) * 0.9, 1)
    truth, primary = rng.random((60, 4)) < 0.4, rng.integers(-1, 4, 60)
    level = Level(truth, ScoreTable.of(scores), primary, np.arange(60), threshold, top_k)
    found = level.figures(np.ones((60, 1)))
    claimed = detected(scores, threshold, top_k)
    np.testing.assert_array_equal(found.claimed, claimed.sum(axis=0))
    np.testing.assert_array_equal(found.right, (claimed & truth).sum(axis=0))
    named = primary >= 0
    for k in (1, 3):
        expected = top_k_hits(scores[named], primary[named], k).mean()
        assert found.metrics[f"top_{k}"][0] == pytest.approx(expected)
