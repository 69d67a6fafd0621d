"""The `Architecture` (operations and feature maps) of a traced backbone under its elastic dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import LayerNorm2d
from torch import nn

from tips_nni.core import Architecture, Axis, FeatureMap, Gate, Operation, SearchSpace
from tips_nni.elastic._dimensions import Dimensions
from tips_nni.elastic._plan import AxisPlan, LayerPlan
from tips_nni.elastic._sections import Stage, within
from tips_nni.elastic._trace import Node, Trace
from tips_nni.elastic.rules import AttentionRule, between_channels, channel_axis, find_rule, head_size

#: Operations that put tokens of their own (a class token) beside those that come in.
_JOINS = ("_ConcatOp",)

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


def describe(
    model: nn.Module,
    traced: Trace,
    stages: Sequence[Stage],
    dimensions: Dimensions,
    space: SearchSpace,
    shapes: Sequence[Shapes],
    in_chans: int,
) -> Architecture:
    """Build the architecture.

    Args:
        model: the backbone.
        traced: its operations.
        stages: its stages.
        dimensions: the elastic dimensions chosen.
        space: the same as a search space.
        shapes: shapes of every module for each resolution choice (one entry where resolution is fixed).
        in_chans: channels of the input.
    """
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    gates = _gates(traced, stages, dimensions, space)
    outputs = [_spatial_of(traced, modules, table) for table in shapes]
    sides = space["resolution"].choices if "resolution" in space else (None,)
    image = FeatureMap(
        "input",
        (Axis((in_chans,)),),
        tuple(_input_size(table, side) for table, side in zip(shapes, sides, strict=True)),
    )
    maps: dict[str, FeatureMap] = {"input": image}
    operations = []
    for node in traced.nodes:
        inputs = node.inputs or ("input",)
        module = modules.get(node.module) if node.module is not None else None
        gate = gates.get(node.name)
        part = _part(node, module, dimensions, [maps[name] for name in inputs], space)
        if part is not None and module is not None:
            name = f"{node.name}.input"
            maps[name] = FeatureMap(name, part, tuple(_input_sizes(node, module, shapes)))
            operations.append(Operation(name, "view", inputs, name, gate=gate, type="Part"))
            inputs = (name,)
        if node.kind == "attention" and between_channels(module):
            name = f"{node.name}.keys"
            maps[name] = FeatureMap(name, maps[inputs[0]].axes, ((head_size(module), 1),) * len(shapes))
            operations.append(Operation(name, "view", inputs[:1], name, gate=gate, type="Transpose"))
            inputs = (name, *inputs[1:])
        axes = _axes(node, module, dimensions, [maps[name] for name in inputs], space)
        maps[node.name] = FeatureMap(node.name, axes, tuple(table[node.name] for table in outputs))
        operations.append(
            Operation(
                name=node.name,
                kind=node.kind,
                inputs=inputs,
                output=node.name,
                kernel=_pair(getattr(module, "kernel_size", 1)),
                stride=_pair(getattr(module, "stride", 1)),
                group_width=_group_width(node, module),
                bias=isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None,
                channel_params=_channel_params(node, module, parameters),
                gate=gate,
                type=_type_of(node, module),
            )
        )
    return Architecture(space, tuple(maps.values()), tuple(operations))


def _type_of(node: Node, module: nn.Module | None) -> str:
    """Return the class name of the module, with that of the activation in a normalisation: ``BatchNormAct2d+SiLU``."""
    if module is None:
        return node.type
    inner = getattr(module, "act", None)
    name = type(module).__name__
    return f"{name}+{type(inner).__name__}" if node.kind == "norm" and isinstance(inner, nn.Module) else name


def _pair(value: Any) -> tuple[int, int]:
    """Return a kernel or stride as (vertical, horizontal)."""
    return (int(value[0]), int(value[1])) if isinstance(value, tuple) else (int(value), int(value))


def _group_width(node: Node, module: nn.Module | None) -> int | None:
    """Return the input channels of a group, None where dense; the channels of a head."""
    if node.kind == "attention":
        return head_size(module)
    if not isinstance(module, nn.Conv2d) or module.groups == 1:
        return None
    return module.in_channels // module.groups


def _channel_params(node: Node, module: nn.Module | None, parameters: Mapping[str, nn.Parameter]) -> int:
    """Return the parameters per output channel (per head of an attention) that are not a layer's weights."""
    bare = [parameters[name] for name in node.parameters]
    if node.kind == "attention":
        return sum(parameter.numel() for parameter in bare) // int(module.num_heads)  # type: ignore[union-attr, arg-type]
    count = sum(parameter.numel() // parameter.shape[channel_axis(parameter)] for parameter in bare)
    if module is not None and not isinstance(module, nn.Conv2d | nn.Linear):
        count += sum(1 for _ in module.parameters())
    return count


def _input_size(table: Shapes, side: int | None) -> tuple[int, int]:
    """Return (height, width) of the network's input."""
    if side is not None:
        return side, side
    shape = table[""][0]
    return shape[2], shape[3]


def spatial_size(shape: tuple[int, ...], channels_last: bool) -> tuple[int, int]:
    """Return (height, width) of one image's tensor: of a map, of vectors (1, 1), or (tokens, sequences)."""
    if len(shape) == 4:
        return (shape[1], shape[2]) if channels_last else (shape[2], shape[3])
    return (shape[1], shape[0]) if len(shape) == 3 else (1, 1)


def channels_last(module: nn.Module) -> bool:
    """Whether the channels of a module's input and output are on the last axis."""
    norm = isinstance(module, nn.LayerNorm) and not isinstance(module, LayerNorm2d)
    return norm or isinstance(module, nn.Linear) or isinstance(find_rule(module), AttentionRule)


def _spatial_of(traced: Trace, modules: Mapping[str, nn.Module], table: Shapes) -> dict[str, tuple[int, int]]:
    """Return (height, width) of every node's output.

    A node without a module takes it from the module that consumes it, else (not a pool) from its input.
    """

    def module_size(name: str, side: int) -> tuple[int, int]:
        module = modules[name]
        return spatial_size(table[name][side], channels_last(module))

    consumers: dict[str, list[Node]] = {}
    for node in traced.nodes:
        for name in node.inputs:
            consumers.setdefault(name, []).append(node)

    def wanted(name: str, depth: int = 0) -> tuple[int, int] | None:
        for consumer in consumers.get(name, []):
            if consumer.module is not None:
                return module_size(consumer.module, 0)
        for consumer in consumers.get(name, []):
            if consumer.kind in ("act", "view", "scale") and consumer.type not in _JOINS and depth < 8:
                return wanted(consumer.name, depth + 1)
        return None

    sizes: dict[str, tuple[int, int]] = {}
    for node in traced.nodes:
        if node.module is not None:
            sizes[node.name] = module_size(node.module, 1)
        elif node.kind in ("pool", "view") or (node.kind == "scale" and node.type in _JOINS):
            sizes[node.name] = wanted(node.name) or (sizes[node.inputs[0]] if node.kind != "pool" else (1, 1))
        else:
            sizes[node.name] = max((sizes[name] for name in node.inputs), key=lambda s: s[0] * s[1])
    return sizes


def _axes(
    node: Node,
    module: nn.Module | None,
    dimensions: Dimensions,
    inputs: Sequence[FeatureMap],
    space: SearchSpace,
) -> tuple[Axis, ...]:
    """Return the channel axes of a node's output."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        channels = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
        layer = dimensions.layers.get(node.name)
        return _axes_of(layer.outputs if layer is not None else None, channels, space)
    if node.kind == "attention":
        layer = dimensions.layers.get(node.name)
        heads = _axes_of(layer.outputs if layer is not None else None, int(module.num_heads), space)  # type: ignore[union-attr, arg-type]
        return tuple(Axis(tuple(size * head_size(module) for size in axis.sizes), axis.dim) for axis in heads)
    if node.kind == "concat":
        return tuple(axis for fm in inputs for axis in fm.axes)
    return inputs[0].axes


def _axes_of(plan: AxisPlan | None, channels: int, space: SearchSpace) -> tuple[Axis, ...]:
    """Return the axes of `channels` channels that `plan` cuts."""
    if plan is None:
        return (Axis((channels,)),)
    axes = []
    for piece in plan.pieces:
        sizes = tuple(int((piece.root < choice).sum()) for choice in space[piece.dim].choices)
        axes.append(Axis(sizes, piece.dim))
    rest = plan.size - sum(len(piece.index) for piece in plan.pieces)
    return (*axes, Axis((rest,))) if rest else tuple(axes)


def _part(
    node: Node,
    module: nn.Module | None,
    dimensions: Dimensions,
    inputs: Sequence[FeatureMap],
    space: SearchSpace,
) -> tuple[Axis, ...] | None:
    """Return the axes that a layer takes where its inputs have other channels (a split or a flattening between)."""
    if not isinstance(module, nn.Conv2d | nn.Linear | nn.LayerNorm):
        return None
    if isinstance(module, nn.LayerNorm):
        channels = module.normalized_shape[-1]
    else:
        channels = module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
    if sum(axis.sizes[-1] for fm in inputs for axis in fm.axes) == channels:
        return None
    layer = dimensions.layers.get(node.name) or LayerPlan()
    # The plan of a normalisation knows one channel axis, its own.
    return _axes_of(layer.outputs if isinstance(module, nn.LayerNorm) else layer.inputs, channels, space)


def _input_sizes(node: Node, module: nn.Module, shapes: Sequence[Shapes]) -> list[tuple[int, int]]:
    """Return (height, width) of a layer's input for each resolution choice."""
    return [spatial_size(table[node.name][0], channels_last(module)) for table in shapes]


def _gates(traced: Trace, stages: Sequence[Stage], dimensions: Dimensions, space: SearchSpace) -> dict[str, Gate]:
    """Return the depth gate of every operation inside a block that can be skipped."""
    nodes = {node.name: node for node in traced.nodes}
    gates: dict[str, Gate] = {}
    for stage in stages:
        dim = f"depth.{stage.name}"
        if dim not in dimensions.stages:
            continue
        choices = space[dim].choices
        for i, (block, addition) in enumerate(zip(stage.blocks, stage.skippable, strict=True)):
            if i < choices[0] or addition is None:
                continue
            gate = Gate(dim, choices.index(i + 1))
            inside = _members(nodes, block, addition)
            for node in traced.nodes:
                trailing = node.kind == "act" and node.inputs == (addition,)
                if node.name in inside or trailing or (node.module is not None and within(node.module, block)):
                    gates[node.name] = gate
    return gates


def _members(nodes: Mapping[str, Node], block: str, addition: str) -> set[str]:
    """Return the addition and all nodes between the block's modules and it."""
    depends: dict[str, bool] = {}

    def inside(name: str) -> bool:
        if name not in depends:
            node = nodes[name]
            own = node.module is not None and within(node.module, block)
            outside_module = node.module is not None and not own
            depends[name] = own or (not outside_module and any(inside(i) for i in node.inputs))
        return depends[name]

    def walk(name: str, found: set[str]) -> set[str]:
        if name not in found and inside(name):
            found.add(name)
            for i in nodes[name].inputs:
                walk(i, found)
        return found

    return walk(addition, set()) | {addition}
