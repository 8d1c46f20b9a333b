"""Scores gone through class by class: on disk as in memory, and all cells ranked without holding them."""

from __future__ import annotations

import numpy as np
import pytest

from embeddings.errors import ScoreRangeError
from stage2_heads import all_cells as cells_module
from stage2_heads import score_table
from stage2_heads.all_cells import all_cells
from stage2_heads.bootstrap import bayesian_weights
from stage2_heads.metrics import Ranking
from stage2_heads.score_table import ScoreTable, UniformScores

RNG = np.random.default_rng(11)


def made_up(n: int = 400, c: int = 7, n_groups: int = 40, decimals: int = 12):
    group = RNG.integers(n_groups, size=n)
    truth = RNG.random((n_groups, c)) < 0.2
    scores = np.round(np.clip(0.3 * truth[group] + 0.6 * RNG.random((n, c)), 0, 0.999), decimals)
    return group, truth, scores


def ranked_at_once(group, truth, scores, weights, light=None, light_weight=None):
    """The same by one sort of every cell."""
    n_classes, n_groups = truth.shape[1], len(truth)
    true, cell, of = truth[group].ravel(), scores.ravel(), np.repeat(group, n_classes)
    if light is not None:
        if light_weight == 0:
            kept = ~light.ravel()
            true, cell, of = true[kept], cell[kept], of[kept]
        else:
            of = of + n_groups * light.ravel()
            weights = np.vstack([weights, light_weight * weights])
    curve = Ranking.of(true, cell, of, len(weights)).curve(weights)
    return curve.average_precision(), curve.ap11()


@pytest.mark.parametrize("decimals", [12, 1])
@pytest.mark.parametrize("light_weight", [None, 0.0, 0.4])
def test_all_cells_rank_as_one_sort_ranks_them(decimals, light_weight):
    group, truth, scores = made_up(decimals=decimals)
    light = None
    if light_weight is not None:
        light = (RNG.random(truth.shape) < 0.2)[group]
        if light_weight == 0:
            truth = truth & ~np.array([light[group == g].any(axis=0) for g in range(len(truth))])
    weights = np.hstack([np.ones((len(truth), 1)), bayesian_weights(len(truth), 30, 0)])

    def column(c):
        return truth[:, c][group], scores[:, c], None if light is None else light[:, c]

    found = all_cells(column, truth.shape[1], group, weights, light_weight)
    expected = ranked_at_once(group, truth, scores, weights, light, light_weight)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_with_more_positives_than_bins_the_figure_stays_exact_and_replicates_stay_near(monkeypatch):
    group, truth, scores = made_up(n=4000, n_groups=200)
    weights = np.hstack([np.ones((len(truth), 1)), bayesian_weights(len(truth), 100, 0)])
    expected = ranked_at_once(group, truth, scores, weights)
    monkeypatch.setattr(cells_module, "_MOST_BINS", 256)
    found = all_cells(lambda c: (truth[:, c][group], scores[:, c], None), truth.shape[1], group, weights, None)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-12)
        assert 0 < np.abs(ours[1:] - theirs[1:]).max() < 0.01
        spread = [np.subtract(*np.quantile(r[1:], [0.975, 0.025])) for r in (ours, theirs)]
        assert spread[0] == pytest.approx(spread[1], rel=0.03)


def test_without_positives_nothing_is_defined():
    group, _, scores = made_up()
    found = all_cells(lambda c: (np.zeros(400, bool), scores[:, c], None), 7, group, np.ones((40, 3)), None)
    assert np.isnan(found).all()
    assert np.shape(found) == (2, 3)


@pytest.mark.parametrize("held_bytes", [0, 1 << 30])
def test_a_table_gives_back_what_was_written_in_memory_and_on_disk(monkeypatch, held_bytes):
    monkeypatch.setattr(score_table, "_HELD_BYTES", held_bytes)
    scores = RNG.random((50, 19)) * 0.99
    table = ScoreTable(50, 19)
    for start in (0, 20, 40):
        table.write(start, scores[start : start + 20])
    assert table.shape == (50, 19)
    assert isinstance(table._columns, np.memmap) == (held_bytes == 0)
    np.testing.assert_array_equal(np.stack([table.column(c) for c in range(19)], axis=1), scores)
    np.testing.assert_array_equal(np.hstack([block for _, block in table.blocks()]), scores)
    assert [first for first, _ in table.blocks()] == [0, 8, 16]
    with pytest.raises(ScoreRangeError, match="not finite"):
        table.write(0, np.full((2, 19), np.nan))


def test_uniform_scores_are_the_same_each_time_and_differ_between_draws_and_classes():
    one, other = UniformScores((30, 3), (5, 0)), UniformScores((30, 3), (5, 1))
    np.testing.assert_array_equal(one.column(2), one.column(2))
    assert not np.array_equal(one.column(2), one.column(1))
    assert not np.array_equal(one.column(2), other.column(2))


def test_a_report_is_the_same_from_disk_and_from_memory(monkeypatch):
    from test_scoring import report_of

    before = report_of(include_seen=True)
    monkeypatch.setattr(score_table, "_HELD_BYTES", 0)
    assert report_of(include_seen=True).to_json() == before.to_json()
