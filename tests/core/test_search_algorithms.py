"""Every search algorithm keeps the contract; the registry; what FLASH's search adds."""

import numpy as np
import pytest

from tips_nni.core import (
    AlgorithmInfo,
    CostModel,
    CostTable,
    ElasticDim,
    FrontSearch,
    PathGraph,
    SearchProblem,
    SearchSettings,
    SearchSpace,
    TipsError,
    algorithm_names,
    check_algorithm,
    make_policy,
    make_search,
    register_algorithm,
    search_front,
    training_free_front,
)
from tips_nni.testing import SearchContract

CASES = {
    "evolution": ("evolution", {}),
    "flash": ("flash", {"starts": 2, "kicks": 1}),
    "flash_degree": ("flash", {"starts": 2, "kicks": 0, "predictor": "nn_degree"}),
    "flash_log": ("flash", {"starts": 2, "kicks": 0, "predictor": "log_linear"}),
    "flash_free": ("flash", {"starts": 2, "kicks": 0, "training_free": True}),
}


@pytest.mark.parametrize("case", CASES)
class TestEveryAlgorithm(SearchContract):
    @pytest.fixture(autouse=True)
    def _case(self, case):
        self._name, self._options = CASES[case]

    def make(self, problem, settings, rng):
        return make_search(self._name, problem, settings, rng, self._options)


def test_the_contract_notices_a_search_that_repeats_itself(architecture):
    class Forgetful(FrontSearch):
        def tell(self, config, accuracy, costs=None):
            super().tell(config, accuracy, costs)
            del self._known[self._code(config)]

    class Contract(SearchContract):
        def make(self, problem, settings, rng):
            return Forgetful(problem.space, problem.costs, "mflops", problem.constraints, settings, rng)

    with pytest.raises((AssertionError, TipsError)):
        Contract().test_every_feasible_subnet_is_asked_for_once_and_then_none(architecture, 1)


def problem_of(architecture, costs=None, objective="mflops", network=None, **constraints):
    tables = CostTable(architecture).models() if costs is None else costs
    return SearchProblem(architecture.space, tables, objective, constraints, network or architecture)


def make(problem, **options):
    return make_search("flash", problem, SearchSettings(population=5), np.random.default_rng(0), options)


def test_names_and_options():
    assert {"evolution", "flash"} <= set(algorithm_names())
    with pytest.raises(TipsError, match="unknown search algorithm 'flsh'; did you mean 'flash'"):
        check_algorithm("flsh", {})
    with pytest.raises(TipsError, match="kicks = -1 of search algorithm 'flash'; it must be at least 0"):
        check_algorithm("flash", {"kicks": -1})
    with pytest.raises(TipsError, match="must be of type bool"):
        check_algorithm("flash", {"training_free": 1})
    with pytest.raises(TipsError, match="registered already"):
        register_algorithm(AlgorithmInfo("flash", "", make_search))


def test_evolution_draws_its_genes_from_the_policy(architecture):
    policy = make_policy("uniform", architecture)
    drawn = []
    original = policy.sample
    policy.sample = lambda rng, n: drawn.append(n) or original(rng, n)
    problem = SearchProblem(architecture.space, CostTable(architecture).models(), "mflops", {}, architecture, policy)
    make_search("evolution", problem, SearchSettings(), np.random.default_rng(0)).ask()
    assert drawn


def test_flash_needs_the_architecture_and_tables(architecture):
    class Slow(CostModel):
        name, unit, tabulated = "slow", "s", False

        def evaluate(self, codes):
            return np.ones(len(codes))

    tables = CostTable(architecture).models()
    graph = PathGraph.from_architecture(architecture)
    with pytest.raises(TipsError, match=r"only the path graph is known; take search\.algorithm: evolution"):
        make(problem_of(architecture, network=graph))
    with pytest.raises(TipsError, match=r"must know energy beforehand.*mflops"):
        make(problem_of(architecture, objective="energy"))
    with pytest.raises(TipsError, match="slow of thousands of subnets"):
        make(problem_of(architecture, {**tables, "slow": Slow()}, slow=2.0))


def test_the_first_round_is_spread_and_the_next_is_the_predicted_front(architecture):
    """With the truth in reach of the predictor, the second round holds the true front."""
    space, table = architecture.space, CostTable(architecture)
    codes = np.indices(tuple(space.sizes)).reshape(len(space.dims), -1).T
    truth = dict(zip(map(tuple, codes.tolist()), (0.3 + 0.02 * np.log(table.params(codes))).tolist(), strict=True))
    search = make(problem_of(architecture), predictor="log_linear")
    rounds = []
    for _ in range(2):
        asked = [search.ask() for _ in range(5)]
        rounds.append(asked)
        for config in asked:
            search.tell(config, truth[tuple(space.encode(config).tolist())])
    flops = table.flops(space.encode_many(rounds[0]))
    assert flops.min() == table.flops(codes).min()
    assert flops.max() == table.flops(codes).max()
    best = max(truth.values())
    assert search.result.points[-1].accuracy == best
    diagnostics = search.result.diagnostics
    assert diagnostics["samples"] == 10
    assert diagnostics["leave_one_out_error"] < 1e-3
    assert diagnostics["rank_correlation"] > 0.9
    assert set(diagnostics) == {"samples", "leave_one_out_error", "rank_correlation", "nn_degree_rank_correlation"}


def test_search_front_takes_the_algorithm(architecture):
    space = architecture.space
    result = search_front(
        space,
        lambda configs: np.array([sum(config.values) / 100 for config in configs]),
        CostTable(architecture).models(),
        "mflops",
        {},
        SearchSettings(population=6, generations=1),
        np.random.default_rng(0),
        algorithm="flash",
        options={"starts": 2},
        network=architecture,
    )
    assert len(result.evaluated) == 12
    assert result.diagnostics["samples"] == 12


def test_the_training_free_front_climbs_in_cost_and_degree(architecture):
    costs = CostTable(architecture).models()
    front = training_free_front(architecture, costs, "mflops", {"params_m": 1.0}, 6, np.random.default_rng(0))
    assert [point.costs["mflops"] for point in front] == sorted(point.costs["mflops"] for point in front)
    degrees = [point.nn_degree for point in front]
    assert degrees == sorted(set(degrees))
    assert len(front) >= 3


def test_dimensions_without_an_order_are_searched_by_moves():
    """A choice of operations is no axis to relax; the solver still finds the best one."""
    from tips_nni.core import Architecture, Axis, FeatureMap, FlashSolver, NNDegree, Operation

    space = SearchSpace((ElasticDim("op", "choice", (1, 2, 3)), ElasticDim("width", "width", (4, 8))))
    wide = (Axis((4, 8), "width"),)
    maps = (FeatureMap("r", (Axis((3,)),), ((8, 8),)), FeatureMap("a", wide, ((8, 8),)))
    architecture = Architecture(space, maps, (Operation("a", "conv", ("r",), "a"),))
    costs = CostTable(architecture).models()
    solver = FlashSolver(NNDegree(architecture), costs, {}, lambda codes: codes[:, 1] - (codes[:, 0] != 1) * 0.5)
    code, score = solver.solve({"mflops": 1.0}, np.random.default_rng(0))
    assert code.tolist() == [1, 1]
    assert score == 1.0
