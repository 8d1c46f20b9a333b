"""Windows of which only some classes are known: what each head learns of them, against heads that see no others."""

from __future__ import annotations

import numpy as np
import pytest
from test_heads import BLOCKS, DIMS, QUICK

from embeddings.errors import InputError
from stage2_heads.descent import LOSSES, Descent
from stage2_heads.heads import create_head, load_head
from stage2_heads.metrics import average_precision, known_cmap, present_cmap
from stage2_heads.rows import ArrayReader, LabelledRows

NAN = np.float32(np.nan)
PARTIAL, COMPLETE = ("svm", "logistic", "mlp", "prototypes"), ("knn", "online")


def rows_of(vectors: np.ndarray, truths: np.ndarray, n_recordings: int = 24) -> LabelledRows:
    """Windows end to end in recordings of one length; truths : (n, c), nan where nobody knows."""
    code = np.repeat(np.arange(n_recordings), len(vectors) // n_recordings)
    targets = np.zeros((n_recordings, truths.shape[1]), np.float32)
    np.maximum.at(targets, code, np.nan_to_num(truths))
    labels = tuple("abc"[: truths.shape[1]])
    return LabelledRows(
        ArrayReader(vectors, DIMS), np.arange(len(vectors)), code, targets, labels, BLOCKS,
        windows="annotated", window_targets=truths, target_of_row=np.arange(len(vectors)),
    )  # fmt: skip


@pytest.fixture
def heard() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, the truth of two classes, and the same with half of each class's cells unknown, never both."""
    rng = np.random.default_rng(0)
    truth = (rng.random((240, 2)) < 0.4).astype(np.float32)
    vectors = rng.normal(size=(240, sum(DIMS))).astype(np.float32)
    vectors[:, 0] += 4 * truth[:, 0]
    vectors[:, 1] += 4 * truth[:, 1]
    hidden = truth.copy()
    whose = rng.random(240) < 0.5
    hidden[whose, 0], hidden[~whose, 1] = NAN, NAN
    return vectors, truth, hidden


@pytest.mark.parametrize("kind", PARTIAL)
def test_both_classes_are_learnt_from_windows_that_tell_of_one_each(kind, heard, tmp_path):
    vectors, truth, hidden = heard
    head = create_head(kind, **QUICK[kind]).fit(rows_of(vectors, hidden))
    scores = head.scores(vectors)
    assert np.isfinite(scores).all()
    assert (average_precision(truth, scores) > 0.7).all()  # by chance .4
    head.save(tmp_path / kind)
    np.testing.assert_array_equal(load_head(tmp_path / kind).scores(vectors), scores)


@pytest.mark.parametrize("kind", PARTIAL)
def test_what_an_unknown_cell_would_have_said_changes_nothing(kind, heard):
    """Negatives in the place of unknowns teach another head: unknowns are not read as negatives, nor as positives."""
    vectors, _, hidden = heard
    masked, negative, positive = (
        create_head(kind, **QUICK[kind]).fit(rows_of(vectors, truths)).decision(vectors)
        for truths in (hidden, np.nan_to_num(hidden, nan=0.0), np.nan_to_num(hidden, nan=1.0))
    )
    assert np.abs(masked - negative).max() > 1e-3
    assert np.abs(masked - positive).max() > 1e-3


@pytest.mark.parametrize("kind", ["svm", "logistic", "mlp"])
def test_a_class_that_is_known_everywhere_does_not_notice_another_that_is_not(kind, heard):
    """One class against the rest: the other's mask is its own affair (an MLP's hidden layer is shared)."""
    vectors, truth, hidden = heard
    hidden[:, 0] = truth[:, 0]
    whole, masked = (create_head(kind, **QUICK[kind]).fit(rows_of(vectors, t)) for t in (truth, hidden))
    own, same = whole.decision(vectors)[:, 0], masked.decision(vectors)[:, 0]
    if kind in ("svm", "logistic"):
        np.testing.assert_array_equal(own, same)
    else:  # the hidden layer is shared
        assert np.corrcoef(own, same)[0, 1] > 0.7


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_on_masked_rows_is_the_step_of_each_class_on_its_own_rows(loss):
    rng = np.random.default_rng(1)
    X, Y = rng.normal(size=(12, 5)).astype(np.float32), (rng.random((12, 2)) < 0.5).astype(np.float32)
    Y[:5, 0], Y[4:9, 1] = NAN, NAN
    ones = np.ones(2, np.float32)
    common = {"loss": loss, "decay": 0.0, "squared_length": 1.0}
    weights, offsets = np.zeros((5, 2), np.float32), np.full(2, -0.5, np.float32)
    Descent(weights, offsets, positive_weight=ones, negative_weight=ones, **common)(X, Y, 0.1)
    for c in range(2):
        known = ~np.isnan(Y[:, c])
        w, b = np.zeros((5, 1), np.float32), np.full(1, -0.5, np.float32)
        step = Descent(w, b, positive_weight=ones[:1], negative_weight=ones[:1], **common)
        step(X[known], Y[known, c : c + 1], 0.1 * known.sum() / len(X))  # a mean over fewer rows
        np.testing.assert_allclose(weights[:, c], w[:, 0], atol=1e-6)
        np.testing.assert_allclose(offsets[c], b[0], atol=1e-6)


def test_complete_rows_know_nothing_of_what_was_left_out(heard):
    """A class that was seen only in windows that are gone is seen nowhere."""
    vectors, truth, hidden = heard
    hidden[:, 0], hidden[:, 1] = truth[:, 0], np.where(truth[:, 0] > 0, NAN, truth[:, 1])
    rows = rows_of(vectors, hidden)
    assert rows.targets[:, 0].any()
    complete = rows.complete()
    assert not complete.targets[:, 0].any()
    truths, truth_of_row = complete.truths
    assert np.isfinite(truths).all()
    np.testing.assert_array_equal(truths[truth_of_row], hidden[np.isfinite(hidden).all(axis=1)])
    np.testing.assert_array_equal(complete.reader.read(complete.rows), vectors[np.isfinite(hidden).all(axis=1)])


def test_a_class_counts_as_learnt_only_where_a_copy_could_learn_it(heard):
    vectors, truth, hidden = heard
    hidden[:, 0], hidden[:, 1] = truth[:, 0], np.where(truth[:, 0] > 0, NAN, truth[:, 1])
    rows = rows_of(vectors, hidden)
    for kind, learnt in (("knn", False), ("svm", True)):
        held = create_head(kind, **QUICK[kind]).fit(rows).cross_fitted_decisions(rows, n_folds=3)
        assert held.known[:, 0].any() == learnt
        assert held.known[:, 1].sum() == np.isfinite(hidden[:, 1]).sum()


@pytest.mark.parametrize("kind", COMPLETE)
def test_what_was_fitted_on_some_of_the_windows_can_be_saved_and_read(kind, heard, tmp_path):
    vectors, truth, hidden = heard
    hidden[:120] = truth[:120]
    head = create_head(kind, **QUICK[kind]).fit(rows_of(vectors, hidden))
    head.save(tmp_path / "head")
    np.testing.assert_array_equal(load_head(tmp_path / "head").scores(vectors), head.scores(vectors))


@pytest.mark.parametrize("kind", COMPLETE)
def test_kinds_that_need_complete_windows_learn_those_and_no_others(kind, heard):
    vectors, truth, hidden = heard
    hidden[:120] = truth[:120]
    settings = {**QUICK[kind]}
    some = create_head(kind, **settings).fit(rows_of(vectors, hidden))
    those = create_head(kind, **settings).fit(rows_of(vectors[:120], truth[:120], 12))
    np.testing.assert_array_equal(some.scores(vectors), those.scores(vectors))
    with pytest.raises(InputError, match="all 2 classes are known"):
        create_head(kind, **settings).fit(rows_of(vectors[120:], hidden[120:], 12))
    with pytest.raises(InputError, match="between 0 and 1"):
        create_head(kind, **settings).partial_fit(vectors, hidden, classes=["a", "b"])


@pytest.mark.parametrize("kind", PARTIAL)
def test_going_on_with_masked_rows(kind, heard):
    vectors, truth, hidden = heard
    head = create_head(kind, **QUICK[kind])
    for start in [*range(0, 240, 60)] * 20:
        head.partial_fit(vectors[start : start + 60], hidden[start : start + 60], classes=["a", "b"])
    assert np.isfinite(head.decision(vectors)).all()
    assert (average_precision(truth, head.decision(vectors)) > 0.7).all()


def test_balanced_classes_weigh_by_the_windows_of_which_each_is_known(heard, tmp_path):
    vectors, truth, hidden = heard
    hidden[:, 0], hidden[:200, 1], hidden[200:, 1] = truth[:, 0], NAN, truth[200:, 1]
    head = create_head("svm", class_balanced=True, **QUICK["svm"]).fit(rows_of(vectors, hidden))
    positive, negative = head._class_weights()
    n_true = np.nansum(hidden, axis=0)
    np.testing.assert_allclose(positive, [120 / n_true[0], 20 / n_true[1]], rtol=1e-6)
    np.testing.assert_allclose(negative, [120 / (240 - n_true[0]), 20 / (40 - n_true[1])], rtol=1e-6)
    head.save(tmp_path / "head")
    np.testing.assert_array_equal(load_head(tmp_path / "head")._class_weights(), (positive, negative))


def test_several_blocks_are_fused_on_what_is_known(heard):
    vectors, truth, hidden = heard
    settings = {"head": "svm", "settings": QUICK["svm"]}
    head = create_head("fused", **settings).fit(rows_of(vectors, hidden))
    assert head.learns_partial_truth
    assert (average_precision(truth, head.scores(vectors)) > 0.9).all()
    assert not create_head("fused", head="knn", settings=QUICK["knn"]).learns_partial_truth


def test_cmap_of_what_is_known_leaves_the_rest_out(heard):
    _, truth, hidden = heard
    scores = np.random.default_rng(2).random(truth.shape)
    expected = [
        average_precision(truth[known, c : c + 1], scores[known, c : c + 1])[0]
        for c, known in enumerate(~np.isnan(hidden).T)
    ]
    assert known_cmap(hidden, scores) == pytest.approx(np.mean(expected))
    assert known_cmap(truth, scores) == present_cmap(truth, scores)
    assert np.isnan(known_cmap(np.full((3, 2), np.nan), np.zeros((3, 2))))


def test_targets_of_recordings_are_never_unknown():
    vectors, truths = np.zeros((24, sum(DIMS)), np.float32), np.full((24, 1), NAN)
    with pytest.raises(InputError, match="between 0 and 1"):
        LabelledRows(ArrayReader(vectors, DIMS), np.arange(24), np.arange(24), truths, ("a",), BLOCKS)
    rows = rows_of(vectors, truths)
    assert rows.is_partial
    assert rows.complete().n_rows == rows.complete().n_recordings == 0
    known, true = rows.known_counts()
    assert (known.tolist(), true.tolist()) == ([0.0], [0.0])
