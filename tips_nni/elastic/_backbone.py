"""Backbones by timm's names."""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any

import timm
from safetensors import SafetensorError
from torch import nn

from tips_nni.core import TipsError, closest
from tips_nni.elastic._meta import UNFIT, first_line


def create_backbone(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint_path: str | None = None,
    **arguments: Any,
) -> nn.Module:
    """Create a timm model.

    Args:
        name: timm's name, e.g. ``mobilenetv2_100``.
        pretrained: load timm's pretrained weights (needs a network, or its cache).
        checkpoint_path: load weights from this file instead (safetensors, or a plain state dict).
        **arguments: for the model, e.g. ``in_chans``, ``num_classes``, ``drop_rate``.

    Raises:
        TipsError: timm has no such model, or refuses the arguments or the weights.
    """
    if not timm.is_model(name):
        raise TipsError(f"timm has no backbone {name!r}{closest(name, timm.list_models())}; see timm.list_models()")
    try:
        return timm.create_model(name, pretrained=pretrained, checkpoint_path=checkpoint_path or "", **arguments)
    except (*UNFIT, OSError, SafetensorError, UnpicklingError) as error:
        weights = f" from {checkpoint_path}" if checkpoint_path else ""
        raise TipsError(
            f"timm cannot create {name!r} with {arguments}{weights} ({first_line(error)}); correct the arguments or "
            "the weights"
        ) from error
