"""The rule for modules that cut their channels into parts of sizes that they remember."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from tips_nni.elastic._plan import Kept
from tips_nni.elastic.rules._rule import LayerRule


@dataclass(frozen=True)
class Parts:
    """Where a module remembers the sizes of its parts.

    Attributes:
        names: attributes with the size of one part each; or one attribute with all of them.
        source: the child whose output is cut (the first that the module has), "" for the module's own input.
        equal: the parts are equally large and one attribute has the size of one.
    """

    names: tuple[str, ...]
    source: str = ""
    equal: bool = False


#: by the full name of the class, so that other versions of timm may lack some
_PARTS = {
    "timm.layers.mixed_conv2d.MixedConv2d": Parts(("splits",)),
    "timm.layers.selective_kernel.SelectiveKernel": Parts(("in_channels",)),
    "timm.models.cspnet.CrossStage": Parts(("expand_chs",), "conv_exp.conv"),
    "timm.models.cspnet.CrossStage3": Parts(("expand_chs",), "conv_exp.conv"),
    "timm.models.dla.DlaBottle2neck": Parts(("width",), "conv1", equal=True),
    "timm.models.dpn.DualPathBlock": Parts(("num_1x1_c",), "c1x1_c1 c1x1_c.conv"),
    "timm.models.fasternet.Partial_conv3": Parts(("dim_conv3", "dim_untouched")),
    "timm.models.focalnet.FocalModulation": Parts(("input_split",), "f"),
    "timm.models.inception_next.InceptionDWConv2d": Parts(("split_indexes",)),
    "timm.models.mambaout.GatedConvBlock": Parts(("split_indices",), "fc1"),
    "timm.models.res2net.Bottle2neck": Parts(("width",), "conv1", equal=True),
    "timm.models.rexnet.LinearBottleneck": Parts(("in_channels",)),
}


class PartsRule(LayerRule):
    """Mixed convolutions, partial convolutions, Res2Net's and CSPNet's blocks, gated blocks: sizes follow the cut."""

    classes = ()
    composite = True

    def fits(self, module: nn.Module) -> bool:
        return _parts_of(module) is not None

    def follows(self, module: nn.Module) -> str | None:
        parts = _parts_of(module)
        if parts is None or not parts.source:
            return None if parts is None else ""
        children = {name for name, child in module.named_modules() if child is not None}
        return next((name for name in parts.source.split() if name in children), None)

    def axis(self, module: Any) -> int:
        return -1 if type(module).__name__ == "GatedConvBlock" else 1

    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        parts = _parts_of(view)
        if outputs is None or parts is None:
            return
        positions = np.arange(outputs.stop) if isinstance(outputs, slice) else outputs
        if parts.equal:
            (name,) = parts.names
            # The parts are cut alike: the first one tells the size of all.
            setattr(view, name, int((positions < getattr(view, name)).sum()))
            return
        values = [getattr(view, name) for name in parts.names]
        sizes = values[0] if isinstance(values[0], tuple | list) else values
        bounds = np.cumsum([0, *sizes])
        left = [int(((positions >= a) & (positions < b)).sum()) for a, b in itertools.pairwise(bounds)]
        if isinstance(values[0], tuple | list):
            setattr(view, parts.names[0], type(values[0])(left))
        else:
            for name, size in zip(parts.names, left, strict=True):
                setattr(view, name, size)


def _parts_of(module: nn.Module) -> Parts | None:
    cls: Any = type(module)  # mypy holds a class for unhashable where its instances define __hash__
    return _parts_of_class(cls)


@functools.cache
def _parts_of_class(cls: type) -> Parts | None:
    """Return what is known of a class or of the nearest class it derives from; asked at every switch, hence kept."""
    names = (f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__)
    return next((_PARTS[name] for name in names if name in _PARTS), None)
