"""The linear heads against scikit-learn's solutions of the same problems, and their options one by one."""

from __future__ import annotations

import numpy as np
import pytest

from embeddings.contract import Fingerprint
from embeddings.errors import InputError
from stage2_heads.heads import create_head, load_head
from stage2_heads.labels import RecordingLabels
from stage2_heads.metrics import present_cmap
from stage2_heads.rows import ArrayReader, label_rows
from stage2_heads.updating import update_head

LABELS = ("ash", "birch", "cedar")
DIM = 8


def rows_of(n: int = 240, seed: int = 0, noise: float = 1.5, curved: bool = False):
    """Windows of three species, one a recording. curved: species lie on shells, which no plane divides."""
    rng = np.random.default_rng(seed)
    of = np.arange(n) % 3
    if curved:
        X = rng.normal(size=(n, DIM))
        X *= ((1 + of) / np.linalg.norm(X, axis=1))[:, None]
    else:
        X = np.random.default_rng(5).normal(size=(3, DIM))[of] * 1.5 + noise * rng.normal(size=(n, DIM))
    recordings = [RecordingLabels(f"s{seed}r{i}", LABELS[label]) for i, label in enumerate(of)]
    reader = ArrayReader(X.astype(np.float32), (DIM,))
    return label_rows(reader, np.arange(n), np.arange(n), recordings, blocks=(("x", Fingerprint({"weights": "a"})),))


def vectors_of(rows) -> np.ndarray:
    return rows.reader.read(rows.rows)


def quality(head, rows) -> float:
    return present_cmap(rows.targets > 0, head.decision(vectors_of(rows)))


@pytest.mark.parametrize("balanced", [False, True])
def test_logistic_finds_the_weights_of_scikit_learn(balanced):
    from sklearn.linear_model import LogisticRegression

    rows = rows_of()
    head = create_head("logistic", c=1.0, min_updates=4000, batch_size=240, class_balanced=balanced).fit(rows)
    X = head.standardiser_.apply(vectors_of(rows))
    for column in range(3):
        oracle = LogisticRegression(C=1.0, class_weight="balanced" if balanced else None, tol=1e-8, max_iter=5000)
        oracle.fit(X, rows.targets[:, column])
        np.testing.assert_allclose(head.coef_[:, column], oracle.coef_[0], atol=0.02)
        assert head.intercept_[column] == pytest.approx(oracle.intercept_[0], abs=0.02)


@pytest.mark.parametrize("kind", ["svm", "logistic"])
def test_a_fractional_target_counts_on_both_sides(kind):
    """Targets of one half everywhere say nothing: the decision is the one of even odds."""
    rows = rows_of(60)
    rows.targets[...] = 0.5
    decisions = create_head(kind, min_updates=500).fit(rows).decision(vectors_of(rows))
    np.testing.assert_allclose(decisions, 0.0, atol=0.05)


@pytest.mark.parametrize("features", ["fourier", "nystroem"])
def test_features_divide_what_no_plane_divides(features, tmp_path):
    rows, new = rows_of(600, curved=True), rows_of(300, seed=1, curved=True)
    flat = create_head("svm", min_updates=500).fit(rows)
    curved = create_head("svm", min_updates=500, features=features, n_features=400, gamma=2.0).fit(rows)
    assert quality(flat, new) < 0.6
    assert quality(curved, new) > 0.9
    curved.save(tmp_path / "h")
    np.testing.assert_array_equal(load_head(tmp_path / "h").decision(vectors_of(new)), curved.decision(vectors_of(new)))


@pytest.mark.parametrize("features", ["fourier", "nystroem"])
def test_features_multiply_to_the_kernel(features):
    from sklearn.metrics.pairwise import rbf_kernel

    from stage2_heads.kernel_features import KernelFeatures

    X = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)
    n = 20_000 if features == "fourier" else 80  # every row a landmark: exact
    Z = KernelFeatures.draw(features, n, 0.3, X, seed=0).apply(X)
    np.testing.assert_allclose(Z @ Z.T, rbf_kernel(X, gamma=0.3), atol=0.04 if features == "fourier" else 2e-3)


def test_a_fit_with_patience_stops_early_and_says_whom_it_was_chosen_by():
    rows = rows_of(noise=4.0)
    patient = create_head("svm", min_updates=3000, batch_size=32, patience=2).fit(rows)
    assert patient._n_updates < 3000
    assert 0 < len(patient.heard_.selected_on) < 60
    assert patient.heard_.trained_on.isdisjoint(patient.heard_.selected_on)
    whole = create_head("svm", min_updates=3000, batch_size=32).fit(rows)
    assert whole._n_updates == 3000
    assert not whole.heard_.selected_on


def test_averaging_makes_noisy_steps_agree():
    """With steps that stay long, two seeds' weights are nearer to one another when they are averaged."""
    rows = rows_of(noise=3.0)
    apart = {}
    for averaging in (False, True):
        one, two = (
            create_head("svm", schedule="constant", learning_rate=0.5, batch_size=8, averaging=averaging, seed=s).fit(
                rows
            )
            for s in (0, 1)
        )
        apart[averaging] = np.abs(one.coef_ - two.coef_).mean()
    assert apart[True] < 0.5 * apart[False]


@pytest.mark.parametrize("schedule", ["late", "cosine"])
def test_schedules_that_end_at_nothing_settle_better_than_a_constant_rate(schedule):
    rows = rows_of(noise=3.0)
    settings = {"learning_rate": 0.5, "batch_size": 8, "averaging": False}
    apart = {}
    for name in (schedule, "constant"):
        one, two = (create_head("svm", schedule=name, seed=s, **settings).fit(rows) for s in (0, 1))
        apart[name] = np.abs(one.coef_ - two.coef_).mean()
    assert apart[schedule] < 0.5 * apart["constant"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"features": "poly"}, "features='poly' is not one of none, fourier, nystroem"),
        ({"schedule": "never"}, "schedule='never' is not one of late, cosine, constant"),
        ({"patience": -1}, "patience=-1 must be 0 or more"),
        ({"n_features": 0}, "n_features=0 must be 1 or more"),
        ({"gamma": 0.0}, "gamma=0.0 must be a positive number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        create_head("logistic", **settings)


def test_a_kernel_head_whose_points_are_gone_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    from embeddings.files import read_json, write_json
    from stage2_heads.head_files import _sha256

    folder = tmp_path / "h"
    create_head("svm", min_updates=50, features="nystroem", n_features=20).fit(rows_of(60)).save(folder)
    arrays = load_file(folder / "head.safetensors")
    del arrays["feature_points"]
    save_file(arrays, folder / "head.safetensors")
    description = read_json(folder / "head.json", what="head description")
    description["weights_sha256"] = _sha256(folder / "head.safetensors")
    write_json(folder / "head.json", description)
    with pytest.raises(InputError, match="lack 'feature_points'"):
        load_head(folder)


class TestEstimator:
    @pytest.mark.parametrize("loss", ["squared_hinge", "log"])
    def test_it_passes_scikit_learns_checks(self, loss):
        from sklearn.utils.estimator_checks import check_estimator

        from stage2_heads.estimator import LinearClassifier

        results = check_estimator(LinearClassifier(loss, min_updates=150, batch_size=32), on_fail=None, on_skip=None)
        failed = [(r["check_name"], str(r["exception"])[:200]) for r in results if r["status"] == "failed"]
        assert len(results) > 40
        assert not failed

    def test_several_classes_a_row(self):
        from stage2_heads.estimator import LinearClassifier

        rows = rows_of(noise=0.5)
        X, Y = vectors_of(rows), rows.targets.astype(int).copy()
        Y[:, 1] |= Y[:, 0]  # birch sings wherever ash does
        assert (LinearClassifier(min_updates=300).fit(X, Y).predict(X) == Y).mean() > 0.95

    def test_a_warm_start_goes_on(self):
        from stage2_heads.estimator import LinearClassifier

        rows = rows_of()
        X, y = vectors_of(rows), rows.targets.argmax(axis=1)
        cold = LinearClassifier(min_updates=200).fit(X, y)
        warm = LinearClassifier(min_updates=200, warm_start=True).fit(X, y)
        before = warm.head_
        np.testing.assert_array_equal(cold.decision_function(X), warm.decision_function(X))
        assert warm.fit(X, y).head_ is before
        assert before._n_updates == 201

    def test_partial_fit_refuses_labels_that_were_not_announced(self):
        from stage2_heads.estimator import LinearClassifier

        model = LinearClassifier()
        with pytest.raises(ValueError, match="needs classes="):
            model.partial_fit(np.zeros((2, 3)), ["wren", "rook"])
        model.partial_fit(np.eye(3), ["wren", "rook", "wren"], classes=["rook", "wren"])
        with pytest.raises(ValueError, match="holds crow, which is not among the classes"):
            model.partial_fit(np.eye(3), ["crow", "rook", "wren"])
        with pytest.raises(ValueError, match="differ from those of the first call"):
            model.partial_fit(np.eye(3), ["rook"] * 3, classes=["rook", "crow"])


def some_of(rows, keep, labels=None):
    """These recordings' windows, of other classes if asked."""
    kept = np.flatnonzero(keep)
    return label_rows(
        rows.reader, kept, np.arange(len(kept)), [rows.recordings[i] for i in kept], blocks=rows.blocks, labels=labels
    )


def test_learning_more_ends_where_loss_and_hold_balance():
    """Against scipy: the new rows' squared hinge loss, and a parabola around the weights that there were."""
    from scipy.optimize import minimize

    rows, later = rows_of(30), rows_of(600, seed=1)
    head = create_head("svm", min_updates=2000, batch_size=600).fit(rows)
    before, offsets = head.coef_.copy(), head.intercept_.copy()
    update_head(head, later)
    X = head.standardiser_.apply(vectors_of(later)).astype(np.float64)
    firm, offset_firm = 1 + head.firmness * 30 / DIM, 1 + 30
    for c in range(3):
        sign = 2 * later.targets[:, c] - 1

        def cost(w, c=c, sign=sign):
            loss = (np.maximum(1 - sign * (X @ w[:-1] + w[-1]), 0) ** 2).sum()
            return loss + firm / 2 * ((w[:-1] - before[:, c]) ** 2).sum() + offset_firm / 2 * (w[-1] - offsets[c]) ** 2

        best = minimize(cost, np.append(before[:, c], offsets[c]), tol=1e-10).x
        assert np.abs(best[:-1] - before[:, c]).max() > 0.1
        np.testing.assert_allclose(head.coef_[:, c], best[:-1], atol=0.02)
        assert head.intercept_[c] == pytest.approx(best[-1], abs=0.02)


@pytest.mark.parametrize(("kind", "least"), [("svm", 0.7), ("logistic", 0.3)])
def test_a_species_that_comes_later_is_learnt_and_the_others_are_kept(kind, least):
    rows, new = rows_of(noise=1.0), rows_of(120, seed=1, noise=1.0)
    late, others = rows.targets[:, 2] > 0, new.targets[:, 2] == 0
    head = create_head(kind, min_updates=600).fit(some_of(rows, ~late))
    before = head.decision(vectors_of(new))[others]
    head.add_classes(["cedar"])
    update_head(head, some_of(rows, late, head.labels_))
    after = head.decision(vectors_of(new))
    assert (after.argmax(axis=1) == 2)[~others].mean() > least
    assert (after[others].argmax(axis=1) == before.argmax(axis=1)).mean() > 0.85


def test_many_earlier_rows_hold_firmer_than_few():
    later = rows_of(30, seed=1)
    moved = []
    for n in (30, 900):
        head = create_head("svm", min_updates=600).fit(rows_of(n))
        before = head.coef_.copy()
        update_head(head, later)
        moved.append(np.abs(head.coef_ - before).max())
    assert moved[1] < moved[0] / 3


def test_a_new_species_is_learnt_however_many_rows_there_were():
    rows = rows_of(noise=1.0)
    late = rows.targets[:, 2] > 0
    head = create_head("svm", min_updates=600).fit(some_of(rows, ~late))
    head._n_rows, head._known, head._positives = (1_000_000 * n for n in (head._n_rows, head._known, head._positives))
    before = head.coef_.copy()
    head.add_classes(["cedar"])
    update_head(head, some_of(rows, late, head.labels_))
    np.testing.assert_allclose(head.coef_[:, :2], before, atol=1e-3)
    assert (head.decision(vectors_of(rows))[late].argmax(axis=1) == 2).mean() > 0.7
