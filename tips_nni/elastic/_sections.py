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
        skippable: for each block the name of its last residual addition, or None where it is not residual.
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
    """Return, for each residual block, the name of its last addition."""
    found = {block: _last_addition(traced, block) for block in blocks}
    return {block: addition for block, addition in found.items() if addition is not None}


def _last_addition(traced: Trace, block: str) -> str | None:
    """Return the addition with which a residual block ends, or None where the block is not residual.

    A block is residual if it is its own input plus one or more branches, one after the other: each of its additions
    takes what the one before it gave (the first: what enters the block) and a branch of the block's modules; nothing
    but that enters a branch, and nothing but the last addition's result leaves the block. Without its branches such a
    block is the identity, so that an identity can take its place.
    """
    nodes = {node.name: node for node in traced.nodes}
    own = {node.name for node in traced.nodes if node.module is not None and within(node.module, block)}
    branches, trunk, additions = set(own), set[str](), list[str]()
    source = ""
    for node in traced.nodes:
        if node.module is not None or not (branches | trunk).intersection(node.inputs):
            continue
        outside = [name for name in node.inputs if name not in branches]
        if len(outside) == len(node.inputs):
            # What the block has added up so far, on the way to a branch or to the next addition.
            if len(node.inputs) > 1:
                return None
            trunk.add(node.name)
        elif node.kind == "add" and len(node.inputs) == 2 and outside:
            if additions and not _comes_from(nodes, outside[0], additions[-1], viewed=True):
                return None
            source = source or outside[0]
            additions.append(node.name)
            trunk.add(node.name)
            if not _behind(traced, node.name) & own:
                break
        else:
            branches.add(node.name)
    if not additions or _behind(traced, additions[-1]) & own:
        return None
    inner = branches | trunk - {additions[-1]}
    for node in traced.nodes:
        if node.name not in branches | trunk and inner.intersection(node.inputs):
            return None
    entries = {name for member in branches for name in nodes[member].inputs if name not in branches | trunk}
    return additions[-1] if all(_comes_from(nodes, entry, source) for entry in entries) else None


def _behind(traced: Trace, name: str) -> set[str]:
    """Return the operations that depend on `name`."""
    behind = {name}
    for node in traced.nodes:
        if behind.intersection(node.inputs):
            behind.add(node.name)
    return behind - {name}


def _comes_from(nodes: Mapping[str, Node], name: str, source: str, viewed: bool = False) -> bool:
    """Whether `name` is `source`, or made from it by operations without modules (an activation before the block).

    With `viewed` only views of `source` count.
    """
    while name != source:
        node = nodes[name]
        if node.module is not None or len(node.inputs) != 1 or (viewed and node.kind != "view"):
            return False
        (name,) = node.inputs
    return True
