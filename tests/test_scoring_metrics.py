"""Metrics against golden values and against scikit-learn and torchmetrics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from embeddings.errors import InputError, ScoreRangeError
from stage2_heads.bootstrap import bayesian_weights
from stage2_heads.metrics import (
    Ranking,
    ap11,
    ap11_confidence,
    auroc,
    average_precision,
    check_scores,
    f1_scores,
    padded_cmap,
    present_cmap,
    top_k_hits,
)

# Golden values of padded cmAP: scikit-learn 1.x's average_precision_score on five rows of ones appended.
GOLDEN = [
    ([[0], [0], [0]], [[0.1], [0.9], [0.5]], 1.0),
    ([[1], [0], [0]], [[0.9], [0.2], [0.1]], 1.0),
    ([[1], [0], [0]], [[0.1], [0.5], [0.9]], 0.9583333),
    ([[1], [0], [0]], [[0.5], [0.5], [0.5]], 0.9583333),
    ([[1], [0], [0]], [[0.0], [0.0], [0.0]], 0.9583333),
    ([[1, 0], [0, 0], [0, 0], [1, 0]], [[0.9, 0.2], [0.8, 0.1], [0.1, 0.3], [0.7, 0.4]], 0.9910714),
]
GOLDEN_WRONG = [
    ([[0], [0], [0]], [[0.1], [1.0], [0.5]], 0.8333333),
    ([[1], [0], [0]], [[1.0], [1.0], [1.0]], 0.75),
    ([[1], [0], [0]], [[3.0], [2.0], [-1.0]], 0.8809524),
]


def tied_table(max_rows=30, classes=3):
    """Truth with at least one positive a class, and scores of which many tie."""
    rows = st.integers(2, max_rows)
    return rows.flatmap(
        lambda n: st.tuples(
            arrays(np.int8, (n, classes), elements=st.integers(0, 1)),
            arrays(np.float64, (n, classes), elements=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.999])),
        )
    )


@pytest.mark.parametrize(("truth", "scores", "expected"), GOLDEN)
def test_padded_cmap_gives_the_golden_values(truth, scores, expected):
    assert padded_cmap(np.array(truth), np.array(scores)) == pytest.approx(expected, abs=5e-8)


@pytest.mark.parametrize(("truth", "scores", "expected"), GOLDEN_WRONG)
def test_padded_cmap_refuses_scores_whose_value_would_be_wrong(truth, scores, expected):
    padded_truth = np.vstack([truth, np.ones((5, 1))])
    padded_scores = np.vstack([scores, np.ones((5, 1))])
    assert average_precision(padded_truth, padded_scores)[0] == pytest.approx(expected, abs=5e-8)
    with pytest.raises(ScoreRangeError):
        padded_cmap(np.array(truth), np.array(scores))


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([[0.5], [np.nan]], "not finite"),
        ([[0.5], [np.inf]], "not finite"),
        ([[0.5], [-0.01]], "below 0"),
        ([[0.5], [1.0]], "float32"),
        (1 / (1 + np.exp(-np.array([[20.0], [25.0]], np.float32))), "float32"),
        (np.nextafter(np.ones((2, 1), np.float32), np.float32(0)), "saturated"),
    ],
)
def test_scores_that_cannot_be_ranked_are_refused_with_the_reason(scores, words):
    with pytest.raises(ScoreRangeError, match=words):
        check_scores(np.asarray(scores))


def test_scores_clipped_just_below_one_are_accepted():
    check_scores(np.full((4, 2), 1 - 2.0**-53))


@given(tied_table())
@settings(max_examples=60, deadline=None)
def test_average_precision_equals_scikit_learn_with_ties(table):
    from sklearn.metrics import average_precision_score

    truth, scores = table
    ours = average_precision(truth, scores)
    for c in range(truth.shape[1]):
        if truth[:, c].any():
            assert ours[c] == pytest.approx(average_precision_score(truth[:, c], scores[:, c]), abs=1e-12)
        else:
            assert np.isnan(ours[c])


def test_average_precision_equals_torchmetrics_with_ties():
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.classification import binary_average_precision

    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 2, (200, 4)), rng.integers(0, 20, (200, 4)) / 20
    ours = average_precision(truth, scores)
    for c in range(4):
        theirs = binary_average_precision(torch.tensor(scores[:, c]), torch.tensor(truth[:, c]))
        assert ours[c] == pytest.approx(float(theirs), abs=1e-6)


@given(tied_table())
@settings(max_examples=40, deadline=None)
def test_auroc_equals_scikit_learn_with_ties(table):
    from sklearn.metrics import roc_auc_score

    truth, scores = table
    ours = auroc(truth, scores)
    for c in range(truth.shape[1]):
        if 0 < truth[:, c].sum() < len(truth):
            assert ours[c] == pytest.approx(roc_auc_score(truth[:, c], scores[:, c]), abs=1e-12)
        else:
            assert np.isnan(ours[c])


@given(tied_table(), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_weighted_figures_equal_scikit_learn_with_sample_weights(table, seed):
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth, scores = table
    weights = bayesian_weights(len(truth), 3, seed)
    for c in range(truth.shape[1]):
        if not truth[:, c].any():
            continue
        curve = Ranking.of(truth[:, c], scores[:, c], np.arange(len(truth)), len(truth)).curve(weights)
        for r in range(3):
            for padding in (0, 5):
                t, s, w = (np.r_[x, np.ones(padding)] for x in (truth[:, c], scores[:, c], weights[:, r]))
                expected = average_precision_score(t, s, sample_weight=w)
                assert curve.average_precision(padding)[r] == pytest.approx(expected, abs=1e-10)
            if truth[:, c].sum() < len(truth):
                expected = roc_auc_score(truth[:, c], scores[:, c], sample_weight=weights[:, r])
                assert curve.auroc()[r] == pytest.approx(expected, abs=1e-10)


@given(tied_table(), st.randoms())
@settings(max_examples=30, deadline=None)
def test_nothing_depends_on_the_order_of_rows(table, random):
    truth, scores = table
    order = np.array(random.sample(range(len(truth)), len(truth)))
    for metric in (average_precision, auroc, padded_cmap, present_cmap, ap11, ap11_confidence):
        np.testing.assert_allclose(metric(truth[order], scores[order]), metric(truth, scores), atol=1e-12)


def test_present_cmap_leaves_absent_classes_out():
    truth = np.array([[1, 0], [0, 0], [0, 0]])
    scores = np.array([[0.2, 0.1], [0.9, 0.5], [0.1, 0.3]])
    assert present_cmap(truth, scores) == pytest.approx(0.5)
    assert np.isnan(present_cmap(np.zeros((3, 2)), scores))


def naive_ap11(truth, scores):
    thresholds = sorted(set(scores))
    points = [(truth[scores >= t].sum() / truth.sum(), truth[scores >= t].mean()) for t in thresholds]
    return np.mean([max(p for r, p in points if r >= level / 10) for level in range(11)])


@given(tied_table(classes=1))
@settings(max_examples=40, deadline=None)
def test_ap11_is_the_mean_of_the_best_precision_at_or_beyond_each_recall(table):
    truth, scores = table[0].ravel(), table[1].ravel()
    if truth.any():
        assert ap11(truth, scores) == pytest.approx(naive_ap11(truth, scores), abs=1e-12)


def test_ap11_confidence_counts_precision_one_where_nothing_is_predicted():
    truth, scores = np.array([1, 0, 1, 0]), np.array([0.35, 0.35, 0.15, 0.05])
    # thresholds 0: 2/4;  .1: 2/3;  .2, .3: 1/2;  .4 ... 1: nothing predicted
    assert ap11_confidence(truth, scores) == pytest.approx((1 / 2 + 2 / 3 + 2 * 1 / 2 + 7) / 11)


def test_top_k_shares_ties_and_ignores_the_order_of_columns():
    scores = np.array([[0.5, 0.5, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.9, 0.3]])
    primary = np.array([1, 2, 0])
    np.testing.assert_allclose(top_k_hits(scores, primary, 1), [0.5, 0.25, 0.0])
    np.testing.assert_allclose(top_k_hits(scores, primary, 3), [1.0, 0.75, 0.0])
    np.testing.assert_allclose(top_k_hits(scores[:, ::-1], 3 - primary, 1), [0.5, 0.25, 0.0])


def test_f1_equals_scikit_learn():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    truth, predicted = rng.random((60, 5)) < 0.3, rng.random((60, 5)) < 0.4
    micro, per_class = f1_scores(truth, predicted)
    assert micro[0] == pytest.approx(f1_score(truth, predicted, average="micro"))
    np.testing.assert_allclose(per_class[0], f1_score(truth, predicted, average=None))
    weights = rng.random((60, 2)) + 0.1
    micro, _ = f1_scores(truth, predicted, np.arange(60), weights)
    assert micro[1] == pytest.approx(f1_score(truth, predicted, average="micro", sample_weight=weights[:, 1]))


@pytest.mark.parametrize(
    ("truth", "scores"), [(np.zeros((2, 1)), np.zeros((3, 1))), (np.full((2, 1), 0.5), np.zeros((2, 1)))]
)
def test_tables_that_do_not_fit_are_refused(truth, scores):
    with pytest.raises(InputError):
        average_precision(truth, scores)
