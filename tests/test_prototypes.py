"""Prototypes: equal to their definition, exact whatever the order or the pieces, and sane at the edges."""

import numpy as np
import pytest
from test_heads import BLOCKS, DIMS, rows_of, sounds

from embeddings.errors import InputError
from stage2_heads.heads import create_head, load_head
from stage2_heads.labels import RecordingLabels
from stage2_heads.rows import ArrayReader, LabelledRows, label_rows

BOUNDARY = 0.25


def unit(x):
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1)


def one_block(X, Y, recording_of_row=None):
    """LabelledRows of a single block; without recordings every row is one of its own."""
    X, Y = np.asarray(X, np.float32), np.asarray(Y, np.float32)
    codes = np.arange(len(X)) if recording_of_row is None else np.asarray(recording_of_row)
    first = np.unique(codes, return_index=True)[1]
    labels = tuple(f"c{i}" for i in range(Y.shape[1]))
    return LabelledRows(ArrayReader(X, (X.shape[1],)), np.arange(len(X)), codes, Y[first], labels, BLOCKS[:1])


def by_definition(rows, queries, *, centre, whitening, negatives):
    """Decisions worked out block by block from the class means of unit vectors."""
    X, codes = rows.reader.read(rows.rows).astype(np.float64), rows.recording_of_row
    w = 1 / np.bincount(codes)[codes]
    Y = np.hstack([rows.targets, ~rows.targets.any(axis=1, keepdims=True)])[codes].astype(np.float64)
    cosines, unlike, start = 0.0, 0.0, 0
    for dim in rows.dims:
        U, Q = unit(X[:, start : start + dim]), unit(queries[:, start : start + dim].astype(np.float64))
        start += dim
        means = np.stack([np.average(U, axis=0, weights=w * y) for y in Y.T])
        general = np.average(U, axis=0, weights=w)
        middle = means[:-1].mean(axis=0) if centre == "classes" else general
        variance = np.average((U - general) ** 2, axis=0, weights=w)
        scale = 1 / np.sqrt(variance + 0.1 * variance.mean()) if whitening else 1.0
        found = unit((Q - middle) * scale) @ unit((means - middle) * scale).T / len(rows.dims)
        cosines, unlike = cosines + found[:, :-1], unlike + found[:, -1:]
    return cosines - negatives * np.maximum(unlike, 0) - BOUNDARY


def test_one_block_without_extras_is_the_cosine_to_centred_means():
    rng = np.random.default_rng(0)
    X, Y, Q = rng.normal(size=(30, 7)) + 1, np.eye(3)[np.arange(30) % 3], rng.normal(size=(9, 7)).astype(np.float32)
    head = create_head("prototypes", whitening=False).fit(one_block(X, Y))
    means = np.stack([unit(X.astype(np.float32).astype(float))[Y[:, c] > 0].mean(axis=0) for c in range(3)])
    expected = unit(unit(Q.astype(float)) - means.mean(axis=0)) @ unit(means - means.mean(axis=0)).T
    np.testing.assert_allclose(head.decision(Q), expected - BOUNDARY, atol=1e-9)


@pytest.mark.parametrize("centre", ["classes", "windows"])
@pytest.mark.parametrize("whitening", [True, False])
@pytest.mark.parametrize("negatives", [0.0, 0.7])
def test_decisions_follow_the_definition_with_every_setting(centre, whitening, negatives):
    settings = {"centre": centre, "whitening": whitening, "negatives": negatives}
    vectors, of_row, recordings = sounds(40)
    quiet = [RecordingLabels(f"quiet{i}", "nocall") for i in range(4)]
    X = np.vstack([vectors, 3 * np.random.default_rng(5).normal(size=(8, sum(DIMS)))]).astype(np.float32)
    codes = np.r_[of_row, 40 + np.arange(8) // 2]
    rows = label_rows(
        ArrayReader(X, DIMS), np.arange(len(X)), codes, [*recordings, *quiet], blocks=BLOCKS, secondary_weight=0.5
    )
    head = create_head("prototypes", **settings).fit(rows)
    queries = np.vstack([sounds(seed=1)[0][:30], X[-8:]])
    np.testing.assert_allclose(head.decision(queries), by_definition(rows, queries, **settings), atol=1e-9)


def test_nothing_depends_on_the_order_of_rows():
    vectors, of_row, recordings = sounds(40)
    order = np.random.default_rng(0).permutation(len(vectors))
    one, other = (
        create_head("prototypes").fit(label_rows(ArrayReader(vectors, DIMS), o, of_row[o], recordings, blocks=BLOCKS))
        for o in (np.arange(len(vectors)), order)
    )
    queries = sounds(seed=3)[0]
    np.testing.assert_allclose(one.decision(queries), other.decision(queries), atol=1e-12)


def test_a_fit_in_pieces_ends_where_a_fit_on_everything_does(tmp_path):
    rows = rows_of(48)
    X, codes, queries = rows.reader.read(rows.rows), rows.recording_of_row, sounds(seed=3)[0]
    whole = create_head("prototypes").fit(rows)
    first = np.arange(48) < 13
    pieces = create_head("prototypes").fit(rows.subset(first))
    for chosen in (np.arange(13, 20), np.arange(20, 48)):
        some = np.isin(codes, chosen)
        pieces.partial_fit(X[some], rows.targets[codes[some]], recording_of_row=codes[some])
    np.testing.assert_allclose(pieces.decision(queries), whole.decision(queries), atol=1e-12)

    stream = create_head("prototypes").fit(rows.subset(first))
    stream.save(tmp_path / "half")
    later = ~first[codes]
    resumed = load_head(tmp_path / "half").partial_fit(
        X[later], rows.targets[codes[later]], recording_of_row=codes[later]
    )
    np.testing.assert_allclose(resumed.decision(queries), whole.decision(queries), atol=1e-12)


def test_rows_that_name_no_recording_weigh_one_each():
    rng = np.random.default_rng(0)
    X, Y, Q = rng.normal(size=(20, 5)).astype(np.float32), np.eye(2)[np.arange(20) % 2], rng.normal(size=(4, 5))
    head = create_head("prototypes").fit(one_block(X[:6], Y[:6])).partial_fit(X[6:], Y[6:])
    whole = create_head("prototypes").fit(one_block(X, Y))
    np.testing.assert_allclose(head.decision(Q), whole.decision(Q), atol=1e-12)


def test_a_class_can_be_added_later_as_if_it_had_been_there():
    rng = np.random.default_rng(0)
    X, Y, Q = rng.normal(size=(30, 5)).astype(np.float32), np.eye(3)[np.arange(30) % 3], rng.normal(size=(4, 5))
    old = np.arange(30) % 3 < 2
    head = create_head("prototypes").fit(one_block(X[old], Y[old, :2]))
    head.partial_fit(X[~old], Y[~old], classes=["c0", "c1", "c2"])
    assert head.labels_ == ("c0", "c1", "c2")
    early = create_head("prototypes").fit(one_block(X[old], Y[old, :2])).add_classes(["c2"])
    np.testing.assert_array_equal(early.decision(Q)[:, 2], np.full(4, -1 - BOUNDARY))
    np.testing.assert_allclose(head.decision(Q), create_head("prototypes").fit(one_block(X, Y)).decision(Q), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Y": np.full((2, 3), 2.0)}, "between 0 and 1"),
        ({"X": np.full((2, 5), np.nan)}, "not finite"),
        ({"classes": ["c0", "c1", "c1"]}, "already has the class c1"),
        ({"recording_of_row": np.zeros(3, int)}, "one whole number a row"),
        ({"recording_of_row": np.zeros(2)}, "one whole number a row"),
    ],
)
def test_a_refused_call_leaves_the_head_as_it_was(change, words):
    rng = np.random.default_rng(0)
    X, Y, Q = rng.normal(size=(8, 5)), np.eye(2)[np.arange(8) % 2], rng.normal(size=(3, 5))
    head = create_head("prototypes").fit(one_block(X, Y))
    before = head.decision(Q)
    call = {"X": X[:2], "Y": np.eye(3)[:2], "classes": ["c0", "c1", "c2"], **change}
    with pytest.raises(InputError, match=words):
        head.partial_fit(**call)
    assert head.labels_ == ("c0", "c1")
    np.testing.assert_array_equal(head.decision(Q), before)


def test_a_long_recording_does_not_outvote_a_short_one():
    rng = np.random.default_rng(0)
    X, Q = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(5, 6))
    Y = np.eye(2)[[0, 0, 1, 1]]
    lengths = np.array([50, 1, 3, 2])  # windows of each recording, all alike
    codes = np.repeat(np.arange(4), lengths)
    long = create_head("prototypes").fit(one_block(X[codes], Y[codes], codes))
    short = create_head("prototypes").fit(one_block(X, Y))
    np.testing.assert_allclose(long.decision(Q), short.decision(Q), atol=1e-9)


def test_a_zero_block_teaches_nothing_and_is_like_nothing():
    rng = np.random.default_rng(0)
    X, Y, Q = rng.normal(size=(10, 5)).astype(np.float32), np.eye(2)[np.arange(10) % 2], rng.normal(size=(4, 5))
    head = create_head("prototypes").fit(one_block(X, Y))
    padded = create_head("prototypes").fit(
        one_block(np.vstack([X, np.zeros((6, 5))]), np.vstack([Y, np.eye(2)[[0] * 6]]))
    )
    np.testing.assert_allclose(padded.decision(Q), head.decision(Q), atol=1e-12)
    np.testing.assert_array_equal(head.decision(np.zeros((1, 5))), [[-BOUNDARY, -BOUNDARY]])


def test_a_window_at_the_centre_has_no_direction():
    X = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    head = create_head("prototypes", whitening=False).fit(one_block(X, np.eye(2)))
    np.testing.assert_array_equal(head.decision(np.array([[1.0, 1.0, 0.0]])) + BOUNDARY < 1, [[True, True]])
    same = create_head("prototypes").fit(one_block(np.ones((4, 3)), np.eye(2)[[0, 1, 0, 1]]))
    np.testing.assert_allclose(same.decision(np.ones((1, 3))), [[-BOUNDARY, -BOUNDARY]])


def test_one_recording_makes_a_class_and_none_makes_the_least_likely_one():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(9, 6)).astype(np.float32)
    Y = np.eye(4)[[0] * 4 + [1] * 4 + [2]]  # one example of c2, none of c3
    head = create_head("prototypes").fit(one_block(X, Y))
    decisions = head.decision(X)
    assert decisions[8].argmax() == 2
    np.testing.assert_array_equal(decisions[:, 3], np.full(9, -1 - BOUNDARY))
    assert (decisions[:, 3] <= decisions.min(axis=1)).all()
    assert (head.scores(X)[:, 3:] <= head.scores(X)).all()


def test_a_single_class_is_told_apart_by_its_direction_alone():
    X = np.array([[1, 0.1], [1, -0.1]], np.float32)
    head = create_head("prototypes").fit(one_block(X, np.ones((2, 1))))
    decisions = head.decision(np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))[:, 0]
    assert decisions[0] > decisions[1] > decisions[2]


def test_no_call_recordings_lower_what_is_like_them():
    vectors, of_row, recordings = sounds(24)
    rng = np.random.default_rng(1)
    noise = (-4 * np.ones((6, sum(DIMS))) + rng.normal(size=(6, sum(DIMS)))).astype(np.float32)
    X, codes = np.vstack([vectors, noise]), np.r_[of_row, 24 + np.arange(6)]
    known = [*recordings, *(RecordingLabels(f"n{i}", "nocall") for i in range(6))]
    rows = label_rows(ArrayReader(X, DIMS), np.arange(len(X)), codes, known, blocks=BLOCKS)
    with_them, without = (create_head("prototypes", negatives=n).fit(rows) for n in (0.5, 0.0))
    assert with_them.labels_ == ("ash", "birch", "cedar", "dogwood")
    assert (with_them.decision(noise) < without.decision(noise)).all()
    song = X[: len(vectors)]
    unlike = song[with_them._directions(unit_blocks(song)) @ with_them.negative_ <= 0]
    assert len(unlike) > 10
    np.testing.assert_allclose(with_them.decision(unlike), without.decision(unlike), atol=1e-12)


def unit_blocks(X):
    return np.hstack([unit(part) for part in np.split(X.astype(np.float64), [DIMS[0]], axis=1)])


def test_shrinkage_shortens_the_prototypes_of_rare_classes():
    rng = np.random.default_rng(0)
    X, Q = rng.normal(size=(12, 6)).astype(np.float32), rng.normal(size=(5, 6))
    Y = np.eye(2)[[0] * 9 + [1] * 3]
    plain, shrunk = (create_head("prototypes", shrinkage=s).fit(one_block(X, Y)).decision(Q) for s in (0.0, 3.0))
    np.testing.assert_allclose(shrunk + BOUNDARY, (plain + BOUNDARY) * [9 / 12, 3 / 6], atol=1e-12)


@pytest.mark.parametrize(
    "bad", [{"shrinkage": -1.0}, {"negatives": float("nan")}, {"whitening": 2}, {"centre": ""}, {"negatives": True}]
)
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        create_head("prototypes", **bad)


def test_saved_sums_that_cannot_be_are_refused():
    head = create_head("prototypes").fit(rows_of(12))
    arrays = head._arrays()
    with pytest.raises(InputError, match="must not be negative"):
        head._restore({**arrays, "weights": -arrays["weights"]})
