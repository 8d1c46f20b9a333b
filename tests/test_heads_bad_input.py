"""What a user may get wrong with heads: labels, rare classes, odd vectors, a store that changes underneath."""

from __future__ import annotations

import csv
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from test_heads import ALL, BLOCKS, DIMS, QUICK, sounds
from typer.testing import CliRunner

from embeddings.errors import InputError, StoreError
from embeddings.store import Store
from stage2_heads.heads import create_head, load_head
from stage2_heads.labels import RecordingLabels
from stage2_heads.rows import ArrayReader, label_rows


def fit(kind, vectors, of_row, recordings):
    reader = ArrayReader(np.asarray(vectors, np.float32), DIMS)
    rows = label_rows(reader, np.arange(len(vectors)), of_row, recordings, blocks=BLOCKS)
    return create_head(kind, **QUICK[kind]).fit(rows)


def sane(head, vectors):
    scores = head.scores(np.asarray(vectors, np.float32))
    assert np.isfinite(scores).all()
    assert scores.min() >= 0
    assert scores.max() < 1
    return scores


@ALL
def test_a_class_with_one_recording_of_one_window_is_learnt_beside_the_others(kind):
    vectors, of_row, recordings = sounds()
    rare = np.full((1, sum(DIMS)), 25.0, np.float32)
    head = fit(
        kind, np.vstack([vectors, rare]), np.r_[of_row, len(recordings)], [*recordings, RecordingLabels("x", "yew")]
    )
    scores = sane(head, np.vstack([vectors, rare]))
    assert head.labels_ == ("ash", "birch", "cedar", "dogwood", "yew")
    assert scores[-1, 4] > scores[:-1, 4].max()


@ALL
def test_recordings_that_hold_no_call_are_negatives_and_alone_teach_nothing(kind):
    vectors, of_row, recordings = sounds()
    silent = [RecordingLabels(f"n{i}", "nocall") for i in range(12)]
    everything = [*recordings, *silent]
    more = np.random.default_rng(5).normal(size=(12, sum(DIMS))).astype(np.float32)
    head = fit(kind, np.vstack([vectors, more]), np.r_[of_row, len(recordings) + np.arange(12)], everything)
    assert head.labels_ == ("ash", "birch", "cedar", "dogwood")
    sane(head, more)
    with pytest.raises(InputError, match="class"):
        fit(kind, more, np.arange(12), silent)


@ALL
def test_vectors_of_length_zero_are_learnt_from_and_scored(kind):
    vectors, of_row, recordings = sounds()
    vectors[[0, 40]] = 0
    vectors[[5, 41], : DIMS[0]] = 0
    head = fit(kind, vectors, of_row, recordings)
    sane(head, np.vstack([vectors, np.zeros((2, sum(DIMS)))]))


@ALL
def test_a_vector_that_is_not_finite_is_not_scored(kind):
    vectors, of_row, recordings = sounds()
    head = fit(kind, vectors, of_row, recordings)
    for value in (np.nan, np.inf):
        vectors[3, 2] = value
        with pytest.raises(InputError, match="not finite"):
            head.scores(vectors)


@pytest.fixture(scope="module")
def made(synthetic_set, tmp_path_factory) -> Path:
    from cli.embed import app

    path = tmp_path_factory.mktemp("stores") / "store"
    words = ["extract", str(synthetic_set), "--backbone", "logmel_stats", "--workers", "1", "--out", str(path)]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    return path


def heads(*words):
    from cli.heads import app

    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def table_of(store: Path, path: Path, label_of, extra=()) -> Path:
    rows = [(r.filename, label_of(r)) for r in Store(store).catalogue]
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows([("filename", "primary_label"), *rows, *extra])
    return path


def test_a_table_of_labels_stands_in_for_the_stores_in_fitting_scoring_and_comparing(made, tmp_path):
    before = Store(made).catalogue.recordings
    table = table_of(made, tmp_path / "two.csv", lambda r: "low" if r.primary_label < "synth03" else "high")
    done = heads("fit", made, "--head", "knn", "--labels", table, "--out", tmp_path / "head")
    assert done.exit_code == 0, done.output
    head = load_head(tmp_path / "head")
    assert head.labels_ == ("high", "low")
    assert head.provenance["labels"] == str(table)
    scored = heads("score", tmp_path / "head", made, "--labels", table, "--bootstrap", 20)
    assert scored.exit_code == 0
    assert "high" in scored.output
    compared = heads("compare", made, "--head", "knn", "--labels", table, "--bootstrap", 20)
    assert "knn on logmel_stats has the highest cmAP" in compared.output
    assert Store(made).catalogue.recordings == before
    with pytest.raises(InputError, match=r"none of .* recordings is of the head's 2 classes"):
        heads("score", tmp_path / "head", made, "--bootstrap", 20)


def test_labels_of_recordings_that_the_store_lacks_are_named_and_passed_over(made, tmp_path):
    table = table_of(made, tmp_path / "more.csv", lambda r: r.primary_label, [("elsewhere/x.ogg", "robin")])
    done = heads("fit", made, "--head", "knn", "--labels", table, "--out", tmp_path / "head")
    assert done.exit_code == 0
    assert "elsewhere/x.ogg" in done.output
    assert "robin" not in load_head(tmp_path / "head").labels_


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_a_table_of_labels_that_contradicts_itself_is_refused_with_both_lines(made, tmp_path, command):
    first = next(iter(Store(made).catalogue)).filename
    table = table_of(made, tmp_path / "twice.csv", lambda r: "low", [(first, "high")])
    n = len(Store(made).catalogue)
    with pytest.raises(
        InputError, match=rf"contradicts itself on the primary_label of .*: line 2 \(low\) and line {n + 2} \(high\)"
    ):
        heads(command, made, "--head", "knn", "--labels", table, "--out", tmp_path / "head")
    assert not (tmp_path / "head").exists()
    table = table_of(made, tmp_path / "same.csv", lambda r: "low", [(first, "low")])
    assert heads("fit", made, "--head", "knn", "--labels", table, "--out", tmp_path / "head").exit_code == 0


def test_a_table_of_labels_for_other_recordings_is_refused(made, tmp_path):
    table = tmp_path / "other.csv"
    table.write_text("filename,primary_label\na/b.ogg,a\n")
    with pytest.raises(InputError, match=r"names none of the .* recordings"):
        heads("fit", made, "--head", "knn", "--labels", table, "--out", tmp_path / "head")


def test_a_store_that_grows_while_it_is_read_is_read_as_it_was(tmp_path):
    from fakes import FakeBackbone, fake_catalogue, fake_decode

    from embeddings.extract import extract
    from embeddings.recordings import Catalogue
    from embeddings.splits import Split
    from embeddings.windows import WindowPlan
    from stage2_heads.stored_rows import stored_rows

    everyone = fake_catalogue(tmp_path / "audio", [f"{20 + i} {i}" for i in range(12)])
    backbone, split = FakeBackbone(), Split("all", 0, "", {})
    Store.create(tmp_path / "s", [backbone], WindowPlan(), dtype="float32", split=split, link=False)

    def grow(n: int) -> None:
        extract(Catalogue(everyone.recordings[:n]), [backbone], Store(tmp_path / "s"), fake_decode)

    grow(6)
    store = Store(tmp_path / "s")
    rows = stored_rows(store, ["fake"], np.arange(store.n_rows), labels=("a",))
    expected = store.reader().read(np.arange(store.n_rows))
    seen = [x.copy() for x, _ in rows.batches(7, seed=0)][:1]
    grow(12)
    batches = [x.copy() for x, _ in rows.batches(7, seed=0)]
    np.testing.assert_array_equal(batches[0], seen[0])
    assert sum(map(len, batches)) == len(expected) < Store(tmp_path / "s").n_rows
    np.testing.assert_array_equal(store.reader().read(np.arange(store.n_rows)), expected)


def test_a_store_whose_shards_go_while_it_is_open_says_what_is_missing(tmp_path, made):
    import shutil

    path = tmp_path / "store"
    shutil.copytree(made, path)
    store, other = Store(path), Store(path)
    reader, late = store.reader(), store.reader()
    expected = reader.read(np.arange(store.n_rows))
    for shard in store.shards:
        for block in store.blocks:
            store.vector_path(block, shard).unlink()
        store.row_path(shard).unlink()
    np.testing.assert_array_equal(reader.read(np.arange(store.n_rows)), expected)  # mapped before they went
    with pytest.raises(StoreError, match="is missing"):
        late.read(np.arange(store.n_rows))
    with pytest.raises(StoreError, match="is missing"):
        _ = other.rows
    with pytest.raises(StoreError, match="is not complete"):
        other.reader()


@pytest.mark.parametrize(
    ("kind", "setting", "value", "words"),
    [
        ("svm", "c", "abc", "svm.c='abc' must be a number"),
        ("svm", "c", "nan", "svm.c='nan' must be a number"),
        ("svm", "c", 10**400, "must be a number"),
        ("svm", "class_balanced", "abc", "svm.class_balanced='abc' must be true or false"),
        ("logistic", "epochs", "abc", "logistic.epochs='abc' must be a whole number"),
        ("logistic", "epochs", 10**30, "too large"),
        ("svm", "loss", 5, "svm.loss=5 must be a text"),
        ("svm", "seed", -1, "seed=-1 must be a whole number from 0"),
        ("mlp", "hidden", "abc", "mlp.hidden='abc' must be a list"),
        ("mlp", "hidden", [8, "a"], r"mlp.hidden\[1\]='a' must be a whole number"),
        ("mlp", "dropout", None, "must be a number"),
        ("knn", "k", 1.5, "knn.k=1.5 must be a whole number"),
        ("knn", "k", True, "must be a whole number"),
        ("prototypes", "shrinkage", "abc", "must be a number"),
        ("online", "detector", 5, "online.detector=5 must be a text"),
        ("online", "detector_settings", 5, "online.detector_settings=5 must be a group of settings"),
        ("online", "detector_settings", {"delta": "abc"}, "ADWIN"),
        ("fused", "settings", {"c": "abc"}, "svm.c='abc' must be a number"),
    ],
)
def test_settings_of_another_type_are_named_with_what_is_wanted(kind, setting, value, words):
    with pytest.raises(InputError, match=words):
        create_head(kind, **{setting: value})


def test_a_detector_that_cannot_use_its_settings_is_refused_before_it_watches():
    with pytest.raises(InputError, match="PageHinkley cannot watch with"):
        create_head("online", detector="PageHinkley", detector_settings={"alpha": "abc"})


def test_whole_numbers_do_for_fractions_and_numpys_for_pythons():
    assert create_head("svm", c=2, epochs=np.int64(3)).settings == create_head("svm", c=2.0, epochs=3).settings


@pytest.mark.parametrize("command", [("fit", "store", "--out", "x"), ("update", "head", "store"), ("score", "h", "s")])
def test_a_negative_seed_is_refused_before_any_work(command):
    from cli.heads import app

    done = CliRunner().invoke(app, [*command, "--seed", "-1"])
    assert done.exit_code == 2
    assert "--seed" in done.output


@pytest.mark.parametrize(
    "words", [("heads", "score", "h", "s"), ("heads", "fit", "s", "--out", "x"), ("embed", "info", "s")]
)
@pytest.mark.parametrize("content", [b"RIFF\x00\x00", b"filename,label\n", None])
def test_a_summary_is_written_over_no_file_of_another_kind(words, content, tmp_path):
    name, *arguments = words
    app, path = import_module(f"cli.{name}").app, tmp_path / "mine"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=r"--json .* is"):
        CliRunner().invoke(app, [*arguments, "--json", str(path)], catch_exceptions=False)
    assert path.is_dir() if content is None else path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b' \n {"old": 1}', b"[]"])
def test_an_older_summary_or_an_empty_file_may_be_written_over(content, tmp_path):
    (tmp_path / "facts.json").write_bytes(content)
    with pytest.raises(StoreError, match="not a store"):  # the next thing that is wrong
        CliRunner().invoke(
            import_module("cli.embed").app,
            ["info", str(tmp_path / "store"), "--json", str(tmp_path / "facts.json")],
            catch_exceptions=False,
        )


def test_a_picture_of_tuning_is_drawn_over_pictures_only(tmp_path):
    (tmp_path / "mine.png").write_text("not a picture")
    words = ["tune", "head", "store", "--plot", str(tmp_path / "mine.png")]
    with pytest.raises(InputError, match="is not a PNG picture: it is left"):
        CliRunner().invoke(import_module("cli.heads").app, words, catch_exceptions=False)
