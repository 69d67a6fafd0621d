"""The `Architecture` (operations and feature maps) of a traced backbone under its elastic dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from tips_nni.core import Architecture, Axis, FeatureMap, Gate, Operation, SearchSpace
from tips_nni.elastic._coupling import cut_alike
from tips_nni.elastic._dimensions import Dimensions
from tips_nni.elastic._plan import AxisPlan, LayerPlan
from tips_nni.elastic._sections import Stage, within
from tips_nni.elastic._trace import Node, Trace
from tips_nni.elastic.rules import between_channels, channel_axis, find_rule, head_size

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
    counted: set[str] = set()
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
        groups = _groups_alike(node, module, dimensions)
        maps[node.name] = FeatureMap(node.name, axes, tuple(table[node.name] for table in outputs))
        operations.append(
            Operation(
                name=node.name,
                kind=node.kind,
                inputs=inputs,
                output=node.name,
                kernel=node.kernel if node.kind == "filter" else _pair(getattr(module, "kernel_size", 1)),
                stride=node.stride if node.kind == "filter" else _pair(getattr(module, "stride", 1)),
                group_width=None if groups else _group_width(node, module),
                groups=groups,
                bias=isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None,
                channel_params=_channel_params(node, module, parameters, counted),
                gate=gate,
                type=_type_of(node, module),
            )
        )
    rest = {name: parameter for name, parameter in parameters.items() if name not in counted}
    operations = _with_rest(operations, maps, rest, dimensions, space)
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


def _groups_alike(node: Node, module: nn.Module | None, dimensions: Dimensions) -> int | None:
    """Return the groups of a convolution whose groups are all cut alike, else None."""
    layer = dimensions.layers.get(node.name)
    if layer is None or not isinstance(module, nn.Conv2d) or module.groups == 1:
        return None
    for axis in (layer.inputs, layer.outputs):
        for piece in axis.pieces if axis is not None else ():
            block = axis.size // module.groups if axis is not None else 1
            if block > 1 and cut_alike(piece.root, block):
                return module.groups
    return None


def _channel_params(
    node: Node, module: nn.Module | None, parameters: Mapping[str, nn.Parameter], counted: set[str]
) -> int:
    """Return the parameters per output channel that are not a layer's weights and biases; note all as counted."""
    if node.kind == "filter":
        return 0
    if node.kind == "attention":
        counted.update(node.parameters)
        # Per head.
        return sum(parameters[name].numel() for name in node.parameters) // int(module.num_heads)  # type: ignore[union-attr, arg-type]
    own = {} if module is None else {f"{node.module}.{name}": p for name, p in module.named_parameters()}
    bare = {name: parameters[name] for name in node.parameters}
    if isinstance(module, nn.Conv2d | nn.Linear):
        counted.update(
            name for name in own if name.endswith((".weight", ".bias")) and name.count(".") == node.name.count(".") + 1
        )
    found = {name: p for name, p in {**own, **bare}.items() if name not in counted and p.numel() > 1}
    counted.update(found)
    return sum(p.numel() // p.shape[channel_axis(p)] for p in found.values())


def _with_rest(
    operations: Sequence[Operation],
    maps: Mapping[str, FeatureMap],
    rest: Mapping[str, nn.Parameter],
    dimensions: Dimensions,
    space: SearchSpace,
) -> list[Operation]:
    """Give the parameters that no operation has (scalar gains) to an operation of their module."""
    result = list(operations)
    for name, parameter in rest.items():
        owner = name.rpartition(".")[0]
        layer = dimensions.layers.get(name)
        axes = None if layer is None else _axes_of(layer.outputs, parameter.shape[channel_axis(parameter)], space)
        while True:
            near = [
                i
                for i, op in enumerate(result)
                if within(op.name, owner) and (axes is None or _summed(maps[op.output].axes) == _summed(axes))
            ]
            if near or not owner:
                break
            owner = owner.rpartition(".")[0]
        if not near:
            continue
        op = result[near[0]]
        if axes is None:
            result[near[0]] = replace(op, params=op.params + parameter.numel())
        else:
            per_channel = parameter.numel() // parameter.shape[channel_axis(parameter)]
            result[near[0]] = replace(op, channel_params=op.channel_params + per_channel)
    return result


def channels_last(module: nn.Module) -> bool:
    """Whether a layer's channels lie along the last axis of its tensors."""
    rule = find_rule(module)
    return rule.axis(module) == -1 if rule is not None else isinstance(module, nn.LayerNorm)


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


def _spatial_of(traced: Trace, modules: Mapping[str, nn.Module], table: Shapes) -> dict[str, tuple[int, int]]:
    """Return (height, width) of every node's output.

    A node without a module takes it from the module that consumes it, else (not a pool) from its input.
    """

    def module_size(name: str, side: int) -> tuple[int, int]:
        return spatial_size(table[name][side], channels_last(modules[name]))

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
        elif node.kind == "filter" and node.kernel != (0, 0):
            (height, width), (down, right) = sizes[node.inputs[0]], node.stride
            sizes[node.name] = wanted(node.name) or (-(-height // down), -(-width // right))
        elif node.kind in ("pool", "view", "filter") or (node.kind == "scale" and node.type in _JOINS):
            pooled = node.kind in ("pool", "filter")
            sizes[node.name] = wanted(node.name) or ((1, 1) if pooled else sizes[node.inputs[0]])
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
    """Return the axes that a layer reads where its inputs have others (a split or a flattening between)."""
    rule = None if module is None or node.kind == "filter" else find_rule(module)
    if rule is None or rule.composite:
        return None
    layer = dimensions.layers.get(node.name) or LayerPlan()
    mixes = rule.mixes(module)
    channels = _width(module, mixes)
    if channels is None:
        return None
    axes = _axes_of(layer.inputs if mixes else layer.outputs, channels, space)
    return None if _summed(axes) == _summed(axis for fm in inputs for axis in fm.axes) else axes


def _width(module: Any, mixes: bool) -> int | None:
    """Return the input channels of a layer, None where it has nothing for each of them."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
    tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None and t.ndim]
    return None if mixes or not tensors else int(tensors[0].shape[0])


def _summed(axes: Iterable[Axis]) -> dict[str | None, tuple[int, ...]]:
    """Return the channels of several axes by dimension."""
    totals: dict[str | None, tuple[int, ...]] = {}
    for axis in axes:
        before = totals.get(axis.dim, (0,) * len(axis.sizes))
        totals[axis.dim] = tuple(a + b for a, b in zip(before, axis.sizes, strict=True))
    return totals


def _input_sizes(node: Node, module: nn.Module, shapes: Sequence[Shapes]) -> list[tuple[int, int]]:
    """Return (height, width) of a layer's input for each resolution choice."""
    return [spatial_size(table[node.name][0], module is not None and channels_last(module)) for table in shapes]


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
