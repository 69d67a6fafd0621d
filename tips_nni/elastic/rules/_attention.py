"""The rule for multi-head self-attention: a module of layers that is cut by whole heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tips_nni.elastic._plan import Kept
from tips_nni.elastic.rules._rule import LayerRule, channel_axis

#: Names of the linear layers that make queries, keys and values, and how many of the three each makes; that with the
#: keys first.
_PROJECTIONS = ({"qkv": 3}, {"kv": 2, "q": 1}, {"k_proj": 1, "q_proj": 1, "v_proj": 1})


@dataclass(frozen=True)
class HeadAxis:
    """A channel axis inside an attention module that goes with its heads.

    Attributes:
        name: of the child or the bare parameter; empty for the module itself.
        out: True for output channels (or a normalisation's, or a parameter's), False for input channels.
        head: the head that every position belongs to, shape (n,), int64.
    """

    name: str
    out: bool
    head: NDArray[np.int64]


class AttentionRule(LayerRule):
    """Multi-head self-attention as timm's modules write it, known by what they hold, not by their class.

    That is: ``num_heads``; a linear layer ``qkv`` (or two, ``q`` and ``kv``, or three) whose outputs are queries, keys
    and values in this order, each of them head by head; and a linear layer ``proj`` that reads the heads' results.
    Whether a module of that form really has separate heads is not believed but checked by every conversion.
    """

    classes = ()
    composite = True

    def fits(self, module: nn.Module) -> bool:
        return bool(projections(module))

    def narrow(self, view: Any, inputs: Kept | None, outputs: Kept | None) -> None:
        if outputs is None:
            return
        heads = outputs.stop if isinstance(outputs, slice) else len(outputs)
        # The layers are narrow already: what they hold goes to the heads that are left.
        width = view.proj.in_features
        for name, value in (("num_heads", heads), ("num_kv_heads", heads), ("attn_dim", width), ("kv_dim", width)):
            if hasattr(view, name):
                setattr(view, name, value)


def projections(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that make queries, keys and values, the keys' first; empty without attention."""
    proj = getattr(module, "proj", None)
    if not isinstance(getattr(module, "num_heads", None), int) or not isinstance(proj, nn.Linear):
        return ()
    for parts in _PROJECTIONS:
        layers = {name: getattr(module, name, None) for name in parts}
        if all(
            isinstance(layer, nn.Linear) and layer.out_features == parts[name] * proj.in_features
            for name, layer in layers.items()
        ):
            return tuple(parts)
    return ()


def head_size(module: Any) -> int:
    """Return the channels of one head of an attention module."""
    return int(module.proj.in_features) // int(module.num_heads)


def between_channels(module: Any) -> bool:
    """Return whether the channels of a head attend to each other, not the tokens (cross-covariance, by temperature)."""
    return isinstance(getattr(module, "temperature", None), nn.Parameter)


def head_axes(module: Any) -> tuple[HeadAxis, ...]:
    """Return all axes that must be cut with the heads of an attention module, its own first."""
    heads, width = int(module.num_heads), int(module.proj.in_features)
    one = np.arange(heads, dtype=np.int64)
    of_channel = np.repeat(one, width // heads)
    axes = [HeadAxis("", True, one)]
    for name in projections(module):
        axes.append(HeadAxis(name, True, np.tile(of_channel, getattr(module, name).out_features // width)))
    gate, norm = getattr(module, "gate", None), getattr(module, "norm", None)
    if isinstance(gate, nn.Linear) and gate.out_features == width:
        axes.append(HeadAxis("gate", True, of_channel))
    if isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (width,):
        axes.append(HeadAxis("norm", True, of_channel))
    for name, parameter in module.named_parameters(recurse=False):
        size = parameter.shape[channel_axis(parameter)] if parameter.ndim else 0
        if size in (heads, width):
            axes.append(HeadAxis(name, True, one if size == heads else of_channel))
    return (*axes, HeadAxis("proj", False, of_channel))
