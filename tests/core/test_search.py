import numpy as np
import pytest

from tips_nni.core import (
    CostModel,
    ElasticDim,
    InfeasibleError,
    SearchSettings,
    SearchSpace,
    TipsError,
    check_feasible,
    non_dominated,
    search_front,
)


class Sum(CostModel):
    """Cost: the sum of the values, weighted."""

    unit = "u"

    def __init__(self, space, weights, name="cost"):
        self.name = name
        self._space = space
        self._weights = weights

    def evaluate(self, codes):
        values = np.stack([np.array(d.choices)[codes[:, i]] for i, d in enumerate(self._space.dims)], axis=1)
        return values @ self._weights


def big_space(dims=12):
    return SearchSpace(tuple(ElasticDim(f"width.{i}", "width", (2, 4, 6, 8)) for i in range(dims)))


def measure_of(space, calls=None):
    gains = np.linspace(1.0, 3.0, len(space.dims))

    def measure(configs):
        if calls is not None:
            calls.extend(configs)
        values = np.array([config.values for config in configs]) / 8
        return np.sqrt(values) @ gains / gains.sum()

    return measure


def run(space, constraints, seed=0, calls=None, **settings):
    costs = {"cost": Sum(space, np.ones(len(space.dims)))}
    return search_front(
        space,
        measure_of(space, calls),
        costs,
        "cost",
        constraints,
        SearchSettings(**settings),
        np.random.default_rng(seed),
    )


def test_a_small_space_is_enumerated_and_the_front_is_the_true_one():
    space = big_space(3)
    calls = []
    result = run(space, {}, calls=calls, population=16, generations=3)
    assert len(calls) == len(set(calls)) == space.size
    every = list(space.enumerate())
    accuracy = measure_of(space)(every)
    cost = Sum(space, np.ones(3)).evaluate(space.encode_many(every))
    true = {(c, a) for c, a in zip(*map(np.ndarray.tolist, (cost, accuracy)), strict=True)}
    best = non_dominated(np.stack([-accuracy, cost], axis=1))
    expected = {(float(c), float(a)) for c, a in zip(cost[best], accuracy[best], strict=True)}
    assert {(p.costs["cost"], p.accuracy) for p in result.points} == expected
    assert expected <= true


def test_evolution_beats_random_search_at_equal_measurements():
    space = big_space()
    measure = measure_of(space)
    gains = []
    for seed in range(5):
        result = run(space, {}, seed=seed, population=24, generations=12)
        codes = space.sample(np.random.default_rng(100 + seed), len(result.evaluated))
        random_best = run_random(space, codes, measure)
        gains.append(share(result.evaluated, space) - random_best)
    assert min(gains) > 0


def share(points, space):
    """Mean over nine budgets of the best accuracy within the budget."""
    budgets = np.linspace(2.5, 7.5, 9) * len(space.dims)
    return np.mean([max((p.accuracy for p in points if p.costs["cost"] <= b), default=0.0) for b in budgets])


def run_random(space, codes, measure):
    accuracy = measure([space.decode(code) for code in codes])
    cost = Sum(space, np.ones(len(space.dims))).evaluate(codes)
    budgets = np.linspace(2.5, 7.5, 9) * len(space.dims)
    return np.mean([accuracy[cost <= b].max(initial=0.0) for b in budgets])


def test_no_subnet_is_measured_twice_and_constraints_hold():
    space = big_space()
    calls = []
    result = run(space, {"cost": 40}, calls=calls, population=16, generations=6)
    assert len(calls) == len(set(calls)) == len(result.evaluated)
    assert max(point.costs["cost"] for point in result.evaluated) <= 40
    assert all(a <= b + 1e-12 for a, b in zip(result.history, result.history[1:], strict=False))


def test_a_tight_constraint_is_met():
    space = big_space()
    result = run(space, {"cost": 26}, population=8, generations=4)
    assert {point.costs["cost"] for point in result.evaluated} <= {24.0, 26.0}
    assert len(result.evaluated) >= 8


def test_the_front_is_sorted_and_not_dominated():
    result = run(big_space(), {}, population=16, generations=4)
    costs = [point.costs["cost"] for point in result.points]
    accuracies = [point.accuracy for point in result.points]
    assert costs == sorted(costs)
    assert accuracies == sorted(accuracies)
    assert len(set(costs)) == len(costs)


def test_a_seed_decides_everything():
    first, again, other = (run(big_space(), {}, seed=s, population=8, generations=3) for s in (0, 0, 1))
    assert first == again
    assert first.evaluated != other.evaluated


def test_an_infeasible_constraint_names_the_nearest_value():
    space = big_space()
    costs = {"cost": Sum(space, np.ones(12)), "other": Sum(space, -np.ones(12) / 12 + 1, "other")}
    with pytest.raises(InfeasibleError, match=r"no subnet has cost <= 20; the smallest is 24 u"):
        check_feasible(space, costs, {"cost": 20})
    with pytest.raises(TipsError, match="did you mean 'cost'"):
        check_feasible(space, costs, {"cots": 20})
    check_feasible(space, costs, {"cost": 24})


def test_constraints_that_exclude_each_other_are_refused():
    space = SearchSpace((ElasticDim("width.a", "width", (1, 2)),))
    falling = Sum(space, np.array([-1.0]), "falling")
    costs = {"cost": Sum(space, np.ones(1)), "falling": falling}
    with pytest.raises(InfeasibleError, match="all together"):
        check_feasible(space, costs, {"cost": 1, "falling": -2})


def test_a_measurement_that_is_no_accuracy_is_refused():
    space = big_space(2)
    costs = {"cost": Sum(space, np.ones(2))}
    with pytest.raises(TipsError, match="accuracies from 0 to 1"):
        search_front(
            space,
            lambda configs: np.full(len(configs), np.nan),
            costs,
            "cost",
            {},
            SearchSettings(population=4, generations=0),
            np.random.default_rng(0),
        )


@pytest.mark.parametrize("wrong", [{"population": 2}, {"generations": -1}, {"mutation": 0.0}, {"mutation": 1.5}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(TipsError, match="allowed are"):
        SearchSettings(**wrong)
