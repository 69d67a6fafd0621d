import numpy as np
import pytest

from tips_nni.core import Architecture, Axis, ElasticDim, FeatureMap, Gate, Operation, SearchSpace


def make_architecture() -> Architecture:
    """A small network by hand: stem, a residual block that depth can leave out, a depthwise one, a classifier."""
    space = SearchSpace(
        (
            ElasticDim("width.stem", "width", (8, 16)),
            ElasticDim("hidden.block", "hidden", (4, 8, 12)),
            ElasticDim("depth.stage", "depth", (1, 2)),
            ElasticDim("resolution", "resolution", (16, 32)),
        )
    )
    stem = (Axis((8, 16), "width.stem"),)
    hidden = (Axis((4, 8, 12), "hidden.block"),)
    half, full = ((8, 8), (16, 16)), ((16, 16), (32, 32))
    gate = Gate("depth.stage", 1)
    maps = (
        FeatureMap("input", (Axis((3,)),), full),
        FeatureMap("stem", stem, half),
        FeatureMap("norm", stem, half),
        FeatureMap("expand", hidden, half),
        FeatureMap("dw", hidden, half),
        FeatureMap("project", stem, half),
        FeatureMap("sum", stem, half),
        FeatureMap("pool", stem, ((1, 1), (1, 1))),
        FeatureMap("head", (Axis((10,)),), ((1, 1), (1, 1))),
    )
    operations = (
        Operation("stem", "conv", ("input",), "stem", (3, 3), (2, 2)),
        Operation("norm", "norm", ("stem",), "norm", channel_params=2),
        Operation("expand", "conv", ("norm",), "expand", gate=gate),
        Operation("dw", "conv", ("expand",), "dw", (3, 3), group_width=1, gate=gate),
        Operation("project", "conv", ("dw",), "project", bias=True, gate=gate),
        Operation("sum", "add", ("project", "norm"), "sum", gate=gate),
        Operation("pool", "pool", ("sum",), "pool"),
        Operation("head", "linear", ("pool",), "head", bias=True),
    )
    return Architecture(space, maps, operations)


@pytest.fixture
def architecture() -> Architecture:
    return make_architecture()


@pytest.fixture
def every_code(architecture: Architecture) -> np.ndarray:
    return np.indices(tuple(architecture.space.sizes)).reshape(len(architecture.space.dims), -1).T


def make_residual_network(stages: int = 2, blocks: int = 2, choices: int = 3) -> Architecture:
    """A network of residual stages: a width and a depth for each stage, a hidden width for each block."""
    dims: list[ElasticDim] = []
    side = 32
    maps = [FeatureMap("input", (Axis((3,)),), ((side, side),))]
    operations: list[Operation] = []
    previous = "input"
    for stage in range(stages):
        name, side = f"layer{stage}", side // 2
        unit = 8 << stage
        sizes = tuple(unit * (i + 1) for i in range(choices))
        dims.append(ElasticDim(f"width.{name}", "width", sizes))
        dims.append(ElasticDim(f"depth.{name}", "depth", tuple(range(1, blocks + 1))))
        wide, spatial = (Axis(sizes, f"width.{name}"),), ((side, side),)
        for block in range(blocks):
            prefix = f"{name}.{block}"
            dims.append(ElasticDim(f"hidden.{prefix}", "hidden", sizes))
            gate = Gate(f"depth.{name}", block) if block else None
            maps.append(FeatureMap(f"{prefix}.a", (Axis(sizes, f"hidden.{prefix}"),), spatial))
            maps.append(FeatureMap(f"{prefix}.b", wide, spatial))
            operations.append(Operation(f"{prefix}.a", "conv", (previous,), f"{prefix}.a", (3, 3), gate=gate))
            operations.append(Operation(f"{prefix}.b", "conv", (f"{prefix}.a",), f"{prefix}.b", (3, 3), gate=gate))
            previous = f"{prefix}.b"
            if block:
                maps.append(FeatureMap(f"{prefix}.sum", wide, spatial))
                inputs = (previous, operations[-3].output)
                operations.append(Operation(f"{prefix}.sum", "add", inputs, f"{prefix}.sum", gate=gate))
                previous = f"{prefix}.sum"
    return Architecture(SearchSpace(tuple(dims)), tuple(maps), tuple(operations))


@pytest.fixture(scope="session")
def residual() -> Architecture:
    """2,916 subnets."""
    return make_residual_network()


@pytest.fixture(scope="session")
def every_residual_code(residual: Architecture) -> np.ndarray:
    return np.indices(tuple(residual.space.sizes)).reshape(len(residual.space.dims), -1).T
