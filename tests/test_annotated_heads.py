"""Heads fitted on boxes and scored by them, through the commands: window labels, masks, splits by site, oracles."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_heads import ALL, BLOCKS, DIMS, QUICK

from cli import embed, heads
from embeddings.annotations import read_annotations
from embeddings.contract import Heard
from embeddings.errors import InputError
from embeddings.store import Store
from embeddings.windows import WindowPlan
from stage2_heads.annotated_rows import annotated_windows, rows_to_fit
from stage2_heads.heads import create_head, load_head
from stage2_heads.rows import ArrayReader, LabelledRows, label_rows
from stage2_heads.window_scoring import evaluate_windows

RATE_HZ = 32_000
LENGTH_S = 22.0
PITCH_HZ = {"low": 1500, "high": 6000}


def run(module, *words):
    module.app([str(word) for word in words], standalone_mode=False)


@pytest.fixture(scope="module")
def field(tmp_path_factory) -> tuple[Path, Path, dict[str, list[tuple[float, float, str]]]]:
    """A store of 8 noisy recordings of two sites, the boxes of the two species in them as CSV, and the boxes."""
    folder = tmp_path_factory.mktemp("field")
    (folder / "audio").mkdir()
    rng = np.random.default_rng(0)
    boxes: dict[str, list[tuple[float, float, str]]] = {}
    for i in range(8):
        name = f"site{i // 4}_{i}.wav"
        boxes[name] = []
        samples = 0.02 * rng.normal(size=int(LENGTH_S * RATE_HZ))
        for label, hz in PITCH_HZ.items() if i != 3 else ():  # the fourth holds none
            start = float(rng.uniform(0, LENGTH_S - 1.5))
            at = np.arange(RATE_HZ) / RATE_HZ
            samples[int(start * RATE_HZ) :][:RATE_HZ] += 0.3 * np.sin(2 * np.pi * hz * at) * np.hanning(RATE_HZ)
            boxes[name].append((start, start + 1, label))
        soundfile.write(folder / "audio" / name, samples, RATE_HZ)
    rows = [f"{name},{s:.6f},{e:.6f},{label}" for name, found in boxes.items() for s, e, label in found]
    table = folder / "boxes.csv"
    table.write_text("\n".join(["filename,start_s,end_s,label", *rows, "site0_3.wav,,,none"]) + "\n")
    store = folder / "store"
    words = ("--backbone", "logmel_stats", "--hop-s", "1", "--workers", "1", "--out", store)
    run(embed, "extract", folder / "audio", *words)
    return store, table, boxes


@pytest.fixture(scope="module")
def head(field, tmp_path_factory) -> Path:
    store, table, _ = field
    out = tmp_path_factory.mktemp("heads") / "svm"
    words = ("--only", "site0_*", "--out", out, "--set", "min_updates=300", "--json", out.with_suffix(".json"))
    run(heads, "fit", store, "--annotations", table, *words)
    return out


def scored(head, store, table, tmp_path, *words):
    run(heads, "score", head, store, "--annotations", table, "--json", tmp_path / "s.json", *words)
    return json.loads((tmp_path / "s.json").read_text())


def truth_by_hand(store, boxes, label):
    """Of every window of the store: 1, 0 or -1 for a species, with the rule's usual settings."""
    names = {r.recording: r.filename for r in store.catalogue}
    states = []
    for recording, start, end in zip(store.rows.recording, store.rows.start_s, store.rows.end_s, strict=True):
        held = [min(end, e) - max(start, s) for s, e, name in boxes[names[recording]] if name == label]
        states.append(1 if any(h >= 0.25 - 1e-6 for h in held) else -1 if any(h > 1e-6 for h in held) else 0)
    return np.array(states)


class TestFitting:
    def test_a_head_learns_the_boxed_species_from_one_sites_windows(self, field, head):
        store, _, boxes = field
        fitted, facts = load_head(head), json.loads(head.with_suffix(".json").read_text())
        assert fitted.labels_ == ("high", "low")
        assert fitted.windows_ == "annotated"
        assert len(fitted.heard_.trained_on) == 4
        opened = Store(store)
        site = np.array([opened.catalogue.recordings[p].filename.startswith("site0") for p in opened.place_of_row])
        states = np.stack([truth_by_hand(opened, boxes, label) for label in ("high", "low")], axis=1)[site]
        any_known, all_known = (states >= 0).any(axis=1), (states >= 0).all(axis=1)
        assert facts["windows_with"] == dict(zip(("high", "low"), (states == 1).sum(0).tolist(), strict=True))
        assert (facts["n_windows"], facts["windows_left_out"]) == (any_known.sum(), (~any_known).sum())
        assert facts["windows_partial"] == (any_known & ~all_known).sum() > 0
        assert facts["boxes"] == {"high": 3, "low": 3}

    def test_windows_have_the_truth_of_their_own_boxes(self, field):
        path, table, boxes = field
        store = Store(path)
        windows = annotated_windows(store, np.arange(store.n_rows), read_annotations(table))
        rows, _ = rows_to_fit(store, ["logmel_stats"], windows)
        for c, label in enumerate(rows.labels):
            states = truth_by_hand(store, boxes, label)[np.asarray(rows.rows)]
            expected = np.where(states < 0, np.nan, states)
            truths, of_row = rows.truths
            np.testing.assert_array_equal(truths[of_row][:, c], expected)
            in_order = np.concatenate([Y[:, c].copy() for _, Y in rows.batches(7)])
            np.testing.assert_array_equal(in_order, expected)
        assert rows.targets.any(axis=1).sum() == 7

    def test_only_species_that_were_looked_for_are_classes_and_the_rest_masks_nothing(self, field, tmp_path):
        store, table, boxes = field
        facts = tmp_path / "facts.json"
        words = ("--annotated-species", "low", "--out", tmp_path / "head", "--set", "min_updates=50", "--json", facts)
        run(heads, "fit", store, "--annotations", table, *words)
        said = json.loads(facts.read_text())
        assert load_head(tmp_path / "head").labels_ == ("low",)
        states = truth_by_hand(Store(store), boxes, "low")
        assert (said["n_windows"], said["windows_left_out"]) == ((states >= 0).sum(), (states < 0).sum())

    def test_dry_run_leaves_nothing(self, field, tmp_path, capsys):
        store, table, _ = field
        run(heads, "fit", store, "--annotations", table, "--out", tmp_path / "head", "--dry-run")
        assert "Would fit" in capsys.readouterr().out
        assert not (tmp_path / "head").exists()

    @ALL
    def test_every_head_fits_windows_whose_recordings_hold_both(self, kind):
        rng = np.random.default_rng(0)
        truth = rng.random(240) < 0.4
        vectors = (rng.normal(size=(240, sum(DIMS))) + 3 * truth[:, None]).astype(np.float32)
        reader, code = ArrayReader(vectors, DIMS), np.repeat(np.arange(24), 10)
        rows = LabelledRows(
            reader, np.arange(240), code, np.ones((24, 1)), ("wren",), BLOCKS,
            window_targets=np.array([[0.0], [1.0]]), target_of_row=truth.astype(int),
        )  # fmt: skip
        scores = create_head(kind, **QUICK[kind]).fit(rows).scores(vectors)[:, 0]
        assert scores[truth].mean() > scores[~truth].mean() + 0.3

    def test_window_targets_equal_to_the_recordings_change_nothing(self):
        rng = np.random.default_rng(1)
        vectors = rng.normal(size=(120, sum(DIMS))).astype(np.float32)
        targets = np.array([[1.0, 0.0], [0.0, 1.0]])[np.arange(24) % 2]
        plain = LabelledRows(
            ArrayReader(vectors, DIMS), np.arange(120), np.repeat(np.arange(24), 5), targets, ("a", "b"), BLOCKS
        )
        own = replace(plain, window_targets=targets, target_of_row=np.repeat(np.arange(24), 5))
        for kind in ("svm", "knn", "prototypes"):
            one, other = (create_head(kind, **QUICK[kind]).fit(rows).scores(vectors) for rows in (plain, own))
            np.testing.assert_array_equal(one, other)


class TestScoring:
    def test_figures_equal_scikit_learns_on_the_known_windows(self, field, head, tmp_path):
        from sklearn.metrics import average_precision_score, roc_auc_score

        path, table, boxes = field
        report = scored(head, path, table, tmp_path)
        store, fitted = Store(path), load_head(head)
        scores = fitted.scores(store.reader(["logmel_stats"]).read(np.arange(store.n_rows)))
        heard = np.array([r in fitted.heard_.trained_on for r in store.rows.recording])
        aps = []
        for row in report["per_class"]:
            states = truth_by_hand(store, boxes, row["label"])
            known = (states >= 0) & ~heard
            mine = scores[known, fitted.labels_.index(row["label"])]
            aps.append(average_precision_score(states[known], mine))
            assert row["ap"]["value"] == pytest.approx(aps[-1], abs=1e-9)
            assert row["auroc"]["value"] == pytest.approx(roc_auc_score(states[known], mine), abs=1e-9)
            assert (row["windows_known"], row["windows_with"]) == (known.sum(), (states[known] == 1).sum())
            assert row["calls"] == 4
            assert row["ap"]["low"] <= row["ap"]["value"] <= row["ap"]["high"]
        assert report["overall"]["ap"]["value"] == pytest.approx(np.mean(aps))
        assert report["overall"]["ap"]["value"] > 0.8
        assert report["n_recordings"] == 4
        assert report["left_out"]["heard"] == 4

    def test_calls_found_and_false_alarms_follow_the_threshold(self, field, head, tmp_path):
        store, table, _ = field
        low = scored(head, store, table, tmp_path, "--threshold", "0.000001")
        assert low["overall"]["recall"]["value"] == 1
        assert low["overall"]["false_alarms_per_hour"]["value"] > 0
        high = scored(head, store, table, tmp_path, "--threshold", "0.999999")
        assert high["overall"]["recall"]["value"] < 0.5
        assert high["overall"]["false_alarms_per_hour"]["value"] == 0
        assert sum(row["calls"] for row in high["per_file"]) == high["overall"]["recall"]["n"] == 8
        assert high["hours"] == pytest.approx(4 * LENGTH_S / 3600, rel=0.3)

    def test_a_pattern_chooses_files_and_heard_ones_are_forced_in_only_when_asked(self, field, head, tmp_path, capsys):
        store, table, _ = field
        one = scored(head, store, table, tmp_path, "--only", "site1_[45]*")
        assert [row["file"] for row in one["per_file"]] == ["site1_4.wav", "site1_5.wav"]
        with pytest.raises(InputError, match="--include-seen"):
            scored(head, store, table, tmp_path, "--only", "site0_*")
        capsys.readouterr()
        seen = scored(head, store, table, tmp_path, "--include-seen")
        assert seen["n_seen"] == 4
        assert "4 of 8 recordings were heard in training" in capsys.readouterr().out
        with pytest.raises(InputError, match="fits no recording"):
            scored(head, store, table, tmp_path, "--only", "site7*")

    def test_a_masked_cell_changes_nothing(self, field, head):
        """Whatever the head says of a window whose truth is unknown, no figure moves."""
        path, table, _ = field
        store, fitted = Store(path), load_head(head)
        annotations = read_annotations(table)
        windows = annotated_windows(store, np.arange(store.n_rows), annotations, species=["low"])
        reader = store.reader(["logmel_stats"])
        states = windows.truth(fitted.labels_).states
        assert (states < 0).any()
        unknown = set(windows.rows[(states < 0).any(axis=1)].tolist())

        class Contrary:
            labels_, names_, tuning_, heard_ = fitted.labels_, fitted.names_, None, Heard()
            calibrated_on_ = ""

            def __init__(self, contrary: bool) -> None:
                self.contrary, self.done = contrary, 0

            def scores(self, X):
                scores = fitted.scores(X)
                numbers = windows.rows[asked][self.done : self.done + len(X)]
                self.done += len(X)
                if self.contrary:
                    here = states[asked][self.done - len(X) : self.done] < 0
                    scores = np.where(here, 0.99, scores)
                    assert here[np.isin(numbers, list(unknown))].any(axis=1).all()
                return scores

        asked = (states >= 0).any(axis=1)
        plain, contrary = (
            evaluate_windows(Contrary(flag), reader, windows, n_bootstrap=20).to_json() for flag in (False, True)
        )
        assert plain == contrary
        assert plain["overall"]["ap"]["value"] is not None

    def test_unknown_labels_are_listed_and_all_unknown_is_refused(self, field, head, tmp_path):
        store, table, _ = field
        other = tmp_path / "other.csv"
        other.write_text(table.read_text() + "site1_4.wav,1,2,owl\nsite1_5.wav,1,2,owl\nelsewhere.wav,1,2,low\n")
        report = scored(head, store, other, tmp_path)
        assert report["outside_labels"] == {"owl": 2}
        assert report["annotations_unmatched"] == [f"elsewhere.wav ({other})"]
        other.write_text("filename,start_s,end_s,label\nsite1_4.wav,1,2,owl\n")
        with pytest.raises(InputError, match=r"none of the boxes' labels \(owl\)"):
            scored(head, store, other, tmp_path)

    def test_raven_and_audacity_files_of_the_same_boxes_give_the_same_figures(self, field, head, tmp_path):
        store, table, boxes = field
        as_csv = scored(head, store, table, tmp_path)["overall"]
        folder = tmp_path / "txt"
        folder.mkdir()
        for i, (name, found) in enumerate(boxes.items()):
            rows = [f"{s:.6f}\t{e:.6f}\t{label}\n" for s, e, label in found]
            if i % 2:
                rows = ["Begin Time (s)\tEnd Time (s)\tAnnotation\n", *rows]
            (folder / name.replace(".wav", ".txt")).write_text("".join(rows))
        assert scored(head, store, folder, tmp_path)["overall"] == as_csv

    def test_a_species_that_was_boxed_but_not_looked_for_has_no_false_alarms(self, field, head, tmp_path):
        store, table, _ = field
        report = scored(head, store, table, tmp_path, "--annotated-species", "low", "--threshold", "0.01")
        high, low = report["per_class"]
        assert (high["windows_known"], high["calls"]) == (high["windows_with"], 4)
        assert high["ap"]["value"] is high["auroc"]["value"] is high["false_alarms_per_hour"]["value"] is None
        assert low["false_alarms_per_hour"]["value"] is not None
        assert report["n_ranked"] == 1

    def test_a_recording_without_annotations_is_left_out_and_counted(self, field, head, tmp_path):
        store, _, _ = field
        table = tmp_path / "two.csv"
        table.write_text("filename,start_s,end_s,label\nsite1_4.wav,1,2,low\nsite1_6.wav,,,none\n")
        report = scored(head, store, table, tmp_path)
        assert report["left_out"]["not_annotated"] == 6
        assert report["per_file"][1]["windows_with"] == 0

    def test_looked_for_species_may_bear_any_of_a_classs_names(self, field, head, tmp_path, capsys):
        store, table, _ = field
        named = load_head(head)
        named.names_ = {"low": ("Avis gravis", "Low Bird"), "high": ("Avis acuta", "High Bird")}
        named.save(tmp_path / "named")
        plain = scored(tmp_path / "named", store, table, tmp_path, "--annotated-species", "low,high")
        for names in ("Avis gravis,High Bird", "low bird,AVIS ACUTA"):
            report = scored(tmp_path / "named", store, table, tmp_path, "--annotated-species", names)
            assert report["overall"] == plain["overall"]
            assert report["annotated_species"] == names.split(",")
        with pytest.raises(InputError, match="no box is labelled Avis ignota"):
            scored(tmp_path / "named", store, table, tmp_path, "--annotated-species", "Avis ignota")

    def test_tables_that_contradict_each_other_are_named(self, field, head, tmp_path, capsys):
        store, _, _ = field
        for name, row in (("one", "site1_4.wav,,,none"), ("two", "site1_4.wav,1,2,low")):
            (tmp_path / "tables").mkdir(exist_ok=True)
            (tmp_path / "tables" / f"{name}.csv").write_text(f"filename,start_s,end_s,label\n{row}\n")
        report = scored(head, store, tmp_path / "tables", tmp_path)
        said = " ".join(capsys.readouterr().out.split())
        assert "Annotated more than once, not alike; all boxes and species count (1): site1_4.wav (" in said
        assert "one.csv) says that nothing is there, but site1_4.wav has a box at" in said
        assert "two.csv:2" in said
        assert report["overall"]["recall"]["n"] == 1


class TestWrongUse:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--annotated-species", "low"), "need --annotations"),
            (("--overlap-s", "1"), "need --annotations"),
        ],
    )
    def test_options_of_annotations_need_annotations(self, field, head, tmp_path, words, said):
        with pytest.raises(InputError, match=said):
            run(heads, "fit", field[0], "--out", tmp_path / "head", *words)
        with pytest.raises(InputError, match=said):
            run(heads, "score", head, field[0], *words)

    def test_species_without_a_box_and_boxes_beyond_the_end_are_refused(self, field, tmp_path):
        store, table, _ = field
        with pytest.raises(InputError, match="no box is labelled lwo"):
            run(heads, "fit", store, "--annotations", table, "--annotated-species", "lwo", "--out", tmp_path / "h")
        beyond = tmp_path / "beyond.csv"
        beyond.write_text(table.read_text() + "site1_4.wav,21,23,low\n")
        with pytest.raises(InputError, match=r"beyond\.csv:\d+: .*ends at 22 s"):
            run(heads, "fit", store, "--annotations", beyond, "--out", tmp_path / "h")
        assert not (tmp_path / "h").exists()

    def test_where_the_rest_of_a_recording_was_dropped_boxes_may_lie_in_it(self, field, tmp_path):
        store = Store(field[0])
        table = tmp_path / "rest.csv"
        table.write_text("filename,start_s,end_s,label\nsite1_4.wav,23,24,low\n")
        annotations = read_annotations(table)
        with pytest.raises(InputError, match="ends at 22 s"):
            annotated_windows(store, np.arange(store.n_rows), annotations)
        store.plan = WindowPlan(5.0, 7.0, "drop")
        windows = annotated_windows(store, np.arange(store.n_rows), annotations)
        assert [box.end_s for box in windows.files[0].boxes] == [24]
        assert not (windows.truth(["low"]).states == 1).any()

    def test_labels_of_recordings_and_annotations_exclude_each_other(self, field, head, tmp_path):
        store, table, _ = field
        with pytest.raises(InputError, match="leave out"):
            run(heads, "fit", store, "--annotations", table, "--windows", "loudest", "--out", tmp_path / "h")
        with pytest.raises(InputError, match="leave out"):
            run(heads, "score", head, store, "--annotations", table, "--pool", "max")
        with pytest.raises(InputError, match="leave out"):
            run(heads, "fit", store, "--annotations", table, "--shots", "1,2", "--out", tmp_path / "h")

    def test_a_head_of_windows_is_not_gone_on_with_by_recordings_labels(self, field):
        rows = field[0]
        store = Store(rows)
        with pytest.raises(InputError, match="annotated windows"):
            label_rows(store.reader(), [0], [0], [], blocks=store.reader().blocks, windows="annotated")

    def test_kinds_that_need_complete_windows_say_when_none_is_left(self, field, tmp_path):
        table = tmp_path / "boxes.csv"
        table.write_text(
            "filename,start_s,end_s,label,looked_for\nsite0_0.wav,1,2,low,low\nsite0_1.wav,1,2,high,high\n"
        )
        words = ("--annotations", table, "--out", tmp_path / "h")
        with pytest.raises(InputError, match="of which all 2 classes are known"):
            run(heads, "fit", field[0], "--head", "knn", *words)
        assert not (tmp_path / "h").exists()
        run(heads, "fit", field[0], *words, "--set", "min_updates=50")
        assert load_head(tmp_path / "h").labels_ == ("high", "low")

    def test_a_species_in_every_window_is_refused(self, field, tmp_path):
        table = tmp_path / "boxes.csv"
        table.write_text(f"filename,start_s,end_s,label\nsite0_0.wav,0,{LENGTH_S},low\n")
        with pytest.raises(InputError, match="no window without low"):
            run(heads, "fit", field[0], "--annotations", table, "--out", tmp_path / "h")


class TestLearningFromDifferentAnnotators:
    """One annotator looked for one species, another for the other: each teaches what she looked for."""

    @pytest.fixture(scope="class")
    def divided(self, field, tmp_path_factory) -> Path:
        """Boxes of `low` in even recordings, of `high` in odd ones, and who looked for what."""
        _, _, boxes = field
        rows = []
        for i, (name, found) in enumerate(boxes.items()):
            asked = ("low", "high")[i % 2]
            mine = [f"{name},{s:.6f},{e:.6f},{label},{asked}" for s, e, label in found if label == asked]
            rows += mine or [f"{name},,,none,{asked}"]
        table = tmp_path_factory.mktemp("divided") / "boxes.csv"
        table.write_text("\n".join(["filename,start_s,end_s,label,looked_for", *rows]) + "\n")
        return table

    def test_both_species_are_learnt(self, field, divided, tmp_path):
        store, table, _ = field
        out, facts = tmp_path / "svm", tmp_path / "facts.json"
        words = ("--only", "site0_*", "--out", out, "--set", "min_updates=300", "--json", facts)
        run(heads, "fit", store, "--annotations", divided, *words)
        said = json.loads(facts.read_text())
        assert said["windows_partial"] == said["n_windows"] > 50
        report = scored(out, store, table, tmp_path)
        assert [row["ap"]["value"] > 0.6 for row in report["per_class"]] == [True, True]


class TestNames:
    def test_a_heads_species_are_called_as_the_tables_call_them(self, field, tmp_path):
        store, table, _ = field
        rows = [line.split(",") for line in table.read_text().splitlines()]
        names = {"low": ",Low Piper,Pipa gravis", "high": ",,Pipa acuta", "none": ",,"}
        lines = [",".join(row) + names[row[3]] for row in rows[1:]]
        named = tmp_path / "named.csv"
        named.write_text("\n".join([",".join(rows[0]) + ",common_name,Scientific Name", *lines]) + "\n")
        words = ("--annotations", named, "--out", tmp_path / "head", "--set", "min_updates=50")
        run(heads, "fit", store, *words, "--only", "site0_*")
        assert load_head(tmp_path / "head").names_ == {"low": ("Pipa gravis", "Low Piper"), "high": ("Pipa acuta", "")}

    def test_what_a_table_does_not_say_the_catalogue_does(self, field, tmp_path):
        store, table, boxes = field
        labels = tmp_path / "labels.csv"
        rows = [f"{name},low,Pipa gravis,Low Piper" for name in boxes]
        labels.write_text("\n".join(["filename,primary_label,scientific_name,common_name", *rows]) + "\n")
        copy = tmp_path / "store"
        shutil.copytree(store, copy)
        run(embed, "relabel", copy, labels)
        named = tmp_path / "named.csv"
        lines = table.read_text().splitlines()
        named.write_text("\n".join([lines[0] + ",common_name", *(line + ",Tiefer Vogel" for line in lines[1:])]) + "\n")
        words = ("--annotations", named, "--annotated-species", "low", "--out", tmp_path / "head")
        run(heads, "fit", copy, *words, "--set", "min_updates=50")
        assert load_head(tmp_path / "head").names_ == {"low": ("Pipa gravis", "Tiefer Vogel")}


class TestTuning:
    def test_thresholds_are_chosen_on_boxes_and_used_in_scoring(self, field, head, tmp_path, capsys):
        store, table, _ = field
        tuned, facts = tmp_path / "tuned", tmp_path / "tune.json"
        words = ("--annotations", table, "--min-recordings", "1", "--folds", "3", "--out", tuned, "--json", facts)
        run(heads, "tune", head, store, *words)
        capsys.readouterr()
        there = load_head(tuned)
        assert there.tuning_.n_recordings == 4
        assert there.provenance["tuned"]["annotations"] == str(table.resolve())
        assert there.heard_ == load_head(head).heard_
        report = scored(tuned, store, table, tmp_path)
        thresholds = {row["label"]: row["threshold"] for row in report["per_class"]}
        assert thresholds == pytest.approx(dict(zip(there.labels_, there.tuning_.window.values, strict=True)))
        # A recording holds what any of its windows holds: three of the four hold each species.
        assert {row["recordings"] for row in json.loads(facts.read_text())["per_class"]} == {3}

    def test_unheard_recordings_are_taken_wherever_they_are_and_count_as_selected_on(self, field, head, tmp_path):
        store, table, _ = field
        tuned = tmp_path / "tuned"
        words = ("--annotations", table, "--split", "valid", "--only", "site1_[456]*", "--out", tuned)
        run(heads, "tune", head, store, *words, "--folds", "3")
        assert len(load_head(tuned).tuned_on_) == 3
        report = scored(tuned, store, table, tmp_path)
        assert [row["file"] for row in report["per_file"]] == ["site1_7.wav"]

    def test_a_class_that_nobody_looked_for_keeps_the_shared_numbers(self, field, head, tmp_path):
        store, table, _ = field
        words = ("--annotations", table, "--annotated-species", "low", "--split", "valid", "--min-recordings", "1")
        run(heads, "tune", head, store, *words, "--out", tmp_path / "tuned")
        tuning = load_head(tmp_path / "tuned").tuning_
        # Boxes of `high` say where it is, and nothing where it is not.
        assert tuning.window.own.tolist() == tuning.calibrator.own.tolist() == [False, True]
        assert tuning.window.values[0] == tuning.window.shared

    def test_where_every_file_holds_the_species_recordings_have_no_threshold(self, field, tmp_path):
        store, table, _ = field
        words = ("--annotations", table, "--only", "site0_[012]*")
        run(heads, "fit", store, *words, "--out", tmp_path / "head", "--set", "min_updates=300")
        facts = tmp_path / "t.json"
        run(heads, "tune", tmp_path / "head", store, "--annotations", table, "--min-recordings", "1", "--json", facts)
        tuning = load_head(tmp_path / "head").tuning_
        assert tuning.recording.own.tolist() == [False, False]
        assert tuning.recording.values.tolist() == [0.5, 0.5]
        agreement = json.loads(facts.read_text())["agreement"]
        assert agreement["recording"]["after"]["precision"] is None
        assert agreement["window"]["after"]["precision"] is not None

    def test_what_cannot_be_tuned_so_is_refused(self, field, head, tmp_path):
        store, table, boxes = field
        with pytest.raises(InputError, match="give boxes with --annotations"):
            run(heads, "tune", head, store)
        with pytest.raises(InputError, match="leave out"):
            run(heads, "tune", head, store, "--annotations", table, "--labels", table)
        with pytest.raises(InputError, match="need --annotations"):
            run(heads, "tune", head, store, "--overlap-s", "1")
        with pytest.raises(InputError, match="none that fits --only site9"):
            run(heads, "tune", head, store, "--annotations", table, "--only", "site9*")
        labels, weak = tmp_path / "labels.csv", tmp_path / "weak"
        rows = [f"{name},{('low', 'high')[i % 2]}" for i, name in enumerate(boxes)]
        labels.write_text("\n".join(["filename,primary_label", *rows]) + "\n")
        words = ("--labels", labels, "--only", "site0_*", "--split", "all", "--set", "min_updates=50", "--out", weak)
        run(heads, "fit", store, *words)
        with pytest.raises(InputError, match="--split valid"):
            run(heads, "tune", weak, store, "--annotations", table)
        run(heads, "tune", weak, store, "--annotations", table, "--split", "valid")
        assert len(load_head(weak).tuned_on_) == 4


class TestUpdating:
    def test_a_head_goes_on_with_the_boxes_of_another_site(self, field, head, tmp_path, capsys):
        store, table, _ = field
        out, facts = tmp_path / "more", tmp_path / "more.json"
        words = ("--annotations", table, "--only", "site1_[45]*", "--out", out, "--json", facts)
        run(heads, "update", head, store, *words, "--dry-run")
        assert "Would learn 2 recordings" in capsys.readouterr().out
        assert not out.exists()
        run(heads, "update", head, store, *words)
        before, after, said = load_head(head), load_head(out), json.loads(facts.read_text())
        assert len(after.heard_.trained_on - before.heard_.trained_on) == said["n_recordings"] == 2
        assert not np.array_equal(after.coef_, before.coef_)
        report = scored(out, store, table, tmp_path)
        assert [row["file"] for row in report["per_file"]] == ["site1_6.wav", "site1_7.wav"]
        assert load_head(out).provenance["updates"][0]["annotations"] == str(table.resolve())
        with pytest.raises(InputError, match="heard all 2"):
            run(heads, "update", out, store, *words)
        part = tmp_path / "part.csv"
        part.write_text(
            "".join(line + "\n" for line in table.read_text().splitlines() if "site1_4" in line or "label" in line)
        )
        with pytest.raises(InputError, match="that the head has not heard is annotated"):
            run(heads, "update", out, store, "--annotations", part)

    def test_a_species_that_is_boxed_for_the_first_time_becomes_a_class(self, field, tmp_path):
        store, table, _ = field
        first, out = tmp_path / "low", tmp_path / "both"
        words = ("--annotations", table, "--annotated-species", "low", "--only", "site0_*", "--out", first)
        run(heads, "fit", store, *words, "--set", "min_updates=300")
        words = ("--annotations", table, "--annotated-species", "low,high", "--only", "site1_*", "--out", out)
        run(heads, "update", first, store, *words, "--json", tmp_path / "u.json")
        assert load_head(out).labels_ == ("low", "high")
        assert json.loads((tmp_path / "u.json").read_text())["new_classes"] == ["high"]

    def test_a_boxed_species_that_nobody_is_said_to_have_looked_for_is_named(self, field, tmp_path, capsys):
        store, table, _ = field
        words = ("--annotations", table, "--annotated-species", "low", "--only", "site0_*", "--out", tmp_path / "low")
        run(heads, "fit", store, *words, "--set", "min_updates=50")
        capsys.readouterr()
        run(heads, "update", tmp_path / "low", store, "--annotations", table, "--only", "site1_*")
        assert "so no classes: high" in " ".join(capsys.readouterr().out.split())
        assert load_head(tmp_path / "low").labels_ == ("low",)

    @pytest.mark.parametrize("kind", ["prototypes", "knn"])
    def test_heads_that_keep_sums_or_windows_end_where_a_fit_on_everything_would(self, field, kind, tmp_path):
        store, table, _ = field
        for name, only in (("first", "site0_*"), ("anew", "*")):
            words = ("--annotations", table, "--only", only, "--head", kind, "--out", tmp_path / name)
            run(heads, "fit", store, *words)
        run(heads, "update", tmp_path / "first", store, "--annotations", table)
        vectors = Store(store).reader(["logmel_stats"]).read(np.arange(40))
        updated, anew = (load_head(tmp_path / name).decision(vectors) for name in ("first", "anew"))
        if kind == "prototypes":
            np.testing.assert_allclose(updated, anew, atol=1e-9)
        else:  # the centre is that of the first windows
            assert np.corrcoef(updated.ravel(), anew.ravel())[0, 1] > 0.95

    def test_windows_that_a_kind_cannot_learn_are_counted(self, field, tmp_path, capsys):
        store, table, _ = field
        words = ("--annotations", table, "--only", "site0_*", "--head", "knn", "--out", tmp_path / "knn")
        run(heads, "fit", store, *words, "--json", tmp_path / "f.json")
        assert json.loads((tmp_path / "f.json").read_text())["windows_left_out"] > 0
        capsys.readouterr()
        run(heads, "update", tmp_path / "knn", store, "--annotations", table, "--json", tmp_path / "u.json")
        assert "windows are left out: a knn head learns" in " ".join(capsys.readouterr().out.split())
        assert json.loads((tmp_path / "u.json").read_text())["windows_left_out"] > 0

    def test_wrong_use_is_refused(self, field, head, tmp_path):
        store, table, _ = field
        labels = tmp_path / "labels.csv"
        labels.write_text("filename,primary_label\nsite1_4.wav,low\n")
        with pytest.raises(InputError, match="give boxes with --annotations"):
            run(heads, "update", head, store, "--labels", labels)
        with pytest.raises(InputError, match="give one of them"):
            run(heads, "update", head, store, "--annotations", table, "--labels", table)
        with pytest.raises(InputError, match="--stream bring"):
            run(heads, "update", head, "--stream", "--annotations", table)
        with pytest.raises(InputError, match="need --annotations"):
            run(heads, "update", head, "--stream", "--overlap-s", "1")


def test_a_pattern_chooses_recordings_with_labels_too(field, tmp_path):
    store, _, boxes = field
    table, out = tmp_path / "labels.csv", tmp_path / "head"
    rows = [f"{name},{('low', 'high')[i % 2]}" for i, name in enumerate(boxes)]
    table.write_text("\n".join(["filename,primary_label", *rows]) + "\n")
    words = ("--labels", table, "--only", "site0_*")
    run(heads, "fit", store, *words, "--split", "all", "--out", out, "--set", "min_updates=50")
    assert len(load_head(out).heard_.trained_on) == 4
    run(heads, "score", out, store, "--labels", table, "--only", "site1_[4567]*", "--json", tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["recording"]["auroc"]["n"] == 4


def test_boxes_beyond_the_last_window_are_right_where_the_end_could_not_be_embedded(head, tmp_path):
    (tmp_path / "audio").mkdir()
    samples = 0.02 * np.random.default_rng(1).normal(size=(2, 15 * RATE_HZ)).astype(np.float32)
    samples[0, 13 * RATE_HZ] = np.nan
    soundfile.write(tmp_path / "audio" / "torn.wav", samples[0], RATE_HZ, subtype="FLOAT")
    soundfile.write(tmp_path / "audio" / "short.wav", samples[1, : 10 * RATE_HZ], RATE_HZ)
    store, boxes = tmp_path / "store", tmp_path / "boxes.csv"
    words = ("--backbone", "logmel_stats", "--workers", "1", "--out", store)
    run(embed, "extract", tmp_path / "audio", *words)
    label = next(iter(PITCH_HZ))
    rows = [f"torn.wav,{start},{start + 1},{label}" for start in (2, 9.5, 11)]
    boxes.write_text("\n".join(["filename,start_s,end_s,label", *rows]) + "\n")
    assert scored(head, store, boxes, tmp_path)["n_windows"] == 2
    boxes.write_text("\n".join(["filename,start_s,end_s,label", *rows, f"short.wav,11,12,{label}"]) + "\n")
    with pytest.raises(InputError, match="1 boxes lie beyond") as refused:
        scored(head, store, boxes, tmp_path)
    assert "short.wav ends at 10 s" in str(refused.value)


def test_boxes_of_real_soundscapes_train_a_head_for_other_recorders(shared_data, tmp_path):
    store, table = tmp_path / "store", shared_data / "soundscapes" / "annotations.csv"
    words = ("--backbone", "logmel_stats", "--hop-s", "1", "--out", store)
    run(embed, "extract", shared_data / "soundscapes" / "audio", *words)
    species = ("--annotations", table, "--annotated-species", "gcrwar")
    out = tmp_path / "svm"
    run(heads, "fit", store, *species, "--only", "W54431*", "--out", out, "--set", "min_updates=300")
    report = tmp_path / "s.json"
    run(heads, "score", out, store, *species, "--only", "W5444[38]*", "--json", report)
    said = json.loads(report.read_text())
    assert (said["n_recordings"], said["overall"]["recall"]["n"]) == (7, 36)  # 37 boxes, of which two overlap
    assert said["n_windows"] == 370
    assert said["overall"]["auroc"]["value"] > 0.6
    assert {row["file"]: row["calls"] for row in said["per_file"]}["W54448S25623_20191102_064000.wav"] == 0
