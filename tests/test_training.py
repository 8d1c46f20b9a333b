"""Training: it learns, it survives a kill without a trace, and it says what it cannot use."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from embeddings.errors import AudioError, InputError
from embeddings.files import content_hash
from embeddings.recordings import Recording
from embeddings.splits import make_split
from stage1_backbones.augment import AugmentSettings
from stage1_backbones.mixup import MixSettings

RATE_HZ = 16_000


def tones(folder: Path, n: int = 6, seconds: float = 6.0) -> list[Recording]:
    """Two labels that differ in pitch, n recordings each."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    recordings = []
    for label, hz in (("high", 3000.0), ("low", 700.0)):
        for i in range(n):
            t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
            samples = 0.2 * np.sin(2 * np.pi * hz * rng.uniform(0.9, 1.1) * t) + 0.02 * rng.normal(size=len(t))
            path = folder / f"{label}{i}.wav"
            soundfile.write(path, samples, RATE_HZ)
            recordings.append(Recording(content_hash(path), path, filename=path.name, primary_label=label))
    return recordings


def present_cmap(truth, scores):
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, scores, average="macro"))


def settings(**changes):
    from stage1_backbones.recipe import TrainingSettings

    small = TrainingSettings(kind="vggish_bigru", epochs=3, min_steps=0, crops_per_recording=1, batch_size=4)
    return replace(small, **changes)


def run(recordings, out, chosen, **more):
    from stage1_backbones.training import train

    return train(recordings, chosen, out, split=make_split(recordings, everything=True), scorer=present_cmap, **more)


def weights_of(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return tones(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def trained(recordings, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "whole"
    return out, run(recordings, out, settings())


def test_it_learns_and_leaves_all_that_a_user_looks_for(trained, recordings):
    from stage1_backbones.registry import load_backbone

    out, summary = trained
    with open(out / "metrics.csv") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 3
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert summary.best_cmap > 0.9
    assert 0 <= summary.data_wait < 1
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    backbone = load_backbone(out)
    assert backbone.labels == ("high", "low")
    heard = backbone.heard
    assert not heard.selected_on  # nothing was chosen by the recordings kept apart: they stay unheard
    assert len(heard.trained_on) == summary.n_fit == len(recordings) - summary.n_select < len(recordings)


def test_the_same_call_again_changes_nothing_and_another_is_refused(trained, recordings):
    out, summary = trained
    before = weights_of(out)
    assert run(recordings, out, settings()) == summary
    assert weights_of(out) == before
    with pytest.raises(InputError, match=r"learning_rate: 0\.001 there, 0\.5 asked"):
        run(recordings, out, settings(learning_rate=0.5))


def test_labels_that_changed_since_are_refused_and_kinds_of_call_only_where_they_were_learnt(trained, recordings):
    out, summary = trained
    typed = [replace(r, types=("song",)) for r in recordings]
    assert run(typed, out, settings()) == summary
    other = [replace(recordings[0], secondary_labels=("low",)), *recordings[1:]]
    for found in (other, [replace(recordings[0], primary_label="low"), *recordings[1:]]):
        with pytest.raises(InputError, match="holds a training on other labels"):
            run(found, out, settings())
    told = json.loads((out / "settings.json").read_text())
    older = out.parent / "older"
    shutil.copytree(out, older)
    (older / "settings.json").write_text(json.dumps({name: told[name] for name in told if name != "labels"}))
    assert run(other, older, settings()) == summary  # it does not say what it was told


# The process stands still once it has reported its last epoch, however fast the machine: what is kept then is whole
# up to the epoch before.
KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from test_training import *
recordings = tones(Path({audio!r}))
def on_epoch(row):
    print("epoch", int(row["epoch"]), flush=True)
    if row["epoch"] == {last_epoch}:
        time.sleep(600)
import torch
torch.set_num_threads({threads})
run(recordings, Path({out!r}), settings(), on_epoch=on_epoch)
"""


@pytest.mark.slow
def test_a_training_killed_twice_ends_with_the_weights_of_an_uninterrupted_one(trained, recordings, tmp_path):
    import torch

    out = tmp_path / "killed"
    for last_epoch in (2, 3):
        code = KILLED.format(
            tests=str(Path(__file__).parent),
            audio=str(recordings[0].path.parent),
            out=str(out),
            threads=torch.get_num_threads(),
            last_epoch=last_epoch,
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        got_there = any(line.strip() == f"epoch {last_epoch}" for line in process.stdout)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert got_there
        assert not (out / "backbone.json").exists()
    torn = out / "resume/last.ckpt"
    torn.write_bytes(torn.read_bytes()[:1000])  # and the last checkpoint is torn on top of it
    resumed = run(recordings, out, settings())
    whole, summary = trained
    assert weights_of(out) == weights_of(whole)
    assert (resumed.best_epoch, resumed.best_cmap) == (summary.best_epoch, summary.best_cmap)


def test_a_last_checkpoint_torn_after_the_last_epoch_costs_nothing(trained, recordings, tmp_path, monkeypatch):
    from stage1_backbones.trained import TrainedBackbone

    class Killed(Exception):
        pass

    def killed(self, folder):
        raise Killed

    out = tmp_path / "torn"
    with monkeypatch.context() as patched:
        patched.setattr(TrainedBackbone, "save", killed)
        with pytest.raises(Killed):
            run(recordings, out, settings())
    last = out / "resume/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    resumed = run(recordings, out, settings())
    whole, summary = trained
    assert weights_of(out) == weights_of(whole)
    assert (resumed.epochs, resumed.best_cmap) == (summary.epochs, summary.best_cmap)


VARIED = {
    "choose": "best",
    "accumulate": 2,
    "sampling": "inverse_sqrt",
    "mixup": MixSettings(where="both"),
    "augment": {"noise_p": 0.5, "cutmix_p": 0.5, "time_mask_p": 0.5},
}


def test_a_varied_training_goes_on_as_if_nothing_had_happened(recordings, tmp_path):
    beds = AugmentSettings(**VARIED["augment"], background_p=0.5, background_folder=str(recordings[0].path.parent))
    varied = settings(**{**VARIED, "augment": beds})

    class Stopped(Exception):
        pass

    def stop(row):
        if row["epoch"] == 2:
            raise Stopped

    whole = run(recordings, tmp_path / "whole", varied)
    with pytest.raises(Stopped):
        run(recordings, tmp_path / "stopped", varied, on_epoch=stop)
    resumed = run(recordings, tmp_path / "stopped", varied)
    assert weights_of(tmp_path / "stopped") == weights_of(tmp_path / "whole")
    assert resumed.best_epoch == whole.best_epoch
    (tmp_path / "stopped/backbone.json").unlink()  # killed after the last epoch, before the backbone was whole
    assert run(recordings, tmp_path / "stopped", varied).epochs == 3
    assert weights_of(tmp_path / "stopped") == weights_of(tmp_path / "whole")


def test_without_recordings_kept_apart_all_are_fitted_on_and_the_last_epoch_is_taken(recordings, tmp_path):
    summary = run(recordings, tmp_path / "out", settings(select_share=0.0, epochs=2))
    assert (summary.n_fit, summary.n_select, summary.best_epoch) == (len(recordings), 0, 2)
    assert summary.best_cmap is None
    with open(tmp_path / "out/metrics.csv") as handle:
        assert [row["select_cmap"] for row in csv.DictReader(handle)] == ["", ""]


def test_what_chose_the_epoch_counts_as_heard(recordings, tmp_path):
    from stage1_backbones.registry import load_backbone

    summary = run(recordings, tmp_path / "out", settings(choose="best", epochs=2))
    heard = load_backbone(tmp_path / "out").heard
    assert len(heard.selected_on) == summary.n_select > 0
    assert heard.trained_on | heard.selected_on == {r.recording for r in recordings}


def test_a_bad_recording_is_named_and_left_out(recordings, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_text("not audio")
    wrong = Recording(content_hash(bad), bad, filename="bad.wav", primary_label="high")
    summary = run([*recordings, wrong], tmp_path / "out", settings(epochs=1))
    assert len(summary.problems) == 1
    assert "bad.wav" in summary.problems[0]


def test_too_little_to_train_on_is_said_before_anything_starts(recordings, tmp_path):
    with pytest.raises(InputError, match="two labels are needed"):
        run([r for r in recordings if r.primary_label == "low"], tmp_path / "out", settings())
    assert not (tmp_path / "out").exists()


class Numbered:
    """Seven batches; the sixth cannot be made."""

    n_batches = 7

    def __getitem__(self, place):
        if place[1] == 5:
            raise AudioError("a recording went away")
        return place


def test_batches_come_in_order_until_one_cannot_be_made_and_no_thread_stays():
    from stage1_backbones.batches import TrainingLoader

    loader = TrainingLoader(Numbered(), lambda: 3)
    came = []

    def take_all():
        for batch in loader:
            came.append(batch)

    with pytest.raises(AudioError, match="went away"):
        take_all()
    assert came == [(3, b) for b in range(5)]
    assert len(loader) == 7
    left_early = iter(loader)
    assert next(left_early) == (3, 0)
    left_early.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_recordings_beyond_the_memory_budget_give_the_same_windows(recordings):
    from stage1_backbones.crops import Crops

    kept = Crops(recordings[:2], RATE_HZ, 5.0)
    decoded = Crops(recordings[:2], RATE_HZ, 5.0, cache_bytes=0)
    for i in range(2):
        np.testing.assert_array_equal(
            kept.random(i, np.random.default_rng(1)), decoded.random(i, np.random.default_rng(1))
        )


def test_a_recording_shorter_than_a_window_is_repeated(tmp_path):
    from stage1_backbones.crops import Crops

    (short, *_) = tones(tmp_path, n=1, seconds=2.0)
    window = Crops([short], RATE_HZ, 5.0).random(0, np.random.default_rng(0))
    np.testing.assert_array_equal(window[: 2 * RATE_HZ], window[2 * RATE_HZ : 4 * RATE_HZ])
    assert len(window) == 5 * RATE_HZ


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"choose": "best", "select_share": 0.0}, "choose=best needs recordings"),
        ({"network": {"output": "softmax"}}, "contradicts loss.name=bce"),
        ({"sampling": "fair"}, "uniform, inverse_sqrt, balanced"),
    ],
)
def test_settings_that_make_no_sense_are_refused_where_they_are_made(changes, message):
    with pytest.raises(InputError, match=message):
        settings(**changes)
