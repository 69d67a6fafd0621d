import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tips_nni.core import crowding, hypervolume, non_dominated
from tips_nni.core._pareto import rank

points = st.integers(1, 3).flatmap(
    lambda m: arrays(np.float64, st.tuples(st.integers(1, 25), st.just(m)), elements=st.integers(0, 6).map(float))
)


def slow_non_dominated(values):
    return np.array([not any((v <= w).all() and (v < w).any() for v in values) for w in values])


@given(points)
@settings(max_examples=200, deadline=None)
def test_non_dominated_equals_the_definition(values):
    np.testing.assert_array_equal(non_dominated(values), slow_non_dominated(values))


@given(points)
@settings(max_examples=100, deadline=None)
def test_ranks_peel_the_fronts(values):
    levels, left, level = rank(values), np.arange(len(values)), 0
    while len(left):
        best = slow_non_dominated(values[left])
        assert (levels[left[best]] == level).all()
        left, level = left[~best], level + 1


@given(points)
@settings(max_examples=100, deadline=None)
def test_hypervolume_equals_counting_unit_cells(values):
    reference = np.full(values.shape[1], 7.0)
    cells = np.indices((7,) * values.shape[1]).reshape(values.shape[1], -1).T
    dominated = (cells[:, None] >= values[None]).all(axis=2).any(axis=1).sum()
    assert hypervolume(values, reference) == pytest.approx(dominated)


def test_hypervolume_by_hand():
    values = np.array([[1.0, 3.0], [2.0, 1.0], [3.0, 3.0]])
    assert hypervolume(values, np.array([4.0, 4.0])) == pytest.approx(3 * 1 + 2 * 2)
    assert hypervolume(values, np.array([1.0, 1.0])) == 0.0
    assert hypervolume(np.empty((0, 2)), np.array([1.0, 1.0])) == 0.0


def test_crowding_by_hand():
    values = np.array([[0.0, 4.0], [1.0, 2.0], [2.0, 1.0], [4.0, 0.0]])
    np.testing.assert_allclose(crowding(values), [np.inf, 2 / 4 + 3 / 4, 3 / 4 + 2 / 4, np.inf])


@pytest.mark.parametrize("enough", [1, 5, 40, 100])
def test_ranking_may_stop_early(enough):
    values = np.random.default_rng(0).integers(0, 12, size=(60, 2)).astype(float)
    full, part = rank(values), rank(values, enough=enough)
    last = part.max() if (part != full).any() else full.max()
    assert (full < last).sum() <= 60
    assert ((full == part) | ((part == last) & (full > last))).all()
    assert (part < last).sum() >= min(enough, 60) or (part == full).all()
