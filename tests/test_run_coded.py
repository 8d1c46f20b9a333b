"""Numbers kept by runs, beside the plain array of them."""

from __future__ import annotations

import numpy as np
import pytest

from stage2_heads.run_coded import RunCoded, run_coded

RNG = np.random.default_rng(5)
REPEATED = np.repeat([3, 0, 7, 7, 2], [40, 1, 30, 20, 50]).astype(np.int32)
GOING_ON = np.concatenate([np.arange(10, 90), np.arange(0, 60), [99]]).astype(np.int64)


@pytest.mark.parametrize(("plain", "step"), [(REPEATED, 0), (GOING_ON, 1)])
def test_it_is_the_array_that_it_was_made_of(plain: np.ndarray, step: int) -> None:
    coded = run_coded(plain, step)
    assert isinstance(coded, RunCoded)
    assert (len(coded), coded.shape, coded.dtype) == (len(plain), plain.shape, plain.dtype)
    assert (coded.min(), coded.max()) == (plain.min(), plain.max())
    np.testing.assert_array_equal(np.asarray(coded), plain)
    assert np.asarray(coded).dtype == plain.dtype
    n = len(plain)
    for key in (
        slice(None),
        slice(5, 70),
        slice(None, None, -3),
        RNG.permutation(n),
        RNG.integers(n, size=(4, 5)),
        RNG.random(n) < 0.3,
        np.array([-1, 0]),
        np.zeros(0, np.int64),
        0,
        -1,
    ):
        np.testing.assert_array_equal(coded[key], plain[key])
        assert coded[key].dtype == plain.dtype
    with pytest.raises(IndexError):
        coded[n]


def test_as_an_index_and_in_counts_it_passes_for_an_array() -> None:
    coded, table = run_coded(REPEATED, 0), RNG.random((8, 3))
    np.testing.assert_array_equal(table[coded], table[REPEATED])
    np.testing.assert_array_equal(np.bincount(coded, minlength=9), np.bincount(REPEATED, minlength=9))
    np.testing.assert_array_equal(np.unique(coded), np.unique(REPEATED))


def test_what_has_too_few_runs_to_gain_stays_as_it_is() -> None:
    for numbers, step in ((RNG.permutation(100), 1), (np.arange(100), 0), (np.zeros(3, np.int64), 0)):
        assert run_coded(numbers, step) is numbers


def test_a_million_rows_in_order_need_no_memory() -> None:
    coded = run_coded(np.arange(1_000_000), 1)
    assert isinstance(coded, RunCoded)
    assert coded._first.nbytes + coded._start.nbytes < 100
    assert coded[np.array([999_999, 5])].tolist() == [999_999, 5]


def test_compared_and_calculated_with_it_is_a_plain_array() -> None:
    coded = run_coded(REPEATED, 0)
    for found, expected in (
        (coded == 7, REPEATED == 7),
        (coded + 1, REPEATED + 1),
        (2 * coded, 2 * REPEATED),
        (np.isin(coded, [0, 2]), np.isin(REPEATED, [0, 2])),
        (coded < np.arange(len(REPEATED)), np.arange(len(REPEATED)) > REPEATED),
    ):
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, expected)
