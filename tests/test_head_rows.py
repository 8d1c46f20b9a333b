"""What heads read: epochs, shuffling, windows policies, targets, folds, standardising and calibration."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.contract import Fingerprint
from embeddings.errors import ContractError, InputError
from stage2_heads import rows as rows_module
from stage2_heads.calibration import calibration_error, fit_sigmoid, sigmoid
from stage2_heads.folds import inner_slice, recording_folds
from stage2_heads.labels import RecordingLabels, class_set, primary_codes, target_matrix
from stage2_heads.rows import ArrayReader, LabelledRows, label_rows
from stage2_heads.standardise import Standardiser

BLOCK = (("one", Fingerprint({})),)


def numbered(n_rows=1000, n_recordings=50, dim=3):
    """Rows whose vectors are their own row numbers, and whose targets tell their recording."""
    vectors = np.repeat(np.arange(2 * n_rows, dtype=np.float32)[:, None], dim, axis=1)
    codes = np.sort(np.random.default_rng(0).integers(0, n_recordings, n_rows))
    targets = np.linspace(0, 1, n_recordings, dtype=np.float32)[:, None]
    return LabelledRows(ArrayReader(vectors, (dim,)), np.arange(n_rows) * 2, codes, targets, ("a",), BLOCK)


@given(n_rows=st.integers(1, 900), batch_size=st.integers(1, 300), seed=st.none() | st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_an_epoch_holds_every_row_once_with_its_own_target(n_rows, batch_size, seed):
    rows = numbered(n_rows)
    seen, targets, sizes = [], [], []
    for X, Y in rows.batches(batch_size, seed=seed):
        seen.append(X[:, 0].copy())
        targets.append(Y[:, 0].copy())
        sizes.append(len(X))
    values, targets = np.concatenate(seen), np.concatenate(targets)
    np.testing.assert_array_equal(np.sort(values), rows.rows)
    np.testing.assert_array_equal(targets, rows.targets[rows.recording_of_row[(values / 2).astype(int)], 0])
    assert set(sizes[:-1]) <= {batch_size}
    if seed is None:
        assert (np.diff(values) > 0).all()


def order(rows, seed):
    return np.concatenate([X[:, 0].copy() for X, _ in rows.batches(100, seed=seed)])


def test_shuffling_is_repeatable_by_seed_and_mixes_pools(monkeypatch):
    monkeypatch.setattr(rows_module, "_POOL_BYTES", 4 * 3 * 400)  # pools of 400 rows
    rows = numbered(2000)
    np.testing.assert_array_equal(order(rows, 1), order(rows, 1))
    assert not np.array_equal(order(rows, 1), order(rows, 2))
    assert np.abs(np.diff(order(rows, 1))).mean() > 100


def test_a_subset_keeps_windows_targets_and_codes_together():
    rows = numbered()
    keep = np.arange(50) % 3 == 0
    subset = rows.subset(keep)
    assert subset.n_recordings == keep.sum()
    np.testing.assert_array_equal(
        subset.targets[subset.recording_of_row], rows.targets[rows.recording_of_row][keep[rows.recording_of_row]]
    )


def test_loudest_keeps_one_window_a_recording_and_the_first_of_equals():
    reader = ArrayReader(np.arange(6, dtype=np.float32)[:, None], (1,))
    rows = LabelledRows(reader, [5, 4, 3, 2, 1, 0], [0, 0, 1, 1, 1, 2], np.ones((3, 1)), ("a",), BLOCK)
    loudest = rows.loudest(np.array([-30.0, -20.0, -10.0, -9.0, -9.0, -200.0]))
    assert sorted(loudest.rows) == [0, 1, 4]
    assert loudest.windows == "loudest"


def test_label_rows_leaves_unlabelled_recordings_out_and_takes_primary_labels_as_classes():
    recordings = [RecordingLabels("x", "b", ("a", "q")), RecordingLabels("y"), RecordingLabels("z", "a")]
    reader = ArrayReader(np.zeros((6, 1)), (1,))
    rows = label_rows(reader, np.arange(6), np.repeat([0, 1, 2], 2), recordings, blocks=BLOCK, secondary_weight=0.5)
    assert rows.labels == ("a", "b") == class_set(recordings)
    assert rows.n_rows == 4
    np.testing.assert_array_equal(rows.targets, [[0.5, 1], [1, 0]])
    assert [r.recording for r in rows.recordings] == ["x", "z"]
    with pytest.raises(InputError, match="none of 1"):
        label_rows(reader, [0], [0], [RecordingLabels("y")], blocks=BLOCK)
    with pytest.raises(InputError, match="rms_dbfs"):
        label_rows(reader, [0], [0], recordings, blocks=BLOCK, windows="loudest")


def test_targets_follow_primary_and_secondary_labels():
    recordings = [RecordingLabels("x", "a", ("b", "a")), RecordingLabels("y", "c", ("b",)), RecordingLabels("z")]
    np.testing.assert_array_equal(target_matrix(recordings, ["b", "a"]), [[1, 1], [1, 0], [0, 0]])
    np.testing.assert_array_equal(primary_codes(recordings, ["b", "a"]), [1, -1, -1])
    with pytest.raises(InputError, match="twice"):
        target_matrix(recordings, ["a", "a"])
    with pytest.raises(InputError, match="secondary_weight"):
        target_matrix(recordings, ["a"], 1.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": [0, 99]}, "row numbers"),
        ({"recording_of_row": [0, 7]}, "codes"),
        ({"targets": np.full((2, 1), 2.0)}, "between 0 and 1"),
        ({"labels": ("a", "b")}, "labels"),
        ({"blocks": ()}, "blocks"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(change, words):
    fields = {
        "reader": ArrayReader(np.zeros((3, 1)), (1,)), "rows": [0, 1], "recording_of_row": [0, 1],
        "targets": np.zeros((2, 1)), "labels": ("a",), "blocks": BLOCK,
    }  # fmt: skip
    LabelledRows(**fields)
    with pytest.raises((InputError, ContractError), match=words):
        LabelledRows(**{**fields, **change})


def with_recordings(recordings):
    reader = ArrayReader(np.zeros((len(recordings), 1)), (1,))
    return label_rows(reader, np.arange(len(recordings)), np.arange(len(recordings)), recordings, blocks=BLOCK)


def test_folds_spread_classes_keep_relatives_together_and_ignore_the_order_of_recordings():
    recordings = [RecordingLabels(f"r{i}", "abc"[i % 3], source=f"s{i // 6}" if i < 12 else "") for i in range(60)]
    folds = recording_folds(with_recordings(recordings), 3, seed=0)
    assert len(set(folds[:6])) == len(set(folds[6:12])) == 1
    for c in range(3):
        in_class = folds[12 + c :: 3]
        assert np.bincount(in_class, minlength=3).min() >= 4
    backwards = recording_folds(with_recordings(recordings[12:][::-1]), 3, seed=0)[::-1]
    np.testing.assert_array_equal(backwards, recording_folds(with_recordings(recordings[12:]), 3, seed=0))


def test_the_inner_slice_never_takes_a_class_whole():
    recordings = [RecordingLabels(f"r{i}", f"species{min(i, 5)}") for i in range(40)]
    rows = with_recordings(recordings)
    for seed in range(10):
        held_out = inner_slice(rows, seed)
        assert 0 < held_out.sum() < 12
        assert (rows.targets[~held_out].sum(axis=0) > 0).all()


def test_standardiser_equals_numpy_and_weighs_blocks_equally():
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(500, 20)) * rng.uniform(0.1, 30, 20) + 1e3).astype(np.float32)
    X[:, 4] = 123.456
    standardiser = Standardiser.fit(np.array_split(X, 7), (16, 4))
    Z = standardiser.apply(X)
    deviation = X.std(axis=0, dtype=np.float64)
    deviation[4] = 1
    expected = (X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)) / deviation
    expected[:, :16] /= 4
    expected[:, 16:] /= 2
    expected[:, 4] = 0
    np.testing.assert_allclose(Z, expected, atol=2e-3)
    assert (Z[:, 16:] ** 2).sum(axis=1).mean() == pytest.approx(1, abs=0.01)
    assert (Z[:, :16] ** 2).sum(axis=1).mean() == pytest.approx(15 / 16, abs=0.01)
    assert standardiser.apply(X + 50)[0, 4] == 0


def test_sigmoid_recovers_the_odds_that_made_the_labels():
    rng = np.random.default_rng(0)
    decisions = rng.normal(size=40_000) * 3
    labels = rng.random(40_000) < sigmoid(1.7 * decisions - 2)
    slope, offset = fit_sigmoid(decisions, labels)
    assert (slope, offset) == (pytest.approx(1.7, abs=0.1), pytest.approx(-2, abs=0.1))
    assert calibration_error(sigmoid(slope * decisions + offset), labels.astype(float)) < 0.01


def test_sigmoid_equals_logistic_regression_on_the_smoothed_targets():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    decisions, labels = rng.normal(size=80), rng.random(80) < 0.3
    slope, offset = fit_sigmoid(decisions, labels)
    n_true, n_false = labels.sum(), (~labels).sum()
    smoothed = np.where(labels, (n_true + 1) / (n_true + 2), 1 / (n_false + 2))
    X, y = np.tile(decisions, 2)[:, None], np.repeat([1, 0], 80)
    oracle = LogisticRegression(C=1e10, tol=1e-10).fit(X, y, sample_weight=np.r_[smoothed, 1 - smoothed])
    assert abs(slope) == pytest.approx(abs(oracle.coef_[0, 0]), abs=1e-3)
    assert offset == pytest.approx(oracle.intercept_[0], abs=1e-3)


@pytest.mark.parametrize("labels", [np.zeros(10), np.ones(10), np.arange(10)[::-1] > 4])
def test_sigmoid_is_not_fitted_where_it_would_be_flat_or_fall(labels):
    assert fit_sigmoid(np.arange(10.0), labels) is None


def test_sigmoid_survives_decisions_that_separate_the_classes_widely():
    decisions = np.r_[np.full(50, -1e6), np.full(5, 1e6)]
    slope, offset = fit_sigmoid(decisions, decisions > 0)
    assert slope > 0
    assert np.isfinite(sigmoid(slope * decisions + offset)).all()
