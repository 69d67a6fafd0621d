"""A rule of a third party."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
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
    assert find_rule(nn.ConvTranspose2d(1, 1, 1)) is None
    register_rule(Everything())
    assert isinstance(find_rule(nn.Linear(1, 1)), Everything)


def install(folder: Path, code: str, target: str) -> None:
    """Put a package with an entry point into a folder, as pip would."""
    (folder / "their_rules.py").write_text(code, encoding="utf-8")
    metadata = folder / "their_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[{_rule.ENTRY_POINTS}]\ntheirs = {target}\n", encoding="utf-8")


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_rules", raising=False)
    _rule.installed_rules.cache_clear()
    yield
    _rule.installed_rules.cache_clear()


@pytest.mark.usefixtures("_installed")
def test_an_installed_package_adds_a_rule(tmp_path):
    code = "from tips_nni.elastic.rules import LinearRule\nclass Theirs(LinearRule): pass\n"
    install(tmp_path, code, "their_rules:Theirs")
    assert type(find_rule(nn.Linear(1, 1))).__name__ == "Theirs"
    assert isinstance(find_rule(nn.Conv2d(1, 1, 1)), ConvRule)


@pytest.mark.parametrize(
    ("code", "target", "message"),
    [
        ("import nothing_of_that_name\n", "their_rules:Theirs", "cannot be loaded .No module named"),
        ("class Theirs: pass\n", "their_rules:Theirs", "not a subclass of LayerRule"),
        ("", "their_rules:Theirs", "cannot be loaded"),
    ],
)
@pytest.mark.usefixtures("_installed")
def test_a_broken_package_is_named_in_one_line(tmp_path, code, target, message):
    install(tmp_path, code, target)
    with pytest.raises(TipsError, match=f"their-package.*{message}") as error:
        find_rule(nn.Linear(1, 1))
    assert "\n" not in str(error.value)


def test_a_class_without_a_rule_fixes_its_group(tools):
    with pytest.raises(TipsError, match=r"no elastic rule for up of class ConvTranspose2d; known:.*Linear"):
        rule_for("up", nn.ConvTranspose2d(1, 1, 1))
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ConvTranspose2d(16, 16, 1), nn.Conv2d(16, 16, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    space = tools.space(width=RatioSpec(ratios=(0.5, 1.0)), hidden=None, depth=None, resolution=None)
    with pytest.raises(TipsError, match=r"cannot be described exactly"):
        convert(net, space, image_size=8)
