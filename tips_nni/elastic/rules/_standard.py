"""Rules for the layers that most backbones are made of."""

from __future__ import annotations

from typing import Any

from timm.layers import LayerNorm2d
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


class BatchNormRule(LayerRule):
    """Batch normalisation, timm's `BatchNormAct2d` included."""

    classes = (nn.modules.batchnorm._BatchNorm,)

    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        for table in (view._parameters, view._buffers):
            for name, tensor in table.items():
                if tensor is not None and tensor.ndim:
                    table[name] = take(tensor, outputs)
                    view.num_features = table[name].shape[0]


class LayerNormRule(LayerRule):
    """Layer normalisation over channels, timm's `LayerNorm2d` included."""

    classes = (nn.LayerNorm,)

    def axis(self, module: Any) -> int:
        return 1 if isinstance(module, LayerNorm2d) else -1

    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        for name, tensor in view._parameters.items():
            if tensor is not None:
                view._parameters[name] = take(tensor, outputs)
        if isinstance(outputs, slice):
            view.normalized_shape = (outputs.stop,)
        elif outputs is not None:
            view.normalized_shape = (len(outputs),)
