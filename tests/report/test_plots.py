"""Plots: the artists hold the numbers that were given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from tips_nni.report import describe_coverage, front_table
from tips_nni.report._plots import (
    front_figure,
    probability_figure,
    shorten,
    sweep_figure,
    tas_figure,
    training_figure,
)

Rows = list[dict[str, Any]]


def lines(figure: Figure, panel: int = 0) -> list[tuple[list[float], list[float]]]:
    return [
        (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for line in figure.axes[panel].get_lines()
    ]


def test_front_figure(front: Rows) -> None:
    figure = front_figure(front, front[:2], "pixel4_cpu")
    assert len(figure.axes) == 2
    assert lines(figure) == [
        ([1, 10, 40], [60, 80, 90]),  # the steps
        ([1, 10, 40], [60, 80, 90]),
        ([1, 10, 40], [65, 79, 87]),
    ]
    # Against latency the subnet of 10 ms is dominated by that of 9: the steps leave it out, the dots do not.
    assert lines(figure, 1)[0] == ([3, 9], [60, 90])
    assert lines(figure, 1)[1] == ([3, 9, 10], [60, 90, 80])
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[40, 90], [1, 60]]
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[1].get_xscale() == "linear"
    assert "pixel4_cpu" in figure.axes[1].get_xlabel()


def test_front_figure_without_a_device(front: Rows) -> None:
    assert len(front_figure(front, [], None).axes) == 1


def test_training_figure(folder: Any) -> None:
    history = [
        {"epoch": 1.0, "train_loss": 2.5, "accuracy_largest": 0.25, "accuracy_smallest": 0.125},
        {"epoch": 2.0, "train_loss": 1.5, "accuracy_largest": 0.75, "accuracy_smallest": 0.5},
    ]
    figure = training_figure(history)
    assert lines(figure, 0) == [([1, 2], [2.5, 1.5])]
    assert lines(figure, 1) == [([1, 2], [25, 75]), ([1, 2], [12.5, 50])]


def test_tas_figure(explanations: Rows) -> None:
    figure = tas_figure(explanations[-1])
    grid = np.ma.filled(figure.axes[0].get_images()[0].get_array(), np.nan)
    np.testing.assert_equal(grid, [[0.4, 0.3, 0.2], [np.nan, 0.1, np.nan]])
    assert lines(figure) == [([0, 1, 2], [0, 0, 0])]


def test_probability_figure(explanations: Rows) -> None:
    panel = probability_figure(explanations).axes[0]
    assert [patch.get_height() for patch in panel.patches] == [0.5, 0.5, 0.75, 0.25]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["8", "16"]


def test_sweep_figure_ranks_equal_importance_equally() -> None:
    sweep = [
        {"lambda": 0.01, "operations": {"a": 3.0, "b": 1.0, "c": 2.0, "d": 2.0}},
        {"lambda": 100.0, "operations": {"a": 1.0, "b": 4.0, "c": 2.0, "d": 2.0}},
    ]
    figure = sweep_figure(sweep)
    assert sorted(y for _, y in lines(figure)) == [[1, 4], [2, 2], [4, 1]]
    assert {text.get_text() for text in figure.axes[0].texts} == {"a", "b", "c, d"}
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top  # rank 1 on top


def test_figures_leave_no_global_state(front: Rows, explanations: Rows) -> None:
    front_figure(front, front, "pixel4_cpu")
    tas_figure(explanations[0])
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("length", [8, 9, 22])
def test_shorten(length: int) -> None:
    name = "stages.0.blocks.1.conv_pw.bn"
    short = shorten(name, length)
    assert len(short) <= length
    assert short[0] == name[0]
    assert short[-1] == name[-1]
    assert shorten("conv1", length) == "conv1"


def test_long_front_is_thinned_with_both_ends(front: Rows) -> None:
    rows = [{**front[0], "mflops": float(i)} for i in range(100)]
    table = front_table(rows, "pixel4_cpu", limit=10)
    assert [float(cell) for cell in table.columns[2].cells] == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]


def test_table_without_latency(front: Rows) -> None:
    del front[1]["latency_ms"]
    assert list(front_table(front, "pixel4_cpu").columns[4].cells) == ["–", "10", "9"]


def test_coverage_names_what_was_not_measured():
    coverage = {
        "covered_kernels_share": 0.5,
        "covered_flops_share": 0.9,
        "neighbours": ["conv-3-2"],
        "estimates": ["mul-1-1"],
    }
    text = describe_coverage(coverage)
    assert text.startswith("measured: 50% of the kernels, 90% of the multiply-adds")
    assert text.endswith("not measured: conv-3-2 (neighbour), mul-1-1")
    assert describe_coverage({**coverage, "neighbours": [], "estimates": []}).endswith("not measured: none")
