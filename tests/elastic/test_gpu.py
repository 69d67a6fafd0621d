"""Supernets and anytime models on a GPU: the same subnets, the same numbers as on the CPU."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from tips_nni.elastic import AnytimeModel, FrontEntry, Supernet, calibrate, convert
from tips_nni.specs import RatioSpec, SpaceSpec

pytestmark = pytest.mark.gpu

SPACE = SpaceSpec(family="test", width=RatioSpec(ratios=(0.5, 1.0)), hidden=RatioSpec(ratios=(0.25, 0.5, 1.0)))
NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def net() -> Supernet:
    """In double precision; CUDA's BatchNorm still rounds some of its factors to single precision."""
    return convert(NAME, SPACE, image_size=64, num_classes=7).double().eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_model_that_lies_on_a_gpu_is_converted_there(net: Supernet) -> None:
    there = convert(timm.create_model(NAME, num_classes=7).cuda(), SPACE, image_size=64)
    assert there.space == net.space
    assert {p.device.type for p in there.parameters()} == {"cuda"}


def test_subnets_and_their_statistics_equal_those_on_the_cpu(net: Supernet, images: torch.Tensor) -> None:
    there = copy.deepcopy(net).cuda()
    for code in net.space.sample(np.random.default_rng(0), 6):
        config = net.space.decode(code)
        statistics = calibrate(net.view(config), [images])
        on_gpu = calibrate(there.view(config), [images.cuda()])
        for name, tensor in statistics.items():
            torch.testing.assert_close(on_gpu[name].cpu(), tensor, rtol=1e-6, atol=1e-6)
        with torch.no_grad():
            expected = net.view(config, statistics)(images)
            for module in (there.view(config, on_gpu), there.extract(config, on_gpu)):
                torch.testing.assert_close(module(images.cuda()).cpu(), expected, rtol=1e-3, atol=1e-5)


def test_an_anytime_model_moves_and_switches_on_the_gpu(net: Supernet, images: torch.Tensor, tmp_path: Path) -> None:
    entries = [
        FrontEntry(config, 0.5 + i, {"mflops": 1.0 + i}, calibrate(net.view(config), [images]))
        for i, config in enumerate([net.space.smallest, net.space.largest])
    ]
    path = AnytimeModel.from_supernet(net, entries, {}).save(tmp_path / "anytime.safetensors")
    here, there = AnytimeModel.load(path).double(), AnytimeModel.load(path).double().cuda()
    with torch.no_grad():
        for limit in (1, 2):
            here.set_budget(mflops=limit)
            there.set_budget(mflops=limit)
            torch.testing.assert_close(there(images.cuda()).cpu(), here(images), rtol=1e-3, atol=1e-5)
