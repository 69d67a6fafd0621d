"""The shape of every tensor of an exported network in every subnet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import Architecture, Axis, Codes, SearchSpace, TipsError
from tips_nni.latency.nn_meter._onnx import Shape

#: One dimension of a tensor: the sum of axes, each fixed or chosen by an elastic dimension.
Size = tuple[Axis, ...]
Sizes = tuple[Size, ...]

#: Operators whose output has the shape of their (largest) input.
_SAME = frozenset(
    {
        *("Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Softmax"),
        *("Softplus", "Tanh"),
        *("Abs", "Add", "Cast", "Div", "Exp", "Max", "Min", "Mul", "Neg", "Pow", "Sqrt", "Sub"),
        *("BatchNormalization", "Dropout", "Identity", "InstanceNormalization", "LayerNormalization"),
    }
)


def module_path(node: str) -> str:
    """Return the path of the module that an exported node comes from.

    ``/stage2/stage2.0/fuse.0.1/fuse.0.1.0/Conv`` is of ``stage2.0.fuse.0.1.0``: where a module's own name is a number,
    the exporter puts it behind the name that it gave to the module's parent.
    """
    path: list[str] = []
    before = ""
    for part in node.strip("/").split("/")[:-1]:
        path.append(part.removeprefix(f"{before}."))
        before = part
    return ".".join(path)


def sizes_at(sizes: Sizes, space: SearchSpace, codes: Codes) -> NDArray[np.int64]:
    """Return a tensor's shape in every subnet, shape (N, rank)."""
    result = np.zeros((len(codes), len(sizes)), dtype=np.int64)
    for i, size in enumerate(sizes):
        for axis in size:
            values = np.array(axis.sizes, dtype=np.int64)
            result[:, i] += values[0] if axis.dim is None else values[codes[:, space.position(axis.dim)]]
    return result


def dims_of(sizes: Sizes) -> set[str]:
    """Return the elastic dimensions that a shape depends on."""
    return {axis.dim for size in sizes for axis in size if axis.dim is not None}


def channels_last(shape: Sequence[int]) -> Shape:
    """Return a shape in the order in which nn-Meter reads it."""
    return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 else tuple(shape)


def tensor_sizes(model: Any, architecture: Architecture, code: Codes, shapes: Mapping[str, Shape]) -> dict[str, Sizes]:
    """Follow the operators of an exported subnet.

    Args:
        model: ONNX, of the subnet.
        architecture: of the supernet; convolutions and linear layers go by its operations' names.
        code: of the subnet, shape (D,): all blocks are in it.
        shapes: of every tensor in the subnet, as nn-Meter reads them, to check against.

    Returns:
        The dimensions of every tensor in all subnets, in ONNX's order.

    Raises:
        TipsError: an operator whose shape is not known here, or one that differs from `shapes`.
    """
    space = architecture.space
    codes = code[None]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    sides = architecture.input.spatial
    image = next(tensor.name for tensor in model.graph.input if tensor.name not in constants)
    found: dict[str, Sizes] = {
        image: (
            _fixed(1),
            architecture.input.axes,
            _sides([height for height, _ in sides]),
            _sides([width for _, width in sides]),
        )
    }
    for node in model.graph.node:
        inputs = [found[name] for name in node.input if name in found]
        if not inputs:
            continue
        sizes = _output(node, inputs, architecture, codes, constants)
        concrete = channels_last(sizes_at(sizes, space, codes)[0].tolist())
        if concrete != shapes.get(node.output[0], concrete):
            raise TipsError(
                f"{node.name} makes {shapes[node.output[0]]} in the exported network and {concrete} by the description "
                "of the supernet; the latency table cannot be built"
            )
        found[node.output[0]] = sizes
    return found | {name: tuple(_fixed(size) for size in tensor.dims) for name, tensor in constants.items()}


def _output(
    node: Any, inputs: Sequence[Sizes], architecture: Architecture, codes: Codes, constants: Mapping[str, Any]
) -> Sizes:
    """Return the dimensions of a node's output."""
    first = inputs[0]
    attributes = {attribute.name: _value(attribute) for attribute in node.attribute}
    match node.op_type:
        case "Conv":
            return (first[0], _channels(node, architecture), *_windows(first[2:], attributes))
        case "Gemm" | "MatMul":
            return (*first[:-1], _channels(node, architecture))
        case "MaxPool" | "AveragePool":
            return (*first[:2], *_windows(first[2:], attributes))
        case "GlobalAveragePool":
            return (*first[:2], _fixed(1), _fixed(1))
        case "ReduceMean" if "axes" in attributes:
            axes = [axis % len(first) for axis in attributes["axes"]]
            kept = bool(attributes.get("keepdims", 1))
            return tuple(_fixed(1) if i in axes else size for i, size in enumerate(first) if kept or i not in axes)
        case "Flatten":
            return _flatten(node, first, attributes.get("axis", 1))
        case "Transpose":
            return tuple(first[i] for i in attributes["perm"])
        case "Concat":
            axis = attributes["axis"] % len(first)
            joined = tuple(part for sizes in inputs for part in sizes[axis])
            return (*first[:axis], joined, *first[axis + 1 :])
        case "Resize" if len(node.input) == 3 and node.input[2] in constants:
            return _scaled(first, constants[node.input[2]])
        case kind if kind in _SAME:
            # Operands of another shape are broadcast to the larger one.
            return max(inputs, key=lambda sizes: math.prod(sizes_at(sizes, architecture.space, codes)[0].tolist()))
        case kind:
            raise TipsError(f"{node.name}: the latency table cannot follow the operator {kind}; predict single subnets")


def _value(attribute: Any) -> Any:
    return list(attribute.ints) if attribute.ints else attribute.s if attribute.s else attribute.i


def _fixed(size: int) -> Size:
    return (Axis((size,)),)


def _sides(sizes: Sequence[int]) -> Size:
    return _fixed(sizes[0]) if len(sizes) == 1 else (Axis(tuple(sizes), "resolution"),)


def _channels(node: Any, architecture: Architecture) -> Size:
    """Return the output channels of a layer with weights."""
    path = module_path(node.name)
    for operation in architecture.operations:
        if operation.name == path and operation.kind in ("conv", "linear"):
            return architecture.feature_map(operation.output).axes
    raise TipsError(f"{node.name}: the supernet has no layer {path!r}; the latency table cannot be built")


def _windows(sides: Sequence[Size], attributes: Mapping[str, Any]) -> Sizes:
    """Return the output sides of a convolution or a pooling."""
    windows = attributes["kernel_shape"]
    count = len(windows)
    strides, dilations = attributes.get("strides") or [1] * count, attributes.get("dilations") or [1] * count
    pads = attributes.get("pads") or [0] * (2 * count)
    result = []
    for i, size in enumerate(sides):
        (axis,) = size
        room = pads[i] + pads[count + i] - dilations[i] * (windows[i] - 1) - 1
        up = strides[i] - 1 if attributes.get("ceil_mode") else 0
        result.append((Axis(tuple((side + room + up) // strides[i] + 1 for side in axis.sizes), axis.dim),))
    return tuple(result)


def _scaled(sizes: Sizes, factors: Any) -> Sizes:
    """Return dimensions multiplied by the factors of a constant tensor."""
    from onnx import numpy_helper

    return tuple(
        size if factor == 1 else tuple(Axis(tuple(int(side * factor) for side in a.sizes), a.dim) for a in size)
        for size, factor in zip(sizes, numpy_helper.to_array(factors).tolist(), strict=True)
    )


def _flatten(node: Any, sizes: Sizes, axis: int) -> Sizes:
    """Join all dimensions from `axis` on; at most one of them may be elastic."""
    fixed = math.prod(size[0].sizes[0] for size in sizes[axis:] if not dims_of((size,)) and len(size) == 1)
    rest = [size for size in sizes[axis:] if dims_of((size,)) or len(size) > 1]
    if len(rest) > 1:
        raise TipsError(f"{node.name} joins {len(rest)} elastic dimensions; fix the resolution or the width before it")
    whole = _fixed(fixed) if not rest else tuple(Axis(tuple(s * fixed for s in a.sizes), a.dim) for a in rest[0])
    return (*sizes[:axis], whole)
