"""Channels in another order, with the function unchanged: by importance, or any order asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tips_nni.core._space import CHANNEL_KINDS
from tips_nni.elastic._coupling import unit_of
from tips_nni.elastic._plan import AxisPlan, ElasticPlan
from tips_nni.elastic.rules import channel_axis, rule_for


@torch.no_grad()
def sort_channels(model: nn.Module, plan: ElasticPlan) -> None:
    """Permute the channels of every elastic group so that the most important lead; in place.

    Importance of a channel is the sum of the L1 norms of the weights that make it (Li et al., Pruning Filters for
    Efficient ConvNets, 2017), over all layers of the coupled group; that of a head, of the weights that read it too.
    Channels of grouped convolutions move by whole groups, those of an attention by heads.
    """
    scores = {
        dim.name: torch.zeros(dim.choices[-1], dtype=torch.float64)
        for dim in plan.space.dims
        if dim.kind in CHANNEL_KINDS and dim.name not in plan.ordered
    }
    heads = {dim.name for dim in plan.space.dims if dim.kind == "heads"}
    for _, axis, tensor, direction in _tensors(model, plan):
        pieces = [p for p in axis.pieces if p.dim in scores and (direction == "out" or p.dim in heads)]
        if pieces and direction != "bare" and tensor.ndim > 1:
            norms = tensor.detach().movedim(_axis(tensor, direction), 0).abs().flatten(1).sum(1).double().cpu()
            for piece in pieces:
                scores[piece.dim].index_add_(0, torch.from_numpy(piece.root), norms[torch.from_numpy(piece.index)])
    units = channel_units(model, plan)
    orders = {
        name: score.view(-1, units[name]).sum(1).argsort(descending=True, stable=True).numpy()
        for name, score in scores.items()
    }
    permute_channels(model, plan, orders)


def channel_units(model: nn.Module, plan: ElasticPlan) -> dict[str, int]:
    """Return how many channels of each dimension must move together: 1 but for grouped layers."""
    units = {dim.name: 1 for dim in plan.space.dims}
    modules = dict(model.named_modules())
    for path, layer in plan.layers.items():
        if layer.outputs is None or path not in modules:
            continue
        for piece in layer.outputs.pieces:
            block = rule_for(path, modules[path]).unit(modules[path])
            if block > 1:
                units[piece.dim] = math.lcm(units[piece.dim], unit_of(piece.index, piece.root, block) or 1)
    return units


@torch.no_grad()
def permute_channels(model: nn.Module, plan: ElasticPlan, orders: Mapping[str, NDArray[np.int64]]) -> None:
    """Put the channels of elastic dimensions in another order, in place.

    Args:
        model: the backbone.
        plan: its elastic plan.
        orders: elastic dimension -> a permutation of its units (see `channel_units`), shape (channels / unit,): unit
            `order[i]` moves to i.
    """
    channels = {}
    for name, order in orders.items():
        unit = plan.space[name].choices[-1] // len(order)
        channels[name] = (order[:, None] * unit + np.arange(unit)).ravel()
    # Axes of one coupled group are equal: find out once what moves on each.
    memory: dict[int, Tensor | None] = {}
    for module, axis, tensor, direction in _tensors(model, plan):
        if id(axis) not in memory:
            memory[id(axis)] = _permutation(axis, channels)
        positions = memory[id(axis)]
        if positions is not None and direction == "in" and getattr(module, "groups", 1) > 1:
            # The inputs of a grouped convolution lie along its outputs: its groups move as a whole, or not at all.
            positions = positions[: tensor.shape[1]]
            if int(positions.max()) >= tensor.shape[1]:
                continue
        if positions is not None:
            # New memory for this parameter alone: what shares the old one keeps it as it is.
            tensor.data = tensor.index_select(_axis(tensor, direction), positions.to(tensor.device))


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


def _permutation(axis: AxisPlan, orders: Mapping[str, NDArray[np.int64]]) -> Tensor | None:
    """Return for each position of the axis the position whose channel moves there, or None where none moves."""
    positions = np.arange(axis.size)
    touched = False
    for piece in axis.pieces:
        if piece.dim in orders:
            touched = True
            order = orders[piece.dim]
            # Positions by channel, those of one channel in their order.
            table = piece.index[np.argsort(piece.root, kind="stable")].reshape(len(order), -1)
            positions[table] = table[order]
    return torch.from_numpy(positions) if touched else None
