"""The commands as a user types them, on synthesised recordings: the whole way, bad files, kills, and wrong usage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE_HZ = 32_000


def command(*words: object, expect: int = 0) -> str:
    """Run `python -m cli.<name> ...` and return what it prints."""
    name, *arguments = map(str, words)
    done = subprocess.run(
        [sys.executable, "-m", f"cli.{name}", *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def command_json(name: str, verb: str, store: Path, scratch: Path) -> str:
    """What a command writes with `--json`."""
    command(name, verb, store, "--json", scratch / "facts.json")
    return (scratch / "facts.json").read_text()


@pytest.fixture(scope="module")
def store(synthetic_set, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "synthetic"
    command("embed", "extract", synthetic_set, "--backbone", "logmel_stats", "--out", path)
    return path


@pytest.fixture(scope="module")
def heads(store) -> dict[str, Path]:
    folder = store.parent / "heads"
    for head in ("svm", "mlp", "knn"):
        command("heads", "fit", store, "--head", head, "--split", "train", "--out", folder / head)
    return {head: folder / head for head in ("svm", "mlp", "knn")}


@pytest.mark.parametrize("name", ["backbones", "embed", "heads"])
def test_help_imports_nothing_heavy(name):
    code = (
        f"import sys, cli.{name}\n"
        f"try: cli.{name}.app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'faiss', 'librosa', 'sklearn', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_a_store_is_described_and_verified(store):
    described = command("embed", "info", store, "--json", store.parent / "info.json")
    assert "logmel_stats" in described
    facts = json.loads((store.parent / "info.json").read_text())
    assert facts["windows"] > facts["recordings"] > 0
    assert set(facts["split"]["recordings"]) == {"train", "valid"}
    assert "is sound" in command("embed", "verify", store)


def test_every_head_scores_only_the_unheard_and_writes_the_agreed_shape(store, heads):
    n_valid = json.loads((store.parent / "info.json").read_text())["split"]["recordings"]["valid"]
    for head in heads.values():
        printed = command("heads", "score", head, store, "--json", store.parent / "scores.json")
        assert "95 % interval" in printed
        scores = json.loads((store.parent / "scores.json").read_text())
        for level in ("recording", "window"):
            for metric in ("top_1", "cmap_present", "cmap_padded_5", "auroc"):
                figure = scores[level][metric]
                assert figure["low"] <= figure["value"] <= figure["high"]
                assert figure["n"] > 0
        assert scores["recording"]["top_1"]["n"] == n_valid
        assert scores["left_out"]["heard"] > 0
        assert set(scores) >= {"left_out", "absent_classes", "random_baseline"}
        assert scores["recording"]["auroc"]["value"] > 0.6


def test_heads_are_compared_on_the_same_recordings(store, heads):
    printed = command("heads", "compare", *heads.values(), store, "--split", "valid", "--json", store.parent / "c.json")
    assert all(name in printed for name in heads)
    compared = json.loads((store.parent / "c.json").read_text())
    assert set(compared["differences"]) == {"mlp", "knn"}


def test_fitting_again_replaces_a_head_of_its_kind_and_no_other(store, heads):
    command("heads", "fit", store, "--head", "knn", "--split", "train", "--out", heads["knn"])
    refused = command("heads", "fit", store, "--head", "svm", "--split", "train", "--out", heads["knn"], expect=2)
    assert "--overwrite" in refused


def test_a_head_is_tuned_into_a_copy_shown_and_scored_at_its_own_thresholds(store, heads, tmp_path):
    out, facts, picture = tmp_path / "tuned", tmp_path / "tuned.json", tmp_path / "tuned.png"
    words = ("heads", "tune", heads["knn"], store, "--out", out, "--precision", "0.8", "--top-k", "2")
    assert "Would tune" in command(*words, "--dry-run")
    assert not out.exists()
    printed = command(*words, "--calibration", "isotonic", "--json", facts, "--plot", picture)
    assert "calibration error" in printed
    assert picture.read_bytes()[:4] == b"\x89PNG"
    said = json.loads(facts.read_text())
    assert (said["rule"], said["top_k"], said["calibration"]) == ("precision 0.8", 2, "isotonic")
    assert said["before"]["calibration_error"]["n"] > 0
    assert "tuning" not in json.loads((heads["knn"] / "head.json").read_text())
    described = json.loads((out / "head.json").read_text())
    assert set(described["tuning"]["thresholds"]["window"]["classes"]) == {e["label"] for e in described["labels"]}
    assert "precision 0.8" in command("heads", "info", out)
    assert "at tuned thresholds" in command("heads", "score", out, store, "--json", facts)
    assert json.loads(facts.read_text())["threshold"] is None
    assert "--overwrite" in command("heads", "tune", heads["svm"], store, "--out", out, expect=2)


def test_a_head_tuned_on_the_valid_side_is_not_scored_there(store, heads, tmp_path):
    out = tmp_path / "tuned"
    words = ("heads", "tune", heads["knn"], store, "--split", "valid", "--out", out)
    assert "never scored" in command(*words)
    assert "nothing unheard to score" in " ".join(command("heads", "score", out, store, expect=2).split())
    assert "never scored" in command("heads", "tune", out, store, "--split", "valid")


def test_search_finds_the_recording_itself_and_leaves_it_out_on_request(store, synthetic_set):
    audio = sorted((synthetic_set.parent / "train_audio").rglob("*.*"))[0]
    found = {}
    for name, options in (("with", ()), ("without", ("--exclude-own",))):
        out = store.parent / f"{name}.json"
        command("embed", "search", store, audio, "-k", "3", *options, "--json", out)
        found[name] = [n["path"] for n in json.loads(out.read_text())["neighbours"]]
    assert found["with"][0] == str(audio.resolve())
    assert str(audio.resolve()) not in found["without"]
    assert len(found["without"]) == 3


def test_approximate_search_and_lists_say_what_recall_they_have(store, synthetic_set):
    audio = sorted((synthetic_set.parent / "train_audio").rglob("*.*"))[0]
    out = store.parent / "approximate.json"
    printed = command("embed", "search", store, audio, "-k", "3", "--approximate", "--json", out)
    found = json.loads(out.read_text())
    assert found["neighbours"][0]["path"] == str(audio.resolve())
    assert f"recall@100 {found['search']['recall']:.3f}" in printed
    head, lists = store.parent / "knn_lists", ("--set", "ivf_above=10", "--set", "power=2")
    fitted = command("heads", "fit", store, "--head", "knn", *lists, "--out", head, "--json", out)
    facts = json.loads(out.read_text())
    for text in (fitted, command("heads", "info", head)):
        assert "lists" in text
        assert str(facts["recall"]) in text


def test_a_head_refuses_a_store_of_other_blocks_and_names_them(store, heads, synthetic_set, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(store, other)
    described = json.loads((other / "store.json").read_text())
    described["blocks"][0]["fingerprint"]["sample_rate_hz"] = 48_000
    (other / "store.json").write_text(json.dumps(described))
    assert "sample_rate_hz: 32000 != 48000" in command("heads", "score", heads["svm"], other, expect=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("embed", "extract", "nowhere.csv", "--backbone", "logmel_stats", "--out", "{tmp}/s"), "does not exist"),
        (("embed", "extract", "{tmp}", "--backbone", "birdnest", "--out", "{tmp}/s"), "Did you mean birdnet"),
        (("embed", "info", "{tmp}"), "not a store"),
        (("heads", "fit", "{store}", "--head", "svn", "--out", "{tmp}/h"), "Did you mean svm"),
        (("heads", "fit", "{store}", "--head", "svm", "--blocks", "x", "--out", "{tmp}/h"), "no block x"),
        (("heads", "fit", "{store}", "--head", "knn", "--set", "k=0", "--out", "{tmp}/h"), "k=0"),
        (("heads", "fit", "{store}", "--head", "knn", "--out", "{store}"), "is not a head"),
        (("heads", "score", "{tmp}", "{store}"), "head.json"),
        (("heads", "tune", "{tmp}", "{store}"), "head.json"),
        (("heads", "tune", "{tmp}", "{store}", "--calibration", "beta"), "choose shared, platt"),
        (("heads", "tune", "{tmp}", "{store}", "--precision", "90"), "such as 0.9"),
        (("heads", "tune", "{tmp}", "{store}", "--threshold", "0.3"), "choose best-f1"),
        (("backbones", "train", "{table}", "--backbone", "birdnet", "--out", "{tmp}/b"), "frozen"),
        (
            ("backbones", "train", "{table}", "--backbone", "vggish_bigru", "--valid-fold", "9", "--out", "{tmp}/b"),
            "fold",
        ),
        (
            ("backbones", "train", "{table}", "--backbone", "vggish_bigru", "--model", "x", "--out", "{tmp}/b"),
            "belongs to",
        ),
    ],
)
def test_wrong_usage_ends_with_2_and_a_sentence(words, said, store, synthetic_set, tmp_path):
    filled = [str(w).format(tmp=tmp_path, store=store, table=synthetic_set) for w in words]
    printed = command(*filled, expect=2)
    assert said in " ".join(printed.split())
    assert "Traceback" not in printed


class TestBadFiles:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        rng = np.random.default_rng(0)
        noise = 0.1 * rng.normal(size=12 * RATE_HZ)
        folder = tmp_path / "audio"
        folder.mkdir()
        (folder / "empty.wav").touch()
        (folder / "text.ogg").write_text("these are words")
        soundfile.write(folder / "nan.wav", np.full(RATE_HZ, np.nan, np.float32), RATE_HZ, subtype="FLOAT")
        soundfile.write(folder / "whole.mp3", noise, RATE_HZ, format="MP3")
        cut = (folder / "whole.mp3").read_bytes()
        (folder / "cut.mp3").write_bytes(cut[: int(0.7 * len(cut))])
        soundfile.write(folder / "short.wav", noise[: RATE_HZ // 5], RATE_HZ)
        soundfile.write(folder / "silent.wav", np.zeros(6 * RATE_HZ), RATE_HZ)
        soundfile.write(folder / "stereo96.wav", 0.1 * rng.normal(size=(6 * 96_000, 2)), 96_000)
        return folder

    def test_each_has_its_verdict_and_the_summary_names_it(self, folder, tmp_path):
        out, summary = tmp_path / "store", tmp_path / "summary.json"
        words = ("embed", "extract", folder, "--backbone", "logmel_stats", "--out", out, "--json", summary)
        printed = command(*words, expect=1)
        said = json.loads(summary.read_text())
        reasons = {Path(name).name: reason for name, reason in said["quarantined"].items()}
        assert set(reasons) == {"empty.wav", "text.ogg", "nan.wav"}
        assert "empty" in reasons["empty.wav"]
        assert "not finite" in reasons["nan.wav"]
        assert said["flagged"] == {"cut.mp3": ["partial"], "short.wav": ["repeated"], "silent.wav": ["silent"]}
        assert all(name in printed for name in (*reasons, *said["flagged"]))
        assert said["n_embedded"] == 5
        again = command(*words, expect=1)
        assert "0 recordings embedded" in again
        assert "3 quarantined" in again
        assert "is sound" in command("embed", "verify", out)

    def test_mended_files_leave_the_quarantine_when_they_are_embedded(self, folder, tmp_path):
        out = tmp_path / "store"
        words = ("embed", "extract", folder, "--backbone", "logmel_stats", "--out", out)
        command(*words, expect=1)
        shutil.copy(folder / "short.wav", folder / "text.ogg")
        soundfile.write(folder / "nan.wav", np.full(RATE_HZ, 0.1, np.float32), RATE_HZ, subtype="FLOAT")
        assert "1 quarantined" in command(*words, expect=1)
        bad = json.loads(command_json("embed", "info", out, tmp_path))["quarantined"]
        assert [Path(path).name for path in bad] == ["empty.wav"]

    def test_a_store_is_merged_dropped_from_relabelled_and_exported_by_commands(self, folder, tmp_path):
        stores = [tmp_path / "one", tmp_path / "two"]
        for store in stores:
            command("embed", "extract", folder, "--backbone", "logmel_stats", "--out", store, expect=1)
        both = tmp_path / "both"
        assert "5 recordings" in command("embed", "merge", *stores, "--out", both)
        assert "1 shards became 1" in command("embed", "compact", both)
        assert "Would drop" in command("embed", "drop", both, "--recordings", "s*.wav", "--dry-run")
        assert "2 recordings" in command("embed", "drop", both, "--recordings", "s*.wav")
        (tmp_path / "t.csv").write_text("filename,primary_label\nwhole.mp3,robin\n")
        assert "Changed 1 of 4" in command("embed", "relabel", both, tmp_path / "t.csv")
        assert "is sound" in command("embed", "repair", both)
        command("embed", "export", both, "--out", tmp_path / "all.parquet")
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(tmp_path / "all.parquet")
        assert set(table["filename"].to_pylist()) == {"whole.mp3", "cut.mp3"}
        assert "robin" in table["primary_label"].to_pylist()

    @pytest.mark.slow
    def test_kills_at_any_instant_leave_a_store_that_ends_like_an_uninterrupted_one(
        self, synthetic_set, store, tmp_path
    ):
        from embeddings.store import Store

        out = tmp_path / "killed"
        words = [sys.executable, "-m", "cli.embed", "extract", str(synthetic_set), "--backbone", "logmel_stats"]
        words += ["--out", str(out), "--seal-s", "0"]  # a shard a recording
        rng = np.random.default_rng(0)
        for _ in range(4):
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            began = time.monotonic()
            n_before = len(list(out.glob("rows/*.arrow")))
            while process.poll() is None and len(list(out.glob("rows/*.arrow"))) == n_before:
                if time.monotonic() - began > 60:
                    break
                time.sleep(0.001)
            time.sleep(float(rng.uniform(0, 0.05)))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.wait()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        whole, resumed = Store(store), Store(out)
        assert resumed.n_rows == whole.n_rows
        np.testing.assert_array_equal(resumed.rows.recording, whole.rows.recording)
        np.testing.assert_array_equal(resumed.rows.start_s, whole.rows.start_s)
        rows = np.arange(whole.n_rows)
        np.testing.assert_array_equal(resumed.reader().read(rows), whole.reader().read(rows))
