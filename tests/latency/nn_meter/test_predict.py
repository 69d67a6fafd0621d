"""Latency of one network: nn-Meter's own number, or a refusal where that would be wrong."""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from typing import Any

import onnx
import onnxsim
import pytest
import torch
from torch import nn

from tips_nni.core import CostTable, TipsError
from tips_nni.latency.nn_meter import NnMeterPack, predict
from tips_nni.latency.nn_meter._library import load_library
from tips_nni.latency.nn_meter._onnx import to_graph

from .conftest import Folder, supernet


def theirs(module: nn.Module, size: int, folder: Folder) -> float:
    """nn-Meter's own predictor with scikit-learn's own forests, on an export that needs no mending."""
    library = load_library()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(1, 3, size, size),), buffer, dynamo=False, opset_version=17)
    model, _ = onnxsim.simplify(onnx.load_from_string(buffer.getvalue()))
    predictor = library.predictor.nn_meter_predictor.nnMeterPredictor(folder.models, folder.rules)
    return float(predictor.predict(model, "onnx"))


@pytest.mark.parametrize("name", ["resnet10t", "mnasnet_050"])
def test_it_is_nn_meters_own_number(name: str, pack: NnMeterPack, folder: Folder) -> None:
    net = supernet(name)
    module = net.extract(net.space.largest)
    mine = predict(module, pack, 64)
    assert mine.latency_ms == theirs(module, 64, folder)
    assert mine.latency_ms == pytest.approx(sum(kernel.latency_ms for kernel in mine.kernels), rel=1e-12)
    assert mine.coverage.flops_share == mine.coverage.kernels_share == 1.0
    assert not mine.coverage.missing
    assert not mine.coverage.warnings


def test_multiply_adds_are_those_of_the_network(pack: NnMeterPack) -> None:
    for name in ("resnet10t", "mobilenetv3_small_050"):
        net = supernet(name)
        flops = CostTable(net.architecture).flops(net.space.encode(net.space.largest)[None])[0]
        found = predict(net.extract(net.space.largest), pack, 64)
        assert round(sum(kernel.mflops for kernel in found.kernels) * 1e6) == flops


def kernels(module: nn.Module, pack: NnMeterPack, size: int = 16) -> list[tuple[str, str | None]]:
    return [(kernel.name, kernel.predictor) for kernel in predict(module.eval(), pack, size).kernels]


def test_a_network_of_one_operation_is_not_nothing(pack: NnMeterPack) -> None:
    module = nn.Conv2d(3, 8, 3, padding=1)
    found = predict(module, pack, 16)
    row = [16, 3, 8, 3, 1, 2 * 16 * 16 * 8 * (9 * 3 + 1) / 2e6, 8 * (9 * 3 + 1) / 1e6]
    assert found.latency_ms == pack.kernels["conv-bn-relu"].predict([row])[0] > 0


def test_a_dense_convolution_of_one_channel_is_no_depthwise_one(pack: NnMeterPack) -> None:
    dense = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
    assert kernels(dense, pack) == [("conv-relu", "conv-bn-relu")]
    depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU())
    assert kernels(depthwise, pack) == [("dwconv-relu", "dwconv-bn-relu")]


def test_a_grouped_convolution_is_named_and_not_counted_as_dense(pack: NnMeterPack) -> None:
    module = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.ReLU())
    found = predict(module, pack, 16)
    assert [(kernel.name, kernel.predictor) for kernel in found.kernels] == [
        ("conv", "conv-bn-relu"),
        ("grouped convolution", None),
    ]
    grouped, whole = 16 * 4 * 9, 16 * 4 * 9 + 3 * 16
    assert found.coverage.flops_share == pytest.approx(1 - grouped / whole)
    assert found.coverage.missing == {"grouped convolution": 1}
    (warning,) = found.coverage.warnings
    assert "8% of the multiply-adds" in warning
    assert "grouped convolution (1)" in warning
    with pytest.raises(TipsError, match="cover 8%"):
        predict(module, pack, 16, refuse=True)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.linear, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.linear(self.patches(x).flatten(2).transpose(1, 2)).chunk(3, 2)
        return self.head(((query @ key.transpose(1, 2)).softmax(2) @ value).mean(1))


def test_linear_layers_on_tokens_and_products_are_not_counted_as_one_vector(pack: NnMeterPack) -> None:
    found = predict(_Attention(), pack, 16)
    assert found.coverage.missing["linear layer on many positions"] == 1
    assert found.coverage.missing["matrix product"] == 2
    known, unknown = 16 * 8 * 48 + 8 * 5, 16 * 8 * 24 + 2 * 16 * 16 * 8
    assert found.coverage.flops_share == pytest.approx(known / (known + unknown))
    assert [kernel.predictor for kernel in found.kernels if kernel.predictor == "fc"] == ["fc"]


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.first(x), torch.sigmoid(self.second(x))], 1)


def test_kernels_without_a_predictor_are_named(pack: NnMeterPack) -> None:
    found = predict(_Branches(), pack, 16)
    assert found.coverage.missing == {"Sigmoid": 1}
    assert found.coverage.kernels_share == 0.75
    assert found.coverage.flops_share == 1.0
    assert ("concat", "concat") in [(kernel.name, kernel.predictor) for kernel in found.kernels]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Hardswish()], [("conv", "conv-bn-relu"), ("hswish", "hswish")]),
        ([nn.ReLU6()], [("conv-relu", "conv-bn-relu")]),
        (
            [nn.MaxPool2d(2), nn.AvgPool2d(2)],
            [("conv", "conv-bn-relu"), ("maxpool", "maxpool"), ("avgpool", "avgpool")],
        ),
        (
            [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.ReLU()],
            [("conv", "conv-bn-relu"), ("gap", "global-avgpool"), ("fc-relu", "fc")],
        ),
    ],
)
def test_what_nn_meter_has_a_predictor_for_is_found(layers: list[nn.Module], expected: Any, pack: NnMeterPack) -> None:
    assert kernels(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers), pack) == expected


def test_a_window_over_the_whole_map_is_a_fully_connected_layer(pack: NnMeterPack) -> None:
    module = nn.Sequential(OrderedDict(fc=nn.Conv2d(3, 8, 16), act=nn.ReLU()))
    found = predict(module, pack, 16)
    inputs = 3 * 16 * 16
    flop = (2 * inputs + 1) * 8
    assert [(kernel.name, kernel.predictor) for kernel in found.kernels] == [("fc-relu", "fc")]
    assert found.latency_ms == pack.kernels["fc"].predict([[inputs, 8, flop / 2e6, flop / 1e6]])[0]
    assert found.kernels[0].mflops * 1e6 == pytest.approx(inputs * 8)


@pytest.mark.parametrize(
    ("module", "size", "said"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (16, 32), "16×32"),
        (nn.Conv2d(3, 8, (1, 3), padding=(0, 1)), 16, "kernel_shape as square"),
        (nn.Conv2d(3, 8, 3, padding=1, stride=(1, 2)), 16, "strides as square"),
        (nn.Conv2d(3, 8, 3, padding=2, dilation=2), 16, "dilations"),
        (nn.Conv2d(3, 8, 5), 16, "makes 12 of 16"),
        (nn.Sequential(nn.MaxPool2d((1, 2)), nn.Conv2d(3, 8, 1)), 16, "kernel_shape as square"),
    ],
)
def test_what_nn_meter_would_read_wrongly_is_refused(
    module: nn.Module, size: Any, said: str, pack: NnMeterPack
) -> None:
    with pytest.raises(TipsError, match=said) as error:
        predict(module, pack, size)
    assert "\n" not in str(error.value)


def test_a_network_that_cannot_be_exported_is_one_line(pack: NnMeterPack) -> None:
    with pytest.raises(TipsError, match="cannot be exported to ONNX") as error:
        predict(nn.Conv2d(3, 8, 5), pack, 2)
    assert "\n" not in str(error.value)


def test_a_graph_of_several_images_is_refused() -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(nn.Conv2d(3, 8, 1), (torch.zeros(2, 3, 8, 8),), buffer, dynamo=False, opset_version=17)
    with pytest.raises(TipsError, match="takes 2 at once"):
        to_graph(onnx.load_from_string(buffer.getvalue()))
