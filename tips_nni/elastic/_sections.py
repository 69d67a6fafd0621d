"""Blocks and stages of a backbone, found from how tensors flow between modules, not from names."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tips_nni.elastic._trace import Trace

_OPERATIONS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Stage:
    """A chain of blocks.

    Attributes:
        name: path of the module that holds them.
        blocks: their paths, in order.
        skippable: for each block the name of its residual addition, or None where it has none.
    """

    name: str
    blocks: tuple[str, ...]
    skippable: tuple[str | None, ...]


def within(path: str, block: str) -> bool:
    """Whether the module at `path` is `block` or inside it."""
    return path == block or path.startswith(f"{block}.")


def find_stages(model: nn.Module, traced: Trace, image_size: int, in_chans: int) -> list[Stage]:
    """Return the deepest module lists whose children are blocks that feed each other in a chain."""
    flows = _flows(model, image_size, in_chans)
    chains: dict[str, tuple[str, ...]] = {}
    for name, module in model.named_modules():
        children = [(f"{name}.{key}" if name else key, child) for key, child in module.named_children()]
        children = [(path, child) for path, child in children if any(True for _ in child.parameters())]
        if not name or not children or not all(_is_block(child) for _, child in children):
            continue
        paths = [path for path, _ in children]
        if all(path in flows for path in paths) and all(
            flows[a][1] is flows[b][0] for a, b in itertools.pairwise(paths)
        ):
            chains[name] = tuple(paths)
    deepest = [name for name in chains if not any(other != name and within(other, name) for other in chains)]
    additions = _residual_additions(traced, [block for name in deepest for block in chains[name]])
    return [Stage(name, chains[name], tuple(additions.get(block) for block in chains[name])) for name in deepest]


def _is_block(module: nn.Module) -> bool:
    """Whether a module is a block: composite, not a mere list, with at least two convolutions or linear layers."""
    if isinstance(module, nn.Sequential | nn.ModuleList) or not list(module.children()):
        return False
    return sum(isinstance(m, _OPERATIONS) for m in module.modules()) >= 2


def _flows(model: nn.Module, image_size: int, in_chans: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the input and output tensor objects of each module called once; identity tells who feeds whom."""
    flows: dict[str, tuple[Tensor, Tensor]] = {}
    calls: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():

        def record(_module: nn.Module, inputs: tuple, output: object, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                flows[name] = (inputs[0], output)

        handles.append(module.register_forward_hook(record))
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, in_chans, image_size, image_size))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return {name: flow for name, flow in flows.items() if calls[name] == 1}


def _residual_additions(traced: Trace, blocks: list[str]) -> dict[str, str]:
    """Return, for each block that adds its own input to its output, the name of that addition."""
    nodes = {node.name: node for node in traced.nodes}
    owners: dict[str, frozenset[str]] = {}
    for node in traced.nodes:
        if node.module is not None:
            owners[node.name] = frozenset(b for b in blocks if within(node.module, b))
        else:
            owners[node.name] = frozenset().union(*(owners[i] for i in node.inputs)) if node.inputs else frozenset()
    found: dict[str, str] = {}
    order = {block: i for i, block in enumerate(blocks)}
    for node in traced.nodes:
        if node.kind != "add" or len(node.inputs) != 2:
            continue
        latest = [max(owners[i], key=lambda b: order[b], default=None) for i in node.inputs]
        inside = [b for b in latest if b is not None]
        if len(set(latest)) == 2 and inside:
            block = max(inside, key=lambda b: order[b])
            branch = node.inputs[latest.index(block)]
            # The other input must come from before the block, and the branch must pass through it.
            if _reaches_module(nodes, branch, block):
                found[block] = node.name
    return found


def _reaches_module(nodes: dict, name: str, block: str) -> bool:
    """Whether the nearest modules before `name` lie in `block`."""
    node = nodes[name]
    if node.module is not None:
        return within(node.module, block)
    return any(_reaches_module(nodes, i, block) for i in node.inputs)
