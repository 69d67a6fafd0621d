"""The table: nn-Meter's number for every subnet, to rounding."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tips_nni.core import ElasticDim, SearchSpace, TipsError
from tips_nni.elastic import Supernet, convert
from tips_nni.latency.nn_meter import NnMeterPack, NnMeterTable, load_nn_meter, predict
from tips_nni.latency.nn_meter import _table as table_module
from tips_nni.latency.nn_meter._onnx import export_graph
from tips_nni.latency.nn_meter._shapes import module_path
from tips_nni.specs import RatioSpec, ResolutionSpec, SpaceSpec

from .conftest import Folder, supernet, write_pack

FAMILIES: dict[str, dict[str, Any]] = {
    "resnet10t": {"resolution": False},
    "mobilenetv2_050": {"resolution": False},
    # At half the side its last maps are single pixels, whose mean is simplified away.
    "mobilenetv3_small_050": {},
    "regnetx_002": {"resolution": False},
    # An EfficientNet of few blocks: sigmoids and products have no predictor.
    "tinynet_e": {"resolution": False},
    # Its first classifier layer is a convolution over the whole map of 7×7.
    "vgg11_bn": {"size": 224, "resolution": False, "mlp_ratio": 1 / 64},
}


def net_of(name: str) -> Supernet:
    return supernet(name, **FAMILIES[name])


@cache
def table_of(name: str, pack: NnMeterPack) -> NnMeterTable:
    return NnMeterTable(net_of(name), pack)


def collisions(net: Supernet, codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many operations of each subnet have as many channels in as out, which those of the backbone do not."""
    architecture = net.architecture
    count = np.zeros(len(codes), dtype=np.int64)
    largest = net.space.encode(net.space.largest)[None]
    for operation in architecture.operations:
        if operation.kind == "conv" and operation.group_width is None:
            channels = [architecture.channels(name, codes) for name in (operation.inputs[0], operation.output)]
            first, last = (architecture.channels(name, largest)[0] for name in (operation.inputs[0], operation.output))
            count += (channels[0] == channels[1]) & (first != last)
    return count


def true_latency(net: Supernet, pack: NnMeterPack, code: NDArray[np.int64]) -> float:
    config = net.space.decode(code)
    return predict(net.extract(config), pack, net.plan.resolution(config)).latency_ms


@pytest.mark.parametrize("name", FAMILIES)
def test_it_equals_nn_meter_on_the_exported_subnet(name: str, pack: NnMeterPack) -> None:
    net, table = net_of(name), table_of(name, pack)
    many = net.space.sample(np.random.default_rng(11), 3000)
    colliding = many[collisions(net, many).argmax()]
    assert collisions(net, colliding[None])[0] > 0
    codes = np.stack([many[0], colliding])
    values = table.evaluate(codes)
    for code, value in zip(codes, values, strict=True):
        assert value == pytest.approx(true_latency(net, pack, code), rel=1e-9)
    assert len(set(table.evaluate(many).tolist())) > 100


def test_one_group_is_a_dense_convolution(pack: NnMeterPack) -> None:
    net, table = net_of("regnetx_002"), table_of("regnetx_002", pack)
    code = net.space.encode(net.space.smallest)
    grouped = [
        operation
        for operation in net.architecture.operations
        if operation.group_width is not None and net.architecture.present(operation, code[None])[0]
    ]
    groups = [net.architecture.channels(o.output, code[None])[0] // (o.group_width or 1) for o in grouped]
    assert 1 in groups
    assert max(groups) > 1
    found = predict(net.extract(net.space.smallest), pack, 64)
    names = [kernel.name for kernel in found.kernels]
    assert names.count("grouped convolution") == sum(count > 1 for count in groups)
    dense = [o for o in net.architecture.operations if o.kind == "conv" and o.group_width is None]
    present = sum(int(net.architecture.present(o, code[None])[0]) for o in dense)
    assert [k.predictor for k in found.kernels].count("conv-bn-relu") == present + groups.count(1)
    assert table.evaluate(code[None])[0] == pytest.approx(found.latency_ms, rel=1e-9)


def test_coverage_is_that_of_the_largest_subnet(pack: NnMeterPack) -> None:
    net = net_of("regnetx_002")
    coverage = table_of("regnetx_002", pack).coverage()
    found = predict(net.extract(net.space.largest), pack, 64).coverage
    assert coverage["covered_flops_share"] == found.flops_share < 0.95
    assert coverage["covered_kernels_share"] == found.kernels_share
    assert coverage["missing"] == found.missing
    assert coverage["warnings"] == list(found.warnings)


def test_what_is_not_covered_can_be_refused(folder: Folder, tmp_path: Path) -> None:
    few = load_nn_meter(write_pack(tmp_path, {"fc": folder.models["fc"]}).path)
    with pytest.raises(TipsError, match=r"only 0% of the multiply-adds .*conv-bn-relu"):
        NnMeterTable(net_of("resnet10t"), few, refuse=True)


@pytest.mark.parametrize(
    "rules",
    [
        {"MON": 1, "BF_conv_add": True, "BF_conv_conv": True, "BF_conv_hswish": True},
        {"MON": 0, "BF_add_conv": True, "BF_conv_conv": True, "BF_hswish_dwconv": True, "BF_conv_gap": True},
    ],
)
def test_it_is_exact_where_kernels_reach_over_blocks(
    rules: dict[str, Any], tmp_path: Path, models: dict[str, Any]
) -> None:
    """Rules by which the depths decide about the split."""
    write_pack(tmp_path, models, {name: {"obey": value} for name, value in rules.items()})
    pack, net = load_nn_meter(tmp_path), supernet("mobilenetv3_small_050", resolution=False)
    table = NnMeterTable(net, pack)
    for code in net.space.sample(np.random.default_rng(5), 2):
        assert table.evaluate(code[None])[0] == pytest.approx(true_latency(net, pack, code), rel=1e-9)


def test_rules_that_nn_meter_stumbles_over_are_one_line(tmp_path: Path, models: dict[str, Any]) -> None:
    # It changes a set while it walks over it.
    rules = {"MON": 2, "BF_conv_relu": True, "BF_add_conv": True, "BF_conv_conv": True}
    write_pack(tmp_path, models, {name: {"obey": value} for name, value in rules.items()})
    with pytest.raises(TipsError, match="cannot split this network"):
        predict(net_of("mobilenetv2_050").backbone, load_nn_meter(tmp_path), 64)


def test_a_supernet_that_splits_otherwise_is_refused(pack: NnMeterPack, monkeypatch: pytest.MonkeyPatch) -> None:
    from tips_nni.latency.nn_meter import _layout

    def uncut(model: Any, _paths: Any) -> Any:
        return model

    monkeypatch.setattr(_layout, "_without", uncut)
    with pytest.raises(TipsError, match="cannot be tabulated") as error:
        NnMeterTable(supernet("resnet18", resolution=False), pack)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def table(pack: NnMeterPack) -> NnMeterTable:
    return table_of("resnet10t", pack)


def test_a_file_holds_the_table(table: NnMeterTable, pack: NnMeterPack, tmp_path: Path) -> None:
    space = table.space
    path = tmp_path / "table.npz"
    table.save(path)
    again = NnMeterTable.load(path, space)
    codes = space.sample(np.random.default_rng(0), 500)
    assert np.array_equal(again.evaluate(codes), table.evaluate(codes))
    assert again.coverage() == table.coverage()
    assert (again.target, again.pack_digest) == (pack.name, pack.digest)
    assert (again.name, again.unit) == ("latency_ms", "ms")


def test_bad_files_get_one_line(table: NnMeterTable, tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    table.save(path)
    whole = path.read_bytes()

    def refusal(space: Any = table.space) -> str:
        with pytest.raises(TipsError) as error:
            NnMeterTable.load(path, space)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "another search space" in refusal(SearchSpace((ElasticDim("width.a", "width", (8, 16)),)))
    path.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refusal()
    header = {"format": "another"}
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8))
    assert "no table of this version" in refusal()
    np.savez(path, header=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "no latency table" in refusal()
    path.unlink()
    assert "no latency table" in refusal()


def test_a_table_is_kept_by_its_content(
    pack: NnMeterPack, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = net_of("resnet10t")
    codes = net.space.sample(np.random.default_rng(0), 50)
    first = NnMeterTable(net, pack, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    built = []

    def build(supernet: Supernet, pack: NnMeterPack) -> Any:
        built.append(pack.name)
        raise TipsError("built again")

    monkeypatch.setattr(table_module, "_build", build)
    again = NnMeterTable(net, load_nn_meter(folder.path), cache=tmp_path)
    assert np.array_equal(first.evaluate(codes), again.evaluate(codes))
    assert not built
    few = write_pack(tmp_path / "few", {name: folder.models[name] for name in ("conv-bn-relu", "fc")})
    for other_net, other_pack in ((net, load_nn_meter(few.path)), (supernet("resnet10t", 96), pack)):
        with pytest.raises(TipsError, match="built again"):
            NnMeterTable(other_net, other_pack, cache=tmp_path)
    assert kept.suffix == ".npz"


class _Pyramid(nn.Module):
    """Two maps of different sizes, one scaled up to the other; modules in lists, one of which is called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.ways = nn.ModuleList([nn.ModuleList([nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.Conv2d(24, 16, 1)])])
        self.up, self.pool, self.head = nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(1), nn.Linear(16, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        ((down, side),) = self.ways
        return self.head(self.pool(x + self.up(side(down(x)))).flatten(1))


def test_exported_nodes_are_found_in_the_network() -> None:
    module = _Pyramid()
    found = [module_path(node.name) for node in export_graph(module, 16).graph.node if node.op_type in ("Conv", "Gemm")]
    assert found == ["stem.0", "ways.0.0", "ways.0.1", "head"]
    assert set(found) <= dict(module.named_modules()).keys()


def test_maps_that_are_scaled_up_are_followed(pack: NnMeterPack) -> None:
    space = SpaceSpec(
        family="test",
        width=RatioSpec(ratios=(0.5, 1.0)),
        hidden=RatioSpec(ratios=(0.5, 1.0)),
        resolution=ResolutionSpec(ratios=(0.5, 1.0), divisor=16),
    )
    net = convert(_Pyramid(), space, image_size=32).eval()
    table = NnMeterTable(net, pack)
    assert table.coverage()["missing"] == {"Resize": 1}
    assert net.space.size > 2
    for config in net.space.enumerate():
        code = net.space.encode(config)
        assert table.evaluate(code[None])[0] == pytest.approx(true_latency(net, pack, code), rel=1e-9)
