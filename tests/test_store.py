"""The store: whole or absent, resumable, checked, and read out of core."""

from __future__ import annotations

import os

import numpy as np
import pytest
from fakes import FakeBackbone, fake_catalogue, fake_decode

from embeddings.catalogue_sources import read_catalogue
from embeddings.contract import Fingerprint, require_same_blocks
from embeddings.errors import ContractError, InputError, StoreError
from embeddings.extract import extract
from embeddings.neighbours import NeighbourSearch
from embeddings.shards import RowTable
from embeddings.splits import Split
from embeddings.store import Store
from embeddings.verify import verify_store
from embeddings.windows import WindowPlan
from embeddings.writing import Sealing

CONTENTS = [f"{8 + i % 3} 0.{i:02d}" for i in range(1, 30)]


def make_store(path, backbones, **plan):
    return Store.create(
        path, backbones, WindowPlan(**plan), dtype="float16", split=Split("stratified", 0, "", {}), link=False
    )


@pytest.fixture
def filled(tmp_path):
    backbone = FakeBackbone()
    catalogue = fake_catalogue(tmp_path / "audio", CONTENTS)
    store = make_store(tmp_path / "store", [backbone])
    summary = extract(catalogue, [backbone], store, fake_decode)
    assert summary.n_embedded == len(CONTENTS)
    return store, catalogue, backbone


def contents(store):
    reader = store.reader()
    return [
        (r, s, tuple(v))
        for r, s, v in zip(
            store.rows.recording, store.rows.start_s, reader.read(np.arange(store.n_rows)).tolist(), strict=True
        )
    ]


def test_every_window_comes_out_once_in_the_catalogues_order(filled):
    store, catalogue, _ = filled
    expected = [
        (r.recording, span.start_s)
        for r in catalogue
        for span in store.plan.spans(float(r.path.read_text().split()[0]))
    ]
    assert list(zip(store.rows.recording, store.rows.start_s, strict=True)) == expected
    levels = [float(catalogue.get(r).path.read_text().split()[1]) + s for r, s in expected]
    vectors = store.reader().read(np.arange(store.n_rows))
    np.testing.assert_allclose(vectors, np.outer(levels, [1, 2, 3, 4]), rtol=2e-3)


def test_a_second_run_embeds_nothing(filled):
    store, catalogue, backbone = filled
    before, n = contents(store), backbone.n_embedded
    summary = extract(catalogue, [backbone], Store(store.path), fake_decode)
    assert (summary.n_embedded, summary.n_already, backbone.n_embedded) == (0, len(CONTENTS), n)
    assert contents(Store(store.path)) == before


def test_an_interrupted_run_goes_on_and_equals_an_uninterrupted_one(tmp_path, filled, monkeypatch):
    whole, catalogue, backbone = filled
    sealing = Sealing(n_bytes=60)  # a shard every few recordings
    store = make_store(tmp_path / "torn", [backbone])

    class Dying(FakeBackbone):
        def embed(self, waveforms):
            if self.n_embedded:
                raise MemoryError("the process is gone")
            return super().embed(waveforms)

    monkeypatch.setattr("embeddings.pipeline.BATCH_WINDOWS", 16)
    with pytest.raises(MemoryError):
        extract(catalogue, [Dying()], store, fake_decode, sealing=sealing)
    (store.path / "blocks/fake/.half.arrow.1.tmp").parent.mkdir(parents=True, exist_ok=True)
    (store.path / "blocks/fake/unsealed-00001.arrow").write_bytes(b"written before a kill")
    resumed = Store(store.path)
    n_before = len(resumed.embedded)
    assert 0 < n_before < len(CONTENTS)
    summary = extract(catalogue, [backbone], resumed, fake_decode)
    assert summary.n_embedded == len(CONTENTS) - n_before
    assert contents(Store(store.path)) == contents(whole)


def test_readers_take_rows_in_any_order_across_shards_and_blocks(tmp_path):
    backbones = [FakeBackbone("one", 3), FakeBackbone("two", 5, sample_rate_hz=50, weights="b")]
    catalogue = fake_catalogue(tmp_path / "audio", CONTENTS)
    store = make_store(tmp_path / "store", backbones)
    extract(catalogue, backbones, store, fake_decode, sealing=Sealing(n_bytes=200))
    assert len(store.shards) > 3
    everything = store.reader().read(np.arange(store.n_rows))
    assert everything.shape == (store.n_rows, 8)
    rows = np.random.default_rng(0).integers(0, store.n_rows, 100)
    out = np.empty((120, 8), np.float32)
    got = store.reader().read(rows, out)
    assert np.shares_memory(got, out)
    np.testing.assert_array_equal(got, everything[rows])
    np.testing.assert_array_equal(
        store.reader(["two", "one"]).read(rows), everything[rows][:, [3, 4, 5, 6, 7, 0, 1, 2]]
    )


def test_adding_a_block_computes_only_that_block(filled):
    store, catalogue, backbone = filled
    before, n = contents(store), backbone.n_embedded
    second = FakeBackbone("second", 2, weights="b")
    extract(catalogue, [backbone, second], store, fake_decode)
    assert (backbone.n_embedded, second.n_embedded) == (n, store.n_rows)
    store = Store(store.path)
    assert list(store.blocks) == ["fake", "second"]
    np.testing.assert_array_equal(store.reader(["fake"]).read(np.arange(store.n_rows)), [v for _, _, v in before])


def test_a_block_that_is_not_complete_is_refused_with_the_remedy(filled):
    store, _, _ = filled
    store.add_block(FakeBackbone("second", 2, weights="b"), link=False)
    with pytest.raises(StoreError, match="not complete"):
        Store(store.path).reader()
    assert Store(store.path).reader(["fake"]).dim == 4


def test_other_weights_under_the_same_name_are_refused_and_the_field_named(filled):
    store, catalogue, _ = filled
    with pytest.raises(ContractError, match="weights: 'a' != 'z'"):
        extract(catalogue, [FakeBackbone(weights="z")], store, fake_decode)
    with pytest.raises(ContractError, match="missing: fake"):
        extract(catalogue, [FakeBackbone("new")], store, fake_decode)


def test_bad_files_are_quarantined_and_partial_ones_keep_their_windows(tmp_path):
    catalogue = fake_catalogue(tmp_path / "audio", ["10 0.5", "nonsense", "12 0.25 bad", "3 0.1", "10 0"])
    backbone = FakeBackbone()
    store = make_store(tmp_path / "store", [backbone])
    summary = extract(catalogue, [backbone], store, fake_decode)
    assert list(summary.quarantined) == ["r001.wav"]
    assert "not audio" in summary.quarantined["r001.wav"]
    assert summary.flagged == {"r002.wav": ["partial"], "r003.wav": ["repeated"], "r004.wav": ["silent"]}
    again = extract(catalogue, [backbone], Store(store.path), fake_decode)
    assert list(again.quarantined) == ["r001.wav"]
    (tmp_path / "audio/r001.wav").write_text("6 0.5")
    mended = extract(catalogue, [backbone], Store(store.path), fake_decode)
    assert (mended.n_embedded, mended.quarantined) == (1, {})


def test_a_decoder_that_breaks_in_an_unforeseen_way_costs_one_file_only(tmp_path):
    def fragile(path, plan, rates):
        if path.name == "r001.wav":
            raise RuntimeError("surprise")
        return fake_decode(path, plan, rates)

    catalogue = fake_catalogue(tmp_path / "audio", ["10 0.5", "10 0.6", "10 0.7"])
    backbone = FakeBackbone()
    summary = extract(catalogue, [backbone], make_store(tmp_path / "store", [backbone]), fragile)
    assert summary.n_embedded == 2
    assert "surprise" in summary.quarantined["r001.wav"]


def test_values_that_float16_cannot_hold_are_refused_not_stored_as_infinity(tmp_path):
    catalogue = fake_catalogue(tmp_path / "audio", ["10 0.5", "10 60000"])
    backbone = FakeBackbone()
    store = make_store(tmp_path / "store", [backbone])
    summary = extract(catalogue, [backbone], store, fake_decode)
    assert "--dtype float32" in summary.quarantined["r001.wav"]
    assert np.isfinite(store.reader().read(np.arange(store.n_rows))).all()


def test_verify_finds_a_flipped_bit_a_cut_file_and_a_missing_one(filled):
    store, _, _ = filled
    assert verify_store(store).ok
    vectors = store.vector_path("fake", store.shards[0])
    sound = vectors.read_bytes()
    middle = sound.find(store.reader().read(np.array([0])).astype(np.float16).tobytes())
    flipped = bytearray(sound)
    flipped[middle] ^= 1
    vectors.write_bytes(bytes(flipped))
    assert "checksum" in verify_store(Store(store.path)).problems[0]
    vectors.write_bytes(sound[: len(sound) // 2])
    assert "torn" in verify_store(Store(store.path)).problems[0]
    vectors.unlink()
    assert "missing" in verify_store(Store(store.path)).problems[0]


def test_recordings_of_a_torn_row_shard_are_embedded_again(filled):
    store, catalogue, backbone = filled
    before = contents(store)
    rows = store.row_path(store.shards[0])
    rows.write_bytes(rows.read_bytes()[:-40])
    torn = Store(store.path)
    assert torn.n_rows == 0
    assert not verify_store(torn).ok
    extract(catalogue, [backbone], torn, fake_decode)
    assert contents(Store(store.path)) == before


def test_a_folder_that_is_not_a_store_is_neither_opened_nor_overwritten(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a store"):
        Store(tmp_path)
    with pytest.raises(InputError, match="exists and is not a store"):
        make_store(tmp_path, [FakeBackbone()])


def test_a_store_whose_creation_was_interrupted_is_created_by_the_next_run(tmp_path):
    class Incomplete(FakeBackbone):
        def save(self, folder):
            raise InputError("the weights are missing")

    with pytest.raises(InputError, match="weights are missing"):
        make_store(tmp_path / "s", [FakeBackbone("one"), Incomplete("two")])
    assert make_store(tmp_path / "s", [FakeBackbone("one"), FakeBackbone("two")]).n_rows == 0


@pytest.mark.parametrize("blocks", [["one"], ["one", "two"]])
def test_neighbours_equal_numpy_brute_force(tmp_path, monkeypatch, blocks):
    monkeypatch.setattr("embeddings.search_index._PIECE_ROWS", 7)
    monkeypatch.setattr("embeddings.index_scan._FIRST_ROWS", 5)
    backbones = [RandomBackbone("one", 6), RandomBackbone("two", 3)]
    catalogue = fake_catalogue(tmp_path / "audio", CONTENTS)
    store = make_store(tmp_path / "store", backbones, hop_s=1.0)
    extract(catalogue, backbones, store, fake_decode)
    searcher = NeighbourSearch(store, blocks)
    vectors = store.reader(blocks).read(np.arange(store.n_rows)).astype(np.float64)
    queries = np.random.default_rng(1).normal(size=(3, vectors.shape[1])).astype(np.float32)

    def normalised(x):
        parts, start = [], 0
        for dim in searcher.reader.dims:
            block = x[:, start : start + dim] - vectors[:, start : start + dim].mean(axis=0)
            parts.append(block / np.linalg.norm(block, axis=1, keepdims=True))
            start += dim
        return np.concatenate(parts, axis=1) / np.sqrt(len(parts))

    similarity = normalised(queries.astype(np.float64)) @ normalised(vectors).T
    own = store.catalogue.recordings[0].recording
    allowed = store.rows.recording != own
    best = np.argsort(-np.where(allowed, similarity.max(axis=0), -9))[:10]
    found = searcher.search(queries, 10, exclude=[own], one_per_recording=False)
    assert [n.row for n in found] == best.tolist()
    np.testing.assert_allclose([n.similarity for n in found], similarity.max(axis=0)[best], atol=1e-5)
    spread = searcher.search(queries, 10)
    assert len({store.place_of_row[n.row] for n in spread}) == 10


class RandomBackbone(FakeBackbone):
    """A random vector for each level, the same every time."""

    def embed(self, waveforms):
        seeds = np.abs(waveforms[:, 0] * 1e4).astype(int)
        return np.stack([np.random.default_rng([s, self.dim]).normal(size=self.dim) for s in seeds]).astype(np.float32)


@pytest.mark.parametrize(
    ("last", "duration_s", "starts"),
    [
        ("shift", 12.0, [0, 5, 7]),
        ("pad", 12.0, [0, 5, 10]),
        ("drop", 12.0, [0, 5]),
        ("shift", 10.0, [0, 5]),
        ("pad", 10.0, [0, 5]),
        ("shift", 0.2, [0]),
        ("drop", 0.2, [0]),
        ("shift", 0.0, []),
    ],
)
def test_windows_follow_the_last_window_policy(last, duration_s, starts):
    spans = WindowPlan(last=last).spans(duration_s)
    assert [s.start_s for s in spans] == starts
    assert all(s.end_s <= duration_s for s in spans)
    assert all(s.repeated == (duration_s < 5) for s in spans)


def test_a_row_table_without_rows_has_every_column():
    assert len(RowTable.concatenated([])) == 0


def test_blocks_are_matched_by_name_first_and_each_once():
    one, other = Fingerprint({"weights": "1"}), Fingerprint({"weights": "2"})

    def found(expected, available):
        return require_same_blocks(expected.items(), available, who="head", where="store")

    assert found({"a": one, "b": one}, {"b": one, "a": one}) == ["a", "b"]
    assert found({"a": one, "b": one}, {"x": one, "a": one}) == ["a", "x"]
    assert found({"x": one, "a": one}, {"a": one, "b": one}) == ["b", "a"]
    assert found({"a": one, "b": other}, {"a": other, "b": one}) == ["b", "a"]
    with pytest.raises(ContractError, match="weights: '1' != '2'"):
        found({"a": one}, {"a": other})


def decode_while(path_name, change):
    """A decoder during which `change(path)` happens to one file, after its first window was read."""

    def decode(path, plan, rates):
        for i, window in enumerate(fake_decode(path, plan, rates)):
            if i == 0 and path.name == path_name:
                change(path)
            yield window

    return decode


def hashed_catalogue(folder, contents):
    fake_catalogue(folder, contents)
    return read_catalogue(folder, label_folders=False)


@pytest.mark.parametrize(
    "change", [lambda path: path.write_text("15 0.25"), lambda path: path.unlink()], ids=["other sound", "gone"]
)
def test_a_recording_that_changes_while_it_is_read_leaves_no_row_and_is_embedded_by_the_next_run(tmp_path, change):
    audio = tmp_path / "audio"
    catalogue = hashed_catalogue(audio, ["10 0.5", "15 0.75", "10 0.125"])
    backbone = FakeBackbone()
    store = make_store(tmp_path / "store", [backbone])
    summary = extract(catalogue, [backbone], store, decode_while("r001.wav", change))
    assert "changed while it was read; run the same command again" in summary.quarantined["r001.wav"]
    assert (summary.n_embedded, store.embedded) == (2, {r.recording for r in catalogue if r.filename != "r001.wav"})
    (audio / "r001.wav").write_text("15 0.25")
    catalogue = read_catalogue(audio)
    again = extract(catalogue, [backbone], Store(store.path), fake_decode)
    assert (again.n_embedded, again.quarantined) == (1, {})
    assert Store(store.path).quarantine.files() == []
    assert {r.recording for r in Store(store.path).catalogue} == {r.recording for r in catalogue}
    whole = make_store(tmp_path / "whole", [backbone])
    extract(catalogue, [backbone], whole, fake_decode)
    assert sorted(contents(Store(store.path))) == sorted(contents(whole))


def test_a_recording_that_is_only_touched_while_it_is_read_is_kept(tmp_path):
    catalogue = hashed_catalogue(tmp_path / "audio", ["10 0.5", "15 0.75"])
    backbone = FakeBackbone()
    store = make_store(tmp_path / "store", [backbone])
    summary = extract(catalogue, [backbone], store, decode_while("r001.wav", lambda path: os.utime(path, (1, 1))))
    assert (summary.n_embedded, summary.quarantined) == (2, {})


def test_a_new_block_is_not_made_of_another_sound_that_lies_where_the_recording_lay(tmp_path):
    catalogue = hashed_catalogue(tmp_path / "audio", ["10 0.5", "15 0.75"])
    first, second = FakeBackbone(), FakeBackbone("second", weights="b")
    store = make_store(tmp_path / "store", [first])
    extract(catalogue, [first], store, fake_decode)
    (tmp_path / "audio/r001.wav").write_text("15 0.25")
    summary = extract(catalogue, [first, second], Store(store.path), fake_decode)
    (why,) = summary.incomplete.values()
    assert "r001.wav is not the recording that was stored" in why
    assert Store(store.path).missing_shards("second")
