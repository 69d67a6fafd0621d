import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tips_nni.core import (
    PathGraph,
    PathScores,
    TipsError,
    accumulated_scores,
    operation_importance,
    option_importance,
)


def all_paths(graph):
    """Every path from r to d, by depth-first search."""
    following = {}
    for u, v in zip(graph.source.tolist(), graph.target.tolist(), strict=True):
        following.setdefault(u, []).append(v)

    def walk(node):
        if node == graph.d:
            return [(node,)]
        return [(node, *rest) for after in following.get(node, []) for rest in walk(after)]

    return walk(graph.r)


@st.composite
def scored_graphs(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = ["r", *(f"n{i}" for i in range(draw(st.integers(0, 7)))), "d"]
    edges = {("r", "d")} | {
        (names[i], names[j]) for i, j in itertools.combinations(range(len(names)), 2) if rng.random() < 0.5
    }
    graph = PathGraph.from_edges(sorted(edges), r="r", d="d")
    return graph, rng.integers(0, 8, size=len(graph.nodes)) / 8


def score_of(tas, path, kind):
    values = [tas[node] for node in path]
    return sum(values) / len(values) if kind == "mean" else sum(values)


@pytest.mark.parametrize("kind", ["mean", "sum"])
@given(scored_graphs(), st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_best_paths_equal_enumeration(kind, case, count):
    graph, tas = case
    expected = sorted((score_of(tas, path, kind) for path in all_paths(graph)), reverse=True)[:count]
    found = PathScores(graph, tas, kind).best(count)
    np.testing.assert_allclose([path.score for path in found], expected)
    assert len({path.nodes for path in found}) == len(found)
    for path in found:
        assert path.nodes in all_paths(graph)
        assert score_of(tas, path.nodes, kind) == pytest.approx(path.score)


@pytest.mark.parametrize("kind", ["mean", "sum"])
@given(scored_graphs())
@settings(max_examples=80, deadline=None)
def test_best_path_through_each_edge_equals_enumeration(kind, case):
    graph, tas = case
    expected = []
    for u, v in zip(graph.source.tolist(), graph.target.tolist(), strict=True):
        scores = [score_of(tas, path, kind) for path in all_paths(graph) if (u, v) in set(itertools.pairwise(path))]
        expected.append(max(scores, default=-np.inf))
    np.testing.assert_allclose(PathScores(graph, tas, kind).through_edges(), expected)


def test_the_most_important_operation_is_on_the_best_path():
    graph = PathGraph.from_edges([("r", "a"), ("r", "b"), ("a", "d"), ("b", "d")], r="r", d="d")
    tas = np.array([{"r": 1.0, "a": 3.0, "b": 2.0, "d": 1.0}[name] for name in graph.node_names])
    scores = PathScores(graph, tas)
    importance = operation_importance(graph, scores.through_edges())
    third = pytest.approx(5 / 3), pytest.approx(4 / 3)
    assert importance == {"r->a": third[0], "a->d": third[0], "r->b": third[1], "b->d": third[1]}
    assert list(importance)[:2] == ["a->d", "r->a"] or list(importance)[:2] == ["r->a", "a->d"]


def test_an_option_is_as_important_as_what_it_unlocks(architecture):
    graph = PathGraph.from_architecture(architecture)
    through = np.arange(len(graph.source), dtype=np.float64)
    options = option_importance(graph, through)
    requirements = graph.edge_requirements()
    for dim, values in enumerate(options):
        for level, value in enumerate(values):
            own = [
                through[e]
                for e, needs in enumerate(requirements)
                if max((need.level for need in needs if need.dim == dim), default=-1) == level
            ]
            assert value == pytest.approx(np.mean(own) if own else through.mean())


def test_tas_sums_over_subnets():
    np.testing.assert_allclose(accumulated_scores(np.array([[0.1, 0.2], [0.3, 0.4]])), [0.4, 0.6])


def test_wrong_scores_are_refused():
    graph = PathGraph.from_edges([("r", "d")], r="r", d="d")
    with pytest.raises(TipsError, match="did you mean 'mean'"):
        PathScores(graph, np.ones(2), "maen")
    with pytest.raises(TipsError, match="not finite"):
        PathScores(graph, np.array([1.0, np.nan]))
    with pytest.raises(TipsError, match="no search space"):
        option_importance(graph, np.ones(1))
