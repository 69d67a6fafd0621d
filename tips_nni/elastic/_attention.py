"""Attention in a traced backbone: one operation between its linear layers, and heads as coupled groups."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from tips_nni.elastic._coupling import Group, Member
from tips_nni.elastic._trace import Node, Trace
from tips_nni.elastic.rules import AttentionRule, find_rule, head_axes, projections

_PRODUCTS = ("Bmm", "Baddbmm", "ScaledDotProduct")


def fold_attention(model: nn.Module, traced: Trace, called: Collection[str]) -> Trace:
    """Describe every attention module of `model` as one operation and its heads as one group.

    The dependency graph sees dozens of operations on tensors of four or five axes there, on which it cannot follow
    heads; queries, keys, values and heads are known from the module instead.

    Args:
        model: the backbone.
        traced: its operations and coupled groups.
        called: paths of the modules that map one tensor to one tensor.

    Returns:
        The same with an ``attention`` operation, called like the module, in the place of all that happens between
        its linear layers; and with a group of as many channels as there are heads.
    """
    nodes, groups = traced.nodes, traced.groups
    for path, module in model.named_modules():
        if path not in called or not isinstance(find_rule(module), AttentionRule):
            continue
        folded = _fold(nodes, path, module)
        if folded is not None:
            nodes, groups = folded, _regroup(groups, path, module)
    return replace(traced, nodes=nodes, groups=groups)


def _fold(nodes: tuple[Node, ...], path: str, module: Any) -> tuple[Node, ...] | None:
    """Return the nodes with those of one attention replaced, or None where it is not of the known form."""
    sources = tuple(f"{path}.{name}" for name in projections(module))
    last = f"{path}.proj"
    if not {*sources, last} <= {node.name for node in nodes} or module.proj.in_features % module.num_heads:
        return None
    #: for each operation between the projections and `last` the projection that it comes from
    origin = {name: name for name in sources}
    inside: list[Node] = []
    for node in nodes:
        before = [name for name in node.inputs if name in origin]
        if before and node.name != last and node.name not in origin:
            origin[node.name] = origin[before[0]]
            inside.append(node)
    products = [node for node in inside if node.module is None and node.type.startswith(_PRODUCTS)]
    if not products:
        return None
    result = products[-1].name
    needed = {result}
    for node in reversed(inside):
        if node.name in needed:
            needed.update(node.inputs)
    core = {node.name for node in inside if node.name in needed and node.module is None}
    # Layers inside (normalised queries and keys) stay, as if they read a projection.
    kept = [node.name for node in inside if node.name in needed and node.module is not None]
    attention = Node(
        path,
        "attention",
        type(module).__name__,
        path,
        (*sources, *kept),
        tuple(name for node in inside if node.name in core for name in node.parameters),
    )
    folded = []
    for node in nodes:
        if node.name == result:
            folded.append(attention)
        elif node.name not in core:
            inputs = dict.fromkeys(
                path if name == result else origin[name] if name in core else name for name in node.inputs
            )
            folded.append(replace(node, inputs=tuple(inputs)))
    return tuple(folded)


def _regroup(groups: tuple[Group, ...], path: str, module: nn.Module) -> tuple[Group, ...]:
    """Return the groups with one of the heads of an attention in the place of what the graph made of it."""
    axes = {(f"{path}.{axis.name}" if axis.name else path, axis.out): axis.head for axis in head_axes(module)}
    rest = []
    for group in groups:
        keys = {(member.name, member.out) for member in group.members}
        if any(key in axes and key[1] for key in keys):
            continue
        members = tuple(member for member in group.members if (member.name, member.out) not in axes)
        rest.append(replace(group, members=members))
    members = tuple(
        Member(name, out, len(head), np.arange(len(head), dtype=np.int64), head) for (name, out), head in axes.items()
    )
    return (*rest, Group(int(members[0].size), members, attention=path))
