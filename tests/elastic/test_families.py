"""More families, each for a kind of layer or wiring that the others lack; `benchmarks/coverage.py` has all of them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tips_nni.core import CostTable
from tips_nni.elastic import Supernet, convert
from tips_nni.elastic._sort import channel_units, permute_channels
from tips_nni.specs import DepthSpec, RatioSpec, SpaceSpec

RATIOS = RatioSpec(ratios=(0.5, 0.75, 1.0))
SPACE = SpaceSpec(family="test", width=RATIOS, hidden=RATIOS, depth=DepthSpec(min=1))
SIZE = 32
FAMILIES = {
    "cs3darknet_s": "halves that go different ways",
    "dpn48b": "a trunk that is cut and grows",
    "ecaresnet26t": "a convolution along the channels",
    "fasternet_t0": "partial convolutions",
    "gcresnext26ts": "a weighted mean over positions",
    "ghostnet_050": "features from features",
    "hgnetv2_b0": "scalar gains",
    "inception_next_atto": "unequal parts",
    "mambaout_femto": "gated parts, channels last",
    "mixnet_s": "mixed depthwise convolutions",
    "poolformer_s12": "normalisation with one group, factors in modules",
    "resnest14d": "groups that are added up",
    "resnetblur18": "blurred pooling",
    "rexnet_100": "shortcuts narrower than the block",
    "skresnet18": "selective kernels",
    "test_nfnet": "standardised weights with gains",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_converts_exactly(tools, name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = convert(name, SPACE, image_size=SIZE, num_classes=7)
        plain = timm.create_model(name, num_classes=7)
    check(tools, net, plain)


class Mixed(nn.Module):
    """Group normalisation, a grouped convolution, a concatenation and halves that gate each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.GroupNorm(8, 32)
        self.grouped = nn.Conv2d(32, 64, 3, padding=1, groups=8)
        self.side = nn.Conv2d(32, 48, 1)
        self.gated = nn.Conv2d(112, 40, 1)
        self.slope = nn.PReLU(20)
        self.fc = nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        one, other = self.gated(torch.cat([self.grouped(x), self.side(x)], 1)).chunk(2, 1)
        return self.fc(self.slope(one * other.sigmoid()).mean((2, 3)))


@pytest.mark.parametrize(
    "make", [Mixed, lambda: torchvision.models.resnet18(num_classes=7)], ids=["own", "torchvision"]
)
def test_modules_that_are_not_timms_convert_exactly(tools, make):
    module = make()
    net = convert(copy.deepcopy(module), SPACE, image_size=SIZE)
    # Channels of a module with weights are sorted, which must not show.
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(images), module.eval()(images), rtol=1e-4, atol=1e-4)
    check(tools, net, module)


def test_groups_are_kept_or_cut_as_a_whole(tools):
    net = convert(Mixed(), SPACE, image_size=SIZE)
    assert net.space["width.stem"].choices == (16, 24, 32)
    assert channel_units(net.backbone, net.plan)["width.stem"] == 4
    view = net.view(net.space.smallest)
    assert (view.norm.num_groups, view.grouped.groups, view.grouped.out_channels) == (4, 4, 32)
    assert net.space["width.gated"].choices == (8, 16, 20)


def check(tools, net: Supernet, plain: nn.Module) -> None:
    """The largest subnet is the module, subnets are their extractions, costs are exact, order does not matter."""
    assert any(dim.kind in ("width", "hidden") for dim in net.space.dims)
    tools.randomise(net.backbone)
    plain.load_state_dict(net.backbone.state_dict())
    net, plain = net.double().eval(), plain.double().eval()
    images = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = CostTable(net.architecture)
    codes = np.vstack([net.space.encode(net.space.smallest)[None], net.space.sample(np.random.default_rng(0), 2)])
    with torch.no_grad():
        expected = plain(images)
        assert torch.equal(net(images), expected)
        for code in codes:
            config = net.space.decode(code)
            extracted = net.extract(config)
            with FlopCounterMode(display=False) as counter:
                alone = extracted(images)
            torch.testing.assert_close(net(images, config), alone, rtol=1e-12, atol=1e-12)
            assert table.flops(code[None])[0] == counter.get_total_flops() // 2
            assert table.params(code[None])[0] == sum(p.numel() for p in extracted.parameters())
        before = copy.deepcopy(net.backbone.state_dict())
        units, rng = channel_units(net.backbone, net.plan), np.random.default_rng(1)
        permute_channels(
            net.backbone,
            net.plan,
            {
                dim.name: rng.permutation(dim.choices[-1] // units[dim.name])
                for dim in net.space.dims
                if dim.kind in ("width", "hidden") and dim.name not in net.plan.ordered
            },
        )
        assert any(not torch.equal(value, before[key]) for key, value in net.backbone.state_dict().items())
        torch.testing.assert_close(net(images), expected, rtol=1e-8, atol=1e-8)
