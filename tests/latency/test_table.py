"""The table over a search space, and what it says of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tips_nni.core import Architecture, Axis, ElasticDim, FeatureMap, Operation, SearchSpace, TipsError
from tips_nni.elastic import Supernet
from tips_nni.latency import (
    KernelRow,
    LatencyTable,
    PredictorPack,
    check_coverage,
    kernel_of,
    kernels_in,
    latency_model,
    load_pack,
    pack_names,
    write_table,
)


@pytest.mark.parametrize("target", pack_names())
def test_a_latency_is_the_sum_over_the_kernels_of_a_subnet(
    mobilenet: Supernet, supernet: Supernet, target: str
) -> None:
    pack = load_pack(target)
    for net in (mobilenet, supernet):
        table = latency_model(target, net.architecture)
        codes = net.space.sample(np.random.default_rng(0), 20)
        slow = []
        for code in codes:
            total = 0.0
            for _, kernel, s in kernels_in(net.architecture, code[None]):
                total += float(pack.kernel_ms(kernel, s)[0])
            slow.append(total)
        np.testing.assert_allclose(table.evaluate(codes), slow, rtol=1e-12)


def test_a_breakdown_adds_up(supernet: Supernet) -> None:
    table = latency_model("pixel4_cpu", supernet.architecture)
    assert isinstance(table, LatencyTable)
    code = supernet.space.encode(supernet.space.smallest)[None]
    assert sum(row["ms"] for row in table.breakdown(code)) == pytest.approx(table.evaluate(code)[0], rel=1e-12)


def test_an_activation_in_a_normalisation_counts_only_where_devices_run_it_alone(mobilenet: Supernet) -> None:
    assert not [
        op.name for op, kernel, _ in kernels_in(mobilenet.architecture, _largest(mobilenet)) if kernel.type == "act"
    ]
    silu = Operation("bn", "norm", ("a",), "b", type="BatchNormAct2d+SiLU")
    relu = Operation("bn", "norm", ("a",), "b", type="BatchNormAct2d+ReLU6")
    assert str(kernel_of(silu)) == "act-1-1"
    assert kernel_of(relu) is None


def test_mobilenet_is_covered_and_its_image_size_noted(mobilenet: Supernet) -> None:
    found = latency_model("pixel4_cpu", mobilenet.architecture, backbone="mobilenetv2_050").coverage()
    assert found["covered_flops_share"] == 1.0
    assert found["estimates"] == ["avgpool-2-2"]
    assert [w for w in found["warnings"] if "images of 224 pixels, these have" in w]
    assert not [w for w in found["warnings"] if "family" in w]


def test_another_family_is_noted(supernet: Supernet) -> None:
    found = latency_model("pixel4_cpu", supernet.architecture, backbone="test_resnet").coverage()
    assert [w for w in found["warnings"] if "test_resnet is of another family" in w]


def chain(*operations: Operation, channels: int = 64, size: tuple[int, int] = (32, 48)) -> Architecture:
    space = SearchSpace((ElasticDim("width.a", "width", (channels // 2, channels)),))
    axes = (Axis((channels // 2, channels), "width.a"),)
    maps = [FeatureMap(name, axes, (size,)) for name in ("input", *(op.output for op in operations))]
    return Architecture(space, tuple(maps), operations)


def test_grouped_convolutions_are_estimates_and_can_be_refused() -> None:
    network = chain(
        Operation("dense", "conv", ("input",), "a", (3, 3)),
        Operation("grouped", "conv", ("a",), "b", (3, 3), group_width=16),
    )
    model = latency_model("pixel4_cpu", network)
    found = model.coverage()
    assert found["estimates"] == ["groupconv-3-1"]
    assert found["covered_flops_share"] == pytest.approx(64 / (64 + 16))
    assert [w for w in found["warnings"] if "groupconv-3-1" in w]
    with pytest.raises(TipsError, match=r"only 80% of the multiply-adds .*groupconv-3-1"):
        check_coverage(model)
    with pytest.raises(TipsError, match=r"constraints\.coverage is 'refuse'"):
        latency_model("pixel4_cpu", network, coverage="refuse")


def test_a_group_costs_less_than_a_dense_convolution_and_more_than_a_depthwise_one() -> None:
    times = []
    for width in (1, 16, None):
        network = chain(Operation("x", "conv", ("input",), "a", (3, 3), group_width=width))
        times.append(float(latency_model("pixel4_cpu", network).evaluate(np.array([[1]]))[0]))
    assert times == sorted(times)


def test_windows_that_are_not_square_count_their_own_positions() -> None:
    network = chain(Operation("flat", "conv", ("input",), "a", (1, 7)))
    model = latency_model("pixel4_cpu", network)
    found = model.coverage()
    assert found["neighbours"] == ["conv-1x7-1"]
    assert found["covered_flops_share"] == 0
    square = latency_model("pixel4_cpu", chain(Operation("square", "conv", ("input",), "a", (7, 7))))
    codes = np.array([[0], [1]])
    assert (model.evaluate(codes) < square.evaluate(codes)).all()


def test_images_that_are_not_square_count_their_own_positions(planted: PredictorPack) -> None:
    flat, square = (
        LatencyTable(chain(Operation("x", "conv", ("input",), "a", (3, 3)), size=size), planted).evaluate(
            np.array([[1]])
        )
        for size in ((8, 32), (16, 16))
    )
    assert flat == square


def test_very_wide_networks_are_noted() -> None:
    network = chain(Operation("x", "conv", ("input",), "a", (3, 3)), channels=4096)
    assert [w for w in latency_model("myriad_vpu", network).coverage()["warnings"] if "up to 4096 to 4096" in w]


def test_a_table_file_is_a_target(tmp_path: Path, supernet: Supernet) -> None:
    rows = []
    for net_code in (supernet.space.largest, supernet.space.smallest):
        for operation, kernel, s in kernels_in(supernet.architecture, supernet.space.encode(net_code)[None]):
            cin = int(s.cin[0]) // (len(operation.inputs) if kernel.type in ("add", "mul") else 1)
            height, width = map(int, s.size_in[0])
            rows.append(KernelRow(kernel, cin, int(s.cout[0]), height, width, 0.125 * (1 + len(rows) % 7)))
    write_table(tmp_path / "mine.csv", rows)
    model = latency_model(str(tmp_path / "mine.csv"), supernet.architecture)
    known = {(row.kernel, row.key): row.ms for row in rows}
    for config in (supernet.space.largest, supernet.space.smallest):
        code = supernet.space.encode(config)[None]
        expected = 0.0
        for operation, kernel, s in kernels_in(supernet.architecture, code):
            cin = int(s.cin[0]) // (len(operation.inputs) if kernel.type in ("add", "mul") else 1)
            expected += known[kernel, (cin, int(s.cout[0]), *map(int, s.size_in[0]))]
        assert model.evaluate(code)[0] == pytest.approx(expected)
    assert model.coverage()["covered_kernels_share"] == 1.0


def _largest(net: Supernet) -> np.ndarray:
    return net.space.encode(net.space.largest)[None]
