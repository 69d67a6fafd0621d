"""Supernets of every supported family, with nothing constant in them that could hide a mistake."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from tips_nni.core import SubnetConfig
from tips_nni.elastic import Supernet, convert, resize
from tips_nni.specs import DepthSpec, RatioSpec, ResolutionSpec, SpaceSpec

FAMILIES = (
    "resnet10t",
    "resnet18",
    "resnet50",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "mnasnet_050",
    "regnetx_002",
    "regnety_002",
    "convnext_atto",
    "vgg11_bn",
)
SIZE = 64
CLASSES = 7
#: VGG's classifier has 120 million weights; a narrow one has the same structure
ARGUMENTS: dict[str, dict[str, float]] = {"vgg11_bn": {"mlp_ratio": 1 / 64}}


def make_space(**changes: object) -> SpaceSpec:
    declared: dict[str, object] = {
        "width": RatioSpec(ratios=(0.5, 0.75, 1.0)),
        "hidden": RatioSpec(ratios=(0.25, 0.5, 0.75, 1.0)),
        "depth": DepthSpec(min=1),
        "resolution": ResolutionSpec(ratios=(0.5, 0.75, 1.0), divisor=16),
    }
    return SpaceSpec(family="test", **{**declared, **changes})


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make normalisations, layer scales and biases differ from channel to channel; in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var"):
            tensor.data.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith("running_mean") or name.endswith("bias"):
            tensor.data.normal_(0.0, 0.3, generator=generator)
        elif tensor.ndim < 2 or name.endswith("gamma"):
            tensor.data.normal_(1.0, 0.2, generator=generator)
    return model


def created(name: str) -> nn.Module:
    """A timm model from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return timm.create_model(name, num_classes=CLASSES, **ARGUMENTS.get(name, {}))


def converted(name: str, space: SpaceSpec, size: int = SIZE) -> Supernet:
    """The same, converted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return convert(name, space, image_size=size, num_classes=CLASSES, arguments=ARGUMENTS.get(name))


def build(name: str, space: SpaceSpec, size: int = SIZE) -> Supernet:
    """The same, randomised, in evaluation mode."""
    net = converted(name, space, size)
    randomise(net)
    return net.eval()


@dataclass(frozen=True)
class Case:
    """One family in double precision, so that only mistakes differ, not rounding.

    Attributes:
        name: timm's.
        net: the supernet, randomised.
        plain: the timm model, built without this package, with the same state dict.
        untouched: whether a conversion gave timm's own weights, before they were randomised.
        images: shape (2, 3, SIZE, SIZE).
    """

    name: str
    net: Supernet
    plain: nn.Module
    untouched: bool
    images: Tensor

    def configs(self, count: int, seed: int = 0) -> list[SubnetConfig]:
        """The smallest, the largest and random subnets."""
        space = self.net.space
        codes = space.sample(np.random.default_rng(seed), count - 2)
        return [space.smallest, space.largest, *(space.decode(code) for code in codes)]

    def input(self, config: SubnetConfig) -> Tensor:
        """The images at the subnet's resolution."""
        return resize(self.images, self.net.plan.resolution(config))

    def original(self) -> nn.Module:
        """A timm model of one's own to spoil."""
        return copy.deepcopy(self.plain)

    def copy(self) -> Supernet:
        """A supernet of one's own to spoil."""
        return copy.deepcopy(self.net)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return _case(request.param)


@pytest.fixture(scope="session")
def resnet() -> Case:
    return _case("resnet10t")


@pytest.fixture(scope="session")
def mobilenet() -> Case:
    return _case("mobilenetv3_small_050")


def _case(name: str) -> Case:
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    net, plain = converted(name, make_space()), created(name)
    pairs = zip(net.backbone.state_dict().items(), plain.state_dict().items(), strict=True)
    untouched = all(a == b and torch.equal(one, two) for (a, one), (b, two) in pairs)
    randomise(net)
    plain.load_state_dict(net.backbone.state_dict())
    return Case(name, net.double().eval(), plain.double().eval(), untouched, images)


@pytest.fixture(scope="session")
def tools() -> type:
    """The helpers of this file, for tests that convert something of their own."""

    class Tools:
        space = staticmethod(make_space)
        randomise = staticmethod(randomise)
        build = staticmethod(build)
        size = SIZE
        classes = CLASSES

    return Tools
