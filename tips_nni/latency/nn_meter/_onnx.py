"""A network as nn-Meter reads it: exported to ONNX, simplified, and mended where nn-Meter's converter stumbles."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tips_nni.core import TipsError
from tips_nni.latency.nn_meter._library import load_part, load_simplifier, missing_extra

if TYPE_CHECKING:
    from torch import nn

#: nn-Meter's form of a network: node -> ``attr`` (type, attributes, shapes), ``inbounds``, ``outbounds``.
Graph = dict[str, dict[str, Any]]
Shape = tuple[int, ...]

#: Only shapes matter to nn-Meter: the content of larger initializers is dropped.
_SMALL = 1024


def export_graph(module: nn.Module, image_size: int | tuple[int, int]) -> Any:
    """Export a network to ONNX for one square image, as nn-Meter does; weights without content.

    Args:
        module: maps images (1, C, H, W) to logits.
        image_size: side in pixels.

    Returns:
        The ONNX model.

    Raises:
        TipsError: onnxsim is not installed, the image is not square, or the network cannot be exported.
    """
    import torch
    from torch import nn

    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height != width:
        raise TipsError(f"nn-Meter takes every input as square, this one has {height}×{width} pixels; give one side")
    simplify = load_simplifier()
    try:
        import onnx
    except ImportError as error:
        raise missing_extra(error) from error

    first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    weight = next(module.parameters(), None)
    images = torch.zeros(
        1,
        3 if first is None else first.in_channels,
        height,
        width,
        device=None if weight is None else weight.device,
        dtype=None if weight is None else weight.dtype,
    )
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The tracing exporter is the one whose operators nn-Meter knows; torch announces its retirement.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (images,),
                buffer,  # type: ignore[arg-type]  # the tracing exporter takes it
                dynamo=False,
                opset_version=17,
                input_names=["images"],
                output_names=["out"],
            )
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        raise TipsError(f"{type(module).__name__} cannot be exported to ONNX ({reason}); choose another one") from error
    model, _ = simplify(onnx.load_from_string(buffer.getvalue()))
    _mend(model)
    return model


def _mend(model: Any) -> None:
    """Turn Constant nodes into initializers, give every node a name of its own, and drop what weights contain."""
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        for attribute in node.attribute:
            if attribute.name == "value":
                tensor = graph.initializer.add()
                tensor.CopyFrom(attribute.t)
                tensor.name = node.output[0]
                graph.node.remove(node)
    for tensor in graph.initializer:
        if len(tensor.raw_data) > _SMALL:
            tensor.ClearField("raw_data")
    used: set[str] = set()
    for i, node in enumerate(graph.node):
        if not node.name or node.name in used:
            node.name = f"{node.name or node.op_type}#{i}"
        used.add(node.name)


def to_graph(model: Any) -> tuple[Graph, Mapping[str, Shape]]:
    """Let nn-Meter convert an ONNX model, and mend its graph.

    Every node's ``attr`` also tells ``source`` (its name), ``inputs`` and ``outputs`` (tensors with a shape) and
    ``weight`` (the shape of its first initializer of two or more dimensions).

    Returns:
        The graph, and the shape of every tensor, channels last where it has four dimensions.
    """
    converter = load_part("ir_converter.onnx_converter").OnnxConverter(model)
    graph: Graph = converter.convert()
    shapes = {name: tuple(tensor["shape"]) for name, tensor in converter.tensors.items()}
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    inputs = [tensor.name for tensor in model.graph.input if tensor.name not in weights]
    for node in model.graph.node:
        attr = graph[node.name]["attr"] if node.name in graph else {}
        # What has no shape, or one of a single dimension, is no work for a device, and nn-Meter cannot read it.
        if "type" not in attr:
            graph.pop(node.name, None)
            continue
        if attr["type"] == "HardSwish":
            attr["type"] = "hswish"
        attr["source"] = node.name
        attr["inputs"] = [name for name in node.input if name in shapes]
        attr["outputs"] = [name for name in node.output if name in shapes]
        attr["weight"] = next((weights[name] for name in node.input if len(weights.get(name, ())) > 1), None)
        # With its input as a node, a network of one operation is not taken for a node that nobody uses.
        graph[node.name]["inbounds"] += [name for name in inputs if name in node.input]
        if attr["type"] == "Conv":
            _mend_convolution(node.name, attr)
        elif attr["type"] in ("MaxPool", "AveragePool"):
            _check_square(node.name, attr)
    for name in inputs:
        readers = [node.name for node in model.graph.node if name in node.input and node.name in graph]
        graph[name] = {"attr": {"type": "Placeholder", "attr": {}}, "inbounds": [], "outbounds": readers}
    return graph, shapes


def _mend_convolution(name: str, attr: dict[str, Any]) -> None:
    """Make nn-Meter read a convolution for what it is, or refuse it."""
    _check_square(name, attr)
    attributes = attr["attr"]
    # nn-Meter takes groups = channels in for depthwise: also a dense convolution of one channel.
    if attributes.get("group", 1) == 1:
        attributes.pop("group", None)
    window, stride = attributes["kernel_shape"][0], attributes["strides"][0]
    side, out = attr["input_shape"][0][1], attr["output_shape"][0][1]
    if out == -(-side // stride):
        return
    if out == 1 and window == side:
        # nn-Meter assumes padding. Over the whole map, without padding, it is a fully-connected layer.
        attr["type"] = "Gemm"
        attr["window"] = window
        attr["attr"] = {}
        attr["input_shape"], attr["output_shape"] = flattened(attr, attr["input_shape"], attr["output_shape"])
        return
    raise TipsError(
        f"{name}: nn-Meter assumes that a convolution keeps the side of its map but for the stride; this one makes "
        f"{out} of {side} with window {window} and stride {stride}, so its latency would be wrong"
    )


def flattened(
    attr: Mapping[str, Any], inputs: list[list[int]], outputs: list[list[int]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the shapes as nn-Meter is to read them: vectors where a window covers the whole map."""
    if "window" not in attr:
        return inputs, outputs
    return [[1, attr["window"] ** 2 * shape[-1]] for shape in inputs], [[1, shape[-1]] for shape in outputs]


def _check_square(name: str, attr: Mapping[str, Any]) -> None:
    attributes = attr["attr"]
    for what in ("kernel_shape", "strides"):
        pair = attributes.setdefault(what, [1, 1])
        if len(pair) != 2 or pair[0] != pair[1]:
            raise TipsError(f"{name}: nn-Meter takes {what} as square, this one is {pair}; its latency would be wrong")
    if any(step != 1 for step in attributes.get("dilations", [])):
        raise TipsError(f"{name}: nn-Meter does not know dilations ({attributes['dilations']})")
    batch, height, width, _ = attr["input_shape"][0]
    if batch != 1:
        raise TipsError(f"{name}: nn-Meter predicts one image, this graph takes {batch} at once")
    if height != width:
        raise TipsError(f"{name}: nn-Meter takes every map as square, this one has {height}×{width}")
