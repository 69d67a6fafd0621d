"""More families, each for a kind of layer or wiring that the others lack; `benchmarks/coverage.py` has all of them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from tips_nni.core import CostTable
from tips_nni.elastic import convert
from tips_nni.elastic._sort import sort_channels
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
        net = convert(name, SPACE, image_size=SIZE, num_classes=7).eval()
    assert any(dim.kind in ("width", "hidden") for dim in net.space.dims)
    tools.randomise(net.backbone)
    plain = timm.create_model(name, num_classes=7).eval()
    plain.load_state_dict(net.backbone.state_dict())
    net, plain = net.double(), plain.double()
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
        sort_channels(net.backbone, net.plan)
        assert any(not torch.equal(value, before[key]) for key, value in net.backbone.state_dict().items())
        torch.testing.assert_close(net(images), expected, rtol=1e-8, atol=1e-8)
