"""Calibration against statistics computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tips_nni.core import TipsError
from tips_nni.elastic import calibrate, resize

_BN = nn.modules.batchnorm._BatchNorm


def batches(count: int = 3, size: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(size, 3, 64, 64, generator=generator, dtype=torch.float64) + i for i in range(count)]


def by_hand(model: nn.Module, images: list[Tensor]) -> dict[str, Tensor]:
    """Average the mean and the unbiased variance of every normalisation's input, which normalises with the batch."""
    total: dict[str, Tensor] = {}

    def hook(path: str):
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].transpose(0, 1).flatten(1)
            for name, value in (("running_mean", x.mean(1)), ("running_var", x.var(1, unbiased=True))):
                key = f"{path}.{name}"
                total[key] = total.get(key, torch.zeros_like(value)) + value / len(images)

        return record

    for path, module in model.named_modules():
        if isinstance(module, _BN):
            module.train()
            module.register_forward_pre_hook(hook(path))
    with torch.no_grad():
        for batch in images:
            model(batch)
    return total


def test_statistics_are_the_average_over_the_batches(mobilenet):
    net = mobilenet.copy()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    for config in mobilenet.configs(4, seed=8):
        view = net.view(config)
        found = calibrate(view, batches())
        side = net.plan.resolution(config)
        expected = by_hand(net.extract(config), [resize(b, side) for b in batches()])
        assert set(found) == set(expected)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes


def test_the_first_layer_by_hand(resnet):
    net = resnet.copy()
    config = net.space.config({**net.space.smallest.as_dict(), "resolution": 64})
    found = calibrate(net.view(config), batches())
    first = net.view(config).conv1[0]
    with torch.no_grad():
        outputs = [first(batch) for batch in batches()]
    mean = sum(o.mean(dim=(0, 2, 3)) for o in outputs) / 3
    torch.testing.assert_close(found["conv1.1.running_mean"], mean)


def test_a_training_supernet_gives_the_same(mobilenet):
    """Dropout and stochastic depth stay off, whatever the mode of the supernet."""
    net = mobilenet.copy()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    net.backbone.drop_rate = 0.5
    config = net.space.smallest
    expected = calibrate(net.eval().view(config), batches())
    actual = calibrate(net.train().view(config), batches())
    assert all(torch.equal(actual[k], v) for k, v in expected.items())
    assert net.training
    assert net.backbone.training


def test_statistics_make_a_subnet_and_its_extraction(mobilenet):
    net = mobilenet.net
    config = net.space.smallest
    statistics = calibrate(net.view(config), batches())
    view, extracted = net.view(config, statistics), net.extract(config, statistics)
    with torch.no_grad():
        assert torch.equal(view(mobilenet.images), extracted(mobilenet.input(config)))
        assert not torch.allclose(view(mobilenet.images), net(mobilenet.images, config))
    for key, value in statistics.items():
        assert torch.equal(extracted.state_dict()[key], value)


def test_the_largest_is_calibrated_apart(resnet):
    net = resnet.copy()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    statistics = calibrate(net.view(net.space.largest), batches())
    view = net.view(net.space.largest, statistics)
    assert view is not net.backbone
    view(resnet.images)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_without_images_or_without_batchnorm(resnet, tools):
    with pytest.raises(TipsError, match="no images"):
        calibrate(resnet.net.view(resnet.net.space.smallest), [])
    assert calibrate(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), []) == {}


def test_statistics_of_another_subnet_are_refused(resnet):
    net = resnet.net
    statistics = calibrate(net.view(net.space.smallest), batches())
    with pytest.raises(TipsError, match=r"conv1.1.running_mean of shape \(\d+,\), found of shape"):
        net.view(net.space.largest, statistics)
    with pytest.raises(TipsError, match="found none"):
        net.view(net.space.smallest, {"other": torch.zeros(1)})
