"""FLASH's solver beside exhaustive search, and the relaxation that it starts from."""

import numpy as np
import pytest

from tips_nni.core import CostTable, FlashSettings, FlashSolver, InfeasibleError, NNDegree, TipsError
from tips_nni.core._relaxation import Relaxation, kind_groups


@pytest.fixture
def costs(residual):
    return dict(CostTable(residual).models())


def curved(residual):
    """A score with ties between dimensions, so that greedy steps end early."""

    def score(codes):
        shares = codes / (residual.space.sizes - 1)
        ties = 0.5 * shares[:, 1] * shares[:, 4] - 0.5 * np.abs(shares[:, 0] - shares[:, 2])
        return np.sqrt(shares).sum(axis=1) + ties

    return score


@pytest.mark.parametrize("which", ["degree", "curved"])
def test_the_best_of_exhaustive_search_under_random_constraints(residual, every_residual_code, costs, which):
    degree = NNDegree(residual)
    score = degree.evaluate if which == "degree" else curved(residual)
    values = {name: model.evaluate(every_residual_code) for name, model in costs.items()}
    scores = score(every_residual_code)
    solver = FlashSolver(degree, costs, {}, score)
    rng = np.random.default_rng(0)
    for _ in range(12):
        names = rng.choice(sorted(costs), size=rng.integers(1, 4), replace=False)
        limits = {name: float(np.quantile(values[name], rng.uniform(0.05, 0.9))) for name in names}
        kept = np.logical_and.reduce([values[name] <= limit for name, limit in limits.items()])
        code, value = solver.solve(limits, rng)
        assert all(costs[name].evaluate(code[None])[0] <= limit for name, limit in limits.items())
        assert value == score(code[None])[0]
        assert value >= scores[kept].max() - 1e-3 * np.ptp(scores)


def test_without_bounds_the_largest_degree_is_found(residual, every_residual_code, costs):
    degree = NNDegree(residual)
    _, value = FlashSolver(degree, costs, {}, degree.evaluate).solve({}, np.random.default_rng(0))
    assert value == degree.evaluate(every_residual_code).max()


def test_the_front_climbs_and_keeps_the_constraints(residual, every_residual_code, costs):
    degree = NNDegree(residual)
    solver = FlashSolver(degree, costs, {"params_m": 0.05}, degree.evaluate)
    front = solver.front("mflops", 8, np.random.default_rng(0))
    flops, scores = costs["mflops"].evaluate(front), degree.evaluate(front)
    assert (np.diff(flops) > 0).all()
    assert (np.diff(scores) > 0).all()
    assert costs["params_m"].evaluate(front).max() <= 0.05
    every = costs["mflops"].evaluate(every_residual_code), degree.evaluate(every_residual_code)
    kept = costs["params_m"].evaluate(every_residual_code) <= 0.05
    for cost, score in zip(flops, scores, strict=True):
        assert score >= 0.99 * every[1][kept & (every[0] <= cost)].max()


def test_the_generator_decides_the_result(residual, costs):
    solver = FlashSolver(NNDegree(residual), costs, {}, curved(residual))
    first, second = (solver.front("mflops", 5, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_what_cannot_be_kept_is_refused(residual, costs):
    degree = NNDegree(residual)
    with pytest.raises(InfeasibleError, match="the smallest is"):
        FlashSolver(degree, costs, {"mflops": 1e-9}, degree.evaluate)
    solver = FlashSolver(degree, costs, {}, degree.evaluate)
    with pytest.raises(InfeasibleError, match="no subnet was found that keeps mflops <= 1e-09"):
        solver.solve({"mflops": 1e-9}, np.random.default_rng(0))
    with pytest.raises(TipsError, match=r"must know energy beforehand.*there are: memory_mb, mflops, params_m"):
        solver.solve({"energy": 1.0}, np.random.default_rng(0))
    for wrong in ({"starts": 0}, {"iterations": 0}, {"kicks": -1}):
        with pytest.raises(TipsError, match="it must be at least"):
            FlashSettings(**wrong)


def test_a_relaxation_is_exact_on_its_lattice_and_linear_between(residual, costs):
    space = residual.space
    relaxation = Relaxation(space, kind_groups(space), np.ones(len(space.dims)), 1.0, 1.0)
    assert relaxation.count == 3
    np.testing.assert_array_equal(relaxation.codes(np.zeros((1, 3))), space.encode_many([space.smallest]))
    np.testing.assert_array_equal(relaxation.codes(np.ones((1, 3))), space.encode_many([space.largest]))
    tables = costs["mflops"].evaluate(relaxation.lattice)[None]
    rng = np.random.default_rng(0)
    for i in rng.integers(len(relaxation.grid), size=20):
        assert relaxation.interpolate(tables, relaxation.grid[i])[0] == pytest.approx(tables[0, i], rel=1e-12)
    step = np.array([1.0, 0, 0]) / (relaxation.levels - 1)
    low = relaxation.grid[relaxation.grid[:, 0] < 1][3]
    ends = [relaxation.interpolate(tables, point)[0] for point in (low, low + step)]
    middle = relaxation.interpolate(tables, low + 0.25 * step)[0]
    assert middle == pytest.approx(0.75 * ends[0] + 0.25 * ends[1], rel=1e-12)


def test_a_relaxation_moves_each_group_around_its_base(residual):
    space = residual.space
    base = np.full(len(space.dims), 0.5)
    relaxation = Relaxation(space, [[0, 1], [2]], base, 0.5, 1.0)
    positions = relaxation.positions(np.array([[0.5, 0.5], [1.0, 0.25], [0.0, 0.0]]))
    np.testing.assert_allclose(positions[0], base)
    np.testing.assert_allclose(positions[1, :4], [1.0, 1.0, 0.25, 0.5])
    np.testing.assert_allclose(positions[2, :4], [0.0, 0.0, 0.0, 0.5])
