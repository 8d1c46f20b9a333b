"""Saved heads: the same scores after loading, and clear words when a file was damaged."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
from test_heads import ALL, BLOCKS, fitted, sounds

from cli.heads import app as heads_app
from embeddings import files
from embeddings.errors import InputError, StoreError
from stage2_heads.head_files import held_alone
from stage2_heads.heads import create_head, load_head


@ALL
def test_a_loaded_head_scores_identically_and_knows_the_same(kind, tmp_path):
    head = fitted(kind)
    head.provenance = {"store": "stores/x", "split": "train"}
    head.save(tmp_path / "head")
    again = load_head(tmp_path / "head")
    vectors = sounds(seed=1)[0]
    np.testing.assert_array_equal(again.scores(vectors), head.scores(vectors))
    np.testing.assert_array_equal(again.decision(vectors), head.decision(vectors))
    for name in ("settings", "labels_", "names_", "blocks_", "dims_", "heard_", "calibration_", "provenance"):
        assert getattr(again, name) == getattr(head, name), name
    assert [name for name, _ in again.blocks_] == [name for name, _ in BLOCKS]
    assert sorted(p.name for p in (tmp_path / "head").iterdir()) == ["head.json", "head.safetensors", "heard.json"]


@ALL
def test_a_loaded_head_can_go_on_learning(kind, tmp_path):
    fitted(kind).save(tmp_path / "head")
    head = load_head(tmp_path / "head")
    vectors = sounds(seed=1)[0][:30]
    before = head.decision(vectors).copy()
    head.partial_fit(vectors, np.tile([0.0, 0.0, 0.0, 1.0], (30, 1)))
    assert head.decision(vectors)[:, 3].mean() > before[:, 3].mean()


@ALL
def test_saving_again_replaces_the_old_head(kind, tmp_path):
    fitted(kind).save(tmp_path / "head")
    second = fitted(kind, seed=4)
    second.save(tmp_path / "head")
    vectors = sounds(seed=1)[0]
    np.testing.assert_array_equal(load_head(tmp_path / "head").scores(vectors), second.scores(vectors))
    assert [p.name for p in tmp_path.iterdir()] == ["head"]


def test_saving_never_replaces_a_folder_that_is_not_a_head(tmp_path):
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(InputError, match="not a head"):
        fitted("knn").save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "keep me"


@pytest.mark.parametrize("can_exchange", [True, False])
def test_saving_again_keeps_what_is_not_the_heads(can_exchange, tmp_path, monkeypatch):
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    head, folder = fitted("knn"), tmp_path / "head"
    head.save(folder)
    before = {path.name for path in folder.iterdir()}
    (folder / "README.md").write_text("fitted in May")
    (folder / "predictions" / "store").mkdir(parents=True)
    (folder / "predictions" / "store" / "shard").write_bytes(b"hours")
    (folder / "members").mkdir()  # of an earlier, combined head
    head.save(folder)
    assert {path.name for path in folder.iterdir()} == before | {"README.md", "predictions"}
    assert (folder / "README.md").read_text() == "fitted in May"
    assert (folder / "predictions" / "store" / "shard").read_bytes() == b"hours"
    assert list(tmp_path.iterdir()) == [folder]
    load_head(folder)


def test_saving_through_a_link_replaces_what_it_points_to(tmp_path):
    head, folder = fitted("knn"), tmp_path / "head"
    head.save(folder)
    (folder / "README.md").write_text("fitted in May")
    link = tmp_path / "current"
    link.symlink_to(folder)
    head.save(link)
    assert link.is_symlink()
    assert (folder / "README.md").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"head", "current"}
    load_head(link)


def test_what_cannot_be_moved_into_the_new_head_is_not_removed(tmp_path, monkeypatch):
    head, folder = fitted("knn"), tmp_path / "head"
    head.save(folder)
    (folder / "README.md").write_text("fitted in May")

    def refuse(path, target):
        raise PermissionError(f"cannot move {path}")

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with pytest.raises(PermissionError):
        head.save(folder)
    assert [path.read_text() for path in tmp_path.rglob("README.md")] == ["fitted in May"]
    load_head(folder)


@pytest.mark.parametrize("command", ["update", "tune"])
def test_two_commands_never_change_one_head_at_once(command, tmp_path):
    folder = tmp_path / "head"
    fitted("knn").save(folder)
    words = [command, str(folder), str(tmp_path / "store")]
    with held_alone(folder):
        with pytest.raises(InputError, match="being updated or tuned by another command"):
            heads_app(words, standalone_mode=False)
        with pytest.raises(StoreError, match="not a store"):  # a copy is another head
            heads_app([*words, "--out", str(tmp_path / "copy")], standalone_mode=False)
        fitted("knn", seed=4).save(folder)
    with pytest.raises(StoreError, match="not a store"):
        heads_app(words, standalone_mode=False)


def test_a_head_that_was_saved_anew_while_another_command_waited_is_locked_itself(tmp_path):
    folder = tmp_path / "head"
    fitted("knn").save(folder)
    with held_alone(folder):
        fitted("knn").save(folder)  # the lock is on a folder that is gone
        with held_alone(folder), pytest.raises(InputError, match="by another"), held_alone(folder):
            pass


@pytest.mark.parametrize("command", ["update", "tune"])
def test_a_head_is_not_replaced_under_the_feet_of_whoever_stands_in_it(command, tmp_path, monkeypatch):
    fitted("knn").save(tmp_path / "head")
    monkeypatch.chdir(tmp_path / "head")
    with pytest.raises(InputError, match="run this from another folder"):
        heads_app([command, ".", "../store"], standalone_mode=False)


def test_a_full_disk_is_told_and_leaves_the_old_head(tmp_path):
    folder = tmp_path / "head"
    fitted("knn").save(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="weights cannot be written"):
            fitted("knn", seed=4).save(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    load_head(folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_damaged_list_of_heard_recordings_is_named(tmp_path):
    fitted("knn").save(tmp_path / "head")
    (tmp_path / "head" / "heard.json").write_text('{"trained_on": 5}')
    with pytest.raises(InputError, match=r"heard\.json was edited"):
        load_head(tmp_path / "head")


def test_an_unfitted_head_cannot_be_saved(tmp_path):
    with pytest.raises(InputError, match="not fitted"):
        create_head("svm").save(tmp_path / "head")


@ALL
def test_truncated_or_changed_weights_are_refused(kind, tmp_path):
    fitted(kind).save(tmp_path / "head")
    weights = tmp_path / "head" / "head.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut short or changed"):
        load_head(tmp_path / "head")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="cut short or changed"):
        load_head(tmp_path / "head")
    weights.unlink()
    with pytest.raises(InputError, match="missing"):
        load_head(tmp_path / "head")


@ALL
@pytest.mark.parametrize("name", ["head.json", "heard.json"])
def test_a_description_cut_short_or_absent_is_refused(kind, name, tmp_path):
    fitted(kind).save(tmp_path / "head")
    path = tmp_path / "head" / name
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match="cut short"):
        load_head(tmp_path / "head")
    path.unlink()
    with pytest.raises(InputError, match="not found"):
        load_head(tmp_path / "head")


@ALL
@pytest.mark.parametrize(
    "edit",
    [
        {"labels": "ash"},
        {"labels": [{"label": "ash", "scientific_name": "", "common_name": ""}]},
        {"blocks": [{"name": "picture", "dim": 3, "fingerprint": {}}]},
        {"settings": {"colour": "red"}},
        {"kind": "os.system"},
        {"format": "other"},
        {"version": 99},
        {"calibration": {"slope": -1}},
        {"calibration": None},
        {"provenance": 3},
    ],
    ids=lambda edit: json.dumps(edit)[:30],
)
def test_an_edited_description_is_refused(kind, edit, tmp_path):
    fitted(kind).save(tmp_path / "head")
    path = tmp_path / "head" / "head.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(InputError):
        load_head(tmp_path / "head")


@ALL
def test_weights_that_are_not_finite_are_refused_even_with_a_matching_hash(kind, tmp_path):
    import hashlib

    from safetensors.numpy import load_file, save_file

    fitted(kind).save(tmp_path / "head")
    weights, path = tmp_path / "head" / "head.safetensors", tmp_path / "head" / "head.json"
    arrays = load_file(str(weights))
    name = next(n for n, a in arrays.items() if a.dtype.kind == "f")
    arrays[name].flat[0] = np.nan
    save_file(arrays, str(weights))
    description = {**json.loads(path.read_text()), "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    path.write_text(json.dumps(description))
    with pytest.raises(InputError, match="not finite"):
        load_head(tmp_path / "head")


def test_a_path_that_is_no_head_is_refused(tmp_path):
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="not a head"):
        load_head(tmp_path / "model.pkl")


def test_a_saved_mlp_scores_without_torch(tmp_path):
    head = fitted("mlp")
    head.save(tmp_path / "head")
    vectors = sounds(seed=1)[0]
    np.save(tmp_path / "vectors.npy", vectors)
    script = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from stage2_heads.heads import load_head
head, vectors = load_head({str(tmp_path / "head")!r}), np.load({str(tmp_path / "vectors.npy")!r})
np.save({str(tmp_path / "scores.npy")!r}, head.scores(vectors))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), head.scores(vectors), rtol=1e-12)
