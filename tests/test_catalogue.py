"""The catalogue reads what people have, and names what is wrong with it."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embeddings.catalogue_sources import read_catalogue
from embeddings.errors import InputError
from embeddings.identity import HashCache
from embeddings.recordings import Catalogue, Recording, load_catalogue, save_catalogue
from embeddings.tables import parse_list

COLUMNS = ["primary_label", "secondary_labels", "type", "filename", "url", "scientific_name", "common_name", "fold"]


def write_table(folder: Path, rows: list[dict[str, str]], columns: list[str] = COLUMNS) -> Path:
    for row in rows:
        if row.get("filename") and row.get("_content", "x"):
            path = folder / "train_audio" / row["filename"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(row.get("_content", row["filename"]))
    (folder / "train_audio").mkdir(exist_ok=True)
    table = folder / "train_metadata.csv"
    with open(table, "w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return table


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("['call', 'song']", ("call", "song")),
        ("['call, female, male']", ("call", "female", "male")),
        ("[]", ()),
        ("['']", ()),
        ("", ()),
        ("song", ("song",)),
    ],
)
def test_list_literals_of_birdclef_tables_are_read(text, items):
    assert parse_list(text) == items


@pytest.mark.parametrize("text", ["['call'", "[1, 2]", "[__import__('os').system('true')]", "(" * 500])
def test_what_is_not_a_list_of_texts_is_refused_and_never_run(text):
    with pytest.raises(ValueError, match="not a list of texts"):
        parse_list(text)


@given(st.lists(st.text("abc xyz", min_size=1).map(str.strip).filter(bool), unique=True))
def test_any_list_survives_its_own_notation(items):
    assert parse_list(repr(items)) == tuple(items)


def test_labels_names_and_xeno_canto_ids_are_carried(tmp_path):
    row = {
        "primary_label": "gretit1",
        "secondary_labels": "['eurbla', 'gretit1']",
        "type": "['song']",
        "filename": "gretit1/XC12.ogg",
        "url": "https://xeno-canto.org/12",
        "scientific_name": "Parus major",
        "common_name": "Great Tit",
    }
    (recording,) = read_catalogue(write_table(tmp_path, [row]))
    assert recording.labels == ("gretit1", "eurbla")
    assert (recording.scientific_name, recording.common_name, recording.xeno_canto_id) == (
        "Parus major",
        "Great Tit",
        "12",
    )


def test_missing_columns_are_named(tmp_path):
    table = write_table(tmp_path, [{"primary_label": "a"}], columns=["primary_label", "type"])
    with pytest.raises(InputError, match="lacks the column filename"):
        read_catalogue(table)


def test_a_missing_audio_folder_is_named(tmp_path):
    table = write_table(tmp_path, [])
    (tmp_path / "train_audio").rmdir()
    with pytest.raises(InputError, match="train_audio does not exist"):
        read_catalogue(table)


def test_rows_without_file_files_without_row_and_unparsed_rows_are_reported_by_name(tmp_path):
    rows = [
        {"primary_label": "a", "filename": "a/here.ogg"},
        {"primary_label": "a", "filename": "a/gone.ogg", "_content": ""},
        {"primary_label": "a", "filename": "a/torn.ogg", "secondary_labels": "['b"},
    ]
    table = write_table(tmp_path, rows)
    (tmp_path / "train_audio/a/extra.ogg").write_text("extra")
    catalogue = read_catalogue(table)
    assert [r.filename for r in catalogue] == ["a/here.ogg"]
    problems = " ".join(catalogue.problems)
    for name in ("gone.ogg", "torn.ogg", "secondary_labels", "extra.ogg"):
        assert name in problems


def test_one_content_under_two_names_is_one_recording_with_both_labels(tmp_path):
    rows = [
        {"primary_label": "a", "filename": "a/1.ogg", "_content": "same"},
        {"primary_label": "b", "filename": "b/2.ogg", "_content": "same"},
    ]
    catalogue = read_catalogue(write_table(tmp_path, rows))
    (recording,) = catalogue
    assert recording.labels == ("a", "b")
    assert "b/2.ogg = a/1.ogg" in catalogue.problems[0]


def test_empty_files_are_rejected_each_by_name_and_never_united(tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    catalogue = read_catalogue(tmp_path)
    assert [r.path.name for r in catalogue.rejected] == ["a.wav", "b.wav"]
    assert "empty" in catalogue.rejected[0].reason


def test_folders_are_labels_only_on_request(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.wav").write_text(label)
    assert {r.primary_label for r in read_catalogue(tmp_path)} == {""}
    assert {r.primary_label for r in read_catalogue(tmp_path, label_folders=True)} == {"a", "b"}


def test_a_list_of_files_is_read_and_its_gaps_named(tmp_path):
    (tmp_path / "one.wav").write_text("1")
    listing = tmp_path / "files.txt"
    listing.write_text("one.wav\n# a remark\ntwo.wav\n")
    catalogue = read_catalogue(listing)
    assert [r.filename for r in catalogue] == ["one.wav"]
    assert "two.wav" in catalogue.problems[0]


def test_a_resume_takes_hashes_from_the_cache_without_reading_audio(tmp_path, monkeypatch):
    (tmp_path / "one.wav").write_text("1")
    first = read_catalogue(tmp_path, cache=HashCache(tmp_path / "hashes.arrow"))

    def refuse(path):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("embeddings.identity.content_hash", refuse)
    again = read_catalogue(tmp_path, cache=HashCache(tmp_path / "hashes.arrow"))
    assert [r.recording for r in again] == [r.recording for r in first]
    with pytest.raises(AssertionError, match="was read"):
        read_catalogue(tmp_path, cache=HashCache(tmp_path / "hashes.arrow", rehash=True))


def test_a_catalogue_survives_its_file(tmp_path):
    rows = [{"primary_label": "a", "filename": f"a/{i}.ogg", "type": "['call']", "fold": "2"} for i in range(3)]
    catalogue = read_catalogue(write_table(tmp_path, rows))
    save_catalogue(tmp_path / "c.arrow", catalogue.recordings)
    assert load_catalogue(tmp_path / "c.arrow").recordings == catalogue.recordings


def test_real_tables_read_without_a_complaint(shared_data):
    for name, n in (("euro20", 140), ("calif10", 100), ("esc10", 400)):
        catalogue = read_catalogue(shared_data / name / "train_metadata.csv")
        assert len(catalogue) == n
        assert not catalogue.problems
    assert Counter(r.fold for r in catalogue) == dict.fromkeys("12345", 80)


def test_recorder_fields_survive_the_file_and_older_catalogues_are_read_without_them(tmp_path):
    noted = Recording("a", tmp_path / "a.wav", recorded_at="2021-04-01T05:00:00+00:00", battery_v=4.5)
    save_catalogue(tmp_path / "c.arrow", [noted])
    assert load_catalogue(tmp_path / "c.arrow").recordings == (noted,)

    with pa.OSFile(str(tmp_path / "c.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    older = table.drop_columns(["recorded_at", "recorder", "gain", "battery_v", "temperature_c"])
    with pa.OSFile(str(tmp_path / "old.arrow"), "wb") as sink, pa.ipc.new_file(sink, older.schema) as writer:
        writer.write_table(older)
    assert load_catalogue(tmp_path / "old.arrow").recordings == (Recording("a", tmp_path / "a.wav"),)


def test_suffixes_count_in_any_case_and_macos_companions_do_not(tmp_path):
    for name in ("b/x.WAV", "a/y.Flac", "a-b/z.mp3", "a/._y.flac", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    catalogue = read_catalogue(tmp_path)
    assert [r.filename for r in catalogue] == ["a/y.Flac", "a-b/z.mp3", "b/x.WAV"]
    (problem,) = catalogue.problems
    assert problem.startswith("1 macOS companion")
    assert "a/._y.flac" in problem


def test_a_folder_that_may_not_be_read_is_named_and_the_rest_read(tmp_path, monkeypatch):
    for name in ("open/x.wav", "shut/y.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "shut":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr("embeddings.catalogue_sources.os.scandir", refuse)
    catalogue = read_catalogue(tmp_path)
    assert [r.filename for r in catalogue] == ["open/x.wav"]
    assert "shut (Permission denied)" in catalogue.problems[0]
    (tmp_path / "open/x.wav").unlink()
    with pytest.raises(InputError, match=r"shut \(Permission denied\)"):
        read_catalogue(tmp_path)


def test_links_are_followed_once_loops_end_and_dead_ones_are_named(tmp_path):
    elsewhere, top = tmp_path / "elsewhere", tmp_path / "top"
    (elsewhere / "deep").mkdir(parents=True)
    (top / "z").mkdir(parents=True)
    (elsewhere / "deep/1.wav").write_text("1")
    (top / "z/2.wav").write_text("2")
    (top / "a").symlink_to(top / "z")  # sorts first, but the real folder keeps its name
    (top / "far").symlink_to(elsewhere)
    (elsewhere / "deep/back").symlink_to(top)
    (top / "itself.wav").symlink_to(top / "itself.wav")
    (top / "dead.wav").symlink_to(top / "nowhere.wav")
    catalogue = read_catalogue(top)
    assert [r.filename for r in catalogue] == ["far/deep/1.wav", "z/2.wav"]
    (problem,) = catalogue.problems
    assert "dead.wav (a link to nothing)" in problem
    assert "itself.wav" in problem


def test_unlabelled_recordings_come_in_parts_that_double(tmp_path: Path) -> None:
    from embeddings.catalogue_sources import read_unlabelled

    for i in range(20):
        (tmp_path / f"r{i:02d}.wav").write_bytes(bytes([i]) * 1000)
    (tmp_path / "r19.wav").write_bytes(bytes([0]) * 1000)  # the first one's content under another name
    n_files, parts = read_unlabelled(tmp_path, first_bytes=2000)
    sizes, whole = [], Catalogue(())
    for part in parts:
        sizes.append(len(part))
        whole = whole.joined(part.recordings)
    assert (n_files, sizes) == (20, [2, 4, 8, 6])
    assert {r.recording for r in whole} == {r.recording for r in read_catalogue(tmp_path)}
    assert {path.name for r in whole for path in (r.path, *r.other_paths)} == {f"r{i:02d}.wav" for i in range(20)}


def test_hashing_ends_soon_when_it_is_abandoned_and_keeps_what_it_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embeddings import identity

    read: list[Path] = []

    def slow_hash(path: Path) -> str:
        time.sleep(0.01)
        read.append(path)
        return path.name

    monkeypatch.setattr(identity, "content_hash", slow_hash)
    paths = [tmp_path / f"{i}.wav" for i in range(50)]
    for path in paths:
        path.write_bytes(path.name.encode())
    cache = HashCache(tmp_path / "hashes.arrow")
    found = cache.hash_all(paths, threads=1, on_done=lambda n: cache.abandon())
    assert any(isinstance(result, OSError) for result in found.values())
    n_read = len(read)
    assert 0 < n_read < 50
    again = HashCache(tmp_path / "hashes.arrow").hash_all(paths)
    assert all(not isinstance(result, OSError) for result in again.values())
    assert len(read) == 50


def test_ctrl_c_while_hashing_ends_at_once_and_keeps_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embeddings import identity

    monkeypatch.setattr(identity, "content_hash", lambda path: time.sleep(0.02) or path.name)
    paths = [tmp_path / f"{i}.wav" for i in range(200)]
    for path in paths:
        path.touch()

    def interrupted(n: int) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        HashCache(tmp_path / "hashes.arrow").hash_all(paths, threads=1, on_done=interrupted)
    assert time.monotonic() - began < 2
    assert 0 < len(identity._load(tmp_path / "hashes.arrow")) < 200


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere refuse such names")
def test_a_file_whose_name_is_no_text_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "good.wav").write_text("1")
    Path(os.fsdecode(os.fsencode(tmp_path / "audio") + b"/bad\xff.wav")).write_text("2")
    os.symlink("nowhere", os.fsencode(tmp_path / "audio") + b"/link\xff.wav")
    catalogue = read_catalogue(tmp_path / "audio", cache=HashCache(tmp_path / "hashes.arrow"))
    assert [r.filename for r in catalogue] == ["good.wav"]
    (rejected,) = catalogue.rejected
    assert rejected.path.name == "bad\\udcff.wav"
    assert "not UTF-8" in rejected.reason
    assert "rename it" in rejected.reason
    assert "link\\udcff.wav" in catalogue.problems[0]
