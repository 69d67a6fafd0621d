"""Rules for convolutions and linear layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tips_nni.elastic._plan import Kept
from tips_nni.elastic.rules._rule import LayerRule, take


class ConvRule(LayerRule):
    """Convolutions: dense, depthwise, and grouped with whole groups cut.

    Their weights may be standardised in the forward (timm's `StdConv2d`), with a gain for each output channel
    (`ScaledStdConv2d`).
    """

    classes = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        parameters, before = view._parameters, view.out_channels
        weight = take(parameters["weight"], outputs)
        if view.groups == 1:
            weight = take(weight, inputs, axis=1)
            view.in_channels = weight.shape[1]
        elif _alike(outputs, view.out_channels, view.groups) or _alike(inputs, view.in_channels, view.groups):
            # Every group is cut alike: its inputs are those of the first one.
            if inputs is not None:
                weight = take(weight, _first(inputs, view.groups), axis=1)
            view.in_channels = view.groups * weight.shape[1]
        else:
            per_group = view.out_channels // view.groups
            view.groups = weight.shape[0] // per_group
            view.in_channels = view.groups * weight.shape[1]
        view.out_channels = weight.shape[0]
        for name, tensor in parameters.items():
            if name == "weight":
                parameters[name] = weight
            elif tensor is not None and tensor.ndim and tensor.shape[0] == before:
                parameters[name] = take(tensor, outputs)

    def unit(self, module: Any) -> int:
        return 1 if module.groups == 1 else int(module.out_channels // module.groups)

    def mixes(self, module: Any) -> bool:
        return not 1 < module.groups == module.in_channels == module.out_channels

    def axis(self, module: Any) -> int:
        return -1 - len(module.kernel_size)


def _alike(kept: Kept | None, channels: int, groups: int) -> bool:
    """Whether of every group of channels some are kept and some are cut."""
    if kept is None:
        return False
    mask = np.zeros(channels, dtype=np.bool_)
    mask[kept] = True
    rows = mask.reshape(groups, -1)
    return bool((rows == rows[0]).all()) and not rows[0].all()


def _first(kept: Kept, groups: int) -> NDArray[np.int64]:
    """Return the kept positions of the first of several groups that are cut alike."""
    positions = np.arange(kept.stop) if isinstance(kept, slice) else kept
    return positions[: len(positions) // groups]


class LinearRule(LayerRule):
    """Fully connected layers."""

    classes = (nn.Linear,)

    def mixes(self, module: Any) -> bool:
        return True

    def axis(self, module: Any) -> int:
        return -1

    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        parameters = view._parameters
        weight = take(take(parameters["weight"], outputs), inputs, axis=1)
        parameters["weight"] = weight
        view.out_features, view.in_features = weight.shape
        if parameters["bias"] is not None:
            parameters["bias"] = take(parameters["bias"], outputs)
