"""Rules for normalisations. Their activation, where they have one, needs none."""

from __future__ import annotations

from typing import Any

from timm.layers.norm import (
    LayerNorm2d,
    LayerNorm2dFp32,
    LayerNormExp2d,
    RmsNorm,
    RmsNorm2d,
    RmsNorm2dFp32,
    RmsNormFp32,
    SimpleNorm,
    SimpleNorm2d,
)
from torch import nn

from tips_nni.elastic._plan import Kept
from tips_nni.elastic.rules._rule import LayerRule, take


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
    """Layer and root-mean-square normalisation over channels, timm's for feature maps (`LayerNorm2d`) included."""

    classes = (nn.LayerNorm, RmsNorm, RmsNorm2d, RmsNormFp32, RmsNorm2dFp32, SimpleNorm, SimpleNorm2d)

    def axis(self, module: Any) -> int:
        maps = (LayerNorm2d, LayerNorm2dFp32, LayerNormExp2d, RmsNorm2d, RmsNorm2dFp32, SimpleNorm2d)
        return 1 if isinstance(module, maps) else -1

    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        for name, tensor in view._parameters.items():
            if tensor is not None:
                view._parameters[name] = take(tensor, outputs)
        if outputs is not None:
            view.normalized_shape = (outputs.stop if isinstance(outputs, slice) else len(outputs),)


class GroupNormRule(LayerRule):
    """Group normalisation: whole groups are kept or cut; with one group any channels."""

    classes = (nn.GroupNorm,)

    def unit(self, module: Any) -> int:
        return 1 if module.num_groups == 1 else int(module.num_channels // module.num_groups)

    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        if outputs is None:
            return
        for name, tensor in view._parameters.items():
            if tensor is not None:
                view._parameters[name] = take(tensor, outputs)
        channels = outputs.stop if isinstance(outputs, slice) else len(outputs)
        if view.num_groups > 1:
            view.num_groups = channels * view.num_groups // view.num_channels
        view.num_channels = channels
