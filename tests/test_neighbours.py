"""Similar calls beside numpy: nothing missed, whatever is asked together, left out, grouped or added since."""

import errno
import shutil
from dataclasses import replace

import numpy as np
import pytest
from fakes import FakeBackbone, fake_catalogue, fake_decode

from embeddings.candidates import Candidates
from embeddings.errors import InputError
from embeddings.extract import extract
from embeddings.neighbours import NeighbourSearch
from embeddings.splits import Split
from embeddings.store import Store
from embeddings.windows import WindowPlan

CONTENTS = [f"{seconds} {level / 100}" for level, seconds in enumerate(np.tile([25, 9, 40], 10), start=1)]


class Clouds(FakeBackbone):
    """Windows of a recording lie about a centre; every seventh is the zero vector, as silence may be."""

    def embed(self, waveforms):
        levels = np.round(waveforms[:, 0].astype(np.float64), 3)
        vectors = []
        for level in levels:
            centre = np.random.default_rng(int(level % 1 * 100)).normal(size=self.dim)
            own = np.random.default_rng(int(level * 1000)).normal(size=self.dim)
            vectors.append(np.zeros(self.dim) if int(level) % 7 == 6 else centre + 0.3 * own)
        return np.array(vectors, np.float32)


def filled(folder, contents=CONTENTS, dims=(16, 5)):
    backbones = [Clouds(f"block{i}", dim, weights=str(i)) for i, dim in enumerate(dims)]
    if not (folder / "store").exists():
        plan = WindowPlan(hop_s=1.0)
        Store.create(folder / "store", backbones, plan, dtype="float16", split=Split("all", 0, "", {}), link=False)
    extract(fake_catalogue(folder / "audio", contents), backbones, Store(folder / "store"), fake_decode)
    return Store(folder / "store")


@pytest.fixture(scope="module")
def filled_once(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def store(tmp_path, filled_once, monkeypatch):
    """Small pieces, so that there are several."""
    monkeypatch.setattr("embeddings.search_index._PIECE_ROWS", 100)
    monkeypatch.setattr("embeddings.index_scan._FIRST_ROWS", 32)
    return Store(shutil.copytree(filled_once.path, tmp_path / "store"))


def similarities(store, queries):
    """Mean of the blocks' centred cosines, float64 (n_queries, n_rows)."""
    vectors, start, total = store.reader().read(np.arange(store.n_rows)).astype(np.float64), 0, 0.0
    for dim in store.reader().dims:
        block = slice(start, start + dim)
        mean = vectors[:, block].mean(axis=0)
        q, x = queries[:, block].astype(np.float64) - mean, vectors[:, block] - mean
        total = total + (q / np.linalg.norm(q, axis=1)[:, None]) @ (x / np.linalg.norm(x, axis=1)[:, None]).T
        start += dim
    return total / len(store.reader().dims)


def asked(store, n=9, seed=1):
    """Stored windows with noise on them."""
    rng = np.random.default_rng(seed)
    vectors = store.reader().read(rng.integers(0, store.n_rows, n))
    return (vectors + 0.2 * rng.normal(size=vectors.shape)).astype(np.float32)


@pytest.mark.parametrize("approximate", [False, True], ids=["one list", "lists"])
@pytest.mark.parametrize("k", [1, 20, 2000])
def test_exact_search_equals_brute_force_for_every_query(store, approximate, k):
    if approximate:
        NeighbourSearch(store, approximate=True)  # exact search then goes over the same lists
    searcher, queries = NeighbourSearch(store), asked(store)
    rows, found = searcher.nearest(queries, k)
    truth = similarities(store, queries)
    n = min(k, store.n_rows)
    assert rows.shape == found.shape == (9, k)
    np.testing.assert_allclose(found[:, :n], -np.sort(-truth, axis=1)[:, :n], atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(truth, rows[:, :n], axis=1), found[:, :n], atol=2e-6)
    assert all(len(set(row)) == n for row in rows[:, :n].tolist())
    assert (rows[:, n:] == -1).all()
    assert np.isneginf(found[:, n:]).all()


def test_equal_windows_come_in_the_order_of_rows(store):
    silent = np.flatnonzero((store.reader().read(np.arange(store.n_rows)) == 0).all(axis=1))
    assert len(silent) > 60
    rows, similarity = NeighbourSearch(store).nearest(np.zeros((1, 21), np.float32), 50)
    np.testing.assert_array_equal(rows[0], silent[:50])
    np.testing.assert_allclose(similarity[0], 1, atol=1e-6)


def test_a_query_finds_the_same_alone_and_among_others(store, monkeypatch):
    searcher, queries = NeighbourSearch(store), asked(store)
    rows, similarity = searcher.nearest(queries, 15)
    for i, query in enumerate(queries):
        alone = searcher.nearest(query[None], 15)
        np.testing.assert_array_equal(alone[0][0], rows[i])
        np.testing.assert_array_equal(alone[1][0], similarity[i])
    monkeypatch.setattr("embeddings.index_scan._MOST_QUERIES", 4)
    monkeypatch.setattr("embeddings.index_scan._MOST_CANDIDATES", 100)  # settled again and again
    np.testing.assert_array_equal(searcher.nearest(queries, 15)[0], rows)


@pytest.mark.parametrize("approximate", [False, True], ids=["one list", "lists"])
def test_one_per_recording_and_what_is_left_out(store, approximate):
    if approximate:
        NeighbourSearch(store, approximate=True)
    queries, places = asked(store), store.place_of_row
    left_out = [store.catalogue.recordings[places[0]].recording, "not in the store"]
    rows, found = NeighbourSearch(store).nearest(queries, 12, exclude=left_out, one_per_recording=True)
    truth = similarities(store, queries)
    best = np.stack([truth[:, places == place].max(axis=1) for place in range(1, places.max() + 1)], axis=1)
    np.testing.assert_allclose(found, -np.sort(-best, axis=1)[:, :12], atol=2e-6)
    assert all(len(set(places[row])) == 12 and 0 not in places[row] for row in rows)
    together = NeighbourSearch(store).search(queries, 12, exclude=left_out, one_per_recording=True)
    np.testing.assert_allclose([n.similarity for n in together], -np.sort(-best.max(axis=0))[:12], atol=2e-6)
    assert all(truth[n.query_window, n.row] == pytest.approx(n.similarity, abs=2e-6) for n in together)


def test_approximate_search_says_truly_what_it_finds(store):
    searcher = NeighbourSearch(store, approximate=True)
    facts = searcher.facts
    assert facts["n_lists"] == round(np.sqrt(store.n_rows))
    assert facts["recall"] >= 0.95 or facts["n_probed"] == facts["n_lists"]
    rows = np.sort(np.random.default_rng(0).choice(store.n_rows, 128, replace=False))
    index, shares = searcher._index, []
    vectors = searcher.normaliser.apply(store.reader().read(np.arange(store.n_rows))).astype(np.float64)
    list_of_row = np.empty(store.n_rows, int)
    list_of_row[index.rows] = np.repeat(np.arange(index.n_lists), np.diff(index.starts))
    for row in rows:
        similarity = np.where(store.place_of_row == store.place_of_row[row], -9, vectors @ vectors[row])
        looked_into = np.argsort(-(index.centroids @ vectors[row]))[: facts["n_probed"]]
        nearest = np.argsort(-np.round(similarity, 9), kind="stable")[:100]
        shares.append(np.isin(list_of_row[nearest], looked_into).mean())
    assert facts["recall"] == pytest.approx(np.mean(shares), abs=0.02)
    found = searcher.nearest(asked(store), 10)[1]
    exact = NeighbourSearch(store).nearest(asked(store), 10)[1]
    assert (found <= exact + 1e-9).all()
    assert np.isclose(found, exact).mean() > 0.9


@pytest.mark.parametrize("approximate", [False, True], ids=["exact", "approximate"])
def test_a_store_that_grew_since_is_searched_whole(tmp_path, approximate):
    before = filled(tmp_path, CONTENTS[:12])
    old = NeighbourSearch(before, approximate=approximate)
    after = filled(tmp_path)
    assert after.n_rows > before.n_rows
    searcher, queries = NeighbourSearch(after, approximate=approximate), asked(after)
    assert len(searcher._index.rows) == after.n_rows
    found = searcher.nearest(queries, 1)[1]
    np.testing.assert_allclose(found[:, 0], similarities(after, queries).max(axis=1), atol=2e-6)
    # The searcher of before goes on with what it opened.
    np.testing.assert_allclose(old.nearest(queries, 1)[1][:, 0], similarities(before, queries).max(axis=1), atol=2e-6)


def test_the_rounded_vectors_are_kept_and_made_anew_when_damaged_or_of_another_order(store, monkeypatch):
    NeighbourSearch(store)
    (folder,) = (store.path / "search").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["codes.arrow", "index.json", "index.safetensors"]
    with monkeypatch.context() as patched:
        patched.setattr("embeddings.neighbours.make_index", None)  # calling it would fail
        kept = NeighbourSearch(store).nearest(asked(store), 5)
    for name in ("codes.arrow", "index.json", "index.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        again = NeighbourSearch(Store(store.path)).nearest(asked(store), 5)
        np.testing.assert_array_equal(again[0], kept[0])
        assert len((folder / name).read_bytes()) == len(whole)
    digest = store.reader().digest
    store.index = replace(store.index, offset=store.index.offset[::-1].copy())
    assert store.reader().digest != digest


def test_a_store_that_cannot_be_written_to_is_searched_from_a_temporary_folder(store, monkeypatch):
    made = []

    def refusing(folder, *rest):
        made.append(folder)
        if folder.is_relative_to(store.path):
            raise OSError(errno.EROFS, "read-only", str(folder))
        return make_index(folder, *rest)

    from embeddings.search_index import make_index

    monkeypatch.setattr("embeddings.neighbours.make_index", refusing)
    searcher = NeighbourSearch(store)
    np.testing.assert_allclose(
        searcher.nearest(asked(store), 1)[1][:, 0], similarities(store, asked(store)).max(axis=1), atol=2e-6
    )
    assert len(made) == 2
    assert not (store.path / "search").exists()


@pytest.mark.parametrize(
    ("queries", "k", "words"),
    [
        (np.zeros((1, 20), np.float32), 5, "was expected"),
        (np.zeros(21, np.float32), 5, "was expected"),
        (np.full((1, 21), np.nan, np.float32), 5, "not finite"),
        (np.zeros((1, 21), np.float32), 0, "at least 1"),
    ],
)
def test_queries_that_do_not_fit_are_refused(store, queries, k, words):
    with pytest.raises(InputError, match=words):
        NeighbourSearch(store).nearest(queries, k)


def test_a_query_without_direction_is_similar_to_nothing(store):
    searcher = NeighbourSearch(store)
    rows, similarity = searcher.nearest(searcher.normaliser.means[None], 5)
    np.testing.assert_array_equal(rows[0], np.arange(5))
    assert (similarity == 0).all()


def test_candidates_lose_none_of_the_best_however_wrong_rough_similarities_are():
    rng = np.random.default_rng(0)
    truth, groups = rng.normal(size=(3000, 6)), rng.integers(0, 200, 3000)
    errors = rng.uniform(0, 0.5, 3000).astype(np.float32)
    rough = (truth + rng.uniform(-1, 1, truth.shape) * 0.99 * errors[:, None]).astype(np.float32)
    for of_row in (None, groups):
        candidates = Candidates(6, 20, of_row)
        for start in range(0, 3000, 250):
            part = np.arange(start, start + 250)
            candidates.offer(np.arange(6), part, rough[part], errors[part])
        candidates.prune()
        queries, rows, _, _ = candidates.held()
        assert len(candidates) == len(rows) < 6 * 3000 / 2
        for query in range(6):
            ranked = np.argsort(-truth[:, query])
            if of_row is not None:
                ranked = ranked[np.sort(np.unique(of_row[ranked], return_index=True)[1])]
            assert set(ranked[:20]) <= set(rows[queries == query])


def test_more_neighbours_than_there_are_windows_are_all_of_them(store):
    searcher = NeighbourSearch(store)
    everything = searcher.search(asked(store), store.n_rows, one_per_recording=False)
    assert searcher.search(asked(store), 10**30, one_per_recording=False) == everything
    assert len(everything) == store.n_rows
