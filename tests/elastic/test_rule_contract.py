"""The contract of elastic rules, kept by every rule of ours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import (
    BatchNormAct2d,
    BlurPool2d,
    GroupNorm1,
    GroupNormAct,
    LayerNorm2d,
    ScaledStdConv2d,
    StdConv2d,
    StdConv2dSame,
)
from timm.models.metaformer import Scale
from torch import Tensor, nn

from tips_nni.elastic import LayerRule
from tips_nni.elastic.rules import find_rule
from tips_nni.testing import LayerRuleContract


def maps(channels: int, side: int = 5) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def tokens(channels: int) -> Tensor:
    return torch.randn(2, 6, channels, generator=torch.Generator().manual_seed(1))


class Ours(LayerRuleContract):
    """The rule is the one that a conversion would find."""

    def rule(self) -> LayerRule:
        found = find_rule(self.module())
        assert found is not None
        return found


CONVOLUTIONS = {
    "dense": lambda: nn.Conv2d(8, 12, 3, padding=1),
    "without bias": lambda: nn.Conv2d(8, 12, 3, stride=2, bias=False),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8),
    "grouped": lambda: nn.Conv2d(8, 8, 3, groups=4),
    "grouped, wider": lambda: nn.Conv2d(8, 16, 3, groups=4),
    "one dimension": lambda: nn.Conv1d(8, 12, 3),
    "scaled": lambda: ScaledStdConv2d(8, 12, 3),
}


class TestConvolutions(Ours):
    @pytest.fixture(autouse=True, params=CONVOLUTIONS)
    def _which(self, request: pytest.FixtureRequest) -> None:
        self.which = request.param

    def module(self) -> nn.Module:
        return CONVOLUTIONS[self.which]()

    def images(self) -> Tensor:
        return maps(8).flatten(2) if self.which == "one dimension" else maps(8)

    def expected(self, module: nn.Module, images: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        if self.which != "scaled":
            return super().expected(module, images, inputs, outputs)
        # The weights of an output channel are standardised over the inputs that it has.
        weight = module.weight[outputs][:, inputs].reshape(1, len(outputs), -1)
        gain = (module.gain[outputs] * module.scale).view(-1)
        weight = F.batch_norm(weight, None, None, weight=gain, training=True, eps=module.eps)
        return F.conv2d(
            images[:, inputs], weight.reshape(len(outputs), len(inputs), 3, 3), module.bias[outputs], padding=1
        )


@pytest.mark.parametrize("kind", [StdConv2d, StdConv2dSame])
def test_standardised_convolutions_have_the_rule_of_convolutions(kind):
    assert find_rule(kind(8, 8, 3)) is find_rule(nn.Conv2d(8, 8, 3))


class TestGroupsCutAlike(Ours):
    """Some channels of every group, as split attention adds them up."""

    def module(self) -> nn.Module:
        return nn.Conv2d(8, 16, 3, groups=2)

    def images(self) -> Tensor:
        return maps(8)

    def _narrowed(self, module, images, leading):
        inputs, outputs = torch.tensor([0, 1, 4, 5]), torch.tensor([0, 2, 5, 8, 10, 13])
        view = nn.Conv2d(1, 1, 1)
        view.__dict__.update(copy_of(module))
        self.rule().narrow(view, inputs.numpy(), outputs.numpy())
        return view, inputs, inputs, outputs

    #: The channels that are kept do not lead.
    test_leading_channels_are_views_of_the_same_memory = None


def copy_of(module: nn.Module) -> dict[str, object]:
    return {k: v.copy() if isinstance(v, dict) else v for k, v in vars(module).items()}


class TestLinear(Ours):
    def module(self) -> nn.Module:
        return nn.Linear(8, 12)

    def images(self) -> Tensor:
        return tokens(8)


CHANNELWISE = {
    "batch norm": lambda: nn.BatchNorm2d(8),
    "batch norm and activation": lambda: BatchNormAct2d(8),
    "batch norm without weights": lambda: nn.BatchNorm2d(8, affine=False),
    "group norm": lambda: nn.GroupNorm(4, 8),
    "group norm and activation": lambda: GroupNormAct(8, num_groups=4),
    "blur": lambda: BlurPool2d(8),
    "scale": lambda: Scale(8),
    "slopes": lambda: nn.PReLU(8),
    "one slope": lambda: nn.PReLU(),
}


class TestChannelwise(Ours):
    @pytest.fixture(autouse=True, params=CHANNELWISE)
    def _which(self, request: pytest.FixtureRequest) -> None:
        self.which = request.param

    def module(self) -> nn.Module:
        return CHANNELWISE[self.which]()

    def images(self) -> Tensor:
        return maps(8)


OVER_CHANNELS = {
    "layer norm": (lambda: nn.LayerNorm(8), -1),
    "layer norm of maps": (lambda: LayerNorm2d(8), 1),
    "one group": (lambda: GroupNorm1(8), 1),
}


class TestNormsOverChannels(Ours):
    """They normalise over the channels that are left."""

    @pytest.fixture(autouse=True, params=OVER_CHANNELS)
    def _which(self, request: pytest.FixtureRequest) -> None:
        self.which = request.param

    def module(self) -> nn.Module:
        return OVER_CHANNELS[self.which][0]()

    def images(self) -> Tensor:
        return tokens(8) if self.which == "layer norm" else maps(8)

    def expected(self, module: nn.Module, images: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        axis = OVER_CHANNELS[self.which][1]
        kept = images.index_select(axis, outputs)
        axes = (1, 2, 3) if self.which == "one group" else (axis,)
        mean, variance = kept.mean(axes, keepdim=True), kept.var(axes, correction=0, keepdim=True)
        shape = [-1 if a == axis % kept.ndim else 1 for a in range(kept.ndim)]
        weight, bias = module.weight[outputs].view(shape), module.bias[outputs].view(shape)
        return (kept - mean) / (variance + module.eps).sqrt() * weight + bias
