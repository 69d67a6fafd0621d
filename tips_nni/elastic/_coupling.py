"""Which channels of a network must be cut together.

Torch-Pruning's graph says which operation feeds which; how channels move through splits, views and grouped layers is
followed for every tensor with its real shape (`_wiring`, `_labels`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

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
    """

    channels: int
    members: tuple[Member, ...]
    unit: int = 1
    reason: str | None = None
    ordered: bool = False


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
    groups = [_group(wired, keys, members, pinned, ordered) for keys, members in _alike(wired, pinned)]
    return tuple(_with_units(group, wiring.blocks) for group in groups), wired


def _alike(axes: Components, pinned: dict[int, str]) -> list[Any]:
    """Sort components into those that occur on the same axes equally often: [(axes, components in order)]."""
    keys = list(axes)
    places = np.concatenate([np.full(len(vector), i) for i, vector in enumerate(axes.values())] or [np.empty(0, int)])
    found = np.concatenate(list(axes.values()) or [np.empty(0, int)])
    places, found = places[found >= 0], found[found >= 0]
    order = np.argsort(found, kind="stable")
    cuts = np.flatnonzero(np.diff(found[order])) + 1
    first = dict(zip(*(part.tolist() for part in np.unique(found, return_index=True)), strict=True))
    alike: dict[Any, list[int]] = {}
    for run in np.split(order, cuts) if len(order) else []:
        component = int(found[run[0]])
        alike.setdefault((places[run].tobytes(), pinned.get(component)), []).append(component)
    result = []
    for (signature, _), components in alike.items():
        own = [keys[i] for i in np.unique(np.frombuffer(signature, dtype=places.dtype)).tolist()]
        result.append((own, sorted(components, key=first.__getitem__)))
    return result


def _group(
    axes: Components,
    keys: list[tuple[str, bool]],
    components: list[int],
    pinned: dict[int, str],
    ordered: set[int],
) -> Group:
    rank = {component: i for i, component in enumerate(components)}
    wanted = np.array(components, dtype=np.int64)
    members = []
    for key in keys:
        index = np.flatnonzero(np.isin(axes[key], wanted))
        root = np.array([rank[c] for c in axes[key][index].tolist()], dtype=np.int64)
        members.append(Member(*key, len(axes[key]), index, root))
    neighbours = not ordered.isdisjoint(components)
    return Group(len(components), tuple(members), reason=pinned.get(components[0]), ordered=neighbours)


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
