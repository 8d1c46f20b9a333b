"""Stores merged, compacted, relabelled, repaired, recordings dropped: nothing embedded, nothing lost."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeBackbone, fake_catalogue, fake_decode

from embeddings import merge as merge_module
from embeddings import shards as shards_module
from embeddings.catalogue_sources import united
from embeddings.drop import drop, matching
from embeddings.errors import ContractError, InputError, StoreError
from embeddings.extract import extract
from embeddings.merge import compact, merge
from embeddings.neighbours import NeighbourSearch
from embeddings.recordings import Catalogue
from embeddings.relabel import relabelled, store_catalogue
from embeddings.repair import take_out_catalogue, take_out_damage
from embeddings.shards import shard_metadata
from embeddings.splits import Split
from embeddings.store import Store
from embeddings.verify import verify_store
from embeddings.windows import WindowPlan
from embeddings.writing import Sealing

CONTENTS = [f"{8 + 7 * (i % 4)} 0.{i:03d}" for i in range(1, 25)]
SMALL = Sealing(n_bytes=60)


def make_store(path: Path, catalogue: Catalogue, names: tuple[str, ...] = ("fake",), **plan: Any) -> Store:
    backbones = [FakeBackbone(name, weights=name) for name in names]
    store = Store.create(
        path, backbones, WindowPlan(**plan), dtype="float16", split=Split("all", 0, "", {}), link=False
    )
    extract(catalogue, backbones, store, fake_decode, sealing=SMALL)
    return Store(path)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return fake_catalogue(tmp_path / "audio", CONTENTS)


@pytest.fixture
def store(tmp_path: Path, catalogue: Catalogue) -> Store:
    return make_store(tmp_path / "store", catalogue)


def contents(store: Store) -> dict[tuple[str, float], Any]:
    vectors = store.reader().read(np.arange(store.n_rows)).tolist()
    rows = zip(store.rows.recording, store.rows.start_s.tolist(), vectors, strict=True)
    found = {(recording, start_s): vector for recording, start_s, vector in rows}
    assert len(found) == store.n_rows, "a row is there twice"
    return found


class Killed(BaseException):
    pass


def killed_at_every_step(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], check: Callable[[], None], ending: Any = Killed
) -> int:
    """Run `act`, killed before its 1st, 2nd, ... change of the disk, checking each time, until it comes through."""
    real = {"write": shards_module.write_atomically, "unlink": Path.unlink, "rename": Path.rename}
    for allowed in itertools.count():
        left = [allowed]

        def counted(name: str, left: list[int] = left) -> Callable[..., Any]:
            def change(*arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise ending
                return real[name](*arguments, **options)

            return change

        with monkeypatch.context() as patch:
            patch.setattr(shards_module, "write_atomically", counted("write"))
            patch.setattr(Path, "unlink", counted("unlink"))
            patch.setattr(Path, "rename", counted("rename"))
            try:
                act()
                return allowed
            except (Killed, OSError):
                pass
        check()
    raise AssertionError


def test_compacting_makes_one_shard_of_many_with_the_same_bits(store: Store) -> None:
    before, n_shards = contents(store), len(store.shards)
    assert n_shards > 5
    report = compact(store)
    assert (report.n_shards_before, report.n_shards, report.n_rows_removed) == (n_shards, 1, 0)
    again = Store(store.path)
    assert contents(again) == before
    assert verify_store(again).ok
    assert verify_store(again).notes == []
    provenance = shard_metadata(again.row_path(again.shards[0]))
    assert provenance["versions"]
    assert provenance["merged"]
    shards = again.shards
    compact(again)
    assert Store(store.path).shards == shards  # nothing is left to do


def test_a_compaction_killed_at_any_step_leaves_every_row_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(store)

    def check() -> None:
        now = Store(store.path)
        assert contents(now) == before
        assert [p for p in verify_store(now).problems if "missing" not in p] == []

    steps = killed_at_every_step(monkeypatch, lambda: compact(Store(store.path)), check)
    assert steps > 10
    check()
    assert len(Store(store.path).shards) == 1


@pytest.mark.parametrize("ending", [Killed, OSError(28, "No space left on device")])
def test_an_extraction_ended_at_any_step_goes_on_to_the_same_store(
    ending: Any, store: Store, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = Catalogue(catalogue.recordings[:8])
    hashes = {r.recording for r in some}
    whole = {key: vector for key, vector in contents(store).items() if key[0] in hashes}
    path = tmp_path / "other"
    backbone = FakeBackbone(weights="fake")
    Store.create(path, [backbone], WindowPlan(), dtype="float16", split=Split("all", 0, "", {}), link=False)

    def check() -> None:
        now = Store(path)
        assert contents(now).items() <= whole.items()
        assert verify_store(now).problems == []

    steps = killed_at_every_step(
        monkeypatch, lambda: extract(some, [backbone], Store(path), fake_decode, sealing=SMALL), check, ending
    )
    assert steps > 2
    assert contents(Store(path)) == whole


def test_compaction_refuses_to_copy_damage_and_names_the_remedy(store: Store) -> None:
    path = store.vector_path("fake", store.shards[2])
    content = bytearray(path.read_bytes())
    content[content.rfind(b"\x2e") if b"\x2e" in content else 700] ^= 1
    middle = len(content) // 2
    content[middle] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match="embed repair"):
        compact(store)


def test_compaction_leaves_a_block_that_is_not_complete_for_the_extraction_that_adds_it(
    store: Store, catalogue: Catalogue
) -> None:
    second = FakeBackbone("second", weights="second")
    store.add_block(second, link=False)
    compact(Store(store.path))
    now = Store(store.path)
    assert len(now.shards) == 1
    extract(catalogue, [FakeBackbone(weights="fake"), second], now, fake_decode)
    assert Store(store.path).missing_shards("second") == []


def test_dropped_recordings_are_gone_at_once_and_for_good_after_compaction(store: Store, catalogue: Catalogue) -> None:
    backbone = FakeBackbone(weights="fake")
    before = contents(store)
    gone = matching(store, ["r00[0-3].wav", catalogue.recordings[9].recording])
    assert len(gone) == 5
    drop(store, gone)
    hashes = {r.recording for r in gone}
    kept = {key: vector for key, vector in before.items() if key[0] not in hashes}
    assert contents(Store(store.path)) == kept
    n_rows = Store(store.path).n_sealed_rows
    extract(catalogue, [backbone], Store(store.path), fake_decode)
    assert backbone.n_embedded == 0  # named again before a compaction, they come back as they were
    assert contents(Store(store.path)) == before
    drop(Store(store.path), gone)
    report = compact(Store(store.path))
    assert report.n_rows_removed == n_rows - len(kept)
    assert contents(Store(store.path)) == kept
    extract(catalogue, [backbone], Store(store.path), fake_decode)
    assert backbone.n_embedded == len(before) - len(kept)
    assert contents(Store(store.path)) == before
    with pytest.raises(InputError, match="fits 'nobody"):
        matching(store, ["nobody*.wav"])


def test_a_block_is_not_added_over_dropped_rows_and_the_error_says_what_to_do(
    store: Store, catalogue: Catalogue
) -> None:
    drop(store, matching(store, ["r005.wav"]))
    kept = Catalogue(tuple(r for r in catalogue if r.filename != "r005.wav"))
    both = [FakeBackbone(weights="fake"), FakeBackbone("second", weights="second")]
    with pytest.raises(StoreError, match="embed compact"):
        extract(kept, both, Store(store.path), fake_decode)
    compact(Store(store.path))
    extract(kept, both, Store(store.path), fake_decode)
    assert Store(store.path).reader().dim == 8


def test_search_does_not_use_the_means_of_other_rows(store: Store, catalogue: Catalogue) -> None:
    first = NeighbourSearch(store).normaliser.to_json()
    drop(store, matching(store, ["r000.wav"]))
    assert NeighbourSearch(Store(store.path)).normaliser.to_json() != first


def test_stores_are_merged_whole_each_recording_once(tmp_path: Path, catalogue: Catalogue) -> None:
    left = make_store(tmp_path / "left", Catalogue(catalogue.recordings[:15]), ("one", "two"))
    right = make_store(tmp_path / "right", Catalogue(catalogue.recordings[10:]), ("two", "one"))
    whole = make_store(tmp_path / "whole", catalogue, ("one", "two"))
    right.quarantine.add(tmp_path / "bad.wav", "it is noise")
    report = merge([left.path, right.path], tmp_path / "merged")
    merged = Store(tmp_path / "merged")
    assert contents(merged) == contents(whole)
    assert (report.n_recordings, len(report.twice)) == (len(CONTENTS), 5)
    assert [entry.reason for entry in merged.quarantine.files()] == ["it is noise"]
    assert verify_store(merged).ok
    with pytest.raises(InputError, match="exists"):
        merge([left.path, right.path], tmp_path / "merged")


def test_a_merge_killed_at_any_step_leaves_no_half_store_and_goes_through_the_next_time(
    tmp_path: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = make_store(tmp_path / "left", Catalogue(catalogue.recordings[:4]))
    right = make_store(tmp_path / "right", Catalogue(catalogue.recordings[4:8]))
    out = tmp_path / "merged"
    killed_at_every_step(
        monkeypatch, lambda: merge([left.path, right.path], out, sealing=SMALL), lambda: _assert(not out.exists())
    )
    assert contents(Store(out)) == {**contents(left), **contents(right)}
    assert not list(tmp_path.glob(".merged.merging.*"))


def _assert(condition: bool) -> None:
    assert condition


def test_stores_that_do_not_fit_together_are_refused_by_field(tmp_path: Path, catalogue: Catalogue) -> None:
    some = Catalogue(catalogue.recordings[:3])
    first = make_store(tmp_path / "first", some)
    others = {
        "hop_s": make_store(tmp_path / "hop", some, hop_s=2.5),
        "weights": make_store(tmp_path / "weights", some, ("other",)),
        "which .* lacks": make_store(tmp_path / "more", some, ("fake", "other")),
    }
    for field, other in others.items():
        with pytest.raises(ContractError, match=field):
            merge([first.path, other.path], tmp_path / "merged")
    sides = make_store(tmp_path / "sides", some.with_splits({r.recording: "train" for r in some}))
    valid = make_store(tmp_path / "valid", some.with_splits({r.recording: "valid" for r in some}))
    with pytest.raises(ContractError, match="--mix-splits"):
        merge([sides.path, valid.path], tmp_path / "merged")
    merge([sides.path, valid.path], tmp_path / "merged", mix_splits=True)
    assert {r.split for r in Store(tmp_path / "merged").catalogue} == {"train"}


def test_labels_are_replaced_by_file_name_and_vectors_stay(store: Store, tmp_path: Path) -> None:
    before = contents(store)
    table = tmp_path / "labels.csv"
    with open(table, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["filename", "primary_label", "secondary_labels", "common_name"])
        writer.writerow(["r000.wav", "robin", "['wren']", "Robin"])
        writer.writerow(["r001.wav", "b", "[]", ""])
        writer.writerow(["r002.wav", "robin", "[wren", ""])
        writer.writerow(["elsewhere.wav", "robin", "[]", ""])
    found = relabelled(store.catalogue, table)
    assert (found.changed, found.n_same, found.unmatched) == (["r000.wav"], 1, ["elsewhere.wav"])
    assert len(found.unnamed) == len(CONTENTS) - 3
    assert "line 4" in found.problems[0]
    store_catalogue(store, found.recordings)
    now = Store(store.path)
    assert now.catalogue.recordings[0].labels == ("robin", "wren")
    assert contents(now) == before
    found = relabelled(now.catalogue, table, resplit=True, split_settings=now.split_settings)
    assert {r.split for r in found.recordings} == {"train", "valid", "both"}
    table.write_text("filename,primary_label\nx.wav,robin\n")
    with pytest.raises(InputError, match="names none"):
        relabelled(now.catalogue, table)


def test_damage_is_taken_out_and_exactly_that_is_computed_again(store: Store, catalogue: Catalogue) -> None:
    before = contents(store)
    n_shards = len(store.shards)
    torn, flipped = store.row_path(store.shards[0]), store.vector_path("fake", store.shards[1])
    n_torn = store.n_rows_of(store.shards[0])
    n_flipped = store.n_rows_of(store.shards[1])
    torn.write_bytes(torn.read_bytes()[:-30])
    flipped.write_bytes(flipped.read_bytes()[:-30])
    (store.path / "rows/.x.arrow.1.tmp").write_text("half")
    report = take_out_damage(Store(store.path))
    assert (len(report.shards), len(report.blocks), report.leftovers) == (1, 1, 1)
    assert len(list(Path(report.kept_in).rglob("*.*"))) == 4
    backbone = FakeBackbone(weights="fake")
    extract(catalogue, [backbone], Store(store.path), fake_decode, sealing=SMALL)
    now = Store(store.path)
    assert contents(now) == before
    assert backbone.n_embedded == n_torn + n_flipped
    assert len(now.shards) >= n_shards
    Path(report.kept_in).rename(Path(report.kept_in).with_name("19990101T000000"))  # as if it had been long ago
    assert not take_out_damage(now).kept_in


def test_a_damaged_catalogue_costs_no_row(store: Store, catalogue: Catalogue) -> None:
    before = contents(store)
    path = store.path / "catalogue.arrow"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(StoreError, match="embed repair"):
        Store(store.path)
    assert take_out_catalogue(store.path)
    backbone = FakeBackbone(weights="fake")
    extract(catalogue, [backbone], Store(store.path), fake_decode)
    assert (contents(Store(store.path)), backbone.n_embedded) == (before, 0)
    assert not take_out_catalogue(store.path)


def test_a_long_recording_is_copied_in_pieces(
    tmp_path: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_module, "_COPIED_ROWS", 2)
    store = make_store(tmp_path / "store", Catalogue(catalogue.recordings[:6]), hop_s=1.0)
    before = contents(store)
    compact(store)
    assert contents(Store(store.path)) == before


def test_what_two_entries_know_of_one_recording_is_united(catalogue: Catalogue) -> None:
    from dataclasses import replace

    first = replace(catalogue.recordings[0], primary_label="a", secondary_labels=("b",))
    second = replace(first, primary_label="c", secondary_labels=(), path=Path("elsewhere.wav"))
    both = united(first, second)
    assert (both.primary_label, both.secondary_labels) == ("a", ("b", "c"))
    assert both.other_paths == (Path("elsewhere.wav"),)
