"""The operations of a backbone, from Torch-Pruning's graph, its channel groups, and the shapes of its modules."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from tips_nni.core import TipsError
from tips_nni.core._architecture import OpKind
from tips_nni.elastic._coupling import Group, find_groups
from tips_nni.elastic._meta import UNFIT, QuickShapes, copied, first_line
from tips_nni.elastic._wiring import Components

_POOLS = ("Pool", "Mean")
#: A linear layer on more than vectors is a view, a product and a view to autograd; its module is the last of them.
_VIEWS = (
    "View", "Reshape", "Permute", "Transpose", "Squeeze", "Unsqueeze", "Clone", "Slice", "Select", "Expand", "Alias",
    "Addmm", "Mm",
)  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One operation of the traced network.

    Attributes:
        name: the module's path, or a made-up name for an operation without a module.
        kind: see `tips_nni.core.Operation`.
        type: the module's class name, or the autograd function's.
        module: the module's path, or None.
        inputs: names of nodes; empty where the input is the network's own.
        parameters: paths of bare parameters, channel by channel, that go into this node (layer scale, embeddings).
        kernel: (height, width) of a filter; (0, 0) where it is as large as its input.
        stride: of a filter.
    """

    name: str
    kind: OpKind
    type: str
    module: str | None
    inputs: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Trace:
    """A backbone's operations in topological order and its coupled channel groups.

    Attributes:
        nodes: the operations.
        groups: the channels that are cut together.
        wired: what they were found from.
    """

    nodes: tuple[Node, ...]
    groups: tuple[Group, ...]
    wired: Components = field(default_factory=dict)


def trace(model: nn.Module, ghost: nn.Module, example: Tensor) -> Trace:
    """Trace `model` (left unchanged; `ghost` is the same on the meta device) on `example`, shape (N, C, H, W).

    Raises:
        TipsError: the operations cannot be followed.
    """
    # On a copy: tracing needs gradients of every parameter and evaluation mode.
    model = copied(model, lambda tensor: tensor.cpu()).eval().requires_grad_(True)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            # Bare parameters (layer scale) are handled below; the library only informs about them.
            warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
            nodes = _nodes(_graph(model, example), model)
        groups, wired = find_groups(ghost, example.to("meta"))
    except UNFIT as error:
        raise TipsError(
            f"{type(model).__name__} cannot be converted: its operations could not be traced "
            f"({first_line(error)}); choose another backbone"
        ) from error
    return Trace(tuple(nodes), groups, wired)


def _graph(model: nn.Module, example: Tensor) -> tp.DependencyGraph:
    """Return the library's graph of the operations.

    Its coupling of channels is left out: that fails on splits and reshapes, and walks some graphs without an end.
    """
    graph = tp.DependencyGraph()
    graph.model, graph.verbose, graph.ignored_params = model, False, []
    graph._module2name = {module: name for name, module in model.named_modules()}
    graph._param_to_name, graph.unwrapped_parameters = graph._detect_unwrapped_parameters(None)
    graph.module2node = graph._trace(model, example, None, output_transform=None)
    return graph


def _kind(module: nn.Module, inputs: int, scaled: bool) -> OpKind:
    """Name the kind of a node from its module and the number of its (data) inputs."""
    if isinstance(module, nn.Conv1d) and module.in_channels == module.out_channels == 1:
        # Along the channels, which it takes for positions (efficient channel attention).
        return "filter"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm):
        return "norm"
    if isinstance(module, tp.ops._ConcatOp) and (inputs > 1 or not scaled):
        return "concat"
    function = str(getattr(module, "_grad_fn", type(module).__name__))
    if function.startswith("Convolution") or (function.startswith("Bmm") and inputs > 1):
        # Blurred pooling, or a weighted mean over all positions.
        return "filter"
    if inputs > 1:
        return "mul" if function.startswith("Mul") else "add"
    if scaled:
        return "scale"
    if any(word in function for word in _POOLS):
        return "pool"
    if any(word in function for word in _VIEWS):
        return "view"
    return "act"


def _nodes(graph: tp.DependencyGraph, model: nn.Module) -> list[Node]:
    """Return the operations reachable from the input, in topological order."""
    paths = {module: name for name, module in model.named_modules()}
    parameters = {id(p): name for name, p in model.named_parameters()}
    every = list(graph.module2node.values())

    def source(node: object) -> bool:
        """Whether a node is a layer that no other module feeds (its weights may have operations of their own)."""
        if not isinstance(node.module, nn.modules.conv._ConvNd | nn.Linear):  # type: ignore[attr-defined]
            return False
        seen, todo = set(), list(node.inputs)  # type: ignore[attr-defined]
        while todo:
            item = todo.pop()
            if item.module in paths:
                return False
            if id(item) not in seen:
                seen.add(id(item))
                todo.extend(item.inputs)
        return True

    reached, stack = set(), [node for node in every if source(node)]
    while stack:
        node = stack.pop()
        if id(node) not in reached:
            reached.add(id(node))
            stack.extend(node.outputs)
    order: list = []
    pending = {id(n): len({id(i) for i in n.inputs if id(i) in reached}) for n in every if id(n) in reached}
    ready = [n for n in reversed(every) if id(n) in reached and pending[id(n)] == 0]
    while ready:
        node = ready.pop()
        order.append(node)
        for consumer in {id(o): o for o in node.outputs}.values():
            pending[id(consumer)] -= 1
            if pending[id(consumer)] == 0:
                ready.append(consumer)

    def bare(node: object) -> list[str]:
        """Paths of the bare parameters that reach `node` through views only."""
        found, todo = [], [i for i in node.inputs if id(i) not in reached]  # type: ignore[attr-defined]
        while todo:
            item = todo.pop()
            if isinstance(item.module, nn.Parameter) and id(item.module) in parameters:
                found.append(parameters[id(item.module)])
            todo.extend(item.inputs)
        return sorted(found)

    names: dict[int, str] = {}
    used: set[str] = set(paths.values())
    result = []
    for node in order:
        inputs = list({id(i): names[id(i)] for i in reversed(node.inputs) if id(i) in reached}.values())[::-1]
        module = node.module
        path = paths.get(module)
        # A normalisation's parameters also show up as bare where its class is unknown to the graph.
        owned = set() if path is None else {f"{path}.{name}" for name, _ in module.named_parameters()}
        scales = [name for name in bare(node) if name not in owned]
        kind = _kind(module, len(inputs), bool(scales))
        if path is None:
            owner = inputs[0].rsplit(".", 1)[0] if inputs and "." in inputs[0] else ""
            stem = f"{owner}.{kind}" if owner else kind
            name, count = stem, 1
            while name in used:
                count += 1
                name = f"{stem}_{count}"
        else:
            name = path
        used.add(name)
        names[id(node)] = name
        label = str(getattr(module, "_grad_fn", type(module).__name__)).removesuffix("0").removesuffix("Backward")
        size = _filter_size(node) if kind == "filter" else ()
        result.append(Node(name, kind, label, path, tuple(inputs), tuple(scales), *size))
    return result


def _filter_size(node: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the kernel and stride of a convolution without learned channels."""
    if isinstance(node.module, nn.Conv1d):
        return (1, node.module.kernel_size[0]), (1, 1)
    if not hasattr(node.grad_fn, "_saved_weight"):
        return (0, 0), (1, 1)
    (height, width), stride = node.grad_fn._saved_weight.shape[2:], node.grad_fn._saved_stride
    return (int(height), int(width)), (int(stride[0]), int(stride[-1]))


@contextlib.contextmanager
def _recorded(model: nn.Module) -> Iterator[dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Record (input shape, output shape) of every module that maps one tensor to one tensor."""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def hook(name: str):
        def record(_module: nn.Module, inputs: tuple, output: object) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                shapes[name] = (tuple(inputs[0].shape), tuple(output.shape))

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def module_shapes(
    ghost: nn.Module, in_chans: int, image_size: int
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return ``{module path: (input shape, output shape)}`` for one image, computed without arithmetic.

    Args:
        ghost: the backbone on the meta device, in evaluation mode.
        in_chans: channels of the input.
        image_size: side of the input in pixels.

    Raises:
        TipsError: the backbone does not accept images of this size.
    """
    try:
        with _recorded(ghost) as shapes, torch.no_grad(), QuickShapes():
            ghost(torch.empty(1, in_chans, image_size, image_size, device="meta"))
    except UNFIT as error:
        # timm's models that are made for one image size can be made for another.
        argument = (
            f"give the backbone the argument img_size: {image_size}, or " if hasattr(ghost, "set_input_size") else ""
        )
        raise TipsError(
            f"{type(ghost).__name__} does not accept images of {image_size}×{image_size} with {in_chans} channels "
            f"({first_line(error)}); {argument}choose another image size, most often a larger one"
        ) from error
    return shapes
