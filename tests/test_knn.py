"""The kNN head beside numpy: votes, corrections, and lists that find what exact search finds."""

import json

import numpy as np
import pytest

from embeddings.clusters import nearest_lists, train_centroids
from embeddings.contract import Fingerprint
from embeddings.errors import InputError
from stage2_heads.heads import create_head, load_head
from stage2_heads.labels import RecordingLabels
from stage2_heads.rows import ArrayReader, LabelledRows

DIM, CLASSES, WINDOWS = 12, ("ash", "birch", "cedar"), 8
LISTS = {"ivf_above": 500, "recall": 0.95}


def sounds(n_recordings=150, seed=0, dim=DIM):
    """Vectors (n, dim) in clouds about recordings, themselves in clouds about species; recordings; targets."""
    rng = np.random.default_rng(seed)
    species = np.random.default_rng(9).normal(size=(len(CLASSES), dim))
    primary = rng.choice(len(CLASSES), n_recordings, p=(0.7, 0.2, 0.1))
    recording = species[primary] + 0.8 * rng.normal(size=(n_recordings, dim))
    of_row = np.repeat(np.arange(n_recordings), WINDOWS)
    vectors = recording[of_row] + 0.4 * rng.normal(size=(len(of_row), dim))
    targets = np.eye(len(CLASSES), dtype=np.float32)[primary]
    targets[::4, 1] = np.maximum(targets[::4, 1], 0.3)  # a fainter second voice in every fourth recording
    return vectors.astype(np.float32) + 1, of_row, targets


def labelled(n_recordings=150, seed=0):
    vectors, of_row, targets = sounds(n_recordings, seed)
    recordings = tuple(RecordingLabels(f"s{seed}r{i}", CLASSES[t.argmax()]) for i, t in enumerate(targets))
    blocks = (("one", Fingerprint({})),)
    reader = ArrayReader(vectors, (DIM,))
    return LabelledRows(reader, np.arange(len(vectors)), of_row, targets, CLASSES, blocks, recordings)


def oracle(queries, vectors, targets, *, k, prior, power, mean=None):
    """Votes by brute force in float64; no two similarities tie here."""
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32) if mean is None else mean

    def unit(x):
        x = x.astype(np.float64) - mean
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    found = []
    for similarity in unit(queries) @ unit(vectors).T:
        near = np.argsort(-similarity)[:k]
        w = np.maximum(similarity[near], 0) ** power
        found.append(w @ targets[near] / (w.sum() + prior))
    return np.array(found)


@pytest.mark.parametrize("power", [0.5, 1.0, 4.0])
def test_votes_weigh_by_a_power_of_similarity_and_carry_fractional_targets(power):
    rows, (queries, _, _) = labelled(), sounds(10, seed=3)
    head = create_head("knn", k=7, prior=0.3, power=power).fit(rows)
    targets = rows.targets[rows.recording_of_row]
    expected = oracle(queries, rows.reader._vectors, targets, k=7, prior=0.3, power=power)
    np.testing.assert_allclose(head.scores(queries), expected, atol=1e-5)
    assert (expected[:, 1] > 0.05).any()


def test_power_zero_counts_heads():
    rows, (queries, _, _) = labelled(), sounds(10, seed=3)
    targets = rows.targets[rows.recording_of_row]
    expected = oracle(queries, rows.reader._vectors, targets, k=5, prior=0.1, power=0)
    similar = oracle(queries, rows.reader._vectors, np.ones_like(targets), k=5, prior=0.1, power=0)[:, 0] > 0.97
    assert similar.all()
    np.testing.assert_allclose(create_head("knn", power=0.0).fit(rows).scores(queries), expected, atol=1e-5)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_class_prior_multiplies_odds_by_how_rare_a_class_is(strength):
    rows, (queries, _, _) = labelled(), sounds(10, seed=3)
    plain = create_head("knn", k=9).fit(rows).scores(queries)
    head = create_head("knn", k=9, class_prior=strength).fit(rows)
    n = rows.n_rows
    positive = rows.targets[rows.recording_of_row].astype(np.float64).sum(axis=0) + 0.5
    odds = positive / (n + 1 - positive)
    factor = (np.exp(np.log(odds).mean()) / odds) ** strength
    expected = plain / (1 - plain) * factor
    np.testing.assert_allclose(head.scores(queries), expected / (1 + expected), rtol=1e-6, atol=1e-12)
    assert factor[2] > 1 > factor[0]  # the rare one rises, the common one falls
    head.partial_fit(queries, np.tile([0.0, 0.0, 1.0], (len(queries), 1)))
    assert head._odds_factor()[2] < (factor ** (1 / strength))[2]  # less rare now


def test_lists_agree_with_exact_search_and_say_by_how_much():
    rows, (queries, _, _) = labelled(), sounds(40, seed=3)
    exact = create_head("knn", k=5).fit(rows)
    lists = create_head("knn", k=5, **LISTS).fit(rows)
    index = lists._index
    assert index.n_lists == 35
    assert 1 <= index.n_probed < index.n_lists
    assert exact.facts() == {"search": "exact, among 1200 windows"}
    facts = lists.facts()
    assert facts["search"] == f"the nearest {index.n_probed} of 35 lists, of 1200 windows"
    assert facts["recall"] == round(index.recall_, 4) >= 0.95
    same = np.isclose(exact.scores(queries), lists.scores(queries), atol=1e-6).all(axis=1).mean()
    assert same > 0.7
    index.probe(35)
    np.testing.assert_allclose(lists.scores(queries), exact.scores(queries), atol=1e-12)


def test_the_measured_recall_is_what_brute_force_finds():
    rows = labelled()
    index = create_head("knn", k=5, **{**LISTS, "recall": 0.5}).fit(rows)._index
    vectors, own = index.vectors(np.arange(len(index))), rows.recording_of_row
    asked = np.sort(np.random.default_rng(0).choice(len(vectors), 256, replace=False))
    list_of_row = nearest_lists(vectors, index._centroids)[:, 0]
    shares = []
    for row in asked:
        similarity = np.where(own == own[row], -9, vectors @ vectors[row])
        looked_into = np.argsort(-(index._centroids @ vectors[row]))[: index.n_probed]
        nearest = np.argsort(-similarity)[:5]
        shares.append(np.isin(list_of_row[nearest], looked_into).mean())
    assert index.recall_ == pytest.approx(np.mean(shares), abs=0.003)
    assert 0.5 <= index.recall_ < 1
    assert index.recall_rows_ == 1200


def test_more_lists_are_looked_into_until_the_recall_is_reached():
    rows = labelled()
    probed, recalls = [], []
    for floor in (0.3, 0.9, 0.999):
        index = create_head("knn", **{**LISTS, "recall": floor}).fit(rows)._index
        probed.append(index.n_probed)
        recalls.append(index.recall_)
        assert index.recall_ >= floor
    assert probed == sorted(probed)
    assert probed[0] < probed[2]
    assert recalls == sorted(recalls)


def test_adding_bit_by_bit_equals_adding_at_once():
    vectors, of_row, targets = sounds()
    Y = targets[of_row]
    queries = sounds(20, seed=3)[0]
    rows = labelled()
    whole = create_head("knn").fit(rows)
    parts = create_head("knn").fit(rows.subset(np.arange(150) < 60))
    parts.normaliser_ = whole.normaliser_  # the mean is that of the first fit; with the same one all else is equal
    parts._index = type(parts._index)(DIM)
    parts._index.add(whole._index.vectors(np.arange(480)))
    for start in range(480, len(vectors), 100):
        parts.partial_fit(vectors[start : start + 100], Y[start : start + 100])
    np.testing.assert_array_equal(parts.decision(queries), whole.decision(queries))
    assert parts.n_samples_fit_ == whole.n_samples_fit_ == 1200


def test_adding_to_lists_moves_nothing_and_what_is_added_is_found():
    head = create_head("knn", k=3, **LISTS).fit(labelled())
    centroids, lists = head._index._centroids.copy(), head._index._lists()
    vectors, of_row, targets = sounds(30, seed=5)
    head.partial_fit(vectors, targets[of_row])
    np.testing.assert_array_equal(head._index._centroids, centroids)
    np.testing.assert_array_equal(head._index._lists()[:1200], lists)
    found = head._index.search(head.normaliser_.apply(vectors), 1)[:, 0]
    np.testing.assert_array_equal(found, 1200 + np.arange(len(vectors)))
    assert head.facts()["recall_measured"].startswith("@3 against exact search, among 1200 windows")


def test_a_stream_turns_to_lists_when_it_has_grown_past_the_limit():
    vectors, of_row, targets = sounds()
    head = create_head("knn", **LISTS)
    for start in range(0, len(vectors), 300):
        part = slice(start, start + 300)
        head.partial_fit(vectors[part], targets[of_row[part]], classes=CLASSES)
        assert bool(head._index.n_lists) == (head.n_samples_fit_ > 500)
    assert head._index.recall_ >= 0.95
    own = head._index.search(head.normaliser_.apply(vectors), 1)[:, 0]
    assert (own == np.arange(len(vectors))).all()


def test_a_head_with_lists_is_the_same_after_loading_and_goes_on(tmp_path):
    head = create_head("knn", class_prior=0.5, power=2.0, **LISTS).fit(labelled())
    head.save(tmp_path / "head")
    again = load_head(tmp_path / "head")
    queries, of_row, targets = sounds(20, seed=3)
    np.testing.assert_array_equal(again.scores(queries), head.scores(queries))
    assert again.facts() == head.facts()
    assert again.settings == head.settings
    for either in (head, again):
        either.partial_fit(queries, targets[of_row])
    np.testing.assert_array_equal(again.scores(queries), head.scores(queries))
    assert sorted(p.name for p in (tmp_path / "head").iterdir()) == ["head.json", "head.safetensors", "heard.json"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("lists", np.full(1200, 99, np.int32), "lists do not belong"),
        ("lists", np.zeros(5, np.int32), "'lists'"),
        ("n_probed", np.array([0]), "lists do not belong"),
        ("centroids", np.zeros((35, 3), np.float32), "'centroids'"),
        ("vectors", np.zeros((0, DIM), np.float32), "no vectors"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path, name, value, words):
    import hashlib

    from safetensors.numpy import load_file, save_file

    create_head("knn", **LISTS).fit(labelled()).save(tmp_path / "head")
    weights, path = tmp_path / "head/head.safetensors", tmp_path / "head/head.json"
    save_file({**load_file(str(weights)), name: value}, str(weights))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights_sha256": digest}))
    with pytest.raises(InputError, match=words):
        load_head(tmp_path / "head")


@pytest.mark.parametrize("limit", [500, 100_000], ids=["lists", "flat"])
def test_vectors_without_direction_neither_vote_nor_are_voted_for(limit):
    rows = labelled()
    vectors = rows.reader._vectors
    head = create_head("knn", k=5, ivf_above=limit).fit(rows)
    silent = head.normaliser_.means
    assert (head.scores(silent[None]) == 0).all()
    before = head.scores(vectors[:50])
    head.partial_fit(np.tile(silent, (5, 1)), np.tile([0.0, 0.0, 1.0], (5, 1)))
    np.testing.assert_allclose(head.scores(vectors[:50]), before, atol=1e-12)
    with pytest.raises(InputError, match="1 of 2 vectors hold values that are not finite"):
        head.partial_fit(np.array([vectors[0], np.full(DIM, np.nan)]), np.zeros((2, 3)))


def test_windows_that_are_all_alike_can_be_gathered():
    alike = np.ones((700, DIM), np.float32)
    head = create_head("knn", **LISTS)
    head.partial_fit(alike, np.tile([1.0, 0.0, 0.0], (700, 1)), classes=CLASSES)
    assert (head.scores(alike[:2]) == 0).all()  # each equals the mean
    assert head.n_samples_fit_ == 700


@pytest.mark.parametrize(
    ("setting", "value"),
    [("power", -1), ("power", float("nan")), ("class_prior", 1.5), ("ivf_above", 0), ("recall", 0), ("recall", 1.1)],
)
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(InputError, match=setting):
        create_head("knn", **{setting: value})


def test_centroids_repeat_and_point_where_their_vectors_do():
    rng = np.random.default_rng(0)
    directions = np.eye(6, dtype=np.float32)[:4]
    sample = (directions[rng.integers(4, size=400)] + 0.05 * rng.normal(size=(400, 6))).astype(np.float32)
    sample /= np.linalg.norm(sample, axis=1, keepdims=True)
    centroids = train_centroids(sample, 8, seed=1)
    np.testing.assert_array_equal(centroids, train_centroids(sample, 8, seed=1))
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    nearest = nearest_lists(sample, centroids)[:, 0]
    np.testing.assert_array_equal(nearest, (sample @ centroids.T).argmax(axis=1))
    assert (np.einsum("nd,nd->n", sample, centroids[nearest]) > 0.9).all()
    several = nearest_lists(sample, centroids, 3)
    for found, similarity in zip(several, sample @ centroids.T, strict=True):
        assert set(found) == set(np.argsort(-similarity)[:3])
