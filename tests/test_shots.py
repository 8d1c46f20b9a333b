"""Learning curves: nested draws, nothing scored that was fitted on, intervals for both kinds of luck, and resuming."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from fakes import FakeBackbone, fake_catalogue, fake_decode

import cli.heads
from cli.heads_shots import draw_curve
from embeddings.errors import InputError
from embeddings.extract import extract
from embeddings.recordings import Catalogue
from embeddings.splits import Split
from embeddings.store import Store
from embeddings.windows import WindowPlan
from stage2_heads.bootstrap import bayesian_weights, interval
from stage2_heads.knn import KnnHead
from stage2_heads.labels import RecordingLabels
from stage2_heads.metrics import present_cmap, top_k_hits
from stage2_heads.prototypes import PrototypeHead
from stage2_heads.shots import class_ranks, curve_points, parse_shots

N = 48
VALID = range(32, 48)


class NoisyBackbone(FakeBackbone):
    """A direction for each species, which the first digit of a level names, and noise drawn from the level."""

    def embed(self, waveforms):
        levels = waveforms.mean(axis=1)
        centres = np.random.default_rng(0).normal(size=(4, self.dim))
        noise = np.stack([np.random.default_rng(int(1e6 * level)).normal(size=self.dim) for level in levels])
        return (centres[np.floor(levels * 10).astype(int) % 4] + 0.8 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def store_path(tmp_path_factory):
    """48 recordings of three species (the rare one has two to draw from) and no call; a third is to be scored."""
    folder = tmp_path_factory.mktemp("shots")
    species = [(i % 4) if i % 4 != 2 or i in (2, 6) or i in VALID else 0 for i in range(N)]
    catalogue = fake_catalogue(folder / "audio", [f"5 0.{s}{i:02d}1" for i, s in enumerate(species)])
    recordings = [
        replace(
            recording,
            primary_label=("ash", "birch", "cedar", "nocall")[s],
            secondary_labels=("birch",) if s == 0 and i % 8 == 0 else (),
            split="valid" if i in VALID else "train",
            fold=str(1 + i % 3),
        )
        for i, (recording, s) in enumerate(zip(catalogue, species, strict=True))
    ]
    recordings[40] = replace(recordings[40], split="both")  # may be drawn, so it must not be scored
    recordings[1] = replace(recordings[1], xeno_canto_id="77")
    recordings[41] = replace(recordings[41], xeno_canto_id="77")  # the same recording in another guise
    backbone = NoisyBackbone(dim=6)
    store = Store.create(
        folder / "store",
        [backbone],
        WindowPlan(),
        dtype="float32",
        split=Split("stratified", 0, "", {r.recording: r.split for r in recordings}),
        link=False,
    )
    assert extract(Catalogue(tuple(recordings)), [backbone], store, fake_decode).n_embedded == N
    return folder / "store"


def curve(store_path, out, **options):
    chosen = {
        "head": "prototypes,knn",
        "shots": "1,2,4,all",
        "seeds": 3,
        "seed": 0,
        "blocks": None,
        "windows": "all",
        "secondary_weight": 1.0,
        "fusion": "late",
        "settings": [],
        "split": "train",
        "valid_fold": "",
        "labels": None,
        "target": "",
        "overwrite": False,
        "json_path": None,
        "dry_run": False,
    }
    draw_curve(store_path, out, **{**chosen, **options})
    return {path.name: path.read_bytes() for path in out.glob("curve.*")}


@pytest.fixture
def fits(monkeypatch):
    """(kind, recordings fitted on) of every fit, in order."""
    done = []
    for kind in (PrototypeHead, KnnHead):

        def counted(self, rows, *, _fit=kind.fit, **options):
            done.append((self.kind, rows.recordings))
            return _fit(self, rows, **options)

        monkeypatch.setattr(kind, "fit", counted)
    return done


def known(n, labels="abc"):
    return [RecordingLabels(f"r{i}", labels[i % len(labels)]) for i in range(n)]


def test_draws_are_nested_random_and_independent_of_order():
    recordings = known(30)
    ranks = class_ranks(recordings, 0)
    for label in "abc":
        assert sorted(ranks[[r.primary_label == label for r in recordings]]) == list(range(10))
    order = np.random.default_rng(0).permutation(30)
    np.testing.assert_array_equal(class_ranks([recordings[i] for i in order], 0), ranks[order])
    firsts = {tuple(np.flatnonzero(class_ranks(recordings, seed) < 1)) for seed in range(20)}
    assert len(firsts) > 10
    fewer = [r for r in recordings if r.primary_label != "b"]  # other classes have no say
    kept = [r.primary_label != "b" for r in recordings]
    np.testing.assert_array_equal(class_ranks(fewer, 0), ranks[kept])


@pytest.mark.parametrize(("text", "shots"), [("1,2,4", (1, 2, 4)), ("all, 8,2", (2, 8, None)), ("all", (None,))])
def test_shots_are_read_in_ascending_order(text, shots):
    assert parse_shots(text) == shots


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1,,2", "many", "1,2,1", "²", "1;2", " "])
def test_bad_shots_are_refused_with_what_is_allowed(text):
    with pytest.raises(InputError, match=r"whole numbers from 1|name each number once"):
        parse_shots(text)


def tables(n, n_seeds, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.eye(3, dtype=bool)[np.arange(n) % 3]
    return truth, np.arange(n) % 3, [np.clip(rng.random((n, 3)) * 0.7 + 0.2 * truth, 0, 0.99) for _ in range(n_seeds)]


def test_figures_are_the_means_of_the_plain_metrics_and_one_draw_has_the_bootstraps_interval():
    truth, primary, scores = tables(40, 4)
    point = curve_points({("svm", 2): scores}, truth, primary)[0]
    by_seed = [top_k_hits(s, primary, 1).mean() for s in scores]
    assert point.figures["top_1"].value == pytest.approx(np.mean(by_seed))
    assert point.spread["top_1"] == pytest.approx(np.std(by_seed, ddof=1))
    assert point.figures["cmap_present"].value == pytest.approx(np.mean([present_cmap(truth, s) for s in scores]))
    one = curve_points({("svm", 2): scores[:1]}, truth, primary, n_bootstrap=500, seed=3)[0]
    replicates = top_k_hits(scores[0], primary, 1) @ bayesian_weights(40, 500, 3) / 40
    assert (one.figures["top_1"].low, one.figures["top_1"].high) == pytest.approx(interval(replicates, by_seed[0]))
    assert one.spread["top_1"] is None


@pytest.mark.parametrize("n_seeds", [2, 10])
def test_intervals_hold_the_luck_of_the_draw(n_seeds):
    """Draws that get every recording right or every one wrong leave recordings no say: the interval is the mean's."""
    truth, primary, _ = tables(30, 1)
    right, wrong = np.where(truth, 0.9, 0.1), np.where(truth, 0.1, 0.9)
    scores = [right if s % 2 else wrong for s in range(n_seeds)]
    figure = curve_points({("svm", 1): scores}, truth, primary, n_bootstrap=4000)[0].figures["top_1"]
    steady = curve_points({("svm", 1): [right] * n_seeds}, truth, primary)[0].figures["top_1"]
    assert steady.high - steady.low == pytest.approx(0, abs=1e-9)
    error = np.std([0, 1] * (n_seeds // 2), ddof=1) / np.sqrt(n_seeds)
    assert figure.high - figure.low > 1.9 * min(1.96 * error, 0.5)
    assert figure.low <= 0.5 <= figure.high


def test_folds_are_ranked_apart():
    truth, primary, scores = tables(60, 2)
    fold = np.arange(60) // 20
    shifted = [s * np.array([0.2, 0.6, 1.0])[fold][:, None] for s in scores]  # three sigmoids, the same rankings
    one, other = (curve_points({("svm", 1): t}, truth, primary, fold=fold)[0] for t in (scores, shifted))
    assert one.figures == other.figures
    expected = np.mean([present_cmap(truth[fold == f], s[fold == f]) for s in scores for f in range(3)])
    assert one.figures["cmap_present"].value == pytest.approx(expected)
    pooled = curve_points({("svm", 1): scores}, truth, primary)[0]
    assert one.figures["top_1"].value == pytest.approx(pooled.figures["top_1"].value)


def test_differences_are_paired_with_the_first_head():
    truth, primary, scores = tables(60, 3)
    other = tables(60, 3, seed=9)[2]
    points = curve_points({("a", 1): scores, ("b", 1): list(scores), ("c", 1): other}, truth, primary)
    assert points[0].against == {}
    same = points[1].against["top_1"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert points[2].against["top_1"].value == pytest.approx(
        points[2].figures["top_1"].value - points[0].figures["top_1"].value
    )


def test_tables_that_do_not_belong_together_are_refused():
    truth, primary, scores = tables(12, 2)
    with pytest.raises(InputError, match="one number of tables"):
        curve_points({("a", 1): scores, ("a", 2): scores[:1]}, truth, primary)
    with pytest.raises(InputError, match="none of the 12 recordings"):
        curve_points({("a", 1): scores}, truth, np.full(12, -1))


def test_a_curve_has_a_row_for_every_head_and_number_of_shots(store_path, tmp_path, capsys):
    files = curve(store_path, tmp_path / "c")
    assert set(files) == {"curve.csv", "curve.md", "curve.png"}
    rows = list(csv.DictReader(files["curve.csv"].decode().splitlines()))
    assert [(r["shots"], r["head"]) for r in rows] == [
        (s, h) for s in ("1", "2", "4", "all") for h in ("prototypes", "knn")
    ]
    assert all(float(r["top_1_low"]) <= float(r["top_1"]) <= float(r["top_1_high"]) for r in rows)
    assert [r["classes_with_so_many"] for r in rows[::2]] == ["3", "3", "2", "3"]
    assert rows[1]["top_1 - prototypes"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "4 shots: 1 of 3 classes have fewer recordings to draw from and give all they have (cedar 2)" in printed
    assert "cedar 2" in files["curve.md"].decode()
    assert files["curve.png"].startswith(b"\x89PNG")


def test_no_recording_is_scored_that_any_fit_may_hear_and_draws_are_nested_and_shared(
    store_path, tmp_path, fits, monkeypatch
):
    from embeddings.store import StoreReader

    read, original = [], StoreReader.read
    monkeypatch.setattr(
        StoreReader, "read", lambda self, rows, out=None: read.append(rows) or original(self, rows, out)
    )
    summary = tmp_path / "s.json"
    curve(store_path, tmp_path / "c", json_path=summary, shots="1,2,3,all", seeds=2)
    store = Store(store_path)
    fitted = {r.recording for _, recordings in fits for r in recordings}
    hashes = [r.recording for r in store.catalogue]
    scored = set()
    for rows in read:
        named = {hashes[place] for place in store.place_of_row[rows]}
        if len(named) == len(VALID) - 2:  # the one on both sides and the one with a drawn xeno-canto id are left out
            scored |= named
    assert scored == {hashes[i] for i in VALID} - {hashes[40], hashes[41]}
    assert not scored & fitted
    assert '"heard": 2' in summary.read_text()
    by_head = {}
    for kind, recordings in fits:
        by_head.setdefault(kind, []).append(frozenset(r.recording for r in recordings))
    assert set(by_head["prototypes"]) == set(by_head["knn"])
    sizes = sorted({len(drawn) for drawn in by_head["knn"]})
    assert sizes == [4, 8, 11, 33]  # ash, birch, cedar and no call: 4 x 1, 4 x 2, 3 x 3 + 2, all
    for small in (d for d in by_head["knn"] if len(d) < 11):
        assert any(small < large for large in by_head["knn"] if len(large) < 33)


def test_a_killed_curve_goes_on_where_it_stopped_and_ends_the_same(store_path, tmp_path, fits, monkeypatch):
    whole = curve(store_path, tmp_path / "whole")
    n_fits = len(fits)
    fits.clear()
    counted = PrototypeHead.fit

    def killed(self, rows, **options):
        if len(fits) >= 7:
            raise KeyboardInterrupt
        return counted(self, rows, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PrototypeHead, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            curve(store_path, tmp_path / "whole2" / "whole")
    assert not list((tmp_path / "whole2" / "whole").glob("curve.*"))
    n_before = len(fits)
    damaged = sorted((tmp_path / "whole2" / "whole" / "cells").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:10])
    assert curve(store_path, tmp_path / "whole2" / "whole") == whole
    assert 0 < n_before < n_fits
    assert len(fits) == n_fits + 1  # and the damaged one again
    fits.clear()
    assert curve(store_path, tmp_path / "whole2" / "whole") == whole
    assert fits == []


def test_more_shots_and_heads_fit_only_what_is_missing_and_equal_draws_are_fitted_once(store_path, tmp_path, fits):
    curve(store_path, tmp_path / "c", head="prototypes", shots="2,all", seeds=3)
    assert len(fits) == 4  # three draws of two, and everything once: prototypes draw nothing themselves
    fits.clear()
    curve(store_path, tmp_path / "c", head="prototypes,knn", shots="2,all,60", seeds=3)
    assert {kind for kind, _ in fits} == {"knn"}
    fits.clear()
    curve(store_path, tmp_path / "c", head="knn,prototypes", shots="2", seeds=3, settings=["k=3"])
    assert {kind for kind, _ in fits} == {"knn"}


def test_published_folds_are_scored_in_turn(store_path, tmp_path, fits):
    files = curve(store_path, tmp_path / "c", valid_fold="1,2,3", shots="2", seeds=2, head="knn")
    assert len(fits) == 6
    row = next(csv.DictReader(files["curve.csv"].decode().splitlines()))
    assert int(row["n"]) == N - 2  # of two guises of one recording each is left out where the other may be drawn
    assert float(row["top_1"]) > 0.5


def test_a_dry_run_fits_and_writes_nothing(store_path, tmp_path, fits, capsys):
    assert curve(store_path, tmp_path / "c", dry_run=True) == {}
    assert not (tmp_path / "c").exists()
    assert fits == []
    assert "24 cells, 22 fits to do" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shots": "two"}, "whole numbers from 1"),
        ({"shots": ""}, "add --shots"),
        ({"seeds": 0}, "--seeds 0"),
        ({"head": "knn,"}, "name each once"),
        ({"head": "knn,knn"}, "name each once"),
        ({"head": "knn,prototype"}, "Did you mean prototypes"),
        ({"settings": ["colour=red"]}, "no setting 'colour'"),
        ({"split": "valid"}, "leave out --split"),
        ({"overwrite": True}, "--overwrite"),
        ({"valid_fold": "9"}, "not a published fold"),
        ({"blocks": "other"}, "no block other"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_fitted(options, words, store_path, tmp_path, fits):
    with pytest.raises(InputError, match=words):
        curve(store_path, tmp_path / "c", **options)
    assert fits == []
    assert not (tmp_path / "c").exists()


def test_a_folder_of_something_else_is_left_alone(store_path, tmp_path):
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(InputError, match="not a learning curve"):
        curve(store_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_heads_fit_hands_over_to_the_curve(store_path, tmp_path):
    from typer.testing import CliRunner

    words = ["fit", str(store_path), "--head", "knn", "--shots", "1,2", "--seeds", "2", "--out", str(tmp_path / "c")]
    done = CliRunner().invoke(cli.heads.app, words)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "c" / "curve.csv").is_file()
