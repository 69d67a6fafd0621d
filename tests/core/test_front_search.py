import json

import numpy as np
import pytest

from tips_nni.core import (
    CostModel,
    CostTable,
    ElasticDim,
    FrontSearch,
    InfeasibleError,
    SearchSettings,
    SearchSpace,
    TipsError,
    make_policy,
)


class Sum(CostModel):
    """Cost: the sum of the values."""

    name = "cost"
    unit = "u"

    def __init__(self, space):
        self._space = space

    def evaluate(self, codes):
        return np.sum([np.array(d.choices)[codes[:, i]] for i, d in enumerate(self._space.dims)], axis=0, dtype=float)


def space_of(dims=8):
    return SearchSpace(tuple(ElasticDim(f"width.{i}", "width", (2, 4, 6, 8)) for i in range(dims)))


def accuracy_of(config):
    gains = np.linspace(1.0, 3.0, len(config.values))
    return float(np.sqrt(np.array(config.values) / 8) @ gains / gains.sum())


def make(space=None, seed=0, constraints=None, costs=None, policy=None, **settings):
    space = space or space_of()
    tables = {"cost": Sum(space)} if costs is None else costs
    return FrontSearch(
        space,
        tables,
        "cost",
        constraints or {},
        SearchSettings(**{"population": 8, **settings}),
        np.random.default_rng(seed),
        policy,
    )


def drive(search, count, concurrency=1, order=0):
    """Measure `count` subnets with so many at work at once, finishing in a shuffled order."""
    rng = np.random.default_rng(order)
    asked, running, more = [], [], True
    while more or running:
        while (more := more and len(asked) < count) and len(running) < concurrency:
            config = search.ask()
            if config is None:
                more = False
                break
            asked.append(config)
            running.append(config)
        if not running:
            break
        config = running.pop(int(rng.integers(len(running))))
        search.tell(config, accuracy_of(config))
    return asked


@pytest.mark.parametrize("concurrency", [1, 4])
def test_no_subnet_is_asked_twice_and_constraints_hold(concurrency):
    search = make(constraints={"cost": 30})
    asked = drive(search, 60, concurrency)
    assert len(asked) == len(set(asked)) == 60
    assert max(sum(config.values) for config in asked) <= 30


def test_a_small_space_is_asked_for_whole_and_then_ends():
    search = make(space_of(3), constraints={"cost": 12})
    asked = drive(search, 1000, concurrency=3)
    feasible = {config for config in search.space.enumerate() if sum(config.values) <= 12}
    assert set(asked) == feasible
    assert len(asked) == len(feasible)
    assert search.ask() is None
    costs = [p.costs["cost"] for p in search.result.points]
    for cost, point in zip(costs, search.result.points, strict=True):
        assert point.accuracy == max(accuracy_of(config) for config in feasible if sum(config.values) <= cost)


def test_more_at_once_than_a_population_before_any_answer():
    search = make()
    asked = [search.ask() for _ in range(20)]
    assert None not in asked
    assert len(set(asked)) == 20
    assert list(search.pending) == asked


def test_the_front_gets_better_than_the_first_population():
    search = make(population=16)
    drive(search, 16)
    before = search.result.hypervolume
    drive(search, 80)
    assert search.result.hypervolume > before
    assert search.result.history[-1] == search.result.hypervolume
    assert list(search.result.history) == sorted(search.result.history)


def test_looking_at_the_result_changes_nothing():
    one, other = make(), make()
    for _ in range(30):
        for search in (one, other):
            config = search.ask()
            search.tell(config, accuracy_of(config))
        assert one.result.points
    assert one.state_dict() == other.state_dict()


@pytest.mark.parametrize("told", [0, 5, 8, 30])
def test_state_restores_the_search_in_the_middle(told):
    search = make()
    drive(search, told, concurrency=3)
    open_ones = [search.ask() for _ in range(3)]
    copy = make(seed=99)
    copy.load_state_dict(json.loads(json.dumps(search.state_dict())))
    assert copy.pending == tuple(open_ones)
    for config in open_ones:
        for one in (search, copy):
            one.tell(config, accuracy_of(config))
    assert drive(search, 20) == drive(copy, 20)
    assert search.result == copy.result


def test_lost_subnets_are_asked_for_again_first():
    search = make()
    drive(search, 10)
    lost = [search.ask() for _ in range(3)]
    search.requeue()
    assert search.pending == ()
    assert [search.ask() for _ in range(3)] == lost


def test_a_failed_subnet_is_asked_for_once_more_and_then_never():
    search = make(space_of(2))
    first = search.ask()
    search.forget(first)
    assert search.ask() == first
    search.forget(first)
    rest = drive(search, 100)
    assert first not in rest
    assert len(rest) == search.space.size - 1
    assert search.ask() is None


def test_a_failure_of_something_not_asked_is_no_failure():
    search = make(space_of(1))
    search.forget(search.space.largest)
    assert len(drive(search, 10)) == 4


def test_answers_that_nobody_asked_for_count():
    search = make(space_of(2))
    given = search.space.largest
    search.tell(given, 0.9)
    assert search.knows(given)
    asked = drive(search, 100)
    assert given not in asked
    assert len(asked) == search.space.size - 1
    assert search.measured == search.space.size


def test_an_imported_answer_leaves_the_queue():
    search = make(space_of(2))
    first = search.ask()
    others = {config for config in search.space.enumerate() if config != first}
    imported = list(others)[:5]
    for config in imported:
        search.tell(config, accuracy_of(config))
    search.tell(first, accuracy_of(first))
    assert set(drive(search, 100)) == others - set(imported)


def test_told_costs_take_the_place_of_the_table():
    search = make(space_of(2))
    config = search.ask()
    search.tell(config, 0.5, {"cost": 123.0, "energy": 7.0})
    (point,) = search.result.evaluated
    assert point.costs == {"cost": 123.0, "energy": 7.0}


def test_a_cost_that_no_table_gives_is_told():
    search = make(space_of(3), costs={})
    for _ in range(40):
        config = search.ask()
        search.tell(config, accuracy_of(config), {"cost": float(sum(config.values))})
    assert 0 < search.result.hypervolume <= 1
    with pytest.raises(TipsError, match="came without its cost"):
        search.tell(search.ask(), 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_no_numbers_are_refused(value):
    search = make()
    config = search.ask()
    with pytest.raises(TipsError, match="finite number"):
        search.tell(config, value)
    with pytest.raises(TipsError, match="finite number"):
        search.tell(config, 0.5, {"cost": value})
    assert search.pending == (config,)


def test_a_foreign_or_damaged_state_is_refused():
    state = make().state_dict()
    other = make(space_of(3))
    drive(other, 3)
    for wrong in ({}, {**state, "known": [[[0, 9], 0.5, {}]]}, other.state_dict(), {**state, "rng": {}}):
        with pytest.raises(TipsError, match="no state of a search"):
            make().load_state_dict(wrong)


def test_no_result_before_a_measurement():
    with pytest.raises(TipsError, match="no subnet has been measured"):
        make().result  # noqa: B018


def test_infeasible_constraints_are_refused_at_once():
    with pytest.raises(InfeasibleError, match="the smallest is 16"):
        make(constraints={"cost": 3})


def test_a_policy_gives_the_genes_and_learns(architecture):
    costs = dict(CostTable(architecture).models())
    policy = make_policy("path_importance", architecture, {"refresh": 1, "exploration": 0.0})
    drawn = []
    original = policy.sample

    def sample(rng, n):
        drawn.extend(found := original(rng, n))
        return found

    policy.sample = sample
    search = FrontSearch(
        architecture.space, costs, "mflops", {}, SearchSettings(population=4), np.random.default_rng(0), policy
    )
    asked = []
    while (config := search.ask()) is not None:
        asked.append(config)
        search.tell(config, accuracy_of(config))
    assert set(asked) == set(architecture.space.enumerate())
    assert drawn
    assert policy.state_dict()["refreshes"] == architecture.space.size // 4
    assert len(policy.state_dict()["recent"]) == min(policy.window, architecture.space.size)
    copy = FrontSearch(
        architecture.space,
        costs,
        "mflops",
        {},
        SearchSettings(population=4),
        np.random.default_rng(1),
        make_policy("path_importance", architecture, {"refresh": 1}),
    )
    copy.load_state_dict(json.loads(json.dumps(search.state_dict())))
    assert copy.state_dict() == search.state_dict()
