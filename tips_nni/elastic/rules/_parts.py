"""The rule for modules that cut their channels into parts of sizes that they remember."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from timm.layers import MixedConv2d
from timm.models.cspnet import CrossStage, CrossStage3
from timm.models.dla import DlaBottle2neck
from timm.models.fasternet import Partial_conv3
from timm.models.focalnet import FocalModulation
from timm.models.inception_next import InceptionDWConv2d
from timm.models.mambaout import GatedConvBlock
from timm.models.res2net import Bottle2neck
from torch import nn

from tips_nni.elastic._plan import Kept
from tips_nni.elastic.rules._rule import LayerRule


@dataclass(frozen=True)
class Parts:
    """Where a module remembers the sizes of its parts.

    Attributes:
        names: attributes with the size of one part each; or one attribute with all of them.
        source: the child whose output is cut, "" for the module's own input.
        equal: the parts are equally large and one attribute has the size of one.
    """

    names: tuple[str, ...]
    source: str = ""
    equal: bool = False


_PARTS: dict[type[nn.Module], Parts] = {
    MixedConv2d: Parts(("splits",)),
    InceptionDWConv2d: Parts(("split_indexes",)),
    Partial_conv3: Parts(("dim_conv3", "dim_untouched")),
    GatedConvBlock: Parts(("split_indices",), "fc1"),
    FocalModulation: Parts(("input_split",), "f"),
    Bottle2neck: Parts(("width",), "conv1", equal=True),
    DlaBottle2neck: Parts(("width",), "conv1", equal=True),
    CrossStage: Parts(("expand_chs",), "conv_exp"),
    CrossStage3: Parts(("expand_chs",), "conv_exp"),
}


class PartsRule(LayerRule):
    """Mixed convolutions, partial convolutions, Res2Net's and CSPNet's blocks, gated blocks: sizes follow the cut."""

    classes = tuple(_PARTS)
    composite = True

    def follows(self, module: nn.Module) -> str | None:
        return _parts_of(module).source

    def axis(self, module: Any) -> int:
        return -1 if isinstance(module, GatedConvBlock) else 1

    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        if outputs is None:
            return
        parts = _parts_of(view)
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


def _parts_of(module: nn.Module) -> Parts:
    return next(parts for kind, parts in _PARTS.items() if isinstance(module, kind))
