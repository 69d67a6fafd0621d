"""A rule of a third party."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tips_nni.core import TipsError
from tips_nni.elastic import LayerRule, convert, register_rule
from tips_nni.elastic._plan import Kept
from tips_nni.elastic.rules import ConvRule, LinearRule, _rule, find_rule, rule_for
from tips_nni.specs import RatioSpec


class Counted(nn.Conv2d):
    """A convolution that remembers its channels under a name of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.width = self.out_channels

    def forward(self, x: Tensor) -> Tensor:
        if self.width != self.weight.shape[0]:
            raise ValueError(f"width is {self.width}")
        return super().forward(x)


class CountedRule(ConvRule):
    classes = (Counted,)

    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        super().narrow(view, inputs, outputs)
        view.width = view.out_channels


def network() -> nn.Module:
    return nn.Sequential(
        Counted(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip


@pytest.fixture
def _rules_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rule, "_RULES", list(_rule._RULES))


@pytest.mark.usefixtures("_rules_restored")
def test_a_rule_makes_a_class_elastic(tools):
    space = tools.space(width=RatioSpec(ratios=(0.5, 1.0)), hidden=None, depth=None, resolution=None)
    with pytest.raises(TipsError, match="ValueError: width is 16"):
        convert(network(), space, image_size=8)
    register_rule(CountedRule())
    net = convert(network(), space, image_size=8).eval()
    assert net.space.names == ("width.0",)
    x = torch.randn(2, 3, 8, 8)
    view = net.view(net.space.smallest)
    assert (view[0].width, net.backbone[0].width) == (8, 16)
    assert torch.equal(view(x), net.extract(net.space.smallest)(x))


@pytest.mark.usefixtures("_rules_restored")
def test_a_later_rule_goes_first():
    class Everything(LayerRule):
        classes = (nn.Module,)

        def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
            raise AssertionError

    assert isinstance(find_rule(nn.Linear(1, 1)), LinearRule)
    assert find_rule(nn.PReLU()) is None
    register_rule(Everything())
    assert isinstance(find_rule(nn.Linear(1, 1)), Everything)


def test_a_class_without_a_rule_fixes_its_group(tools):
    with pytest.raises(TipsError, match=r"no elastic rule for act of class PReLU; known:.*Linear"):
        rule_for("act", nn.PReLU())
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.PReLU(16), nn.Conv2d(16, 16, 1), nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    space = tools.space(width=RatioSpec(ratios=(0.5, 1.0)), hidden=None, depth=None, resolution=None)
    net = convert(net, space, image_size=8)
    assert net.space.names == ("width.4",)
    assert net.fixed["0"] == "no elastic rule for 1 of class PReLU"
    assert net.fixed["2"] == "no elastic rule for 3 of class GroupNorm"
