import numpy as np
import pytest

from tips_nni.core import (
    Architecture,
    Axis,
    CostTable,
    ElasticDim,
    FeatureMap,
    Operation,
    PathImportancePolicy,
    PolicyInfo,
    PolicyOptions,
    SearchSpace,
    TipsError,
    UniformPolicy,
    check_policy,
    lambda_sweep,
    make_policy,
    policy_names,
    register_policy,
)
from tips_nni.core._path_forms import BudgetForm, MarginalForm, PathForm
from tips_nni.core._policy import POLICIES, tilt
from tips_nni.testing import PolicyContract

CASES = {
    "uniform": ("uniform", {}),
    "global_width": ("global_width", {}),
    "attentive": ("attentive", {"candidates": 8}),
    "marginal": ("path_importance", {}),
    "path": ("path_importance", {"form": "path"}),
    "directed": ("path_importance", {"directed": True, "coupling": "shared", "score": "sum"}),
    "width": ("path_importance", {"edge_weight": "width", "lambda": 0.01}),
    "gradient": ("path_importance", {"edge_weight": "gradient", "temperature": 0.5}),
    "budget": ("path_importance", {"form": "budget", "edge_weight": "gradient"}),
    "thrifty_budget": ("path_importance", {"form": "budget", "thrift": 1.0, "coupling": "shared"}),
    "growth": ("path_importance", {"form": "growth"}),
    "growth_loss": ("path_importance", {"form": "growth", "edge_weight": "loss", "coupling": "shared", "thrift": 1.0}),
    "marginal_loss": ("path_importance", {"edge_weight": "loss"}),
    "neutral_growth": ("path_importance", {"form": "growth", "compute_neutral": True}),
    "neutral_budget": ("path_importance", {"form": "budget", "compute_neutral": True}),
    "neutral": ("path_importance", {"compute_neutral": True}),
    "neutral_path": ("path_importance", {"form": "path", "compute_neutral": True}),
    "neutral_global": ("global_width", {"compute_neutral": True}),
}


@pytest.mark.parametrize("case", CASES)
class TestEveryPolicy(PolicyContract):
    @pytest.fixture(autouse=True)
    def _case(self, case):
        self._name, self._options = CASES[case]

    def make(self, architecture):
        return make_policy(self._name, architecture, self._options)


def test_the_contract_notices_a_policy_that_forgets(architecture):
    class Forgetful(UniformPolicy):
        def _draw(self, rng, n):
            return np.zeros((n, len(self.space.dims)), dtype=np.int64)

    class Contract(PolicyContract):
        def make(self, architecture):
            return Forgetful(architecture, PolicyOptions(exploration=0.0))

    with pytest.raises(AssertionError):
        Contract().test_every_option_stays_possible(architecture)


def test_the_marginal_form_follows_softmax_of_standardised_importance(architecture):
    policy = make_policy("path_importance", architecture, {"temperature": 0.7, "exploration": 0.2})
    for table in policy.explain().dims:
        values = np.array(table.importances)
        spread = values.std()
        logits = (values - values.mean()) / spread / 0.7 if spread > 1e-12 else np.zeros(len(values))
        expected = 0.8 * np.exp(logits) / np.exp(logits).sum() + 0.2 / len(values)
        np.testing.assert_allclose(table.probabilities, expected, atol=1e-12)


def test_a_high_temperature_is_uniform_and_a_low_one_greedy(architecture):
    hot = make_policy("path_importance", architecture, {"temperature": 1e9, "exploration": 0.0})
    cold = make_policy("path_importance", architecture, {"temperature": 1e-3, "exploration": 0.0})
    for warm, greedy in zip(hot.explain().dims, cold.explain().dims, strict=True):
        np.testing.assert_allclose(warm.probabilities, 1 / len(warm.choices), atol=1e-6)
        if np.ptp(greedy.importances) > 1e-9:
            best = np.flatnonzero(np.array(greedy.importances) >= max(greedy.importances) - 1e-9)
            assert sum(greedy.probabilities[i] for i in best) > 0.99


def test_paths_are_drawn_by_their_weight(architecture):
    policy = make_policy("path_importance", architecture, {"score": "sum"})
    graph = policy.graph
    form = PathForm(graph, policy.space, policy.tas, temperature=0.5, paths=1)
    logits = (policy.tas - policy.tas.mean()) / policy.tas.std() / 0.5
    weights = {}

    def walk(node, nodes, total):
        if node == graph.r:
            weights[nodes] = np.exp(total)
            return
        for u in graph.source[graph.incoming(node)].tolist():
            walk(u, (*nodes, u), total + logits[u])

    walk(graph.d, (graph.d,), logits[graph.d])
    rng = np.random.default_rng(0)
    draws = 4000
    seen = dict.fromkeys(weights, 0)
    for _ in range(draws):
        seen[tuple(form.draw_path(rng))] += 1
    total = sum(weights.values())
    for path, weight in weights.items():
        p = weight / total
        assert abs(seen[path] / draws - p) < 5 * np.sqrt(p * (1 - p) / draws) + 1e-9


def test_a_budget_widens_layers_by_their_importance(architecture):
    policy = make_policy("path_importance", architecture, {"form": "budget"})
    graph, space, table = policy.graph, policy.space, CostTable(architecture)
    marginal = MarginalForm(policy.importances, 1.0)
    form = BudgetForm(graph, space, table.flops, policy.worth, marginal, temperature=1.0, jitter=0.0)
    for i, limits in enumerate(form.shares):
        if space.dims[i].kind == "resolution":
            continue
        added = []
        for level in range(len(limits)):
            own = [
                worth
                for node, worth in zip(graph.nodes, policy.worth, strict=True)
                if any(need.dim == i and need.level == level for need in node.requires)
            ]
            everywhere = [
                worth
                for node, worth in zip(graph.nodes, policy.worth, strict=True)
                if all(need.level == 0 for need in node.requires)
            ]
            added.append(np.mean(own or everywhere))
        np.testing.assert_allclose(limits, np.cumsum(added) / np.sum(added), atol=1e-12)
    codes = form.draw(np.random.default_rng(0), 3000)
    flops = np.log(table.flops(codes))
    elastic = [i for i, dim in enumerate(space.dims) if dim.kind != "resolution"]
    # Without jitter there is one chain of subnets: of two, one holds the other.
    chain = np.unique(codes[:, elastic], axis=0)
    for one in chain:
        for other in chain:
            assert (one <= other).all() or (one >= other).all()
    assert chain.min() == 0
    assert (chain.max(axis=0) == space.sizes[elastic] - 1).all()
    assert flops.min() < flops.max()


@pytest.fixture
def six_widths():
    """A chain of six convolutions with eight widths each."""
    space = SearchSpace(tuple(ElasticDim(f"width.{i}", "width", tuple(range(8, 72, 8))) for i in range(6)))
    maps = [FeatureMap("0", (Axis((3,)),), ((32, 32),))]
    operations = []
    for i in range(6):
        maps.append(FeatureMap(f"{i + 1}", (Axis(space.dims[i].choices, f"width.{i}"),), ((32, 32),)))
        operations.append(Operation(f"conv{i}", "conv", (f"{i}",), f"{i + 1}", (3, 3)))
    maps.append(FeatureMap("head", (Axis((10,)),), ((1, 1),)))
    operations.append(Operation("head", "linear", ("6",), "head"))
    return Architecture(space, tuple(maps), tuple(operations))


def thirds_of_budgets(network, policy):
    """Shares of draws in the thirds of the range of multiply-adds, on the logarithmic scale."""
    space, table = network.space, CostTable(network)
    flops = np.log(table.flops(space.encode_many(policy.sample(np.random.default_rng(0), 4000))))
    ends = np.log(table.flops(space.encode_many([space.smallest, space.largest])))
    return np.histogram(flops, bins=3, range=(ends[0], ends[1]))[0] / 4000


@pytest.mark.parametrize("jitter", [0.0, 0.05, 0.2])
def test_budgets_are_even_in_the_logarithm_of_multiply_adds(six_widths, jitter):
    policy = make_policy("path_importance", six_widths, {"form": "budget", "jitter": jitter, "exploration": 0.0})
    np.testing.assert_allclose(thirds_of_budgets(six_widths, policy), 1 / 3, atol=0.08)


def test_budgets_reach_the_largest_subnet_however_unequal_the_importances(six_widths):
    options = {"form": "budget", "window": 64, "exploration": 0.0, "temperature": 0.1}
    policy = make_policy("path_importance", six_widths, options)
    policy.observe([six_widths.space.smallest] * 64)
    policy.refresh()
    assert all(limits[0] > 0.9 for limits in policy._form.shares)
    np.testing.assert_allclose(thirds_of_budgets(six_widths, policy), 1 / 3, atol=0.15)
    assert six_widths.space.largest in policy.sample(np.random.default_rng(0), 500)


def test_importance_does_not_feed_itself(six_widths):
    # Options that are drawn seldom are in few subnets of the chain; that alone must not make them unimportant.
    policy = make_policy("path_importance", six_widths, {"form": "budget", "coupling": "shared", "window": 64})
    shares = []
    for config in (six_widths.space.smallest, six_widths.space.largest):
        policy.observe([config] * 64)
        policy.refresh()
        shares.append(np.concatenate(policy._form.shares))
    assert np.abs(shares[0] - shares[1]).max() < 0.1


def test_no_jitter_and_high_temperature_is_one_global_share(architecture):
    policy = make_policy("path_importance", architecture, {"form": "budget", "jitter": 0.0, "temperature": 1e9})
    for limits in policy._form.shares:
        np.testing.assert_allclose(limits, np.arange(1, len(limits) + 1) / len(limits), atol=1e-6)


def test_global_width_draws_one_width_for_all(architecture):
    policy = make_policy("global_width", architecture, {"exploration": 0.0})
    codes = policy.space.encode_many(policy.sample(np.random.default_rng(0), 500))
    # Two widths of 2 and 3 choices: with one number u they are floor(2u), floor(3u).
    assert set(map(tuple, codes[:, :2].tolist())) == {(0, 0), (0, 1), (1, 1), (1, 2)}


def test_attentive_spreads_evenly_over_multiply_adds(architecture):
    policy = make_policy("attentive", architecture, {"candidates": 64, "exploration": 0.0})
    table = CostTable(architecture)
    flops = table.flops(policy.space.encode_many(policy.sample(np.random.default_rng(0), 2000)))
    uniform = table.flops(policy.space.sample(np.random.default_rng(0), 2000))
    low, high = table.flops(policy.space.encode_many([policy.space.smallest, policy.space.largest]))
    assert abs(flops.mean() - (low + high) / 2) < abs(uniform.mean() - (low + high) / 2)


def test_the_tilt_meets_its_target():
    flops = np.random.default_rng(0).uniform(1, 100, 500)
    for target in (20.0, 50.0, 80.0):
        assert tilt(flops, target) @ flops == pytest.approx(target, rel=1e-6)
    assert tilt(flops, 1e9) @ flops == pytest.approx(flops.max(), rel=1e-3)


def test_gradients_change_the_importance(architecture):
    policy = make_policy("path_importance", architecture, {"edge_weight": "gradient", "decay": 0.5})
    before = policy.tas.copy()
    policy.observe_gradients({"expand": 8.0, "stem": 1.0})
    policy.observe_gradients({"expand": 4.0, "stem": 1.0})
    assert policy.state_dict()["gradients"] == {"expand": 6.0, "stem": 1.0}
    policy.refresh()
    assert np.abs(policy.tas - before).max() > 1e-3
    with pytest.raises(TipsError, match="gradient norm of stem is nan"):
        policy.observe_gradients({"stem": float("nan")})


def test_the_window_keeps_the_latest_subnets(architecture):
    policy = make_policy("path_importance", architecture, {"window": 3})
    configs = policy.sample(np.random.default_rng(0), 5)
    policy.observe(configs)
    assert policy.state_dict()["recent"] == policy.space.encode_many(configs[2:]).tolist()


def test_a_refresh_is_due_every_so_many_steps(architecture):
    policy = make_policy("path_importance", architecture, {"refresh": 10})
    assert [step for step in range(31) if policy.due(step)] == [10, 20, 30]
    assert not any(make_policy("uniform", architecture).due(step) for step in range(31))


def test_the_sweep_goes_from_subnets_apart_to_one_graph(architecture):
    policy = make_policy("path_importance", architecture)
    assert isinstance(policy, PathImportancePolicy)
    sweep = lambda_sweep(policy)
    assert [row["lambda"] for row in sweep] == [1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3]
    assert all(set(row["operations"]) == set(policy.graph.operations) for row in sweep)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unifrom", {}, "did you mean 'uniform'"),
        ("path_importance", {"lamda": 1.0}, "did you mean 'lambda'"),
        ("path_importance", {"lambda": 0}, "lambda = 0.0 .* above 0"),
        ("path_importance", {"temperature": float("inf")}, "temperature = inf"),
        ("path_importance", {"form": "margnal"}, "did you mean 'marginal'"),
        ("path_importance", {"window": 0}, "window = 0"),
        ("path_importance", {"window": 1.5}, "whole number"),
        ("path_importance", {"directed": "yes"}, "type bool"),
        ("path_importance", {"lambda": "high"}, "type float"),
        ("path_importance", {"decay": 1.0}, "decay = 1.0"),
        ("path_importance", {"jitter": -0.1}, "jitter = -0.1"),
        ("path_importance", {"exploration": 2.0}, "exploration = 2.0"),
        ("path_importance", {"compute_neutral": True, "exploration": 0.0}, "exploration above 0"),
        ("attentive", {"candidates": 0}, "candidates = 0"),
    ],
)
def test_wrong_options_get_one_clear_line(name, options, message):
    with pytest.raises(TipsError, match=message) as caught:
        check_policy(name, options)
    assert "\n" not in str(caught.value)


def test_state_of_something_else_is_refused(architecture):
    policy = make_policy("path_importance", architecture)
    for state in ({}, {**policy.state_dict(), "recent": [[9, 9, 9, 9]]}, {**policy.state_dict(), "tas": None}):
        with pytest.raises(TipsError):
            make_policy("path_importance", architecture).load_state_dict(state)


def test_a_subnet_of_another_space_is_refused(architecture):
    policy = make_policy("path_importance", architecture)
    before = policy.state_dict()
    dims = architecture.space.dims
    foreign = [
        SearchSpace((*dims[:-1], ElasticDim("resolution", "resolution", (16, 64)))).largest,
        SearchSpace(dims[:-1]).largest,
        SearchSpace((*dims, ElasticDim("depth.more", "depth", (1, 2)))).largest,
    ]
    for config in foreign:
        with pytest.raises(TipsError, match=r"resolution|depth\.more") as caught:
            policy.observe([architecture.space.smallest, config])
        assert "\n" not in str(caught.value)
    assert policy.state_dict() == before


def test_a_third_party_registers_a_policy(architecture):
    info = PolicyInfo("mine", "for the test", UniformPolicy, PolicyOptions)
    register_policy(info)
    try:
        assert "mine" in policy_names()
        assert len(make_policy("mine", architecture).sample(np.random.default_rng(0), 3)) == 3
        with pytest.raises(TipsError, match="registered already"):
            register_policy(info)
    finally:
        del POLICIES["mine"]
