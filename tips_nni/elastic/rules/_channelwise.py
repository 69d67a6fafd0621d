"""Rules for other layers that treat every channel by itself."""

from __future__ import annotations

from typing import Any

from timm.layers import BlurPool2d
from timm.models.metaformer import Scale
from torch import nn

from tips_nni.elastic._plan import Kept
from tips_nni.elastic.rules._rule import LayerRule, take


class BlurRule(LayerRule):
    """Blurred pooling (`BlurPool2d`): the same filter for every channel."""

    classes = (BlurPool2d,)

    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        if outputs is not None and view.channels is not None:
            view._buffers["filt"] = take(view._buffers["filt"], outputs)
            view.channels = view._buffers["filt"].shape[0]


class ScaleRule(LayerRule):
    """A factor for each channel that a module keeps together with its shape (PoolFormer's and ConvFormer's)."""

    classes = (Scale,)

    def axis(self, module: Any) -> int:
        return 1 if len(module.shape) == 3 else -1

    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        view._parameters["scale"] = take(view._parameters["scale"], outputs)
        view.shape = (len(view._parameters["scale"]), *view.shape[1:])


class PReLURule(LayerRule):
    """A rectifier with a slope for each channel, or one for all."""

    classes = (nn.PReLU,)

    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        if view.num_parameters > 1:
            view._parameters["weight"] = take(view._parameters["weight"], outputs)
            view.num_parameters = len(view._parameters["weight"])
