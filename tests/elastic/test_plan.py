"""The elastic plan as data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tips_nni.core import ElasticDim, SearchSpace, TipsError
from tips_nni.elastic import ElasticPlan
from tips_nni.elastic._plan import AxisPlan, Piece, _expand, _runs

SPACE = SearchSpace((ElasticDim("width.a", "width", (2, 4)), ElasticDim("width.b", "width", (1, 3))))


def piece(dim: str, index: list[int], root: list[int]) -> Piece:
    return Piece(dim, np.array(index, dtype=np.int64), np.array(root, dtype=np.int64))


def test_a_plan_survives_json(case):
    plan = case.net.plan
    again = ElasticPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert (again.space, again.stages, again.image_size, again.in_chans) == (
        plan.space, dict(plan.stages), plan.image_size, plan.in_chans
    )  # fmt: skip
    assert list(again.layers) == list(plan.layers)
    for config in case.configs(4):
        assert again.skipped(config) == plan.skipped(config)
        assert again.resolution(config) == plan.resolution(config) == config["resolution"]
        for name, layer in plan.layers.items():
            for one, two in ((layer.inputs, again.layers[name].inputs), (layer.outputs, again.layers[name].outputs)):
                assert (one is None) == (two is None)
                if one is not None:
                    np.testing.assert_array_equal(np.r_[one.kept(config)], np.r_[two.kept(config)])


def test_leading_channels_are_a_slice():
    axis = AxisPlan(4, (piece("width.a", [0, 1, 2, 3], [0, 1, 2, 3]),))
    assert axis.kept(SPACE.smallest) == slice(0, 2)
    assert axis.kept(SPACE.largest) == slice(0, 4)


def test_pieces_fixed_channels_and_flattened_positions():
    # Positions 0..3 follow a, 4..6 follow b, 7 is fixed.
    axis = AxisPlan(8, (piece("width.a", [0, 1, 2, 3], [0, 1, 2, 3]), piece("width.b", [4, 5, 6], [0, 1, 2])))
    np.testing.assert_array_equal(axis.kept(SPACE.smallest), [0, 1, 4, 7])
    assert axis.kept(SPACE.largest) == slice(0, 8)
    # Two positions for each channel, side by side: still leading.
    flat = AxisPlan(8, (piece("width.a", list(range(8)), [0, 0, 1, 1, 2, 2, 3, 3]),))
    assert flat.kept(SPACE.smallest) == slice(0, 4)
    # Twice the group, one behind the other.
    twice = AxisPlan(8, (piece("width.a", list(range(8)), [0, 1, 2, 3, 0, 1, 2, 3]),))
    np.testing.assert_array_equal(twice.kept(SPACE.smallest), [0, 1, 4, 5])


@pytest.mark.parametrize("values", [[], [0], [3, 4, 5], [0, 1, 5, 6, 2, 2, 2], [4, 3, 2]])
def test_runs_undo(values):
    array = np.array(values, dtype=np.int64)
    np.testing.assert_array_equal(_expand(json.loads(json.dumps(_runs(array)))), array)


@pytest.mark.parametrize("data", [{}, [], {"space": []}, {"layers": {"a": 3}, "space": [], "stages": {}}, None])
def test_other_data_are_refused(data):
    with pytest.raises(TipsError) as error:
        ElasticPlan.from_json(data)
    assert "\n" not in str(error.value)
