"""A subnet as a module tree that shares the supernet's weights, and the same subnet with weights of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tips_nni.core import SubnetConfig, TipsError
from tips_nni.elastic._plan import AxisPlan, ElasticPlan, Kept
from tips_nni.elastic.rules import channel_axis, rule_for, shallow, take

#: BatchNorm statistics of a subnet: ``{"<path>.running_mean" | "<path>.running_var": tensor}``.
Statistics = Mapping[str, Tensor]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def rebuild(
    module: nn.Module,
    change: Callable[[str, nn.Module], nn.Module],
    path: str = "",
    skipped: frozenset[str] = frozenset(),
) -> nn.Module:
    """Copy a module tree without copying tensors.

    Args:
        module: the tree; it stays as it is.
        change: called with each path and a shallow copy of the module there, children first done; returns what stands
            there in the new tree.
        path: the path of `module`.
        skipped: paths whose place an identity takes.

    Returns:
        The new tree; no module of it is shared with the old one.
    """
    if path in skipped:
        return nn.Identity().train(module.training)
    view = shallow(module)
    for name, child in module._modules.items():
        if child is not None:
            view._modules[name] = rebuild(child, change, f"{path}.{name}" if path else name, skipped)
    return change(path, view)


def narrow(
    backbone: nn.Module, plan: ElasticPlan, config: SubnetConfig, statistics: Statistics | None = None
) -> nn.Module:
    """Return the subnet `config` of `backbone` as a module that shares its weights.

    The slices are taken now: make a new one after an optimizer step. In training mode its BatchNorm layers use the
    batch's statistics and leave the running ones, which belong to the largest subnet, alone.

    Args:
        backbone: the whole network.
        plan: its elastic plan.
        config: the subnet.
        statistics: BatchNorm statistics from `calibrate`; without them the leading channels of the largest's are used.

    Raises:
        TipsError: the statistics are those of another subnet.

    Returns:
        A module of the backbone's class. It accepts images of any size and resizes them to the subnet's resolution
        where that is elastic.
    """
    if config == plan.space.largest and statistics is None:
        return backbone
    # Axes of one coupled group are equal: find out once what each keeps.
    memory: dict[int, Kept] = {}

    def kept(axis: AxisPlan | None) -> Kept | None:
        if axis is None:
            return None
        if id(axis) not in memory:
            memory[id(axis)] = axis.kept(config)
        return memory[id(axis)]

    def change(path: str, view: Any) -> nn.Module:
        layer = plan.layers.get(path)
        if layer is not None:
            rule_for(path, view).narrow(view, kept(layer.inputs), kept(layer.outputs))
        for name, parameter in view._parameters.items():
            bare = plan.layers.get(f"{path}.{name}" if path else name)
            if bare is not None and parameter is not None:
                view._parameters[name] = take(parameter, kept(bare.outputs), channel_axis(parameter))
        if isinstance(view, nn.modules.batchnorm._BatchNorm) and view.running_mean is not None:
            if view.training:
                view.track_running_stats = False
            if statistics is not None:
                for name in ("running_mean", "running_var"):
                    view._buffers[name] = _statistic(statistics, f"{path}.{name}", view.num_features)
        return view

    view = rebuild(backbone, change, skipped=plan.skipped(config))
    if "resolution" in plan.space:
        side = config["resolution"]
        view.register_forward_pre_hook(lambda _module, inputs: (resize(inputs[0], side), *inputs[1:]))
    return view


def _statistic(statistics: Statistics, name: str, channels: int) -> Tensor:
    """Return one of a subnet's BatchNorm statistics."""
    tensor = statistics.get(name)
    if tensor is None or tensor.shape != (channels,):
        found = "none" if tensor is None else f"of shape {tuple(tensor.shape)}"
        raise TipsError(
            f"the statistics of this subnet need {name} of shape ({channels},), found {found}; calibrate it"
        )
    return tensor


def materialise(view: nn.Module) -> nn.Module:
    """Return `view` with weights of its own: a plain module of the backbone's class, without this package."""
    # Tensors that are new already are not copied once more.
    made: dict[int, Any] = {}

    def change(_path: str, module: Any) -> nn.Module:
        for name, tensor in module._parameters.items():
            if tensor is not None:
                module._parameters[name] = own = nn.Parameter(tensor.detach().clone().contiguous())
                made[id(own)] = own
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = own = tensor.detach().clone().contiguous()
                made[id(own)] = own
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = module.running_mean is not None
        for name in _HOOKS:
            module.__dict__[name].clear()
        return module

    return copy.deepcopy(rebuild(view, change), made)


def resize(images: Tensor, side: int) -> Tensor:
    """Return images (N, C, H, W) at `side` × `side` pixels: bilinear, antialiased; unchanged where they have it."""
    if images.shape[-1] == side and images.shape[-2] == side:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
