"""Extracted subnets leave this package: ONNX, torch.export."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tips_nni.core import TipsError
from tips_nni.elastic import compare_onnx, export_onnx

NAMES = ("resnet10t", "mobilenetv3_small_050", "regnety_002", "convnext_atto")


@pytest.fixture(scope="module", params=NAMES)
def extracted(request, tools) -> nn.Module:
    net = tools.build(request.param, tools.space(resolution=None))
    return net.extract(net.space.decode(net.space.sample(np.random.default_rng(1), 1)[0]))


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))


def test_onnx_runs_any_batch(extracted, tmp_path):
    path = tmp_path / "new" / "subnet.onnx"
    difference = export_onnx(extracted, images(1), path)
    assert 0 <= difference < 1e-3
    assert [p.name for p in path.parent.iterdir()] == ["subnet.onnx"]
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images(3).numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, extracted(images(3)).numpy(), rtol=1e-3, atol=1e-3)


def test_torch_export_keeps_the_function(extracted):
    program = torch.export.export(extracted, (images(2),))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(2)), extracted(images(2)), rtol=1e-4, atol=1e-5)


def test_a_wrong_export_is_not_kept(tmp_path):
    class Fickle(nn.Module):
        """Another function whenever it is called."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x.mean((2, 3)) + self.calls

    path = tmp_path / "wrong.onnx"
    with pytest.raises(TipsError, match="onnxruntime differs from torch by"):
        export_onnx(Fickle().eval(), images(1), path)
    assert not list(tmp_path.iterdir())


def test_compare_tells_difference_and_scale(tmp_path):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].bias.copy_(torch.tensor([10.0, -20.0]))
        export_onnx(net, images(1), tmp_path / "net.onnx")
        net[2].bias.add_(0.5)
    difference, scale = compare_onnx(net, images(1), tmp_path / "net.onnx")
    assert (difference, scale) == (0.5, 19.5)
