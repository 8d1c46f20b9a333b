"""Splits keep relatives together and every label on both sides."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embeddings.errors import InputError
from embeddings.recordings import Recording
from embeddings.splits import Split, inner_slice, join_splits, k_fold_split, make_split


def recording(i: int, label: str = "a", **more: str) -> Recording:
    return Recording(hashlib.sha256(str(i).encode()).hexdigest()[:32], Path(f"{i}.wav"), primary_label=label, **more)


catalogues = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "s1", "s2", "s3"]), st.sampled_from(["", "7", "8"])),
    max_size=40,
).map(lambda rows: [recording(i, label, source=s, xeno_canto_id=x) for i, (label, s, x) in enumerate(rows)])


@given(catalogues, st.integers(0, 5))
def test_recordings_of_one_source_or_xeno_canto_id_stay_together(recordings, seed):
    sides = make_split(recordings, seed=seed).assignments
    for key in ("source", "xeno_canto_id"):
        for value in {getattr(r, key) for r in recordings} - {""}:
            assert len({sides[r.recording] for r in recordings if getattr(r, key) == value}) == 1


@given(catalogues, st.randoms())
def test_the_split_does_not_depend_on_the_order_of_the_table(recordings, random):
    before = make_split(recordings).assignments
    shuffled = list(recordings)
    random.shuffle(shuffled)
    assert make_split(shuffled).assignments == before


@pytest.mark.parametrize(("n", "n_valid"), [(2, 1), (5, 1), (10, 2), (100, 20)])
def test_a_fifth_of_each_label_validates_and_at_least_one(n, n_valid):
    sides = make_split([recording(i) for i in range(n)]).assignments
    assert list(sides.values()).count("valid") == n_valid


def test_a_label_with_one_recording_goes_into_both_sides():
    lonely = recording(1, "rare")
    assert make_split([lonely, *(recording(i) for i in range(2, 12))]).assignments[lonely.recording] == "both"


def test_a_published_fold_validates_and_an_unknown_one_is_refused():
    recordings = [recording(i, fold=str(i % 5 + 1)) for i in range(20)]
    sides = make_split(recordings, valid_fold="5").assignments
    assert {r.fold for r in recordings if sides[r.recording] == "valid"} == {"5"}
    with pytest.raises(InputError, match="1, 2, 3, 4, 5"):
        make_split(recordings, valid_fold="6")


def test_unlabelled_recordings_belong_to_no_side():
    assert make_split([recording(1, "")]).assignments == {}


def test_the_inner_slice_is_cut_from_training_and_leaves_lonely_labels_to_the_fit():
    recordings = [recording(0, "rare"), *(recording(i) for i in range(1, 21))]
    fit, select = inner_slice(recordings)
    assert recordings[0] in fit
    assert len(select) == 3
    assert not {r.recording for r in fit} & {r.recording for r in select}


def test_backbones_of_different_splits_are_not_mixed_unless_asked():
    one = Split("stratified", 0, "", {"r1": "train", "r2": "valid"})
    other = Split("stratified", 1, "", {"r1": "valid", "r2": "valid"})
    with pytest.raises(InputError, match="--mix-splits"):
        join_splits({"one": one, "other": other})
    assert join_splits({"one": one, "other": other}, mixed=True) == {"r1": "train", "r2": "valid"}


def folds_of(recordings, folds, **more):
    """Fold number of every recording, from which side it is on in each fold."""
    splits = [k_fold_split(recordings, folds=folds, fold=i + 1, **more) for i in range(folds)]
    numbers = {}
    for number, split in enumerate(splits):
        for name, side in split.assignments.items():
            if side == "valid":
                assert name not in numbers  # each recording is held out once
                numbers[name] = number
    assert len(numbers) == len(recordings)
    return numbers


@given(st.integers(2, 5), st.integers(0, 3), st.randoms())
def test_k_folds_spread_labels_evenly_whatever_the_order_of_the_table(folds, seed, random):
    recordings = [recording(i, "ab"[i % 2]) for i in range(23)]
    numbers = folds_of(recordings, folds, seed=seed)
    for label in "ab":
        counts = [sum(numbers[r.recording] == f for r in recordings if r.primary_label == label) for f in range(folds)]
        assert max(counts) - min(counts) <= 1
    shuffled = list(recordings)
    random.shuffle(shuffled)
    assert folds_of(shuffled, folds, seed=seed) == numbers


def test_k_folds_keep_authors_and_always_sources_and_xeno_canto_ids_together():
    recordings = [
        recording(i, "ab"[i % 2], author=f"author {i % 7}", source=f"source {i % 11}" if i < 11 else "")
        for i in range(60)
    ]
    numbers = folds_of(recordings, 3, group="author")
    for key in ("author", "source"):
        for value in {getattr(r, key) for r in recordings} - {""}:
            assert len({numbers[r.recording] for r in recordings if getattr(r, key) == value}) == 1


def test_a_label_that_some_fold_could_not_train_is_named():
    recordings = [*(recording(i, "common") for i in range(9)), recording(20, "rare")]
    with pytest.raises(InputError, match="1 labels would have no recording to train on in some fold: rare"):
        k_fold_split(recordings, folds=3, fold=1)
    by_one_author = [recording(i, "ab"[i % 2], author="one") for i in range(9)]
    with pytest.raises(InputError, match="once recordings of one author are kept together"):
        k_fold_split(by_one_author, folds=3, fold=1, group="author")


def test_folds_that_make_no_sense_and_columns_that_do_not_exist_are_refused():
    recordings = [recording(i, "ab"[i % 2]) for i in range(9)]
    with pytest.raises(InputError, match="fold 4 of 3"):
        k_fold_split(recordings, folds=3, fold=4)
    with pytest.raises(InputError, match="author"):
        k_fold_split(recordings, folds=3, fold=1, group="weather")


def test_the_share_kept_apart_is_the_share_asked_for():
    recordings = [recording(i, "ab"[i % 2]) for i in range(80)]
    assert [len(inner_slice(recordings, 0, share)[1]) for share in (0.1, 0.25)] == [8, 20]
