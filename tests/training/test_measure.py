"""Accuracy of subnets: the same as extracting, calibrating and counting by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tips_nni.core import TipsError
from tips_nni.elastic import Supernet
from tips_nni.training import ImageData, accuracy, load_batches, measure_subnets

CPU = torch.device("cpu")


def by_hand(module: nn.Module, calibration: list[torch.Tensor], validation: list) -> float:
    """Let PyTorch's own BatchNorm average its statistics over the batches, then count in a Python loop."""
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
    for images in calibration:
        module(images)
    module.eval()
    pairs = [(x, y) for images, labels in validation for x, y in zip(images, labels, strict=True)]
    return sum(int(module(x[None]).argmax()) == int(y) for x, y in pairs) / len(pairs)


@torch.no_grad()
def test_measuring_equals_extracting_and_calibrating_by_hand(
    digits: ImageData, make_supernet: Callable[..., Supernet]
) -> None:
    supernet = make_supernet().eval()
    calibration = [images for images, _ in load_batches(digits.calibration_loader(96), CPU)]
    validation = load_batches(digits.validation_loader(100), CPU)
    codes = supernet.space.sample(np.random.default_rng(1), 3)
    configs = [supernet.space.largest, supernet.space.smallest, *(supernet.space.decode(code) for code in codes)]
    values = measure_subnets(supernet, configs, calibration, validation)
    assert values.dtype == np.float64
    expected = [by_hand(supernet.extract(config), calibration, validation) for config in configs]
    np.testing.assert_array_equal(values, expected)
    assert len(set(values)) > 1


@pytest.mark.parametrize("mode", [True, False])
def test_measuring_changes_nothing(digits: ImageData, make_supernet: Callable[..., Supernet], mode: bool) -> None:
    supernet = make_supernet().train(mode)
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    modes = {name: module.training for name, module in supernet.named_modules()}
    calibration = [images for images, _ in load_batches(digits.calibration_loader(64), CPU)]
    ends = [supernet.space.largest, supernet.space.smallest]
    measure_subnets(supernet, ends, calibration, load_batches(digits.validation_loader(64), CPU))
    assert {name: module.training for name, module in supernet.named_modules()} == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in supernet.state_dict().items())
    assert all(p.grad is None for p in supernet.parameters())


def test_accuracy_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0]])
    batches = [(logits[:2], torch.tensor([0, 0])), (logits[2:], torch.tensor([0]))]
    assert accuracy(nn.Identity(), batches) == pytest.approx(2 / 3)


def test_accuracy_of_nothing() -> None:
    with pytest.raises(TipsError, match="no images"):
        accuracy(nn.Identity(), [])
