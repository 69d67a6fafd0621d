"""Blocks and stages of a backbone, found from how tensors flow between modules, not from names."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tips_nni.elastic._meta import QuickNorms
from tips_nni.elastic._trace import Node, Trace

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


def find_stages(ghost: nn.Module, traced: Trace, image_size: int, in_chans: int) -> list[Stage]:
    """Return the deepest module lists whose children are blocks that feed each other in a chain.

    Args:
        ghost: the backbone on the meta device, in evaluation mode.
        traced: its operations.
        image_size: side of the input in pixels.
        in_chans: channels of the input.
    """
    flows = _flows(ghost, image_size, in_chans)
    chains: dict[str, tuple[str, ...]] = {}
    for name, module in ghost.named_modules():
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


def _flows(ghost: nn.Module, image_size: int, in_chans: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the input and output tensor objects of each module called once; identity tells who feeds whom."""
    flows: dict[str, tuple[Tensor, Tensor]] = {}
    calls: dict[str, int] = {}
    handles = []
    for name, module in ghost.named_modules():

        def record(_module: nn.Module, inputs: tuple, output: object, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                flows[name] = (inputs[0], output)

        handles.append(module.register_forward_hook(record))
    try:
        with torch.no_grad(), QuickNorms():
            ghost(torch.empty(1, in_chans, image_size, image_size, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return {name: flow for name, flow in flows.items() if calls[name] == 1}


def _residual_additions(traced: Trace, blocks: list[str]) -> dict[str, str]:
    """Return, for each block that is one branch added to the block's own input, the name of that addition."""
    found: dict[str, str] = {}
    for block in blocks:
        own = {node.name for node in traced.nodes if node.module is not None and within(node.module, block)}
        branch = set(own)
        for node in traced.nodes:
            if node.module is None and branch.intersection(node.inputs):
                if node.kind == "add" and len(node.inputs) == 2 and not branch.issuperset(node.inputs):
                    if _bypasses(traced, own, branch, node):
                        found[block] = node.name
                    break
                branch.add(node.name)
    return found


def _bypasses(traced: Trace, own: set[str], branch: set[str], addition: Node) -> bool:
    """Whether the addition's other input is all that enters a block, and the addition all that leaves it.

    Args:
        traced: all operations.
        own: nodes of the block's modules.
        branch: those and the nodes between them and the addition.
        addition: adds the branch to something else.
    """
    nodes = {node.name: node for node in traced.nodes}
    (source,) = (name for name in addition.inputs if name not in branch)
    after = {addition.name}
    for node in traced.nodes:
        if after.intersection(node.inputs):
            after.add(node.name)
        if node is not addition and node.name not in branch and branch.intersection(node.inputs):
            return False
    entries = {name for member in branch for name in nodes[member].inputs if name not in branch}
    return not after & own and all(_comes_from(nodes, entry, source) for entry in entries)


def _comes_from(nodes: Mapping[str, Node], name: str, source: str) -> bool:
    """Whether `name` is `source`, or made from it by operations without modules (an activation before the block)."""
    while name != source:
        node = nodes[name]
        if node.module is not None or len(node.inputs) != 1:
            return False
        (name,) = node.inputs
    return True
