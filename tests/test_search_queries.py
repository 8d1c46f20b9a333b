"""`embed search`: examples, parts, stored windows and several stores beside numpy; clips and the page; bad input."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from cli.embed import app
from embeddings.catalogue_sources import read_catalogue
from embeddings.contract import Fingerprint
from embeddings.errors import AudioError, CisticolaError, ContractError, InputError, StoreError
from embeddings.extract import embed_file, extract
from embeddings.files import content_hash, read_json, write_json
from embeddings.joined import JoinedStores
from embeddings.merge import merge
from embeddings.moved import AudioFinder
from embeddings.neighbours import NeighbourSearch
from embeddings.recordings import Catalogue, save_catalogue
from embeddings.splits import Split
from embeddings.store import Store
from embeddings.windows import WindowPlan
from stage1_backbones.audio import read_audio, stream_windows
from stage1_backbones.registry import load_backbone

PLAN = WindowPlan(hop_s=1.0)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("logmel_stats", device="cpu")


@pytest.fixture(scope="module")
def made(synthetic_set, backbone, tmp_path_factory):
    """Two stores of twelve recordings each, and their merge."""
    folder = tmp_path_factory.mktemp("stores")
    recordings = read_catalogue(synthetic_set).recordings
    for name, part in (("a", recordings[::2]), ("b", recordings[1::2])):
        split = Split("all", 0, "", {})
        store = Store.create(folder / name, [backbone], PLAN, dtype="float16", split=split, link=False)
        extract(Catalogue(part), [backbone], store, stream_windows)
    merge([folder / "a", folder / "b"], folder / "both")
    return folder


@pytest.fixture
def store(made, tmp_path):
    """A copy of the first store, to be changed."""
    return Store(shutil.copytree(made / "a", tmp_path / "store"))


def ask(*words, expect=0):
    """What the command prints."""
    done = CliRunner().invoke(app, ["search", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == expect, done.output
    return done.output


def found(scratch, *words, expect=0):
    """What the command writes as JSON."""
    ask(*words, "--json", scratch / "found.json", expect=expect)
    return json.loads((scratch / "found.json").read_text())


def refused(*words):
    """The words of the error."""
    with pytest.raises(CisticolaError) as caught:
        CliRunner().invoke(app, ["search", *map(str, words)], catch_exceptions=False)
    return str(caught.value)


def audio_of(store, place=0):
    return Store(store).catalogue.recordings[place].path


def normalised(store, raw):
    """Centred by the store's mean and of length 1, in float64."""
    vectors = store.reader().read(np.arange(store.n_rows)).astype(np.float64)
    out = raw.astype(np.float64) - vectors.mean(axis=0)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def brute_force(store, positives, negatives):
    """The documented formula, for every row: float64 (n_rows,)."""
    x = normalised(store, store.reader().read(np.arange(store.n_rows)))
    score = np.mean([(x @ normalised(store, p).T).max(axis=1) for p in positives], axis=0)
    if negatives:
        score -= np.mean([(x @ normalised(store, n).T).mean(axis=1) for n in negatives], axis=0)
    return score


def noisy_windows(store, sizes, seed):
    rng = np.random.default_rng(seed)
    vectors = store.reader().read(np.arange(store.n_rows))
    return [
        (vectors[rng.integers(0, len(vectors), n)] + rng.normal(size=(n, vectors.shape[1])) * vectors.std(axis=0) * 0.2)
        .astype(np.float32)
        for n in sizes
    ]  # fmt: skip


# --- examples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_per_recording", [True, False])
@pytest.mark.parametrize(
    ("sizes", "unlike"),
    [((1,), ()), ((5,), ()), ((1,), (1,)), ((4,), (3, 1)), ((1, 1, 1), ()), ((1, 1), (1, 2)), ((3, 1, 6), (2, 2))],
    ids=str,
)
def test_examples_rank_as_the_formula_says_for_every_row(made, sizes, unlike, one_per_recording):
    store = Store(made / "both")
    positives, negatives = noisy_windows(store, sizes, 1), noisy_windows(store, unlike, 2)
    truth = brute_force(store, positives, negatives)
    wanted = truth
    if one_per_recording:
        wanted = np.array([truth[store.place_of_row == place].max() for place in np.unique(store.place_of_row)])
    searcher = NeighbourSearch(store)
    hits = searcher.search_by_examples(positives, negatives, 15, one_per_recording=one_per_recording)
    np.testing.assert_allclose([h.similarity for h in hits], -np.sort(-wanted)[:15], atol=2e-6)
    np.testing.assert_allclose([truth[h.row] for h in hits], [h.similarity for h in hits], atol=2e-6)
    assert len({store.place_of_row[h.row] if one_per_recording else h.row for h in hits}) == 15
    windows = normalised(store, np.concatenate(positives))
    to_windows = normalised(store, store.reader().read(np.array([h.row for h in hits]))) @ windows.T
    best = np.take_along_axis(to_windows, np.array([[h.query_window] for h in hits]), axis=1)[:, 0]
    np.testing.assert_allclose(best, to_windows.max(axis=1), atol=2e-6)


def test_single_windows_are_one_inner_product_as_rocchio_has_it(made):
    store = Store(made / "both")
    positives, negatives = noisy_windows(store, (1, 1), 3), noisy_windows(store, (1,), 4)
    vector = normalised(store, np.concatenate(positives)).mean(axis=0) - normalised(store, negatives[0])[0]
    scores = normalised(store, store.reader().read(np.arange(store.n_rows))) @ vector
    hits = NeighbourSearch(store).search_by_examples(positives, negatives, 9, one_per_recording=False)
    np.testing.assert_allclose([h.similarity for h in hits], -np.sort(-scores)[:9], atol=2e-6)
    assert [h.row for h in hits] == np.argsort(-scores)[:9].tolist()


def test_examples_are_exact_over_lists_too_and_nearly_so_when_approximate(made):
    store = Store(shutil.copytree(made / "both", made / "lists"))
    near = NeighbourSearch(store, approximate=True)
    positives, negatives = noisy_windows(store, (3, 2), 5), noisy_windows(store, (2,), 6)
    truth = -np.sort(-brute_force(store, positives, negatives))[:8]
    assert NeighbourSearch(store)._index.n_lists > 1
    for searcher in (near, NeighbourSearch(store)):
        hits = searcher.search_by_examples(positives, negatives, 8, one_per_recording=False)
        similarity = np.array([h.similarity for h in hits])
        assert (similarity <= truth + 2e-6).all()
        if searcher is not near:
            np.testing.assert_allclose(similarity, truth, atol=2e-6)


def test_negatives_alone_and_vectors_that_do_not_fit_are_refused(made):
    searcher = NeighbourSearch(Store(made / "a"))
    window = np.zeros((1, searcher.reader.dim), np.float32)
    with pytest.raises(InputError, match="no positive example"):
        searcher.search_by_examples([], [window])
    with pytest.raises(InputError, match="was expected"):
        searcher.search_by_examples([window], [window[:, 1:]])
    with pytest.raises(InputError, match="at least 1"):
        searcher.search_by_examples([window], k=0)


def test_files_and_stored_windows_mix_as_examples_and_counterexamples(made, tmp_path, backbone):
    store = Store(made / "a")
    first, second, third = store.catalogue.recordings[:3]
    words = (made / "a", "--like", first.path, "--like", f"{second.filename}@1.2", "--row", 0)
    said = found(tmp_path, *words, "--unlike", Path(third.filename).name, "--all-windows", "-k", 6)
    rows = [np.flatnonzero(store.place_of_row == place) for place in range(3)]
    read = store.reader().read
    file_vectors = embed_file(first.path, [backbone], store.plan, stream_windows)[1]
    second_row = rows[1][1]  # begins at 1 s
    assert store.rows.start_s[second_row] == 1.0
    truth = brute_force(store, [file_vectors, read(np.array([second_row])), read(np.array([0]))], [read(rows[2])])
    np.testing.assert_allclose([n["similarity"] for n in said["neighbours"]], -np.sort(-truth)[:6], atol=2e-6)
    assert [e["windows"] for e in said["like"]] == [len(rows[0]), 1, 1]
    assert [e["recording"] for e in said["unlike"]] == [third.recording]
    assert said["query"].count(" + ") == 2
    assert " - " in said["query"]
    alone = found(tmp_path, *words, "--exclude-own", "-k", 20)
    own = {first.recording, second.recording, store.catalogue.recordings[0].recording}
    assert not own & {n["recording"] for n in alone["neighbours"]}


def test_examples_of_one_file_name_are_told_apart_wherever_hits_are_shown(made, tmp_path):
    recordings = Store(made / "a").catalogue.recordings
    files = [tmp_path / folder / "call.flac" for folder in ("x", "y")]
    for file, place in zip(files, (0, 5), strict=True):
        file.parent.mkdir()
        shutil.copy(recordings[place].path, file)
    out = ("--csv", tmp_path / "hits.csv", "--html", tmp_path / "page.html")
    words = (made / "a", "--like", files[0], "--like", files[1], "-k", 30, "--all-windows")
    hits = found(tmp_path, *words, *out)["neighbours"]
    assert {hit["query_number"] for hit in hits} == {1, 2}
    assert {hit["query_number"] for hit in hits if hit["recording"] == recordings[0].recording} == {1}
    assert {hit["query_number"] for hit in hits if hit["recording"] == recordings[5].recording} == {2}
    assert [hit["query_path"] for hit in hits] == [str(files[hit["query_number"] - 1]) for hit in hits]
    with open(tmp_path / "hits.csv", encoding="utf-8", newline="") as handle:
        rows = [(int(row["query_number"]), row["query_path"]) for row in csv.DictReader(handle)]
    assert rows == [(hit["query_number"], hit["query_path"]) for hit in hits]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for number in (1, 2):
        assert page.count(f">Query {number}<") == 1
        assert page.count(f"<dd>query {number}, call.flac") == sum(hit["query_number"] == number for hit in hits)
    assert "example 2," in ask(*words)


# --- one file, as ever ----------------------------------------------------------------------------------------------


def test_a_file_finds_itself_and_each_recording_once_unless_all_windows_are_asked_for(made, tmp_path):
    audio = audio_of(made / "a", 3)
    said = found(tmp_path, made / "a", audio, "-k", 12)
    assert said["query"] == str(audio)
    assert said["neighbours"][0]["path"] == str(audio)
    recordings = [n["recording"] for n in said["neighbours"]]
    assert len(set(recordings)) == len(recordings) == 12
    more = [n["recording"] for n in found(tmp_path, made / "a", audio, "-k", 12, "--all-windows")["neighbours"]]
    assert len(set(more)) < 12
    asked_for = found(tmp_path, made / "a", audio, "-k", 12, "--one-per-recording")
    assert [n["recording"] for n in asked_for["neighbours"]] == recordings


def test_several_files_are_a_query_each_in_any_order_of_the_arguments(made, tmp_path):
    first, second = audio_of(made / "a", 0), audio_of(made / "a", 5)
    said = found(tmp_path, first, made / "a", second, "-k", 2)
    assert [q["query"] for q in said["queries"]] == [str(first), str(second)]
    assert [q["neighbours"][0]["path"] for q in said["queries"]] == [str(first), str(second)]
    printed = ask(made / "a", first, second, "-k", 2)
    assert printed.count("Most similar to") == 2


# --- parts of a file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [(1.5, 3.25), (0.5, 5.5), (0.0, 2.0), (0.8, None)], ids=str)
def test_a_part_is_cut_like_a_recording_of_its_own_and_keeps_its_times(made, tmp_path, backbone, part):
    audio = audio_of(made / "a")
    start_s, end_s = part
    samples, rate = soundfile.read(audio, dtype="float32")
    soundfile.write(
        tmp_path / "part.wav", samples[round(start_s * rate) : end_s and round(end_s * rate)], rate, "FLOAT"
    )
    alone, expected = embed_file(tmp_path / "part.wav", [backbone], PLAN, stream_windows)
    rows, vectors = embed_file(audio, [backbone], PLAN, partial(stream_windows, start_s=start_s, end_s=end_s))
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(rows.start_s, alone.start_s + start_s)
    np.testing.assert_allclose(rows.end_s, alone.end_s + start_s)
    assert rows.repeated.any() == (end_s is not None and end_s - start_s < 5)
    options = [*(("--start-s", start_s) if start_s else ()), *(("--end-s", end_s) if end_s else ())]
    said = found(tmp_path, made / "a", audio, *options, "-k", 3)
    truth = brute_force(Store(made / "a"), [expected], [])
    assert said["neighbours"][0]["similarity"] == pytest.approx(truth.max(), abs=1e-5)
    assert said["like"][0]["start_s"] == start_s
    assert start_s <= said["neighbours"][0]["query_start_s"] <= (end_s or 100)


def test_a_part_is_heard_at_other_rates_and_a_file_with_a_start_is_one_window(made, tmp_path):
    audio = audio_of(made / "a")
    (window,) = stream_windows(audio, PLAN, [16_000], start_s=2.0, end_s=4.0)
    expected = np.resize(read_audio(audio, 16_000, start_s=2.0, duration_s=2.0), 80_000)
    np.testing.assert_allclose(window.waveforms[16_000], expected, atol=1e-4)
    with pytest.raises(AudioError, match="holds no samples from 2 s on"):
        list(stream_windows(audio, PLAN, [16_000], start_s=2.0, end_s=2.0))
    said = found(tmp_path, made / "a", "--like", f"{audio}@0.4", "-k", 1)
    assert (said["like"][0]["windows"], said["like"][0]["start_s"], said["like"][0]["end_s"]) == (1, 0.4, 5.4)
    assert said["neighbours"][0]["path"] == str(audio)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--start-s", 3, "--end-s", 3), "the end must come after"),
        (("--start-s", 4, "--end-s", 2), "the end must come after"),
        (("--start-s", -1), "must be 0 or more"),
        (("--end-s", -1), "must be 0 or more"),
        (("--start-s", "nan"), "must be 0 or more"),
        (("--start-s", 400), "but it ends at"),
        (("--start-s", 1, "--end-s", 400), "but it ends at"),
    ],
)
def test_parts_that_there_are_not_are_refused(made, options, words):
    assert words in refused(made / "a", audio_of(made / "a"), *options)


# --- stored windows -------------------------------------------------------------------------------------------------


def test_a_row_and_a_recording_at_a_time_ask_with_what_is_stored_and_need_no_audio(store, tmp_path):
    recordings = tuple(replace(r, path=tmp_path / "gone" / r.path.name) for r in store.catalogue)
    save_catalogue(store.path / "catalogue.arrow", recordings)
    row = int(np.flatnonzero(store.place_of_row == 4)[2])
    truth = brute_force(store, [store.reader().read(np.array([row]))], [])
    best = np.argsort(-truth)[:5].tolist()
    for words in (
        ("--row", row),
        ("--like", f"{recordings[4].filename}@2.3"),
        ("--like", recordings[4].recording + "@2"),
    ):
        said = found(tmp_path, store.path, *words, "--all-windows", "-k", 5, "--csv", tmp_path / "found.csv")
        assert [n["row"] for n in said["neighbours"]] == best
        assert best[0] == row
        assert said["neighbours"][0]["query_start_s"] == 2.0
        assert len(list(csv.DictReader(open(tmp_path / "found.csv", encoding="utf-8")))) == 5  # noqa: SIM115


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--row", "{n}"), "its {n} rows are numbered 0 to"),
        (("--row", "-1"), "row -1 is not in"),
        (("--like", "belhol1-01-9.flac"), "Did you mean belhol1/belhol1-0"),
        (("--like", "xyz"), "neither a file nor a recording"),
        (("--like", "xyz@3"), "neither a file nor a recording"),
        (("--like", "{name}@400"), "lie between 0 and"),
        (("--like", "{name}@-1"), "lie between 0 and"),
        (("--unlike", "{name}"), "nothing to look for"),
        ((), "nothing to look for"),
        (("--row", "0", "-k", "0"), "-k 0 must be at least 1"),
        (("--row", "0", "--blocks", "birdnest"), "no block birdnest"),
        (("--row", "0", "--start-s", "1"), "cut a part from one AUDIO file"),
        (("--row", "0", "--audio-root", "{tmp}/nowhere"), "is not a folder"),
        (("--row", "0", "--clips", "{tmp}/file"), "is a file; name a folder"),
        (("--row", "0", "--html", "{tmp}"), "is a folder; name a file"),
        (("{tmp}/nowhere.wav",), "is not a file"),
        (("{tmp}/file",), "cannot be decoded as audio"),
        (("{tmp}/none.wav",), "holds no samples (0 s)"),
        (("--row", "0", "--unlike", "{tmp}/none.wav"), "holds no samples (0 s)"),
        (("{tmp}",), "is not a store"),
        (("{audio}", "{audio}", "--like", "{name}"), "name all examples of one query with --like"),
    ],
    ids=str,
)
def test_bad_input_is_told_before_any_work(made, tmp_path, monkeypatch, words, said):
    monkeypatch.setattr("embeddings.neighbours.NeighbourSearch.__init__", None)  # calling it would fail
    (tmp_path / "file").write_text("not audio at all, but long enough to be read")
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 32_000)
    store = Store(made / "a")
    known = {
        "n": store.n_rows,
        "tmp": tmp_path,
        "name": store.catalogue.recordings[0].filename,
        "audio": audio_of(made / "a"),
    }
    assert said.format(**known) in refused(made / "a", *(word.format(**known) for word in words))


def test_a_store_without_rows_and_no_store_at_all_are_told(made, tmp_path, backbone):
    empty = tmp_path / "empty"
    Store.create(empty, [backbone], PLAN, dtype="float16", split=Split("all", 0, "", {}), link=False)
    assert f"{empty} holds no rows yet" in refused(empty, audio_of(made / "a"))
    assert f"{empty} holds no rows yet" in refused(made / "a", empty, audio_of(made / "a"))
    assert "no store among" in refused(audio_of(made / "a"))
    with pytest.raises(StoreError, match="not a store"):
        ask(tmp_path / "nowhere", audio_of(made / "a"))


def test_a_name_that_fits_two_recordings_asks_for_the_content_hash(store):
    first, second = store.catalogue.recordings[:2]
    store.add_recordings([replace(first, filename="x/same.flac"), replace(second, filename="y/same.flac")])
    words = refused(store.path, "--like", "same.flac")
    assert "fits 2 recordings" in words
    assert second.recording in words
    store.add_recordings([replace(first, filename="at@3")])
    assert "at@3" in ask(store.path, "--like", "at@3", "-k", 1)  # a name may look like a name with a time


# --- several stores -------------------------------------------------------------------------------------------------


def test_two_halves_find_what_their_merge_finds(made, tmp_path):
    merged, halves = (
        NeighbourSearch(Store(made / "both")),
        NeighbourSearch(JoinedStores([Store(made / "a"), Store(made / "b")])),
    )
    np.testing.assert_array_equal(halves.normaliser.means, merged.normaliser.means)
    queries = np.concatenate(noisy_windows(Store(made / "both"), (7,), 8))
    for mine, theirs in zip(halves.nearest(queries, 30), merged.nearest(queries, 30), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    audio = audio_of(made / "b", 2)
    whole = found(tmp_path, made / "both", audio, "-k", 20)["neighbours"]
    for order in (("a", "b"), ("b", "a")):
        parts = found(tmp_path, *(made / name for name in order), audio, "-k", 20)["neighbours"]
        for name in ("recording", "start_s", "end_s", "primary_label"):
            assert [n[name] for n in parts] == [n[name] for n in whole]
        np.testing.assert_allclose([n["similarity"] for n in parts], [n["similarity"] for n in whole], atol=1e-6)
        for n in parts:  # rows are told by store, so that they can be asked with
            own = Store(Path(n["store"]))
            assert own.rows.recording[n["row"]] == n["recording"]
            assert own.rows.start_s[n["row"]] == n["start_s"]
    assert {Path(n["store"]).name for n in whole} == {"both"}
    printed = ask(made / "a", made / "b", "--row", 1, "--like", audio.name, "-k", 2)
    assert "store" in printed


def test_a_recording_in_several_stores_counts_once(made):
    joined = JoinedStores([Store(made / "a"), Store(made / "both")])
    both = Store(made / "both")
    assert joined.n_rows == both.n_rows
    vectors = joined.reader().read(np.arange(joined.n_rows))
    np.testing.assert_array_equal(np.sort(vectors, axis=0), np.sort(both.reader().read(np.arange(both.n_rows)), axis=0))
    for row in (0, joined.n_rows - 1):
        store, own = joined.origin(row)
        assert store.rows.recording[own] == joined.rows.recording[row]
        np.testing.assert_array_equal(store.reader().read(np.array([own]))[0], vectors[row])
    for shuffled in (np.array([joined.n_rows - 1, 0, 5]), np.zeros(0, np.int64)):
        np.testing.assert_array_equal(joined.reader().read(shuffled), vectors[shuffled])


def test_joined_stores_are_looked_at_anew_when_one_has_changed(made, store):
    other = Store(made / "b")
    before = NeighbourSearch(JoinedStores([store, other]))
    names = sorted(p.name for p in (store.path / "search").iterdir())
    save_catalogue(store.path / "catalogue.arrow", store.catalogue.recordings[1:])
    after = NeighbourSearch(JoinedStores([Store(store.path), other]))
    assert len(after._index.rows) < len(before._index.rows)
    assert not np.array_equal(after.normaliser.means, before.normaliser.means)
    assert sorted(p.name for p in (store.path / "search").iterdir()) == names  # made anew in its place, not beside it


def test_stores_of_other_blocks_are_refused_by_the_field_that_differs(made, store):
    described = read_json(store.path / "store.json", what="store")
    described["blocks"][0]["fingerprint"]["sample_rate_hz"] = 48_000
    write_json(store.path / "store.json", described)
    with pytest.raises(ContractError, match="sample_rate_hz: 32000 != 48000"):
        ask(made / "b", store.path, "--row", 0)
    described["blocks"][0]["name"] = "other"
    write_json(store.path / "store.json", described)
    assert "has other, but no block 'logmel_stats'" in refused(made / "b", store.path, "--row", 0)
    assert "named twice" in refused(made / "b", made / "b", "--row", 0)


def test_blocks_of_joined_stores_are_found_by_fingerprint_whatever_their_names(made, store):
    described = read_json(store.path / "store.json", what="store")
    described["blocks"][0]["name"] = "renamed"
    (store.path / "blocks" / "logmel_stats").rename(store.path / "blocks" / "renamed")
    write_json(store.path / "store.json", described)
    renamed = Store(store.path)
    assert Fingerprint(described["blocks"][0]["fingerprint"]).digest == renamed.blocks["renamed"].fingerprint.digest
    both = JoinedStores([Store(made / "b"), renamed]).reader()
    assert [name for name, _ in both.blocks] == ["logmel_stats"]
    np.testing.assert_array_equal(
        both.read(np.array([both.n_rows - 1]))[0], renamed.reader().read(np.array([renamed.n_rows - 1]))[0]
    )


# --- what is written ------------------------------------------------------------------------------------------------


def test_clips_hold_the_sound_of_each_hit_at_the_recordings_own_rate(made, tmp_path):
    audio = audio_of(made / "a", 1)
    said = found(tmp_path, made / "a", audio, "-k", 4, "--clips", tmp_path / "clips", "--csv", tmp_path / "hits.csv")
    files = sorted((tmp_path / "clips").glob("*.wav"))
    assert len(files) == 4
    for path, n in zip(files, said["neighbours"], strict=True):
        parts = (f"{n['rank']:03d}", f"{n['similarity']:.3f}", n["primary_label"], Path(n["filename"]).stem)
        assert path.name == "_".join(parts) + f"_{n['start_s']:.1f}s.wav"
        samples, rate = soundfile.read(path, dtype="float32")
        assert rate == soundfile.info(n["path"]).samplerate
        whole, _ = soundfile.read(n["path"], dtype="float32")
        first = round(n["start_s"] * rate)
        np.testing.assert_allclose(samples, whole[first : first + len(samples)], atol=2 / 32768)
        assert len(samples) == round((n["end_s"] - n["start_s"]) * rate)
    with open(tmp_path / "hits.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [r["filename"] for r in rows] == [n["filename"] for n in said["neighbours"]]
    assert [float(r["similarity"]) for r in rows] == [n["similarity"] for n in said["neighbours"]]
    assert all(r["author"] and r["license"] and r["row"] for r in rows)


def test_clips_write_over_their_own_and_over_nothing_else(made, tmp_path):
    words = (made / "a", "--row", 3, "-k", 3, "--clips", tmp_path / "clips")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "notes.txt").write_text("mine")
    ask(*words)
    files = sorted((tmp_path / "clips").glob("*.wav"))
    before = [path.read_bytes() for path in files]
    ask(*words)
    assert [path.read_bytes() for path in files] == before
    (tmp_path / "clips" / "clips.json").unlink()
    ask(*words)  # left by a run that was killed: the very same bytes
    files[1].write_bytes(b"something of someone else")
    files[0].unlink()
    assert "was not written by a search" in refused(*words)
    assert files[1].read_bytes() == b"something of someone else"
    assert not files[0].exists()  # nothing was written at all
    assert (tmp_path / "clips" / "notes.txt").read_text() == "mine"
    (tmp_path / "clips" / "clips.json").write_text('{"mine": 1}')
    assert "is not a list of clips" in refused(*words)


@pytest.mark.parametrize(
    ("option", "name", "text"),
    [
        ("--csv", "hits.csv", "query,answer\n1,2\n"),
        ("--csv", "empty.csv", ""),
        ("--html", "index.html", "<!doctype html>\n<html><head><title>Similar calls</title></head></html>"),
        ("--html", "hits.csv", "query,rank,similarity,primary_label\n"),
    ],
)
def test_a_file_that_no_search_wrote_is_left_as_it_is(made, tmp_path, monkeypatch, option, name, text):
    monkeypatch.setattr("embeddings.neighbours.NeighbourSearch.__init__", None)  # calling it would fail
    path = tmp_path / name
    path.write_text(text)
    words = refused(made / "a", "--row", 0, option, path)
    assert words.startswith(f"{option} {path} is there, and was not written by `embed search`")
    assert "Name another file" in words
    assert path.read_text() == text


def test_what_an_earlier_search_wrote_is_replaced(made, tmp_path):
    out = ("--csv", tmp_path / "hits.csv", "--html", tmp_path / "page.html")
    for k in (1, 2):
        ask(made / "a", "--row", 0, "-k", k, *out)
        assert len((tmp_path / "hits.csv").read_text().splitlines()) == 1 + k
        assert f"<h2>{k} found</h2>" in (tmp_path / "page.html").read_text()
    older = "query,rank,similarity,primary_label,something_else\r\n"
    (tmp_path / "hits.csv").write_text(older)
    ask(made / "a", "--row", 0, *out)


def test_the_page_holds_all_pictures_and_sounds_and_escapes_every_name(store, tmp_path):
    evil = '<script>alert("x")</script>'
    first = store.catalogue.recordings[0]
    changed = replace(first, common_name=evil, author=f"{evil} & sons", license="CC-BY", url="javascript:alert(1)")
    other = replace(store.catalogue.recordings[1], url="https://example.org/a?b=1&c=2")
    store.add_recordings([changed, other])
    page_path = tmp_path / "page.html"
    ask(store.path, first.path, "-k", 12, "--unlike", other.filename, "--html", page_path)
    page = page_path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "javascript:" not in page
    assert re.findall(r'href="(http[^"]*)"', page) == ["https://example.org/a?b=1&amp;c=2"]
    assert not re.findall(r'(?:src|link)="?(?!data:)[a-z]+:', page)
    pictures = [base64.b64decode(p) for p in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    sounds = [base64.b64decode(s) for s in re.findall(r"data:audio/flac;base64,([^\"]+)", page)]
    assert len(pictures) == len(sounds) == 12 + 2  # hits, the query, the counterexample
    for sound in sounds:
        samples, rate = soundfile.read(io.BytesIO(sound))
        assert rate == 32_000
        assert len(samples) == 5 * rate
    from matplotlib.image import imread

    for picture in pictures:
        assert imread(io.BytesIO(picture), format="png")[..., :3].std() > 0.1
    for said in (first.filename, "CC-BY", store.catalogue.recordings[5].scientific_name, "Unlike"):
        assert said in page
    assert page.lstrip().startswith("<!doctype html>")


def test_a_page_of_loud_and_high_recordings_is_playable(backbone, tmp_path):
    rng = np.random.default_rng(0)
    for name, rate, gain in (("loud", 32_000, 4.0), ("high", 96_000, 0.1), ("low", 8_000, 0.1)):
        soundfile.write(
            tmp_path / f"{name}.wav", (gain * rng.standard_normal(3 * rate)).astype(np.float32), rate, "FLOAT"
        )
    store = Store.create(
        tmp_path / "store", [backbone], PLAN, dtype="float16", split=Split("all", 0, "", {}), link=False
    )
    extract(read_catalogue(tmp_path), [backbone], store, stream_windows)
    ask(tmp_path / "store", "--row", 0, "--html", tmp_path / "p.html", "--clips", tmp_path / "clips")
    page = (tmp_path / "p.html").read_text()
    sounds = [base64.b64decode(s) for s in re.findall(r"data:audio/flac;base64,([^\"]+)", page)]
    assert sorted({soundfile.info(io.BytesIO(s)).samplerate for s in sounds}) == [8_000, 32_000, 48_000]
    rates = {p.stem.split("_")[3]: soundfile.info(p).samplerate for p in (tmp_path / "clips").glob("*.wav")}
    assert rates == {"loud": 32_000, "high": 96_000, "low": 8_000}
    assert "unlabelled" in page


# --- audio that has moved -------------------------------------------------------------------------------------------


def test_moved_audio_is_found_by_name_and_believed_by_content(store, tmp_path):
    audio = [r.path for r in store.catalogue]
    recordings = [replace(r, path=tmp_path / "gone" / r.path.name) for r in store.catalogue]
    save_catalogue(store.path / "catalogue.arrow", recordings)
    root = tmp_path / "moved"
    (root / "deep" / "down").mkdir(parents=True)
    (root / recordings[0].filename).parent.mkdir(parents=True)
    shutil.copy(audio[0], root / recordings[0].filename)  # where its table says
    shutil.copy(audio[1], root / "deep" / "down" / audio[1].name)  # only the name is left
    shutil.copy(audio[3], root / audio[2].name)  # another recording under its name
    finder = AudioFinder(root)
    assert finder.find(recordings[0]) == root / recordings[0].filename
    assert finder.find(recordings[1]) == root / "deep" / "down" / audio[1].name
    assert [finder.find(r) for r in recordings[2:4]] == [None, None]
    assert finder.wrong == [str(root / audio[2].name)]

    out = ("--clips", tmp_path / "clips", "--html", tmp_path / "page.html", "--csv", tmp_path / "hits.csv")
    said = found(tmp_path, store.path, "--row", 0, "-k", 12, "--audio-root", root, *out, expect=1)
    assert len(list((tmp_path / "clips").glob("*.wav"))) == 2
    assert len(said["missing_audio"]) == 10
    assert said["wrong_audio"] == [str(root / audio[2].name)]
    page = (tmp_path / "page.html").read_text()
    assert page.count("Its audio is not at hand.") == 10
    assert page.count("data:audio/flac") == 3
    assert len((tmp_path / "hits.csv").read_text().splitlines()) == 13
    assert said["neighbours"][0]["path"] == str(root / recordings[0].filename)
    printed = " ".join(ask(store.path, "--row", 0, "-k", 12, *out[:2], expect=1).split())
    assert "--audio-root FOLDER" in printed
    assert recordings[1].filename in printed
    ask(store.path, "--row", 0, "-k", 12)  # a table needs no audio
    whole = tmp_path / "whole"
    whole.mkdir()
    for path in audio:
        shutil.copy(path, whole)
    ask(store.path, "--row", 0, "-k", 12, "--audio-root", whole, *out)
    assert len(list((tmp_path / "clips").glob("*.wav"))) == 12


def test_a_file_that_changed_where_it_lay_is_named_and_not_used(store, tmp_path):
    first = store.catalogue.recordings[0]
    changed = tmp_path / "changed.flac"
    soundfile.write(changed, np.zeros(32_000), 32_000)
    save_catalogue(store.path / "catalogue.arrow", [replace(first, path=changed), *store.catalogue.recordings[1:]])
    said = found(tmp_path, store.path, "--row", 0, "-k", 2, "--clips", tmp_path / "clips", expect=1)
    assert said["wrong_audio"] == [str(changed)]
    assert len(said["missing_audio"]) == 1
    assert content_hash(changed) != first.recording
