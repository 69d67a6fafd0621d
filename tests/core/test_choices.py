"""Operations that exclude each other, and policies that know only a path graph."""

import numpy as np
import pytest

from tips_nni.core import ElasticDim, PathGraph, Requirement, SearchSpace, TipsError, make_policy


def make_graph() -> PathGraph:
    """Two places with three exclusive operations each, then a width of two chunks."""
    space = SearchSpace(
        (
            ElasticDim("first", "choice", (1, 2, 3)),
            ElasticDim("second", "choice", (1, 2, 3)),
            ElasticDim("width", "width", (8, 16)),
        )
    )
    edges, requires = [], {}
    for place, (start, end, dim) in enumerate((("r", "middle", 0), ("middle", "end", 1))):
        for option in range(3):
            node = f"op{place}.{option}"
            edges += [(start, node), (node, end)]
            requires[node] = [Requirement(dim, option, exact=True)]
    edges += [("end", "wide0"), ("end", "wide1"), ("wide0", "d"), ("wide1", "d")]
    requires["wide1"] = [Requirement(2, 1)]
    return PathGraph.from_edges(edges, r="r", d="d", requires=requires, space=space)


def test_a_subnet_has_the_chosen_operation_only():
    graph = make_graph()
    codes = np.array([[0, 2, 0], [1, 1, 1]])
    mask = graph.node_mask(codes)
    present = [{name for name, has in zip(graph.node_names, row, strict=True) if has} for row in mask]
    assert present[0] == {"r", "op0.0", "middle", "op1.2", "end", "wide0", "d"}
    assert present[1] == {"r", "op0.1", "middle", "op1.1", "end", "wide0", "wide1", "d"}


@pytest.mark.parametrize("form", ["marginal", "path", "budget", "growth"])
def test_path_importance_draws_every_choice(form):
    policy = make_policy("path_importance", make_graph(), {"form": form})
    rng = np.random.default_rng(0)
    policy.observe(policy.sample(rng, 40))
    policy.refresh()
    codes = policy.space.encode_many(policy.sample(rng, 2000))
    for column, size in zip(codes.T, policy.space.sizes, strict=True):
        assert set(column.tolist()) == set(range(int(size)))


def test_an_option_trained_more_is_drawn_more():
    """Subnets of the window all use operation 1 in the first place: it gathers the stationary probability."""
    policy = make_policy("path_importance", make_graph(), {"exploration": 0.0})
    graph = make_graph()
    policy.observe([graph.space.decode(code) for code in [(1, 0, 1), (1, 1, 1), (1, 2, 1), (1, 0, 0), (1, 1, 0)] * 3])
    policy.refresh()
    probabilities = policy.explain().dims[0].probabilities
    assert probabilities[1] == max(probabilities)
    codes = policy.space.encode_many(policy.sample(np.random.default_rng(0), 4000))
    assert np.allclose(np.bincount(codes[:, 0]) / 4000, probabilities, atol=0.04)


@pytest.mark.parametrize(
    ("name", "options"),
    [("path_importance", {"compute_neutral": True}), ("attentive", {})],
)
def test_what_needs_multiply_adds_is_refused(name, options):
    with pytest.raises(TipsError, match="needs multiply-adds"):
        make_policy(name, make_graph(), options)


@pytest.mark.parametrize("form", ["budget", "growth"])
def test_budgets_need_no_multiply_adds_and_choices_without_order_follow_their_importance(form):
    marginal = make_policy("path_importance", make_graph(), {"exploration": 0.0})
    policy = make_policy("path_importance", make_graph(), {"exploration": 0.0, "form": form})
    for one in (marginal, policy):
        one.observe([one.space.decode(code) for code in [(1, 0, 1), (1, 1, 1), (1, 2, 1), (1, 0, 0), (1, 1, 0)] * 3])
        one.refresh()
    codes = policy.space.encode_many(policy.sample(np.random.default_rng(0), 4000))
    expected = marginal.explain().dims[0].probabilities
    assert np.allclose(np.bincount(codes[:, 0]) / 4000, expected, atol=0.04 if form == "budget" else 0.2)
    assert {tuple(np.unique(column)) for column in codes.T} == {tuple(range(n)) for n in policy.space.sizes}


def test_a_graph_without_a_space_has_nothing_to_draw():
    graph = PathGraph.from_edges([("r", "d")], r="r", d="d")
    with pytest.raises(TipsError, match="no search space"):
        make_policy("uniform", graph)
