"""Late fusion: what a backbone remembers never drags down a block that generalises."""

from __future__ import annotations

import numpy as np
import pytest

from embeddings.contract import Fingerprint
from embeddings.errors import InputError
from stage2_heads.heads import create_head, load_head
from stage2_heads.labels import RecordingLabels
from stage2_heads.metrics import present_cmap
from stage2_heads.rows import ArrayReader, LabelledRows, label_rows
from stage2_heads.stacking import chosen_weights, stacking_weights

N_LABELS, DIM = 6, 16
BLOCKS = (("trained", Fingerprint({"weights": "a"})), ("frozen", Fingerprint({"weights": "b"})))


def vectors_of(labels: np.ndarray, noise: float, seed: int) -> np.ndarray:
    centres = np.random.default_rng(5).normal(size=(N_LABELS, DIM))
    return (centres[labels] + noise * np.random.default_rng(seed).normal(size=(len(labels), DIM))).astype(np.float32)


def memorised(n: int = 120, n_unheard: int = 20, trained_noise: float = 4.0) -> tuple[LabelledRows, np.ndarray]:
    """A trained block that is all but noise on recordings it has not heard, and a frozen one that is fair on all.

    Returns the rows to fit on, of which the trained block has heard all but `n_unheard`, and 200 new rows (X).
    """
    labels = np.arange(n) % N_LABELS
    heard = np.arange(n) >= n_unheard
    trained = np.where(heard[:, None], vectors_of(labels, 0.1, 1), vectors_of(labels, trained_noise, 2))
    frozen = vectors_of(labels, 0.9, 3)
    recordings = [RecordingLabels(f"r{i}", f"s{label}") for i, label in enumerate(labels)]
    rows = label_rows(
        ArrayReader(np.hstack([trained, frozen]), (DIM, DIM)),
        np.arange(n),
        np.arange(n),
        recordings,
        blocks=BLOCKS,
        heard_by_block=np.stack([heard, np.zeros(n, bool)], axis=1),
    )
    new = np.arange(200) % N_LABELS
    return rows, np.hstack([vectors_of(new, trained_noise, 4), vectors_of(new, 0.9, 6)])


def quality(head, X: np.ndarray) -> float:
    truth = np.eye(N_LABELS)[np.arange(len(X)) % N_LABELS]
    return present_cmap(truth, head.scores(X))


@pytest.mark.parametrize("kind", ["svm", "knn"])
def test_a_block_that_remembers_does_not_drag_the_other_down(kind):
    rows, X = memorised()
    alone = create_head(kind).fit(rows.block(1))
    early = create_head(kind).fit(rows)
    fused = create_head("fused", head=kind).fit(rows)
    best = quality(alone, X[:, DIM:])
    assert quality(early, X) < best - 0.1  # the trap is there
    assert quality(fused, X) >= best - 0.02
    assert fused.weights_[0] < 0.2 * fused.weights_[1]
    assert fused.weighed_on_ == "chosen on 20 recordings that no backbone has heard"
    assert fused.calibrated_on_ == "unheard recordings, cross-fitted"


def test_a_head_that_leaves_one_block_is_that_blocks_head_calibration_and_all():
    rows, X = memorised(trained_noise=8.0)
    fused = create_head("fused").fit(rows)
    alone = create_head("svm").fit(rows.block(1))
    np.testing.assert_array_equal(fused.weights_, [0, 1])
    np.testing.assert_array_equal(fused.scores(X), alone.scores(X[:, DIM:]))
    assert fused.calibration_ == alone.calibration_
    assert fused.calibration_.n_recordings == rows.n_recordings  # not the 20 alone that the other block left unheard


def test_a_block_that_helps_is_used():
    rows, X = memorised(trained_noise=0.9)
    fused = create_head("fused").fit(rows)
    assert quality(fused, X) > quality(create_head("svm").fit(rows.block(1)), X[:, DIM:])
    assert fused.weights_.min() > 0


def test_blocks_that_have_heard_the_same_are_weighed_freely(monkeypatch):
    """Doubt is for a block that remembers beside one that does not: equals need not prove that they help."""
    from stage2_heads import fused as module

    def never(*_):
        raise AssertionError("the rule for uneven blocks was asked")

    monkeypatch.setattr(module, "chosen_weights", never)
    rows, _ = memorised(trained_noise=0.9)
    both = LabelledRows(**{**vars(rows), "heard_by_block": np.repeat(rows.heard_by_block[:, :1], 2, axis=1)})
    fused = create_head("fused").fit(both)
    assert (fused.weights_ > 0).all()
    assert fused.weighed_on_ == "chosen on 20 recordings that no backbone has heard"
    with pytest.raises(AssertionError, match="rule for uneven"):
        create_head("fused").fit(rows)


def test_without_unheard_recordings_blocks_that_heard_them_count_nothing_beside_one_that_has_not():
    rows, X = memorised(n_unheard=0)
    fused = create_head("fused").fit(rows)
    assert fused.weights_[0] == 0
    assert fused.weights_[1] > 0
    assert fused.weighed_on_ == "alike, without blocks whose backbones heard these recordings"
    assert quality(fused, X) == pytest.approx(quality(create_head("svm").fit(rows.block(1)), X[:, DIM:]), abs=0.02)


def test_blocks_that_are_alike_in_what_they_heard_weigh_alike_without_unheard_recordings():
    rows, _ = memorised(n_unheard=0)
    both = LabelledRows(**{**vars(rows), "heard_by_block": np.ones((rows.n_recordings, 2), bool)})
    fused = create_head("fused").fit(both)
    assert (fused.weights_ > 0).all()
    assert fused.calibrated_on_ == "heard recordings"


def test_weights_survive_saving_and_heads_of_a_block_are_found_again(tmp_path):
    rows, X = memorised()
    fused = create_head("fused", head="svm", settings={"c": 1.0}).fit(rows)
    fused.save(tmp_path / "h")
    loaded = load_head(tmp_path / "h")
    np.testing.assert_array_equal(loaded.weights_, fused.weights_)
    np.testing.assert_array_equal(loaded.scores(X), fused.scores(X))
    assert loaded.settings == fused.settings


def test_a_fused_head_of_unknown_heads_is_refused():
    with pytest.raises(InputError, match="no head is called"):
        create_head("fused", head="tree")
    with pytest.raises(InputError, match="fused heads"):
        create_head("fused", head="fused")
    with pytest.raises(InputError, match="svm has no setting 'colour'"):
        create_head("fused", head="svm", settings={"colour": 1})


class TestStacking:
    def test_it_equals_unpenalised_logistic_regression_where_weights_are_positive(self):
        from sklearn.linear_model import LogisticRegression

        rng = np.random.default_rng(0)
        z = rng.normal(size=(4000, 2))
        y = (rng.random(4000) < 1 / (1 + np.exp(-(1.5 * z[:, 0] + 0.5 * z[:, 1] - 1)))).astype(float)
        weights, offset = stacking_weights(z, y)
        oracle = LogisticRegression(C=1 / (1e-3 * 4000)).fit(z / z.std(axis=0), y)
        np.testing.assert_allclose(weights * z.std(axis=0), oracle.coef_[0], atol=1e-3)
        assert offset == pytest.approx(oracle.intercept_[0], abs=1e-3)

    def test_a_block_that_misleads_gets_nothing_rather_than_less_than_nothing(self):
        rng = np.random.default_rng(0)
        y = (rng.random(500) < 0.3).astype(float)
        z = np.stack([y + rng.normal(size=500), -y + rng.normal(size=500)], axis=1)
        weights, _ = stacking_weights(z, y)
        assert weights[0] > 0
        assert weights[1] == 0

    def test_nothing_speaks_without_positives(self):
        assert stacking_weights(np.ones((5, 2)), np.zeros(5)) is None


def test_a_block_joins_only_when_it_is_sure_to_help():
    """On 20 recordings of 50 decisions each: a block of noise joins about once in forty, a good one nearly always."""
    joined = {"noise": 0, "good": 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        y = (rng.random(1000) < 0.1).astype(float)
        recordings = np.repeat(np.arange(20), 50)
        best = 3 * y + rng.normal(size=1000)
        for name, other in (("noise", rng.normal(size=1000)), ("good", 2 * y + rng.normal(size=1000))):
            weights, _ = chosen_weights(np.stack([other, best], axis=1), y, recordings)
            assert weights[1] > 0
            joined[name] += weights[0] > 0
    assert joined["noise"] <= 4
    assert joined["good"] >= 36


def test_one_recording_alone_does_not_let_a_block_in():
    rng = np.random.default_rng(0)
    y = np.tile(np.repeat([1.0, 0.0], 25), 20)
    recordings = np.repeat(np.arange(20), 50)
    best = 2 * y + rng.normal(size=1000)
    other = np.where(recordings == 7, 4 * y, 0.0) + 0.01 * rng.normal(size=1000)
    spread_out, _ = chosen_weights(np.stack([best, other], axis=1), y, np.arange(1000))
    by_recording, _ = chosen_weights(np.stack([best, other], axis=1), y, recordings)
    assert spread_out[1] > 0  # were each window a witness of its own, it would be let in
    assert by_recording[1] == 0
