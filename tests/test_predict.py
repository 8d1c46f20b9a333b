"""`heads predict`: the head's own scores in every format, whole or absent; nothing heard twice, nothing made up."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from typer.testing import CliRunner

from embeddings.errors import CisticolaError, InputError
from embeddings.recordings import Recording
from embeddings.store import Store
from stage2_heads.heads import load_head
from stage2_heads.predict import detecting_of
from stage2_heads.prediction_files import Provenance, open_writers
from stage2_heads.stretches import Stretch

LOGMEL = ("--backbone", "logmel_stats", "--workers", "1")
QUICK = ("--head", "svm", "--set", "min_updates=300")
FORMATS = {"predictions.csv", "predictions.parquet", "predictions.jsonl", "predictions.selections.txt", "audacity"}


def heads(*words: object, code: int = 0):
    from cli.heads import app

    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


def rows_of(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle, delimiter=delimiter))


@pytest.fixture(scope="module")
def fitted(synthetic_set, tmp_path_factory) -> Path:
    """A head with its backbone, whose store has gone since."""
    from cli.embed import app

    folder = tmp_path_factory.mktemp("fitted")
    words = ["extract", str(synthetic_set), *LOGMEL, "--out", str(folder / "store")]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    heads("fit", folder / "store", *QUICK, "--split", "all", "--with-backbones", "--out", folder / "head")
    heads("fit", folder / "store", *QUICK, "--split", "all", "--out", folder / "bare")
    shutil.rmtree(folder / "store")
    return folder / "head"


@pytest.fixture(scope="module")
def soundscapes(synthetic_set, tmp_path_factory) -> Path:
    """Two recorders' folders; each has a file of the same name. One of the files is half a minute, one not a window."""
    from embeddings.catalogue_sources import AUDIO_SUFFIXES
    from stage1_backbones.audio import read_audio

    folder = tmp_path_factory.mktemp("soundscapes")
    songs = sorted(p for p in (synthetic_set.parent / "train_audio").rglob("*") if p.suffix in AUDIO_SUFFIXES)
    sounds = [read_audio(path, 32_000) for path in songs[::4]]
    for name, samples in {
        "A/20240501_043000.wav": np.concatenate(sounds)[: 32 * 32_000],
        "B/20240501_043000.wav": sounds[2],
        "B/short.wav": sounds[1][: 2 * 32_000],
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        sf.write(folder / name, samples, 32_000)
    return folder


@pytest.fixture(scope="module")
def predicted(fitted, soundscapes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("predicted") / "out"
    heads("predict", fitted, soundscapes, "--out", out, "--format", "all", "--threshold", "0.05", "--hop-s", "2.5")
    return out


def test_the_files_hold_the_heads_own_scores_of_every_window_above_the_threshold(predicted, fitted):
    head, store = load_head(fitted), Store(predicted / "store")
    X = store.reader(["logmel_stats"]).read(np.arange(store.n_rows))
    scores, raw = head.scores(X), head.decision(X)
    expected = {
        (
            str(store.catalogue.recordings[store.place_of_row[row]].path),
            round(float(store.rows.start_s[row]), 3),
            label,
        ): (scores[row, i], raw[row, i])
        for row in range(store.n_rows)
        for i, label in enumerate(head.labels_)
        if scores[row, i] >= 0.05
    }
    found = rows_of(predicted / "predictions.csv")
    assert len(found) == len(expected) > 20
    for row in found:
        score, decision = expected[row["file"], round(float(row["start_s"]), 3), row["label"]]
        assert float(row["score"]) == pytest.approx(score, rel=1e-12)
        assert float(row["raw_score"]) == pytest.approx(decision, rel=1e-12)
        assert row["threshold"] == "0.05"
        assert row["common_name"] == head.names_[row["label"]][1]
        assert row["head"].startswith("head@")
        assert row["blocks"].startswith("logmel_stats@")
        assert row["version"]
    assert {p.name for p in predicted.iterdir()} >= {*FORMATS, "predictions.json", "store"}


def test_all_formats_say_the_same(predicted):
    import pyarrow.parquet as pq

    rows = rows_of(predicted / "predictions.csv")
    table = pq.read_table(predicted / "predictions.parquet")
    lines = [json.loads(line) for line in (predicted / "predictions.jsonl").read_text().splitlines()]
    assert table.to_pylist() == lines
    assert [{name: str(value) for name, value in line.items()} for line in lines] == rows
    assert b"logmel_stats@" in table.schema.metadata[b"cisticola"]
    raven = rows_of(predicted / "predictions.selections.txt", "\t")
    assert [(r["Begin Path"], float(r["File Offset (s)"]), r["Species Code"]) for r in raven] == [
        (row["file"], float(row["start_s"]), row["label"]) for row in rows
    ]
    labels = sum(len(path.read_text().splitlines()) - 1 for path in (predicted / "audacity").rglob("*.txt"))
    assert labels == len(rows)
    card = json.loads((predicted / "predictions.json").read_text())
    assert card["n_detections"] == len(rows) == sum(card["by_species"].values())


def test_raven_counts_time_from_the_first_file_and_each_file_from_its_start(predicted):
    store = Store(predicted / "store")
    durations = {}
    for row in range(store.n_rows):
        path = str(store.catalogue.recordings[store.place_of_row[row]].path)
        durations[path] = max(durations.get(path, 0.0), float(store.rows.end_s[row]))
    before, passed = {}, 0.0
    for path, duration in durations.items():  # in the store's order
        before[path], passed = passed, passed + duration
    raven = rows_of(predicted / "predictions.selections.txt", "\t")
    assert {r["Begin Path"] for r in raven} == set(durations)
    for r in raven:
        offset_s = float(r["File Offset (s)"])
        assert float(r["Begin Time (s)"]) == pytest.approx(before[r["Begin Path"]] + offset_s, abs=1e-5)
        assert float(r["End Time (s)"]) - float(r["Begin Time (s)"]) in (pytest.approx(5.0, abs=1e-5), pytest.approx(2))
        assert float(r["High Freq (Hz)"]) == 16_000


def test_recorders_clocks_become_the_time_of_a_window_and_names_that_are_no_clock_say_nothing(predicted):
    for row in rows_of(predicted / "predictions.csv"):
        if "short" in row["file"]:
            assert row["time"] == ""
        else:
            assert row["time"].startswith("2024-05-01T04:30:") or row["time"].startswith("2024-05-01T04:31:")


def test_audacity_tracks_lie_like_the_recordings_and_those_without_detections_are_there_too(
    fitted, soundscapes, tmp_path
):
    heads("predict", fitted, soundscapes, "--out", tmp_path / "out", "--format", "audacity", "--threshold", "0.999999")
    tracks = {str(p.relative_to(tmp_path / "out" / "audacity")) for p in (tmp_path / "out" / "audacity").rglob("*.txt")}
    assert tracks == {"A/20240501_043000.wav.txt", "B/20240501_043000.wav.txt", "B/short.wav.txt"}
    assert (tmp_path / "out" / "audacity" / "B" / "short.wav.txt").read_text().startswith("0.000000\t0.000000\t# Cist")


def test_the_same_command_goes_on_after_one_that_ended_among_the_label_tracks(
    fitted, soundscapes, tmp_path, monkeypatch
):
    from embeddings import files

    write, out = files.write_text, tmp_path / "out"
    command = ["predict", fitted, soundscapes, "--out", out, "--format", "csv,audacity"]

    def torn(path: Path, text: str) -> None:
        if "short" in path.name:
            raise OSError(28, "No space left on device")
        write(path, text)

    with monkeypatch.context() as patched:
        patched.setattr("embeddings.files.write_text", torn)
        with pytest.raises(OSError, match="No space left"):
            heads(*command)
    assert len(list((out / "audacity").rglob("*.txt"))) == 2
    assert json.loads((out / "predictions.json").read_text())["finished"] is False
    heads(*command)
    assert len(list((out / "audacity").rglob("*.txt"))) == 3
    assert json.loads((out / "predictions.json").read_text())["finished"] is True


def test_what_was_heard_is_not_heard_again_and_a_store_is_enough(predicted, fitted, soundscapes, tmp_path):
    command = ["predict", fitted, soundscapes, "--out", tmp_path / "out", "--threshold", "0.05"]
    assert "3 recordings embedded" in heads(*command, "--store", tmp_path / "s").output
    first = (tmp_path / "out" / "predictions.csv").read_bytes()
    assert "0 recordings embedded" in heads(*command, "--store", tmp_path / "s").output
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == first
    heads("predict", fitted, tmp_path / "s", "--out", tmp_path / "again", "--threshold", "0.05")
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == first
    only = heads("predict", fitted, soundscapes / "B", "--out", tmp_path / "b", "--store", tmp_path / "s")
    assert "0 recordings embedded" in only.output
    assert json.loads((tmp_path / "b" / "predictions.json").read_text())["n_recordings"] == 2
    pattern = heads(
        "predict", fitted, soundscapes / "*" / "2024*.wav", soundscapes / "B" / "short.wav", "--out", tmp_path / "c"
    )
    assert "3 recordings embedded" in pattern.output
    with pytest.raises(InputError, match="is a store"):
        heads("predict", fitted, tmp_path / "s", "--hop-s", 1, "--out", tmp_path / "d")


def test_top_k_species_and_dry_run(fitted, soundscapes, predicted, tmp_path):
    store = predicted / "store"
    head = load_head(fitted)
    heads("predict", fitted, store, "--out", tmp_path / "k", "--threshold", "0", "--top-k", "1")
    rows = rows_of(tmp_path / "k" / "predictions.csv")
    assert len(rows) == Store(store).n_rows
    wanted = head.names_[head.labels_[1]]
    (tmp_path / "list.txt").write_text(f"{wanted[0].upper()}\n{head.labels_[2]}\n")
    heads("predict", fitted, store, "--out", tmp_path / "s", "--threshold", "0", "--species", tmp_path / "list.txt")
    assert {row["label"] for row in rows_of(tmp_path / "s" / "predictions.csv")} == set(head.labels_[1:3])
    done = heads("predict", fitted, soundscapes, "--out", tmp_path / "dry", "--dry-run")
    assert "Would embed 3 of 3 recordings" in done.output
    assert not (tmp_path / "dry").exists()


def test_a_name_that_several_classes_have_looks_for_all_of_them(fitted):
    head = load_head(fitted)
    a, b, c, d = head.labels_
    head.names_ = {a: ("Avis una", "Warbler"), b: ("Avis altera", "warbler"), c: ("Avis tertia", ""), d: ("", "D")}
    assert detecting_of(head, species=["Warbler"]).classes.tolist() == [True, True, False, False]
    assert detecting_of(head, species=["avis altera", c]).classes.tolist() == [False, True, True, False]


def test_tuned_thresholds_are_those_that_decide(fitted, synthetic_set, predicted, tmp_path):
    from cli.embed import app

    words = ["extract", str(synthetic_set), *LOGMEL, "--out", str(tmp_path / "store")]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    heads("fit", tmp_path / "store", *QUICK, "--with-backbones", "--out", tmp_path / "head")
    heads("tune", tmp_path / "head", tmp_path / "store", "--out", tmp_path / "tuned")
    head = load_head(tmp_path / "tuned")
    assert head.tuning_ is not None
    assert (tmp_path / "tuned" / "backbones" / "logmel_stats" / "backbone.json").is_file()
    heads("predict", tmp_path / "tuned", predicted / "store", "--out", tmp_path / "out")
    for row in rows_of(tmp_path / "out" / "predictions.csv"):
        threshold = head.tuning_.window.values[head.labels_.index(row["label"])]
        assert float(row["threshold"]) == threshold
        assert float(row["score"]) >= threshold


@pytest.fixture
def sample(fitted, tmp_path) -> Path:
    head = load_head(fitted)
    path = tmp_path / "sample_submission.csv"
    rows = [[f"20240501_043000_{end}", *["0.1"] * 4] for end in (5, 10, 15)]
    write(path, [["row_id", *reversed(head.labels_)], *reversed(rows)])
    return path


def write(path: Path, rows: list[list[str]]) -> None:
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows(rows)


def test_a_submission_has_the_samples_rows_and_columns_and_scores_of_the_windows_that_end_there(
    fitted, soundscapes, sample, tmp_path
):
    out = tmp_path / "out"
    heads("predict", fitted, soundscapes / "A", "--out", out, "--sample-submission", sample, "--hop-s", 2.5)
    made, asked = rows_of(out / "submission.csv"), rows_of(sample)
    assert list(made[0]) == list(asked[0])
    assert [row["row_id"] for row in made] == [row["row_id"] for row in asked]
    head, store = load_head(fitted), Store(out / "store")
    for row in made:
        (number,) = np.flatnonzero(store.rows.end_s == float(row["row_id"].rsplit("_", 1)[1]))
        scores = head.scores(store.reader(["logmel_stats"]).read(np.array([number])))[0]
        for label, score in zip(head.labels_, scores, strict=True):
            assert float(row[label]) == pytest.approx(score, rel=1e-12)
            assert 0 <= float(row[label]) < 1


def test_a_sample_that_cannot_be_answered_is_refused_and_says_why(fitted, soundscapes, sample, predicted, tmp_path):
    store = predicted / "store"

    def refused(match: str, *more: object) -> None:
        with pytest.raises(InputError, match=match):
            heads("predict", fitted, store, "--out", tmp_path / "x", "--sample-submission", sample, *more)
        assert not (tmp_path / "x" / "submission.csv").exists()

    refused("several recordings")
    header, *rows = list(csv.reader(sample.open()))
    write(sample, [[*header, "martian"], *([*row, "0"] for row in rows)])
    refused("does not know .martian")
    write(sample, [header, ["nowhere_5", *rows[0][1:]]])
    refused("not there or could not be read .nowhere")
    write(sample, [header, ["short_500", *rows[0][1:]]])
    refused("short_500 lies beyond its recording, which ends at 2.0 s")
    write(sample, [header, ["short-5", *rows[0][1:]]])
    refused("line 2: row_id 'short-5'")
    write(sample, [header, rows[0][:-1]])
    refused("4 fields, the header has 5")
    write(sample, [["id", *header[1:]], *rows])
    refused("no column row_id")
    write(sample, [header, rows[0], rows[0]])
    refused(f"1 row_ids occur twice .{rows[0][0]}")
    write(sample, [[*header, header[1]], [*rows[0], "0"]])
    refused(f"1 columns occur twice .{header[1]}")
    write(sample, [header, rows[0]])
    refused("must lie in 0", "--fill", "1")
    write(sample, [[*header, "martian"], ["nowhere_5", *rows[0][1:], "0"], ["short_5", *rows[0][1:], "0"]])
    heads("predict", fitted, store, "--out", tmp_path / "x", "--sample-submission", sample, "--fill", "0")
    made = rows_of(tmp_path / "x" / "submission.csv")
    assert {made[0][name] for name in header[1:]} == {"0.0"}
    assert made[1]["martian"] == "0.0"
    assert any(float(made[1][name]) > 0 for name in header[1:])


def test_a_submission_keeps_the_samples_columns_wherever_row_id_stands(fitted, soundscapes, sample, tmp_path):
    rows = list(csv.reader(sample.open()))
    for name, place in (("first", 0), ("third", 2), ("last", 4)):
        moved = [[*row[1 : place + 1], row[0], *row[place + 1 :]] for row in rows]
        write(sample, moved)
        out = ["--out", tmp_path / name, "--store", tmp_path / "store"]
        heads("predict", fitted, soundscapes / "A", *out, "--sample-submission", sample)
        assert next(csv.reader((tmp_path / name / "submission.csv").open())) == moved[0]
    first, third, last = (rows_of(tmp_path / name / "submission.csv") for name in ("first", "third", "last"))
    assert first == third == last


def test_rows_that_could_not_be_embedded_are_told_truly_and_filled(fitted, soundscapes, sample, tmp_path):
    samples, rate = sf.read(soundscapes / "A" / "20240501_043000.wav", dtype="float32")
    samples = samples[: 20 * rate]
    samples[6 * rate] = samples[18 * rate] = np.nan  # of the second and of the last window
    (tmp_path / "audio").mkdir()
    sf.write(tmp_path / "audio" / "a.wav", samples, rate, subtype="FLOAT")
    header = next(csv.reader(sample.open()))
    command = ["predict", fitted, tmp_path / "audio", "--out", tmp_path / "out", "--sample-submission", sample]

    def refused(end_s: int, match: str, *more: object) -> None:
        write(sample, [header, *([f"a_{end}", *"0000"] for end in (5, end_s))])
        with pytest.raises(InputError, match=match):
            heads(*command, *more)

    refused(10, "row a_10 has no window: its recording could not be embedded there.*--fill 0")
    refused(20, "row a_20 has no window: its recording could not be embedded there")
    write(sample, [header, *([f"a_{end}", *"0000"] for end in (5, 10, 15, 20))])
    heads(*command, "--fill", "0.125")
    scores = [{row[name] for name in header[1:]} for row in rows_of(tmp_path / "out" / "submission.csv")]
    assert [row == {"0.125"} for row in scores] == [False, True, False, True]
    wide = [*command[:3], "--out", tmp_path / "wide", *command[5:], "--hop-s", 12]
    write(sample, [header, ["a_12", *"0000"]])
    with pytest.raises(InputError, match=r"a_12 falls between two windows.*every 12 s; use --hop-s 5 or less"):
        heads(*wide, "--fill", "0.125")


def test_one_bad_file_is_named_and_the_rest_is_written(fitted, soundscapes, tmp_path):
    folder = tmp_path / "audio"
    shutil.copytree(soundscapes, folder)
    sf.write(folder / "nothing.wav", np.zeros(0), 32_000)
    (folder / "torn.wav").write_bytes(b"RIFF not audio")
    done = heads("predict", fitted, folder, "--out", tmp_path / "out", "--json", tmp_path / "s.json", code=1)
    assert "nothing.wav" in done.output
    assert "torn.wav" in done.output
    summary = json.loads((tmp_path / "s.json").read_text())
    assert len(summary["quarantined"]) == 2
    assert summary["n_recordings"] == 3
    assert not any("nothing" in row["file"] for row in rows_of(tmp_path / "out" / "predictions.csv"))


@pytest.mark.parametrize("kind", ["table", "list"])
def test_a_recording_that_is_asked_for_and_not_there_is_named_and_the_exit_code_says_so(
    fitted, soundscapes, tmp_path, kind
):
    (tmp_path / "train_audio").mkdir()
    shutil.copy(soundscapes / "B" / "short.wav", tmp_path / "train_audio" / "short.wav")
    (tmp_path / "list.txt").write_text("train_audio/short.wav\nabsent.wav\n")
    (tmp_path / "table.csv").write_text("filename,primary_label\nshort.wav,a\nabsent.wav,b\n")
    source = tmp_path / {"table": "table.csv", "list": "list.txt"}[kind]
    done = heads("predict", fitted, source, "--out", tmp_path / "out", "--json", tmp_path / "s.json", code=1)
    assert "absent.wav" in done.output
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["absent"], summary["n_recordings"]) == (["absent.wav"], 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threshold", "1"], "1 excluded"),
        (["--top-k", "0"], "1 or more"),
        (["--format", "xls"], "csv, parquet"),
        (["--species", "glaris"], "Did you mean glaris"),
    ],
)
def test_wrong_options_are_refused_before_any_work(fitted, soundscapes, options, words, tmp_path):
    with pytest.raises(InputError, match=words):
        heads("predict", fitted, soundscapes, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_head_without_its_backbones_says_what_to_name(fitted, soundscapes, tmp_path):
    bare = fitted.parent / "bare"
    with pytest.raises(InputError, match="--backbone logmel_stats=FOLDER"):
        heads("predict", bare, soundscapes, "--out", tmp_path / "out")
    heads("predict", bare, soundscapes, "--out", tmp_path / "out", "--backbone", fitted / "backbones" / "logmel_stats")
    with pytest.raises(CisticolaError, match="logmel_stats"):
        heads("predict", bare, soundscapes, "--out", tmp_path / "o2", "--backbone", "other=birdnet_scores")
    with pytest.raises(InputError, match="neither a file, a folder"):
        heads("predict", fitted, tmp_path / "nowhere*.wav", "--out", tmp_path / "o3")


def test_a_head_that_is_saved_anew_keeps_its_backbones(fitted, tmp_path):
    shutil.copytree(fitted, tmp_path / "head")
    head = load_head(tmp_path / "head")
    head.save(tmp_path / "head")
    assert (tmp_path / "head" / "backbones" / "logmel_stats" / "backbone.json").is_file()


def test_a_trial_run_of_an_update_leaves_the_other_heads_backbones_alone(fitted, synthetic_set, tmp_path):
    from cli.embed import app

    words = ["extract", str(synthetic_set), *LOGMEL, "--out", str(tmp_path / "store")]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    heads("fit", tmp_path / "store", *QUICK, "--with-backbones", "--out", tmp_path / "head")
    shutil.copytree(fitted, tmp_path / "other")
    mark = tmp_path / "other" / "backbones" / "mark"
    mark.write_text("mine")
    update = ["update", tmp_path / "head", tmp_path / "store", "--split", "valid", "--out", tmp_path / "other"]
    heads(*update, "--dry-run")
    assert mark.read_text() == "mine"
    heads(*update)
    assert not mark.exists()
    assert (tmp_path / "other" / "backbones" / "logmel_stats" / "backbone.json").is_file()


def test_a_head_made_of_several_predicts_on_audio(fitted, soundscapes, tmp_path):
    heads("combine", fitted, fitted, "--out", tmp_path / "both")
    assert (tmp_path / "both" / "backbones" / "logmel_stats" / "backbone.json").is_file()
    heads("predict", tmp_path / "both", soundscapes / "B", "--out", tmp_path / "out", "--threshold", "0.05")
    assert rows_of(tmp_path / "out" / "predictions.csv")


def test_copies_of_another_backbone_do_not_stand_in_the_way_of_the_right_one(fitted, soundscapes, tmp_path):
    shutil.copytree(fitted, tmp_path / "head")
    described = tmp_path / "head" / "backbones" / "logmel_stats" / "backbone.json"
    description = json.loads(described.read_text())
    described.write_text(json.dumps({**description, "kind": "birdnet"}))
    with pytest.raises(CisticolaError):
        heads("predict", tmp_path / "head", soundscapes / "B", "--out", tmp_path / "out")
    named = ["--backbone", fitted / "backbones" / "logmel_stats"]
    heads("predict", tmp_path / "head", soundscapes / "B", "--out", tmp_path / "out", *named)


def test_a_pattern_passes_over_what_is_no_audio_and_fill_needs_a_sample(fitted, soundscapes, tmp_path):
    shutil.copytree(soundscapes / "B", tmp_path / "card")
    (tmp_path / "card" / "CONFIG.TXT").write_text("Gain: medium")
    heads("predict", fitted, tmp_path / "card" / "*", "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["n_recordings"] == 2
    with pytest.raises(InputError, match="goes with --sample-submission"):
        heads("predict", fitted, tmp_path / "card", "--out", tmp_path / "out", "--fill", "0.1")


def test_a_first_file_that_does_not_decode_leaves_no_trace_among_the_engines(fitted, soundscapes, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.wav").write_bytes(b"RIFF")
    words = [tmp_path / "a", soundscapes / "B", "--out", tmp_path / "out", "--workers", 1]
    assert "1 quarantined" in heads("predict", fitted, *words, code=1).output
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["n_recordings"] == 2
    engines = (tmp_path / "out" / "store" / "engines.json").read_text()
    assert "null" not in engines
    assert "own" in engines


def test_names_with_line_ends_and_markup_are_names_like_others(fitted, soundscapes, tmp_path):
    folders = [tmp_path / "one", tmp_path / "[/two]"]
    songs = sorted((soundscapes / "B").iterdir())
    for folder, name, song in zip(folders, ("a\nb.wav", "[bold]c\t.wav"), songs, strict=True):
        folder.mkdir(parents=True)
        shutil.copy(song, folder / name)
    out = tmp_path / "[/x] out"
    heads("predict", fitted, *folders, "--out", out, "--format", "all", "--threshold", "0")
    assert {Path(row["file"]).name for row in rows_of(out / "predictions.csv")} == {"a\nb.wav", "[bold]c\t.wav"}
    lines = (out / "predictions.selections.txt").read_text().splitlines()
    assert {line.count("\t") for line in lines} == {lines[0].count("\t")}


@pytest.mark.parametrize("sign", ["\n", "\r\n", "\t", "\u2028"])
def test_labels_and_names_with_line_ends_or_tabs_are_one_cell_and_one_line(sign, tmp_path):
    label, names = f"two{sign}lines", (f"Avis{sign}una", f"A{sign}bird")
    about = Provenance(f"he{sign}ad", "blocks", "1", [label], {label: names}, np.array([0.5]), 8000.0)
    ones = np.ones((1, 1))
    recording = Recording("0" * 32, tmp_path / "a.wav", "a.wav")
    stretch = Stretch(recording, np.array([0.0]), np.array([5.0]), ones, ones, ones > 0, is_last=True)
    with open_writers(["raven", "audacity"], tmp_path, about) as writers:
        for writer in writers:
            writer.write(stretch)
    header, row = (tmp_path / "predictions.selections.txt").read_text(encoding="utf-8").splitlines()
    assert header.count("\t") == row.count("\t")
    assert row.split("\t")[10:13] == ["two lines", "A bird", "Avis una"]
    _, track = (tmp_path / "audacity" / "a.wav.txt").read_text(encoding="utf-8").splitlines()
    assert track.split("\t")[2] == "A bird 1.000"


def test_a_content_under_two_names_answers_to_both(fitted, soundscapes, tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    for name in ("one.wav", "two.wav"):
        shutil.copy(soundscapes / "B" / "short.wav", folder / name)
    head = load_head(fitted)
    write(tmp_path / "sample.csv", [["row_id", *head.labels_], ["one_5", *"0000"], ["two_5", *"0000"]])
    heads("predict", fitted, folder, "--out", tmp_path / "out", "--sample-submission", tmp_path / "sample.csv")
    first, second = rows_of(tmp_path / "out" / "submission.csv")
    assert {**first, "row_id": ""} == {**second, "row_id": ""}


def test_what_others_wrote_is_not_written_over_and_a_refused_sample_changes_nothing(
    fitted, predicted, sample, tmp_path
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "predictions.csv").write_text("mine")
    with pytest.raises(InputError, match="says that it is a prediction"):
        heads("predict", fitted, predicted / "store", "--out", out)
    assert (out / "predictions.csv").read_text() == "mine"
    good = tmp_path / "good"
    heads("predict", fitted, predicted / "store", "--out", good)
    before = {path.name: path.read_bytes() for path in good.iterdir()}
    with pytest.raises(InputError, match="several recordings"):
        heads("predict", fitted, predicted / "store", "--out", good, "--sample-submission", sample, "--threshold", "0")
    assert {path.name: path.read_bytes() for path in good.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--species", ","], "names no species"),
        (["--species", "x" * 300], "no species"),
        (["--format", ""], "names no format"),
        (["--hop-s", "0"], "hop_s=0"),
    ],
)
def test_empty_and_endless_options_are_told_clearly(fitted, soundscapes, words, match, tmp_path):
    with pytest.raises(InputError, match=match):
        heads("predict", fitted, soundscapes, "--out", tmp_path / "out", *words)
    with pytest.raises(InputError, match="empty name"):
        heads("predict", fitted, "", "--out", tmp_path / "out")


def test_two_blocks_of_one_backbone_are_each_found_under_their_own_name(synthetic_set, soundscapes, tmp_path):
    from cli.embed import app

    two = ["--backbone", "a=logmel_stats", "--backbone", "b=logmel_stats"]
    words = ["extract", str(synthetic_set), *two, "--workers", "1", "--out", str(tmp_path / "store")]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    fit = ("--head", "prototypes", "--with-backbones", "--split", "train")
    heads("fit", tmp_path / "store", *fit, "--out", tmp_path / "head")
    heads("tune", tmp_path / "head", tmp_path / "store")
    heads("update", tmp_path / "head", tmp_path / "store", "--split", "valid")
    heads("predict", tmp_path / "head", soundscapes / "B", "--out", tmp_path / "out", "--threshold", "0.05")
    assert rows_of(tmp_path / "out" / "predictions.csv")
