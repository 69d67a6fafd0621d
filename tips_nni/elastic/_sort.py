"""Channels in another order, with the function unchanged: by importance, or any order asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tips_nni.core._space import CHANNEL_KINDS
from tips_nni.elastic._plan import AxisPlan, ElasticPlan
from tips_nni.elastic.rules import channel_axis, rule_for


@torch.no_grad()
def sort_channels(model: nn.Module, plan: ElasticPlan) -> None:
    """Permute the channels of every elastic group so that the most important lead; in place.

    Importance of a channel is the sum of the L1 norms of the weights that make it (Li et al., Pruning Filters for
    Efficient ConvNets, 2017), over all layers of the coupled group; that of a head, of the weights that read it too.
    Channels of grouped convolutions move by whole groups, those of an attention by heads.
    """
    for dim in plan.space.dims:
        if dim.kind not in CHANNEL_KINDS:
            continue
        score = torch.zeros(dim.choices[-1], dtype=torch.float64)
        directions = ("out", "in") if dim.kind == "heads" else ("out",)
        for _, axis, tensor, direction in _tensors(model, plan):
            pieces = [piece for piece in axis.pieces if piece.dim == dim.name]
            if pieces and direction in directions and tensor.ndim > 1:
                rows = tensor.detach().movedim(_axis(tensor, direction), 0)
                norms = rows.abs().flatten(1).sum(1).double().cpu()
                for piece in pieces:
                    score.index_add_(0, torch.from_numpy(piece.root), norms[torch.from_numpy(piece.index)])
        units = score.view(-1, channel_unit(model, plan, dim.name)).sum(1)
        permute_channels(model, plan, dim.name, units.argsort(descending=True, stable=True).numpy())


def channel_unit(model: nn.Module, plan: ElasticPlan, dim: str) -> int:
    """Return how many channels of dimension `dim` must move together: 1 but for grouped convolutions."""
    unit = 1
    for module, axis, _, _ in _tensors(model, plan):
        grouped = isinstance(module, nn.Conv2d) and 1 < module.groups != module.in_channels
        if grouped and any(piece.dim == dim for piece in axis.pieces):
            unit = math.lcm(unit, rule_for("", module).unit(module))
    return unit


@torch.no_grad()
def permute_channels(model: nn.Module, plan: ElasticPlan, dim: str, order: NDArray[np.int64]) -> None:
    """Put the channels of dimension `dim` in another order, in place.

    Args:
        model: the backbone.
        plan: its elastic plan.
        dim: the elastic dimension.
        order: a permutation of the units (see `channel_unit`), shape (channels / unit,): unit `order[i]` moves to i.
    """
    unit = plan.space[dim].choices[-1] // len(order)
    channels = (order[:, None] * unit + np.arange(unit)).ravel()
    for module, axis, tensor, direction in _tensors(model, plan):
        positions = _permutation(axis, dim, channels)
        # The inputs of a grouped convolution lie along its outputs: its groups move as a whole.
        grouped_input = direction == "in" and isinstance(module, nn.Conv2d) and module.groups > 1
        if positions is not None and not grouped_input:
            along = _axis(tensor, direction)
            tensor.copy_(tensor.index_select(along, torch.from_numpy(positions).to(tensor.device)))


def _axis(tensor: Tensor, direction: str) -> int:
    """Return which axis of a tensor holds the channels."""
    if direction == "in":
        return 1
    if direction == "bare":
        return channel_axis(tensor)
    return 0


def _tensors(model: nn.Module, plan: ElasticPlan) -> Iterator[tuple[nn.Module, AxisPlan, Tensor, str]]:
    """Yield (module, axis, tensor, direction) for every tensor with an elastic axis."""
    modules = dict(model.named_modules())
    for path, layer in plan.layers.items():
        if path not in modules:
            owner, name = path.rpartition(".")[::2]
            if layer.outputs is not None:
                yield modules[owner], layer.outputs, modules[owner]._parameters[name], "bare"  # type: ignore[misc]
            continue
        module = modules[path]
        if rule_for(path, module).composite:
            continue
        if layer.inputs is not None and "weight" in module._parameters:
            yield module, layer.inputs, module._parameters["weight"], "in"  # type: ignore[misc]
        if layer.outputs is not None:
            for tensor in [*module._parameters.values(), *module._buffers.values()]:
                if tensor is not None and tensor.ndim:
                    yield module, layer.outputs, tensor, "out"


def _permutation(axis: AxisPlan, dim: str, order: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return for each position of the axis the position whose channel moves there, or None where `dim` has no part."""
    positions = np.arange(axis.size)
    touched = False
    for piece in axis.pieces:
        if piece.dim != dim:
            continue
        touched = True
        by_root: dict[int, list[int]] = {}
        for index, root in zip(piece.index.tolist(), piece.root.tolist(), strict=True):
            by_root.setdefault(root, []).append(index)
        for new, old in enumerate(order.tolist()):
            positions[by_root.get(new, [])] = by_root.get(old, [])
    return positions if touched else None
