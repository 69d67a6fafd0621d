"""NN-Degree: closed forms by hand, a slow reference on real structures, cells."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tips_nni.core._nn_degree as module
from tips_nni.core import (
    Architecture,
    Axis,
    ElasticDim,
    FeatureMap,
    Gate,
    NNDegree,
    Operation,
    SearchSpace,
    TipsError,
    cells_of,
)

SIZE = ((8, 8),)


def reference(architecture, code):
    """g of one subnet, cell by cell and layer by layer, from the formula."""
    codes = np.array([code])
    total = 0.0
    for cell in cells_of(architecture):
        layers = [op for op in cell.layers if architecture.present(op, codes)[0]]
        if not layers:
            continue
        widths = [int(architecture.channels(op.output, codes)[0]) for op in layers]
        joins = [names for op, names in cell.skips if architecture.present(op, codes)[0]]
        skips = sum(int(architecture.channels(name, codes)[0]) for names in joins for name in names)
        width, depth = sum(widths) / len(widths), len(layers)
        total += width + skips / (width * depth)
    return total


def test_the_formula_on_a_network_by_hand(architecture):
    """Stem of w channels; a block of three layers (h, h, w) that depth adds, with an identity of w channels."""
    space, degree = architecture.space, NNDegree(architecture)
    assert [cell.name for cell in degree.cells] == ["stem", "stage"]
    assert [[op.name for op in cell.layers] for cell in degree.cells] == [["stem"], ["expand", "dw", "project"]]
    for w in (8, 16):
        for h in (4, 8, 12):
            for resolution in (16, 32):
                values = {"width.stem": w, "hidden.block": h, "depth.stage": 1, "resolution": resolution}
                shallow = space.encode_many([space.config(values)])
                deep = space.encode_many([space.config({**values, "depth.stage": 2})])
                assert degree.evaluate(shallow)[0] == w
                mean = (2 * h + w) / 3
                assert degree.evaluate(deep)[0] == pytest.approx(w + mean + w / (mean * 3), abs=1e-12)


def dense_block():
    """DenseNet's way: every layer takes all channels before it, joined by concatenation."""
    space = SearchSpace((ElasticDim("width.a", "width", (2, 4)), ElasticDim("width.b", "width", (3, 6))))
    a, b = (Axis((2, 4), "width.a"),), (Axis((3, 6), "width.b"),)
    maps = (
        FeatureMap("input", (Axis((3,)),), SIZE),
        FeatureMap("a", a, SIZE),
        FeatureMap("b", b, SIZE),
        FeatureMap("ab", (*a, *b), SIZE),
        FeatureMap("c", (Axis((5,)),), SIZE),
        FeatureMap("abc", (*a, *b, Axis((5,))), SIZE),
        FeatureMap("pool", (*a, *b, Axis((5,)))),
        FeatureMap("head", (Axis((10,)),)),
    )
    operations = (
        Operation("a", "conv", ("input",), "a"),
        Operation("b", "conv", ("a",), "b"),
        Operation("ab", "concat", ("a", "b"), "ab"),
        Operation("c", "conv", ("ab",), "c"),
        Operation("abc", "concat", ("ab", "c"), "abc"),
        Operation("pool", "pool", ("abc",), "pool"),
        Operation("head", "linear", ("pool",), "head"),
    )
    return Architecture(space, maps, operations)


def test_concatenation_counts_the_channels_taken_from_earlier():
    degree = NNDegree(dense_block())
    for i, a in enumerate((2, 4)):
        for j, b in enumerate((3, 6)):
            channels, skips = a + b + 5, a + (a + b)
            expected = channels / 3 + skips / channels
            assert degree.evaluate(np.array([[i, j]]))[0] == pytest.approx(expected, abs=1e-12)


def test_gates_shortcuts_and_the_classifier_are_no_layers():
    """A squeeze-and-excitation block with a shortcut that has a convolution of its own."""
    space = SearchSpace((ElasticDim("width", "width", (4, 8)),))
    wide, fixed = (Axis((4, 8), "width"),), (Axis((6,)),)
    maps = (
        FeatureMap("input", (Axis((3,)),), SIZE),
        FeatureMap("x", fixed, SIZE),
        FeatureMap("a", wide, SIZE),
        FeatureMap("squeezed", wide),
        FeatureMap("gate", wide),
        FeatureMap("scaled", wide, SIZE),
        FeatureMap("b", wide, SIZE),
        FeatureMap("short", wide, SIZE),
        FeatureMap("sum", wide, SIZE),
        FeatureMap("pool", wide),
        FeatureMap("head", (Axis((10,)),)),
    )
    operations = (
        Operation("x", "conv", ("input",), "x"),
        Operation("a", "conv", ("x",), "a"),
        Operation("squeezed", "pool", ("a",), "squeezed"),
        Operation("gate", "conv", ("squeezed",), "gate"),
        Operation("scaled", "mul", ("a", "gate"), "scaled"),
        Operation("b", "conv", ("scaled",), "b"),
        Operation("short", "conv", ("x",), "short"),
        Operation("sum", "add", ("b", "short"), "sum"),
        Operation("pool", "pool", ("sum",), "pool"),
        Operation("head", "linear", ("pool",), "head"),
    )
    (cell,) = cells_of(Architecture(space, maps, operations))
    assert [op.name for op in cell.layers] == ["x", "a", "b"]
    assert [(op.name, names) for op, names in cell.skips] == [("sum", ("short",))]


def test_parallel_branches_of_one_length_are_no_skips():
    space = SearchSpace((ElasticDim("width", "width", (4, 8)),))
    maps = tuple(FeatureMap(name, (Axis((4, 8), "width"),), SIZE) for name in ("r", "a", "b"))
    both = FeatureMap("ab", (Axis((4, 8), "width"), Axis((4, 8), "width")), SIZE)
    operations = (
        Operation("a", "conv", ("r",), "a"),
        Operation("b", "conv", ("r",), "b"),
        Operation("ab", "concat", ("a", "b"), "ab"),
    )
    degree = NNDegree(Architecture(space, (*maps, both), operations))
    np.testing.assert_array_equal(degree.evaluate(np.array([[0], [1]])), [4.0, 8.0])


@st.composite
def residual_networks(draw):
    """Stages of residual blocks with widths, hidden widths and depths of any size, and sometimes a stride."""
    dims, maps, operations = [], [FeatureMap("r", (Axis((3,)),), ((32, 32),))], []
    previous, side = "r", 32
    for stage in range(draw(st.integers(1, 3))):
        name = f"layer{stage}"
        widths = tuple(sorted(draw(st.sets(st.integers(1, 20), min_size=1, max_size=3))))
        dims.append(ElasticDim(f"width.{name}", "width", widths))
        blocks = draw(st.integers(1, 3))
        depth = draw(st.booleans()) and blocks > 1
        if depth:
            dims.append(ElasticDim(f"depth.{name}", "depth", tuple(range(1, blocks + 1))))
        side //= draw(st.sampled_from([1, 2]))
        spatial = ((side, side),)
        wide = (Axis(widths, f"width.{name}"),)
        for block in range(blocks):
            hidden = tuple(sorted(draw(st.sets(st.integers(1, 20), min_size=1, max_size=3))))
            dims.append(ElasticDim(f"hidden.{name}.{block}", "hidden", hidden))
            gate = Gate(f"depth.{name}", block) if depth and block else None
            prefix = f"{name}.{block}"
            maps.append(FeatureMap(f"{prefix}.a", (Axis(hidden, f"hidden.{prefix}"),), spatial))
            maps.append(FeatureMap(f"{prefix}.b", wide, spatial))
            operations.append(Operation(f"{prefix}.a", "conv", (previous,), f"{prefix}.a", gate=gate))
            operations.append(Operation(f"{prefix}.b", "conv", (f"{prefix}.a",), f"{prefix}.b", gate=gate))
            if block:
                maps.append(FeatureMap(f"{prefix}.sum", wide, spatial))
                operations.append(
                    Operation(f"{prefix}.sum", "add", (previous, f"{prefix}.b"), f"{prefix}.sum", gate=gate)
                )
                previous = f"{prefix}.sum"
            else:
                previous = f"{prefix}.b"
    return Architecture(SearchSpace(tuple(dims)), tuple(maps), tuple(operations))


@settings(max_examples=40, deadline=None)
@given(residual_networks(), st.integers(0, 2**32 - 1))
def test_tables_equal_the_slow_reference(architecture, seed):
    codes = architecture.space.sample(np.random.default_rng(seed), 8)
    expected = [reference(architecture, code) for code in codes.tolist()]
    np.testing.assert_allclose(NNDegree(architecture).evaluate(codes), expected, rtol=1e-12)


@pytest.mark.parametrize("largest", [1, 1 << 16])
def test_cells_too_large_for_one_table_give_the_same(architecture, every_code, monkeypatch, largest):
    monkeypatch.setattr(module, "_LARGEST_CELL", largest)
    expected = [reference(architecture, code) for code in every_code.tolist()]
    np.testing.assert_allclose(NNDegree(architecture).evaluate(every_code), expected, rtol=1e-12)


def test_cells_end_where_the_size_changes():
    space = SearchSpace((ElasticDim("width", "width", (4, 8)),))
    wide = (Axis((4, 8), "width"),)
    sizes = {"a": 16, "b": 16, "c": 8, "d": 8}
    maps = [FeatureMap("r", (Axis((3,)),), ((16, 16),))]
    maps += [FeatureMap(name, wide, ((side, side),)) for name, side in sizes.items()]
    operations = tuple(Operation(name, "conv", (before,), name) for before, name in zip("rabc", "abcd", strict=True))
    cells = cells_of(Architecture(space, tuple(maps), operations))
    assert [[op.name for op in cell.layers] for cell in cells] == [["a", "b"], ["c", "d"]]


def test_a_network_without_layers_is_refused():
    space = SearchSpace((ElasticDim("width", "width", (4, 8)),))
    maps = (FeatureMap("r", (Axis((4, 8), "width"),), SIZE), FeatureMap("d", (Axis((4, 8), "width"),)))
    with pytest.raises(TipsError, match="NN-Degree needs convolutions"):
        NNDegree(Architecture(space, maps, (Operation("d", "pool", ("r",), "d"),)))
