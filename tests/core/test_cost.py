import json

import numpy as np
import pytest

from tips_nni.core import (
    Architecture,
    Axis,
    CostTable,
    ElasticDim,
    FeatureMap,
    Operation,
    PathGraph,
    SearchSpace,
    TabulatedCost,
    Term,
    TipsError,
    operation_terms,
)


def slow_costs(architecture, code):
    """Multiply-adds, parameters and peak activation bytes by a plain loop over the operations."""
    space = architecture.space
    values = space.decode(code).as_dict()
    stem, hidden, deep = values["width.stem"], values["hidden.block"], values["depth.stage"] == 2
    side = values["resolution"] // 2
    flops = 3 * stem * 9 * side**2
    params = 3 * stem * 9 + 2 * stem
    peaks = [3 * (2 * side) ** 2 + stem * side**2, 2 * stem * side**2, stem * side**2 + stem, stem + 10]
    if deep:
        flops += (stem * hidden + hidden * 9 + hidden * stem) * side**2
        params += stem * hidden + hidden * 9 + hidden * stem + stem
        peaks += [(stem + hidden) * side**2, 2 * hidden * side**2, 3 * stem * side**2]
    flops += stem * 10
    params += stem * 10 + 10
    return flops, params, 4 * max(peaks)


def test_every_subnet_costs_what_a_loop_over_its_operations_counts(architecture, every_code):
    table = CostTable(architecture)
    expected = np.array([slow_costs(architecture, code) for code in every_code])
    np.testing.assert_array_equal(table.flops(every_code), expected[:, 0])
    np.testing.assert_array_equal(table.params(every_code), expected[:, 1])
    models = table.models()
    np.testing.assert_allclose(models["mflops"].evaluate(every_code), expected[:, 0] / 1e6, rtol=1e-15)
    np.testing.assert_allclose(models["params_m"].evaluate(every_code), expected[:, 1] / 1e6, rtol=1e-15)
    np.testing.assert_allclose(models["memory_mb"].evaluate(every_code), expected[:, 2] / 1e6, rtol=1e-15)


def test_chunks_do_not_change_the_result(architecture, every_code):
    table = CostTable(architecture)
    many = every_code[np.random.default_rng(0).integers(len(every_code), size=70_000)]
    single = {tuple(code): flops for code, flops in zip(every_code.tolist(), table.flops(every_code), strict=True)}
    np.testing.assert_array_equal(table.flops(many), [single[tuple(code)] for code in many.tolist()])


@pytest.mark.parametrize("combine", [np.add, np.maximum])
def test_merged_terms_equal_separate_ones(architecture, every_code, combine):
    rng = np.random.default_rng(1)
    sizes = architecture.space.sizes
    terms = []
    for dims in [(0,), (1,), (0, 1), (2, 3), (0, 1, 2, 3), (), (3,)]:
        terms.append(Term(dims, rng.integers(0, 1000, size=tuple(sizes[list(dims)]))))
    expected = np.zeros(len(every_code), dtype=np.int64)
    for term in terms:
        expected = combine(expected, term.look_up(every_code))
    result = TabulatedCost("x", "", architecture.space, terms, combine=combine).exact(every_code)
    np.testing.assert_array_equal(result, expected)


def test_a_gated_operation_costs_nothing_in_a_shallow_subnet(architecture, every_code):
    terms = operation_terms(architecture, lambda op, cin, cout, _i, _o: np.ones(len(cin), dtype=np.int64))
    total = TabulatedCost("count", "", architecture.space, terms).exact(every_code)
    deep = every_code[:, 2] == 1
    assert set(total[deep]) == {8}
    assert set(total[~deep]) == {4}


def test_codes_of_another_space_are_refused(architecture):
    with pytest.raises(TipsError, match="needs"):
        CostTable(architecture).flops(np.zeros((1, 9), dtype=np.int64))


def dense_network(layers: int) -> Architecture:
    """Each layer reads all before it; then a blur, two groups that are cut alike, a scalar gain, a weighted mean."""
    dims = tuple(ElasticDim(f"width.{i}", "width", (2, 4)) for i in range(layers))
    maps = [FeatureMap("input", (Axis((3,)),), ((8, 8),))]
    operations = []
    for i in range(layers):
        seen = tuple(fm.name for fm in maps)
        maps.append(FeatureMap(f"{i}", (Axis((2, 4), f"width.{i}"),), ((8, 8),)))
        operations.append(Operation(f"{i}", "conv", seen, f"{i}", (3, 3)))
    last = (Axis((2, 4), f"width.{layers - 1}"),)
    maps += [FeatureMap("blur", last, ((4, 4),)), FeatureMap("pair", last, ((4, 4),)), FeatureMap("mean", last)]
    operations += [
        Operation("blur", "filter", (f"{layers - 1}",), "blur", (3, 3), (2, 2), group_width=1),
        Operation("pair", "conv", ("blur",), "pair", (3, 3), groups=2, params=5),
        Operation("mean", "filter", ("pair",), "mean", (0, 0)),
    ]
    return Architecture(SearchSpace(dims), tuple(maps), tuple(operations))


def test_many_dimensions_and_further_kinds_are_costed_exactly():
    layers = 20
    architecture = dense_network(layers)
    table = CostTable(architecture)
    codes = architecture.space.sample(np.random.default_rng(0), 50)
    for code, flops, params, memory in zip(
        codes, table.flops(codes), table.params(codes), table.models()["memory_mb"].evaluate(codes), strict=True
    ):
        widths = [3, *(2 + 2 * int(choice) for choice in code)]
        weights = sum(sum(widths[: i + 1]) * widths[i + 1] * 9 for i in range(layers))
        last = widths[-1]
        pair = last * (last // 2) * 9
        assert params == weights + pair + 5
        assert flops == weights * 64 + last * 9 * 16 + pair * 16 + last * 16
        assert memory == pytest.approx(4e-6 * 64 * sum(widths))
    assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture


def test_attention_costs_both_of_its_products_and_its_table_of_every_head():
    """Two and four heads of 8 channels: queries of 30 tokens look at the keys of 6, or of their own sequence."""
    space = SearchSpace((ElasticDim("heads.attn", "heads", (2, 4)),))
    heads, queries = (Axis((16, 32), "heads.attn"),), ((10, 3),)
    maps = (
        FeatureMap("input", (Axis((5,)),), queries),
        FeatureMap("kv", (Axis((32, 64), "heads.attn"),), ((6, 1),)),
        FeatureMap("q", heads, queries),
        FeatureMap("cross", heads, queries),
        FeatureMap("self", heads, queries),
        FeatureMap("out", (Axis((5,)),), queries),
    )
    operations = (
        Operation("kv", "linear", ("input",), "kv"),
        Operation("q", "linear", ("input",), "q"),
        Operation("cross", "attention", ("kv", "q"), "cross", group_width=8),
        Operation("self", "attention", ("cross",), "self", group_width=8, channel_params=9),
        Operation("out", "linear", ("self",), "out"),
    )
    architecture = Architecture(space, maps, operations)
    assert Architecture.from_json(architecture.to_json()) == architecture
    codes = np.array([[0], [1]])
    table = CostTable(architecture)
    for code, count in zip(codes, (2, 4), strict=True):
        width = 8 * count
        layers = 5 * 2 * width * 6 + 5 * width * 30 + width * 5 * 30
        products = [2 * count * 30 * keys * 8 for keys in (6, 10)]
        assert table.flops(code[None])[0] == layers + sum(products)
        assert table.params(code[None])[0] == 4 * 5 * width + 9 * count
    # Heads do not mix: a chunk of the result follows the same chunk of what it is made from.
    graph = PathGraph.from_architecture(architecture)
    edges = {(graph.node_names[u], graph.node_names[v]) for u, v in zip(graph.source, graph.target, strict=True)}
    assert ("cross[0:16]", "self[0:16]") in edges
    assert ("cross[0:16]", "self[16:32]") not in edges
