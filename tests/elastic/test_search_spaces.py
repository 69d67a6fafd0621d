"""Every search space that ships makes its family elastic in all the ways that it declares."""

from __future__ import annotations

from typing import Any

import pytest

from tips_nni.elastic import convert
from tips_nni.specs import load_space, space_for, space_names

SIZE = 64
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "convnext": ("convnext_atto", {}),
    "deit": ("deit_tiny_patch16_224", {"img_size": SIZE}),
    "densenet": ("densenet121", {}),
    "efficientnet": ("efficientnet_b0", {}),
    "ghostnet": ("ghostnet_050", {}),
    "hrnet": ("hrnet_w18_small", {}),
    "mnasnet": ("mnasnet_050", {}),
    "mobilenetv2": ("mobilenetv2_050", {}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "mobilenetv4": ("mobilenetv4_conv_small_050", {}),
    "regnet": ("regnetx_002", {}),
    "repvgg": ("repvgg_a0", {}),
    "resnet": ("resnet18", {}),
    "resnext": ("resnext50_32x4d", {}),
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": SIZE, "window_size": 4}),
    "vgg": ("vgg11_bn", {"mlp_ratio": 1 / 64}),
}


def test_none_is_forgotten() -> None:
    assert set(BACKBONES) == set(space_names())


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_all_that_is_declared_is_elastic(name: str) -> None:
    backbone, arguments = BACKBONES[name]
    assert space_for(backbone) == name
    space = load_space(name)
    net = convert(backbone, space, image_size=SIZE, num_classes=7, arguments=arguments)
    kinds = {dim.kind for dim in net.space.dims}
    declared = {kind for kind in ("width", "hidden", "heads", "depth", "resolution") if getattr(space, kind)}
    assert declared <= kinds
    assert kinds <= declared | {"heads"}  # heads take the ratios of hidden widths where they have none of their own
