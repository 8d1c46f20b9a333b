"""Annotations of long recordings: how files are read, how boxes become the truth of windows, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embeddings.annotations import match_annotations, read_annotations, renamed, require_one_spelling
from embeddings.errors import InputError
from embeddings.recordings import Recording
from embeddings.windows import WindowPlan
from stage2_heads.window_counts import count_class
from stage2_heads.window_labels import OverlapRule, boxes_within, united, window_states

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies\n"
CSV = "filename,start_s,end_s,label\n"


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def read(tmp_path, name, text, **options):
    return read_annotations(written(tmp_path / name, text), **options)


def spans(file):
    return [(box.start_s, box.end_s, box.label) for box in file.boxes]


def catalogue(*names):
    return [Recording(recording=f"hash of {name}", path=Path("/audio") / name, filename=name) for name in names]


class TestReading:
    def test_a_raven_table_is_named_after_its_recording_and_its_two_views_are_one_box(self, tmp_path):
        rows = "1\tWaveform 1\t1\t1.5\t2.0\t100\t900\twren\n1\tSpectrogram 1\t1\t1.5\t2.0\t100\t900\twren\n"
        rows += '2\tSpectrogram 1\t1\t3\t4\t100\t900\tblack"cap\n'
        found = read(tmp_path, "A7.Table.1.selections.txt", RAVEN + rows)
        assert [f.name for f in found.files] == ["A7"]
        assert spans(found.files[0]) == [(1.5, 2.0, "wren"), (3, 4, 'black"cap')]
        assert found.files[0].boxes[0].high_hz == 900
        assert found.n_views == 1

    @pytest.mark.parametrize("title", ["Species", "Annotation", "Label", "Common Name", "Species Code"])
    def test_the_usual_label_columns_are_found(self, tmp_path, title):
        text = RAVEN.replace("Species", title) + "1\tSpectrogram 1\t1\t0\t1\t1\t2\trobin\n"
        assert read(tmp_path, "a.txt", text).counts == {"robin": 1}

    def test_another_label_column_is_taken_when_it_is_named(self, tmp_path):
        text = "Begin Time (s)\tEnd Time (s)\tSpecies\tMy Code\n0\t1\tTurdus merula\tblkbrd\n"
        assert read(tmp_path, "a.txt", text, label_column="my code").counts == {"blkbrd": 1}
        with pytest.raises(InputError, match=r"'Code'.*'My Code'"):
            read(tmp_path, "a.txt", text, label_column="Code")

    def test_a_raven_table_over_several_files_counts_from_each_files_beginning(self, tmp_path):
        text = (
            "Begin Time (s)\tEnd Time (s)\tBegin Path\tFile Offset (s)\tSpecies\n"
            "61\t63.5\tC:\\rec\\one.wav\t1\twren\n5\t6\tC:\\rec\\two.wav\t5\trobin\n"
        )
        found = read(tmp_path, "all.txt", text)
        assert {f.name: spans(f) for f in found.files} == {
            "C:/rec/one.wav": [(1, 3.5, "wren")],
            "C:/rec/two.wav": [(5, 6, "robin")],
        }
        with pytest.raises(InputError, match="File Offset"):
            read(tmp_path, "all.txt", text.replace("File Offset (s)", "Offset"))

    def test_an_audacity_label_track_may_hold_frequencies(self, tmp_path):
        found = read(tmp_path, "A7.txt", "0.5\t1.25\twren\n\\\t2000.0\t5000.0\n2\t3\tgreat tit\n")
        assert spans(found.files[0]) == [(0.5, 1.25, "wren"), (2, 3, "great tit")]

    @pytest.mark.parametrize(
        "text",
        [
            "filename,start_s,end_s,label,low_hz,high_hz,confidence,complete\nA.wav,1,2,wren,100,200,certain,complete\n",
            "Filename;Start Time (s);End Time (s);Species eBird Code\nA.wav;1;2;wren\n",
            "\ufefffile\tstart\tend\tspecies\nA.wav\t1\t2\twren\n",
        ],
    )
    def test_csv_tables_of_several_spellings(self, tmp_path, text):
        found = read(tmp_path, "boxes.csv", text)
        assert [(f.name, spans(f)) for f in found.files] == [("A.wav", [(1, 2, "wren")])]

    @pytest.mark.parametrize(("name", "text"), [("A.txt", ""), ("A.txt", " \n"), ("A.selections.txt", RAVEN)])
    def test_an_empty_file_says_that_nothing_is_there(self, tmp_path, name, text):
        found = read(tmp_path, name, text)
        assert [(f.name, f.boxes) for f in found.files] == [("A", ())]

    @pytest.mark.parametrize("label", ["none", "", "NoCall", "noise"])
    def test_a_csv_row_without_times_says_that_nothing_is_there(self, tmp_path, label):
        found = read(tmp_path, "a.csv", f"{CSV}A.wav,,,{label}\nB.wav,1,2,wren\n")
        assert {f.name: len(f.boxes) for f in found.files} == {"A.wav": 0, "B.wav": 1}

    def test_a_timed_row_of_no_call_is_no_box(self, tmp_path):
        found = read(tmp_path, "a.csv", f"{CSV}A.wav,1,2,noise\nA.wav,3,4,wren\n")
        assert (found.counts, found.n_nothing) == ({"wren": 1}, 1)

    def test_a_table_may_say_which_species_were_looked_for(self, tmp_path):
        text = (
            "filename,start_s,end_s,label,looked_for\nA.wav,1,2,wren,wren; robin\nB.wav,,,none,all\nC.wav,1,2,wren,\n"
        )
        found = {f.name: f for f in read(tmp_path, "a.csv", text).files}
        assert found["A.wav"].looked_for == {"wren", "robin"}
        assert (found["B.wav"].looked_for, found["B.wav"].says_looked_for) == (None, True)
        assert not found["C.wav"].says_looked_for

    def test_a_folder_is_read_whole_and_several_tables_of_one_recording_are_united(self, tmp_path):
        written(tmp_path / "site" / "A.Table.1.selections.txt", RAVEN + "1\tS\t1\t0\t1\t1\t2\twren\n")
        written(tmp_path / "site" / "A.Table.2.selections.txt", RAVEN + "1\tS\t1\t5\t6\t1\t2\trobin\n")
        written(tmp_path / "B.txt", "0\t1\twren\n")
        written(tmp_path / "README.txt", "Boxes by hand.\n")
        written(tmp_path / "notes.md", "nothing to read")
        found = read_annotations(tmp_path)
        assert {f.name: len(f.boxes) for f in found.files} == {"B": 1, "site/A": 2}
        assert len(found.problems) == 1
        assert "README.txt" in found.problems[0]

    def test_utf_16_as_some_programs_export_it_is_read(self, tmp_path):
        path = written(tmp_path / "A.txt", "0\t1\tgrünfink\n", encoding="utf-16")
        assert read_annotations(path).counts == {"grünfink": 1}


class TestBadInput:
    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ("A.wav,2,1,wren", "after its end"),
            ("A.wav,1,1,wren", "a point"),
            ("A.wav,-1,1,wren", "before the recording"),
            ("A.wav,one,2,wren", "'one', not a number"),
            ("A.wav,nan,2,wren", "not a number"),
            ("A.wav,1,inf,wren", "not a number"),
            ('A.wav,"1,5",2,wren', "with a point"),
            ("A.wav,1,,wren", "not a number"),
            ("A.wav,,,wren", "not a number"),
            ("A.wav,1,2,", "no label"),
            (",1,2,wren", "names no file"),
            ("A.wav,1", "2 cells"),
        ],
    )
    def test_rows_that_cannot_be_meant_are_refused_by_file_and_line(self, tmp_path, row, words):
        with pytest.raises(InputError, match=rf"a\.csv:3: .*{words}"):
            read(tmp_path, "a.csv", f"{CSV}B.wav,1,2,wren\n{row}\n")

    def test_all_bad_rows_of_all_files_are_told_at_once(self, tmp_path):
        written(tmp_path / "a.csv", f"{CSV}A.wav,2,1,wren\nA.wav,x,1,wren\n")
        written(tmp_path / "B.txt", "3\t1\trobin\n")
        with pytest.raises(InputError, match=r"(?s)3 rows.*B\.txt:1.*a\.csv:2.*a\.csv:3"):
            read_annotations(tmp_path)

    def test_a_recording_is_not_both_empty_and_full(self, tmp_path):
        with pytest.raises(InputError, match="marked as empty"):
            read(tmp_path, "a.csv", f"{CSV}A.wav,,,none\nA.wav,1,2,wren\n")

    def test_a_table_without_the_columns_says_which_there_are(self, tmp_path):
        with pytest.raises(InputError, match=r"lacks end_s .*label .*'start_s', 'bird'"):
            read(tmp_path, "a.csv", "filename,start_s,bird\n")

    def test_what_is_no_text_is_told(self, tmp_path):
        with pytest.raises(InputError, match="not UTF-8"):
            read_annotations(written(tmp_path / "A.txt", "0\t1\tgrünfink\n", encoding="latin-1"))
        with pytest.raises(InputError, match="zero bytes"):
            read(tmp_path, "b.txt", "0\t1\twr\0en\n")

    def test_a_folder_without_annotations_and_a_path_to_nothing_are_told(self, tmp_path):
        with pytest.raises(InputError, match="no annotations in"):
            read_annotations(tmp_path)
        with pytest.raises(InputError, match="does not exist"):
            read_annotations(tmp_path / "nowhere")

    def test_boxes_beyond_the_end_are_cut_by_little_and_refused_by_much(self, tmp_path):
        file = read(tmp_path, "a.csv", f"{CSV}A.wav,8,10.4,wren\nA.wav,9,11,wren\nA.wav,10.1,10.2,wren\n").files[0]
        kept, bad = boxes_within(file, 10.0, 0.5, cut=True)
        assert spans(kept) == [(8, 10, "wren")]
        assert [row.split(": ")[0][-2:] for row in bad] == [":3", ":4"]
        kept, bad = boxes_within(file, 10.0, 5.5, cut=False)
        assert len(kept.boxes) == 3


class TestMatching:
    def matched(self, tmp_path, annotated, stored):
        rows = "".join(f"{name},1,2,{place}\n" for place, name in enumerate(annotated))
        found = match_annotations(read(tmp_path, "a.csv", CSV + rows), catalogue(*stored))
        return {stored[place]: [box.label for box in file.boxes] for place, file in found.by_place.items()}, found

    def test_names_match_with_and_without_folder_and_suffix(self, tmp_path):
        by_name, found = self.matched(
            tmp_path, ["A", "B.wav", "site/C.flac", "D.wav"], ["A.mp3", "x/B.wav", "site/C.flac"]
        )
        assert by_name == {"A.mp3": ["0"], "x/B.wav": ["1"], "site/C.flac": ["2"]}
        assert [name.split(" ")[0] for name in found.unmatched] == ["D.wav"]

    def test_folders_tell_recordings_of_one_name_apart(self, tmp_path):
        by_name, _ = self.matched(tmp_path, ["s1/A.wav", "s2/A.wav"], ["s1/A.wav", "s2/A.wav"])
        assert by_name == {"s1/A.wav": ["0"], "s2/A.wav": ["1"]}
        by_name, found = self.matched(tmp_path, ["s1/A.wav", "s2/A.wav"], ["s1/A.wav"])
        assert by_name == {"s1/A.wav": ["0"]}
        assert len(found.unmatched) == 1

    def test_a_name_that_fits_two_recordings_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="fits 2 recordings"):
            self.matched(tmp_path, ["A.wav"], ["s1/A.wav", "s2/A.wav"])
        with pytest.raises(InputError, match="2 annotations fit"):
            self.matched(tmp_path, ["s1/A.wav", "s2/A.wav"], ["s3/A.wav"])

    def test_folders_of_other_names_are_told(self, tmp_path):
        by_name, found = self.matched(tmp_path, ["tables/A.wav"], ["s1/A.wav"])
        assert by_name == {"s1/A.wav": ["0"]}
        assert len(found.by_name_alone) == 1

    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            ("A.wav,,,none,\nB.wav,1,2,wren,\n", r"A\.wav \(.*a\.csv\) says that nothing is there, but B"),
            ("B.wav,1,2,wren,\nA.wav,,,none,wren;tit\n", r"A\.wav .* nothing is there, but B\.wav has a box at .*:2"),
            ("A.wav,1,2,wren,wren\nB.wav,1,2,wren,wren;tit\n", "looked for wren, B.*looked for tit, wren"),
            ("A.wav,1,2,wren,all\nB.wav,1,2,wren,wren\n", "looked for everything, B.*looked for wren"),
            ("A.wav,1,2,wren,\nB.wav,1,2,wren,wren\n", "does not say what was looked for, B.* wren"),
            ("A.wav,1,2,wren,\nB.wav,5,6,tit,\n", "^$"),
            ("A.wav,,,none,\nB.wav,,,none,\n", "^$"),
        ],
        ids=str,
    )
    def test_annotations_of_one_content_under_two_names_are_united_and_what_they_contradict_is_told(
        self, tmp_path, rows, said
    ):
        found = read(tmp_path, "a.csv", CSV.replace("label", "label,looked_for") + rows)
        (one,) = catalogue("A.wav")
        matched = match_annotations(found, [replace(one, other_paths=(Path("/audio/B.wav"),))])
        assert re.search(said, matched.by_place[0].unlike)
        assert len(matched.by_place[0].boxes) == rows.count(",1,2,") + rows.count(",5,6,")

    def test_two_tables_of_one_name_that_contradict_each_other_are_told_too(self, tmp_path):
        written(tmp_path / "A.Table.1.selections.txt", RAVEN)
        written(tmp_path / "A.Table.2.selections.txt", RAVEN + "1\tS\t1\t5\t6\t1\t2\trobin\n")
        (file,) = read_annotations(tmp_path).files
        assert "A.Table.1.selections.txt) says that nothing is there, but A has a box at" in file.unlike

    def test_species_names_stand_for_a_heads_labels(self, tmp_path):
        rows = "A.wav,1,2,Turdus Merula\nA.wav,1,2,blackbird\nA.wav,1,2,tit\nA.wav,1,2,eurbla\n"
        names = {"eurbla": ("Turdus merula", "Blackbird"), "x": ("Parus", "Tit"), "y": ("Poecile", "Tit")}
        assert renamed(read(tmp_path, "a.csv", CSV + rows), names).counts == {"eurbla": 3, "tit": 1}


TICKS = 16  # a second; all times are whole ticks, so the oracle counts in whole numbers
boxes_strategy = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 120)), max_size=8)


def brute_force(starts, ends, boxes, overlap, share_in_quarters):
    """Every tick of time for itself: runs of boxed ticks are calls, windows hold so many ticks of each."""
    boxed = np.zeros(600 + 1, dtype=bool)
    for start, length in boxes:
        boxed[start : start + length] = True
    calls, run = [], []
    for tick in range(601):
        if boxed[tick]:
            run.append(tick)
        elif run:
            calls.append(run)
            run = []
    states = []
    for start, end in zip(starts, ends, strict=True):
        held = [sum(start <= tick < end for tick in call) for call in calls]
        enough = [h >= overlap or 4 * h >= share_in_quarters * len(c) for h, c in zip(held, calls, strict=True)]
        states.append(1 if any(enough) else -1 if any(held) else 0)
    return states, len(calls)


@given(
    boxes=boxes_strategy,
    duration=st.integers(20, 560),
    hop=st.integers(3, 100),
    overlap=st.integers(1, 40),
    share=st.integers(1, 4),
    last=st.sampled_from(["shift", "pad", "drop"]),
)
@example(boxes=[(75, 10), (85, 5)], duration=160, hop=80, overlap=4, share=2, last="shift")  # touch: one call
@example(boxes=[(76, 8)], duration=160, hop=80, overlap=40, share=2, last="shift")  # half on either side
@settings(max_examples=150, deadline=None)
def test_window_labels_equal_the_counting_of_ticks(boxes, duration, hop, overlap, share, last):
    windows = WindowPlan(5.0, hop / TICKS, last).spans(duration / TICKS)
    starts, ends = np.array([w.start_s for w in windows]), np.array([w.end_s for w in windows])
    given_spans = np.array([(s / TICKS, (s + n) / TICKS) for s, n in boxes]).reshape(-1, 2)
    states = window_states(starts, ends, given_spans, OverlapRule(overlap / TICKS, share / 4))
    expected, n_calls = brute_force(starts * TICKS, ends * TICKS, boxes, overlap, share)
    assert states.tolist() == expected
    assert len(united(given_spans)) == n_calls
    unsure = window_states(starts, ends, given_spans, OverlapRule(overlap / TICKS, share / 4), looked_for=False)
    assert unsure.tolist() == [state or -1 for state in expected]


def test_a_share_of_half_or_less_loses_no_call_between_windows_end_to_end():
    starts = np.arange(0, 60, 5.0)
    for offset in np.linspace(0, 5, 41):
        call = np.array([[20 + offset, 20.3 + offset]])
        assert (window_states(starts, starts + 5, call, OverlapRule(0.25, 0.5)) == 1).any()


@pytest.mark.parametrize(
    "settings_", [{"overlap_s": 0}, {"overlap_s": float("nan")}, {"overlap_share": 0}, {"overlap_share": 1.1}]
)
def test_rules_without_sense_are_refused(settings_):
    with pytest.raises(InputError, match="must be"):
        OverlapRule(**settings_)


@given(
    claims=st.lists(st.booleans(), min_size=1, max_size=60),
    boxes=boxes_strategy,
    hop=st.sampled_from([16, 40, 80, 120]),
)
@settings(max_examples=100, deadline=None)
def test_calls_found_false_alarms_and_hours_equal_counting_by_hand(claims, boxes, hop):
    starts = np.arange(len(claims)) * hop / TICKS
    ends = starts + 5
    calls = united(np.array([(s / TICKS, (s + n) / TICKS) for s, n in boxes]).reshape(-1, 2))
    rule = OverlapRule(0.25, 0.5)
    states, claimed = window_states(starts, ends, calls, rule), np.array(claims)
    zeros = np.zeros(len(starts), dtype=int)
    counts = count_class(states, claimed, np.stack([starts, ends], 1), zeros, 1, np.zeros(len(calls), int), calls, rule)

    found = reached = 0
    for start, end in calls:
        holding = [
            c
            for s, e, c in zip(starts, ends, claims, strict=True)
            if min(e, end) - max(s, start) >= min(0.25, 0.5 * (end - start))
        ]
        reached += bool(holding)
        found += any(holding)
    alarms, until = 0, -1.0
    for s, e, c, state in zip(starts, ends, claims, states, strict=True):
        if c and state == 0:
            alarms += s > until
            until = e
    heard = np.zeros(int((ends[-1] + 1) * TICKS), dtype=bool)
    for s, e, state in zip(starts, ends, states, strict=True):
        if state >= 0:
            heard[int(s * TICKS) : int(e * TICKS)] = True
    assert (counts.calls[0], counts.found[0], counts.unreached[0]) == (reached, found, len(calls) - reached)
    assert counts.alarms[0] == alarms
    assert counts.hours[0] * 3600 == pytest.approx(heard.sum() / TICKS if (states == 0).any() else 0)


class TestSpellings:
    def test_capitals_do_not_make_another_class_in_scoring(self, tmp_path):
        found = read(tmp_path, "a.csv", CSV + "x.wav,0,1,Wren1\nx.wav,2,3,winter wren\nx.wav,4,5,WREN2\n")
        names = {"wren1": ("Troglodytes hiemalis", "Winter Wren"), "wren2": ("", ""), "Wren2": ("", "")}
        assert renamed(found, names).counts == {"wren1": 2, "WREN2": 1}  # of two that differ in capitals, neither

    @pytest.mark.parametrize(
        "rows",
        [
            "x.wav,0,1,wren,\nx.wav,2,3,Wren,\n",
            "x.wav,0,1,wren1,Winter  Wren\nx.wav,2,3,winter wren,\n",
        ],
    )
    def test_one_species_under_two_labels_is_refused_in_fitting(self, tmp_path, rows):
        found = read(tmp_path, "a.csv", "filename,start_s,end_s,label,common_name\n" + rows)
        with pytest.raises(InputError, match=r"'wren1?' \(.*a\.csv:2\)") as error:
            require_one_spelling(found)
        assert "a.csv:3" in str(error.value)
        require_one_spelling(read(tmp_path, "b.csv", CSV + "x.wav,0,1,wren\nx.wav,2,3,robin\n"))

    def test_an_open_quotation_mark_does_not_swallow_the_rest(self, tmp_path):
        with pytest.raises(InputError, match="line break; is a quotation mark left open"):
            read(tmp_path, "a.csv", CSV + 'x.wav,0,1,"wren\nx.wav,2,3,robin\nx.wav,4,5,robin\n')

    def test_species_that_were_looked_for_may_be_divided_by_commas(self, tmp_path):
        header = "filename,start_s,end_s,label,looked_for\n"
        found = read(tmp_path, "a.csv", header + 'x.wav,0,1,wren,"wren, robin;owl"\n')
        assert found.files[0].looked_for == {"wren", "robin", "owl"}
