"""Which channels of a network must be cut together.

Torch-Pruning's graph says which operation feeds which; how channels move through splits, views and grouped layers is
followed for every tensor with its real shape (`_wiring`, `_labels`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tips_nni.elastic._wiring import Components, Wiring


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
    """Channels that must be cut together.

    Attributes:
        channels: how many can be cut one by one.
        members: all axes that have them.
        unit: how many, one after the other, must be kept or cut together.
        reason: why they cannot be cut at all, or None.
        ordered: whether they cannot be put in another order.
        attention: the path of the attention module whose heads they are, or None.
    """

    channels: int
    members: tuple[Member, ...]
    unit: int = 1
    reason: str | None = None
    ordered: bool = False
    attention: str | None = None


def find_groups(model: nn.Module, images: Tensor) -> tuple[tuple[Group, ...], Components]:
    """Return the coupled channel groups of a network, and the components that they were found from.

    Args:
        model: the network on the meta device, in evaluation mode; it stays as it is.
        images: example input (N, C, H, W) on the meta device.
    """
    wiring = Wiring(model)
    wiring.run(model, images)
    wired = wiring.components()
    pinned = wiring.pinned()
    ordered = wiring.labels.ordered(wiring.labels.components())
    rank = np.full(max((int(components.max(initial=-1)) for components in wired.values()), default=-1) + 2, -1)
    groups = [_group(wired, keys, members, pinned, ordered, rank) for keys, members in _alike(wired, pinned)]
    return tuple(_with_units(group, wiring.blocks) for group in groups), wired


def _alike(axes: Components, pinned: dict[int, str]) -> list[tuple[list[tuple[str, bool]], NDArray[np.int64]]]:
    """Sort components into those that occur on the same axes equally often: [(axes, components in order)]."""
    if not axes:
        return []
    keys = list(axes)
    places = np.concatenate([np.full(len(vector), i, dtype=np.int64) for i, vector in enumerate(axes.values())])
    found = np.concatenate(list(axes.values()))
    places, found = places[found >= 0], found[found >= 0]
    order = np.argsort(found, kind="stable")
    components, first, counts = np.unique(found, return_index=True, return_counts=True)
    ends = np.cumsum(counts) * places.itemsize
    signatures = places[order].tobytes()
    alike: dict[tuple[bytes, str | None], list[int]] = {}
    start = 0
    for i, (component, end) in enumerate(zip(components.tolist(), ends.tolist(), strict=True)):
        alike.setdefault((signatures[start:end], pinned.get(component)), []).append(i)
        start = end
    result = []
    for (signature, _), members in alike.items():
        own = [keys[i] for i in np.unique(np.frombuffer(signature, dtype=places.dtype)).tolist()]
        rows = np.array(members)
        result.append((own, components[rows[np.argsort(first[rows])]]))
    return result


def _group(
    axes: Components,
    keys: list[tuple[str, bool]],
    components: NDArray[np.int64],
    pinned: dict[int, str],
    ordered: set[int],
    rank: NDArray[np.int64],
) -> Group:
    """Make a group of components in order; `rank` is room for all components and -1, and -1 everywhere."""
    rank[components] = np.arange(len(components))
    members = []
    for key in keys:
        own = rank[axes[key]]
        index = np.flatnonzero(own >= 0)
        members.append(Member(*key, len(own), index, own[index]))
    rank[components] = -1
    neighbours = not ordered.isdisjoint(components.tolist())
    return Group(len(components), tuple(members), reason=pinned.get(int(components[0])), ordered=neighbours)


def _with_units(group: Group, blocks: dict[tuple[str, bool], int]) -> Group:
    """Return a group with the number of channels that its grouped layers keep or cut together."""
    unit, reason = 1, group.reason
    for member in group.members:
        block = blocks.get((member.name, member.out), 1)
        if block == 1:
            continue
        own = unit_of(member.index, member.root, block)
        if own is None or group.channels % own:
            reason = reason or f"its channels lie across the groups of {member.name}"
        else:
            unit = math.lcm(unit, own)
    return replace(group, unit=unit, reason=reason)


def cut_alike(root: NDArray[np.int64], block: int) -> bool:
    """Whether all blocks of an axis have the same channels of a group, `root`, and so lose the same ones."""
    rows = root.reshape(-1, block) if len(root) % block == 0 else root[:0].reshape(0, 1)
    return len(rows) > 1 and bool((rows == rows[0]).all())


def unit_of(index: NDArray[np.int64], root: NDArray[np.int64], block: int) -> int | None:
    """Return how many channels of a group must be kept or cut together, where an axis is by whole blocks.

    Args:
        index: the positions of the group's channels on the axis, ascending.
        root: for each position its channel.
        block: positions of one block of the axis.

    Returns:
        Channels of a unit; 1 where all blocks have the same channels and so are cut alike; None where channels of a
        block belong to several units, or to none.
    """
    if len(index) % block or (index.reshape(-1, block)[:, 0] % block).any():
        return None
    if (np.diff(index.reshape(-1, block), axis=1) != 1).any():
        return None
    rows = root.reshape(-1, block)
    if cut_alike(root, block):
        return 1
    own = len(np.unique(rows[0]))
    return own if (rows // own == rows[:, :1] // own).all() else None
