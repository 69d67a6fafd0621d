"""What Torch-Pruning's dependency graph and one shape-only forward say about a backbone."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from tips_nni.core import TipsError
from tips_nni.core._architecture import OpKind
from tips_nni.elastic.rules import projections

_POOLS = ("Pool", "Mean")
#: A linear layer on more than vectors is a view, a product and a view to autograd; its module is the last of them.
_VIEWS = (
    "View", "Reshape", "Permute", "Transpose", "Squeeze", "Unsqueeze", "Clone", "Slice", "Select", "Expand", "Alias",
    "Addmm", "Mm",
)  # fmt: skip

#: what a network raises when shapes, sizes or arguments do not fit it
UNFIT = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, ArithmeticError)


def first_line(error: BaseException) -> str:
    """Return the class and the first line of the message of an error."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


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
    """

    name: str
    kind: OpKind
    type: str
    module: str | None
    inputs: tuple[str, ...]
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Member:
    """A module's (or bare parameter's) channel axis that belongs to a coupled group.

    Attributes:
        name: path of the module or parameter.
        out: True for output channels (or a normalisation's, or a parameter's), False for input channels.
        size: the length of that axis.
        index: positions on that axis, shape (n,), int64.
        root: for each position the group's channel that it belongs to, shape (n,), int64.
    """

    name: str
    out: bool
    size: int
    index: NDArray[np.int64]
    root: NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Channels that must be cut together: `channels` of them, in all `members`.

    Attributes:
        channels: their number; that of the heads for an attention.
        members: all axes that have them.
        attention: the path of the attention module whose heads they are, or None.
    """

    channels: int
    members: tuple[Member, ...]
    attention: str | None = None


@dataclass(frozen=True)
class Trace:
    """A backbone's operations in topological order and its coupled channel groups."""

    nodes: tuple[Node, ...]
    groups: tuple[Group, ...]


def trace(model: nn.Module, example: Tensor) -> Trace:
    """Trace `model` (left unchanged) on `example`, shape (N, C, H, W).

    Raises:
        TipsError: the dependency graph cannot follow the model.
    """
    # On a copy: tracing needs gradients of every parameter and evaluation mode.
    model = copy.deepcopy(model).cpu().eval().requires_grad_(True)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            # Bare parameters (layer scale) are handled below; the library only informs about them.
            warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
            graph = tp.DependencyGraph().build_dependency(model, example)
        nodes = _nodes(graph, model)
        groups = _repeated(_groups(graph, model), nodes)
    except UNFIT as error:
        raise TipsError(
            f"{type(model).__name__} cannot be converted: its operations could not be traced "
            f"({first_line(error)}); choose another backbone"
        ) from error
    return Trace(tuple(nodes), tuple(groups))


def _kind(module: nn.Module, inputs: int, scaled: bool) -> OpKind:
    """Name the kind of a node from its module and the number of its (data) inputs."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm):
        return "norm"
    if isinstance(module, tp.ops._ConcatOp) and (inputs > 1 or not scaled):
        return "concat"
    function = str(getattr(module, "_grad_fn", type(module).__name__))
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
        return not node.inputs and isinstance(node.module, nn.modules.conv._ConvNd | nn.Linear)  # type: ignore[attr-defined]

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
        result.append(Node(name, kind, label, path, tuple(inputs), tuple(scales)))
    return result


def _groups(graph: tp.DependencyGraph, model: nn.Module) -> list[Group]:
    """Return the coupled channel groups, roots being convolutions and linear layers.

    Not those of an attention's queries, keys and values: the graph cannot follow them, and may take minutes to try.
    """
    paths = {module: name for name, module in model.named_modules()}
    parameters = {id(p): name for name, p in model.named_parameters()}
    result = []
    ignored = [module.get_submodule(name) for module in model.modules() for name in projections(module)]
    for group in graph.get_all_groups(ignored, root_module_types=[nn.modules.conv._ConvNd, nn.Linear]):
        members: dict[tuple[str, bool], Member] = {}
        for item in group:
            module = item.dep.target.module
            out = graph.is_out_channel_pruning_fn(item.dep.handler)
            index = np.array(item.idxs, dtype=np.int64)
            root = np.array(item.root_idxs, dtype=np.int64)
            if isinstance(module, nn.Parameter):
                name, size = parameters.get(id(module)), module.shape[item.dep.target.pruning_dim]
            else:
                name = paths.get(module)
                pruner = graph.get_pruner_of_module(module)
                size = (pruner.get_out_channels if out else pruner.get_in_channels)(module)
            if name is None:
                continue
            order = np.argsort(index, kind="stable")
            members.setdefault((name, out), Member(name, out, int(size), index[order], root[order]))
        result.append(Group(len(group[0].idxs), tuple(members.values())))
    return result


def _repeated(groups: list[Group], nodes: list[Node]) -> list[Group]:
    """Complete members that hold the channels of their group several times over, one copy after the other.

    That is what a layer sees behind a view that puts neighbouring positions on the channel axis (patch merging); the
    dependency graph knows the first copy only.
    """
    producers = {node.name: node for node in nodes}
    shared = Counter((member.name, member.out) for group in groups for member in group.members)

    def joined(name: str) -> bool:
        """Whether a concatenation leads to the layer `name`: then the other channels are of other groups."""
        waiting = list(producers[name].inputs) if name in producers else []
        while waiting:
            node = producers[waiting.pop()]
            if node.kind == "concat":
                return True
            if node.kind not in ("conv", "linear"):
                waiting.extend(node.inputs)
        return False

    def complete(member: Member, channels: int) -> Member:
        first = np.array_equal(member.index, np.arange(channels)) and np.array_equal(member.index, member.root)
        if member.size == channels or member.size % channels or not first:
            return member
        if shared[member.name, member.out] > 1 or joined(member.name):
            return member
        index = np.arange(member.size, dtype=np.int64)
        return replace(member, index=index, root=index % channels)

    return [replace(g, members=tuple(complete(member, g.channels) for member in g.members)) for g in groups]


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
        with _recorded(ghost) as shapes, torch.no_grad():
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
