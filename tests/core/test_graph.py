import numpy as np
import pytest

from tips_nni.core import ElasticDim, PathGraph, Requirement, SearchSpace, TipsError


def edges_of(graph, code=None):
    """The edges by name, of the whole graph or of one subnet."""
    names = graph.node_names
    kept = np.ones(len(graph.source), dtype=bool)
    if code is not None:
        kept = graph.edge_mask(graph.node_mask(np.array([code])))[0]
    return {(names[u], names[v]) for u, v, k in zip(graph.source, graph.target, kept, strict=True) if k}


def test_the_graph_of_a_network_by_hand(architecture):
    graph = PathGraph.from_architecture(architecture)
    stem = ["stem[0:8]", "stem[8:16]"]
    hidden = [f"expand[{a}:{b}]" for a, b in ((0, 4), (4, 8), (8, 12))]
    dw = [name.replace("expand", "dw") for name in hidden]
    project = ["project[0:8]", "project[8:16]"]
    total = ["sum[0:8]", "sum[8:16]"]
    expected = {("input", s) for s in stem}
    expected |= {(s, h) for s in stem for h in hidden}
    expected |= set(zip(hidden, dw, strict=True))
    expected |= {(d, p) for d in dw for p in project}
    expected |= set(zip(project, total, strict=True)) | set(zip(stem, total, strict=True))
    expected |= {(t, "head") for t in total}
    assert edges_of(graph) == expected
    assert graph.node_names[graph.r] == "input"
    assert graph.node_names[graph.d] == "head"


def test_the_smallest_subnet_keeps_the_identity_around_the_block(architecture):
    graph = PathGraph.from_architecture(architecture)
    smallest = architecture.space.encode(architecture.space.smallest)
    assert edges_of(graph, smallest) == {("input", "stem[0:8]"), ("stem[0:8]", "sum[0:8]"), ("sum[0:8]", "head")}


def test_the_largest_subnet_keeps_everything(architecture):
    graph = PathGraph.from_architecture(architecture)
    largest = architecture.space.encode(architecture.space.largest)
    assert edges_of(graph, largest) == edges_of(graph)


def test_masks_equal_the_definition_on_every_subnet(architecture, every_code):
    graph = PathGraph.from_architecture(architecture)
    mask = graph.node_mask(every_code)
    for code, row in zip(every_code, mask, strict=True):
        for node, present in zip(graph.nodes, row, strict=True):
            assert present == all(code[need.dim] >= need.level for need in node.requires)


def test_shares_of_width_sum_to_one_for_each_dense_operation(architecture):
    graph = PathGraph.from_architecture(architecture)
    for name in ("stem", "expand", "dw", "project", "head"):
        shares = [w for op, w in zip(graph.operations, graph.width, strict=True) if op == name]
        assert sum(shares) == pytest.approx(1.0)


def test_a_node_off_every_path_is_no_state():
    space = SearchSpace((ElasticDim("width.a", "width", (1, 2)),))
    graph = PathGraph.from_edges(
        [("r", "a"), ("a", "b"), ("b", "d"), ("r", "d")],
        r="r",
        d="d",
        requires={"b": [Requirement(0, 1)]},
        space=space,
    )
    names = np.array(graph.node_names)
    masks = graph.node_mask(np.array([[0], [1]]))
    assert set(names[masks[0]]) == {"r", "d"}
    assert set(names[masks[1]]) == {"r", "a", "b", "d"}


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([("r", "a"), ("b", "d")], "no path from 'r' to 'd'"),
        ([("r", "a"), ("a", "b"), ("b", "a"), ("a", "d")], "cycle among a, b"),
        ([("r", "d"), ("r", "d")], "given twice"),
        ([("r", "a")], "node 'd' is at no edge"),
    ],
)
def test_a_graph_that_is_none_is_refused(edges, message):
    with pytest.raises(TipsError, match=message):
        PathGraph.from_edges(edges, r="r", d="d")


def test_a_subnet_without_a_path_is_refused():
    space = SearchSpace((ElasticDim("width.a", "width", (1, 2)),))
    graph = PathGraph.from_edges(
        [("r", "a"), ("a", "d")], r="r", d="d", requires={"a": [Requirement(0, 1)]}, space=space
    )
    with pytest.raises(TipsError, match="subnet 1 of 2 has no path"):
        graph.node_mask(np.array([[1], [0]]))
    with pytest.raises(TipsError, match="out of range"):
        graph.node_mask(np.array([[2]]))
