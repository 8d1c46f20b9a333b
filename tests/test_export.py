"""An exported file holds what the store holds, opens with its own tool, and is whole or absent."""

from __future__ import annotations

import csv
import json
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import FakeBackbone, fake_catalogue, fake_decode
from typer.testing import CliRunner

from cli.embed import app
from embeddings.errors import InputError, StoreError
from embeddings.export import export
from embeddings.extract import extract
from embeddings.recordings import with_recorder_notes
from embeddings.splits import Split
from embeddings.store import Store
from embeddings.windows import WindowPlan
from embeddings.writing import Sealing

NOTE = {"recorded_at": "2021-04-01T05:00:00+00:00", "recorder": "AudioMoth 1", "battery_v": 4.2}
SIDES = ("train", "valid", "both", "")


def make_store(folder, dtype="float16", n=12):
    backbones = [FakeBackbone("one", 4), FakeBackbone("two", 3, weights="b")]
    catalogue = fake_catalogue(folder / "audio", [f"{8 + i % 3} 0.{i:02d}" for i in range(1, n + 1)])
    catalogue = catalogue.with_splits({r.recording: SIDES[i % 4] for i, r in enumerate(catalogue)})
    catalogue = type(catalogue)(with_recorder_notes(catalogue.recordings, lambda path: NOTE))
    store = Store.create(
        folder / "store", backbones, WindowPlan(), dtype=dtype, split=Split("all", 0, "", {}), link=False
    )
    extract(catalogue, backbones, store, fake_decode, sealing=Sealing(after_s=0.0))
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("export"))


def vectors(store, block):
    return store.reader([block]).read(np.arange(store.n_rows)).astype(store.dtype)


def expected(store, name):
    return [getattr(store.catalogue.recordings[place], name) for place in store.place_of_row]


@pytest.mark.parametrize("batch_bytes", [64, 64 << 20])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_parquet_holds_rows_and_vectors_bit_for_bit(tmp_path, monkeypatch, dtype, batch_bytes):
    monkeypatch.setattr("embeddings.export._BATCH_BYTES", batch_bytes)
    store = make_store(tmp_path, dtype)
    summary = export(store, tmp_path / "s.parquet")
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.num_rows == summary.n_windows == store.n_rows
    for block in ("one", "two"):
        column = table[f"embedding_{block}"].combine_chunks()
        found = column.values.to_numpy().reshape(-1, column.type.list_size)
        np.testing.assert_array_equal(found, vectors(store, block), strict=True)
    for name in ("start_s", "end_s", "rms_dbfs", "silent", "repeated", "partial"):
        np.testing.assert_array_equal(table[name].to_numpy(), getattr(store.rows, name), strict=True)
    for name in ("recording", "filename", "primary_label", "split", "recorder", "battery_v", "latitude"):
        assert table[name].to_pylist() == expected(store, name)
    assert table["path"].to_pylist() == [str(path) for path in expected(store, "path")]
    n_groups = pq.ParquetFile(tmp_path / "s.parquet").num_row_groups
    assert n_groups == (-(-store.n_rows // (64 // 28)) if batch_bytes == 64 else 1)


def test_parquet_carries_the_stores_description_and_every_distinct_provenance(store, tmp_path):
    export(store, tmp_path / "s.parquet", blocks=["two"])
    schema = pq.read_schema(tmp_path / "s.parquet")
    assert [name for name in schema.names if name.startswith("embedding")] == ["embedding_two"]
    record = json.loads(schema.metadata[b"cisticola"])
    assert record["store"]["fingerprints"] == {"two": store.blocks["two"].fingerprint.digest}
    assert record["store"]["windows"] == store.plan.to_json()
    assert len(store.shards) > 1
    assert {p["block"] for p in record["provenance"] if "block" in p} == {"two"}
    assert len({json.dumps(p, sort_keys=True) for p in record["provenance"]}) == len(record["provenance"])


def test_npz_opens_without_pickle_and_holds_the_same(store, tmp_path, monkeypatch):
    monkeypatch.setattr("embeddings.export._BATCH_BYTES", 1000)
    export(store, tmp_path / "s.npz")
    export(store, tmp_path / "again.npz")
    assert (tmp_path / "s.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        for block in ("one", "two"):
            np.testing.assert_array_equal(arrays[f"embedding_{block}"], vectors(store, block), strict=True)
        assert {len(arrays[name]) for name in arrays if name not in ("store", "provenance")} == {store.n_rows}
        assert arrays["primary_label"].tolist() == expected(store, "primary_label")
        assert arrays["battery_v"][0] == 4.2
        assert np.isnan(arrays["latitude"]).all()
        assert json.loads(str(arrays["store"]))["dtype"] == "float16"
        assert all("versions" in json.loads(text) for text in arrays["provenance"])


def test_csv_has_the_rows_only(store, tmp_path):
    summary = export(store, tmp_path / "s.csv")
    assert (summary.blocks, summary.dtype) == ((), "")
    with open(tmp_path / "s.csv", newline="", encoding="utf-8") as source:
        rows = list(csv.DictReader(source))
    assert [r["filename"] for r in rows] == expected(store, "filename")
    assert [float(r["start_s"]) for r in rows] == store.rows.start_s.tolist()
    assert {r["latitude"] for r in rows} == {""}
    assert {r["recorder"] for r in rows} == {"AudioMoth 1"}
    assert not [name for name in rows[0] if name.startswith("embedding")]


@pytest.mark.parametrize(
    ("split", "sides"), [("train", {"train", "both"}), ("valid", {"valid", "both"}), ("none", {""})]
)
@pytest.mark.parametrize("suffix", ["parquet", "npz", "csv"])
def test_a_split_is_exported_with_the_vectors_of_its_rows(store, tmp_path, split, sides, suffix):
    out = tmp_path / f"s.{suffix}"
    keep = [i for i, side in enumerate(expected(store, "split")) if side in sides]
    assert export(store, out, split=split).n_windows == len(keep)
    if suffix == "npz":
        np.testing.assert_array_equal(np.load(out)["embedding_one"], vectors(store, "one")[keep])
    if suffix == "parquet":
        assert set(pq.read_table(out)["split"].to_pylist()) == sides


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_vectors_can_be_left_out(store, tmp_path, suffix):
    out = tmp_path / f"s.{suffix}"
    assert export(store, out, vectors=False).blocks == ()
    names = pq.read_schema(out).names if suffix == "parquet" else list(np.load(out))
    assert "start_s" in names
    assert not [name for name in names if name.startswith("embedding")]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("s.xlsx", {}, "names the format"),
        ("s", {}, "names the format"),
        ("s.npz", {"blocks": ["three"]}, "no block three"),
        ("s.npz", {"split": "test"}, "--split test is not one of"),
        ("s.csv", {"blocks": ["one"]}, "no vectors"),
    ],
)
def test_wrong_wishes_are_refused_and_write_nothing(store, tmp_path, name, options, words):
    with pytest.raises(InputError, match=words):
        export(store, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_a_failure_on_the_way_leaves_the_older_file_and_nothing_else(tmp_path, suffix):
    store = make_store(tmp_path)
    out = tmp_path / "out" / f"s.{suffix}"
    export(store, out)
    before = out.read_bytes()
    torn = store.vector_path("two", store.shards[-1])
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(StoreError, match="torn"):
        export(Store(store.path), out)
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_memory_does_not_grow_with_the_vectors(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("embeddings.export._BATCH_BYTES", 1 << 20)
    backbone = FakeBackbone("wide", 20_000)
    catalogue = fake_catalogue(tmp_path / "audio", ["100 0.1"] * 40)
    store = Store.create(
        tmp_path / "s", [backbone], WindowPlan(), dtype="float32", split=Split("all", 0, "", {}), link=False
    )
    extract(catalogue, [backbone], store, fake_decode)
    tracemalloc.start()
    summary = export(store, tmp_path / f"s.{suffix}", vectors=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert store.n_rows * 80_000 > 60 << 20
    assert summary.n_windows == store.n_rows
    assert peak < 16 << 20


def test_the_command_exports_and_names_torn_shards(tmp_path):
    store = make_store(tmp_path)
    done = CliRunner().invoke(
        app,
        ["export", str(store.path), "--out", f"{tmp_path}/a/s.npz", "--blocks", "one", "--json", f"{tmp_path}/j.json"],
    )
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "j.json").read_text())
    assert summary["blocks"] == ["one"]
    assert summary["n_windows"] == store.n_rows

    store.row_path(store.shards[0]).write_bytes(b"torn")
    done = CliRunner().invoke(app, ["export", str(store.path), "--out", str(tmp_path / "s.csv"), "--no-vectors"])
    assert done.exit_code == 1
    assert "Torn shards" in done.output


@pytest.mark.parametrize("name", ["notes.csv", "recording.npz", "table.parquet"])
def test_the_command_writes_over_no_file_of_another_kind(store, tmp_path, name):
    (tmp_path / name).write_text("filename,label\nmine,1\n")
    with pytest.raises(InputError, match="left as it is"):
        CliRunner().invoke(app, ["export", str(store.path), "--out", str(tmp_path / name)], catch_exceptions=False)
    assert (tmp_path / name).read_text() == "filename,label\nmine,1\n"
    (tmp_path / name).unlink()
    for _ in range(2):
        done = CliRunner().invoke(app, ["export", str(store.path), "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
