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
