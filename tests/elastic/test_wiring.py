"""Which channels an operation ties together, one small module for each kind of operation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tips_nni.elastic._coupling import Group, cut_alike, find_groups, unit_of
from tips_nni.elastic._meta import ghost_of


class Between(nn.Module):
    """A convolution to eight channels, something, and a convolution."""

    def __init__(self, something: Callable[[Tensor], Tensor], channels: int = 8, **other: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(channels, 5, 1)
        self.something = something
        for name, module in other.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.something(self.a(x)))


def groups_of(module: nn.Module) -> dict[str, Group]:
    """The groups by the first layer that makes their channels."""
    found, _ = find_groups(ghost_of(module), torch.empty(1, 3, 4, 4, device="meta"))
    return {f"{group.members[0].name}{group.channels}": group for group in found}


def read(group: Group, name: str = "b") -> list[tuple[int, int]]:
    """The channels of a group that a layer reads: (position, channel)."""
    (member,) = [m for m in group.members if m.name == name and not m.out]
    return list(zip(member.index.tolist(), member.root.tolist(), strict=True))


PLAIN = [(i, i) for i in range(8)]


@pytest.mark.parametrize(
    "something",
    [
        lambda x: x.relu() + 1,
        lambda x: nn.functional.pad(x, (1, 1, 0, 2)),
        lambda x: nn.functional.max_pool2d(x, 2),
        lambda x: nn.functional.interpolate(x, scale_factor=2),
        lambda x: x.permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2),
        lambda x: x.flatten(2).reshape(1, 8, 2, 8),
        lambda x: x * x.mean((2, 3), keepdim=True),
        lambda x: torch.cat([x, x * 2], 3),
        lambda x: (x.flatten(2) @ torch.ones(16, 4, device="meta")).view(1, 8, 2, 2),
    ],
)
def test_channels_that_stay_where_they_are(something):
    assert read(groups_of(Between(something))["a8"]) == PLAIN


def test_a_concatenation_and_a_slice_move_positions():
    module = Between(lambda x: torch.cat([x[:, 4:], x], 1), 12)
    found, _ = find_groups(ghost_of(module), torch.empty(1, 3, 4, 4, device="meta"))
    once, twice = sorted((read(g) for g in found if g.members[0].name == "a"), key=len)
    assert once == [(4, 0), (5, 1), (6, 2), (7, 3)]
    assert twice == [(0, 0), (1, 1), (2, 2), (3, 3), (8, 0), (9, 1), (10, 2), (11, 3)]


def test_tokens_beside_tokens_share_their_channels():
    module = Between(lambda x: x, other=nn.Conv2d(3, 8, 1))
    ghost = ghost_of(module)
    ghost.forward = lambda x: ghost.b(torch.cat([ghost.a(x), ghost.other(x)], 2))
    found, _ = find_groups(ghost, torch.empty(1, 3, 4, 4, device="meta"))
    (group,) = [g for g in found if g.members[0].name == "a"]
    assert {member.name for member in group.members} == {"a", "other", "b"}
    assert read(group) == PLAIN


def test_equal_parts_are_cut_alike_and_unequal_ones_apart():
    group = groups_of(Between(lambda x: torch.cat(x.chunk(2, 1), 1)))["a4"]
    assert read(group) == [(i, i % 4) for i in range(8)]
    apart = find_groups(
        ghost_of(Between(lambda x: torch.cat(x.split([6, 2], 1)[::-1], 1))), torch.empty(1, 3, 4, 4, device="meta")
    )[0]
    # Both parts go to the same layer: one group, its positions turned round.
    (group,) = [g for g in apart if g.members[0].name == "a"]
    assert read(group) == [(0, 6), (1, 7), *((i, i - 2) for i in range(2, 8))]


def test_heads_of_channels_are_cut_alike():
    group = groups_of(Between(lambda x: x.reshape(1, 2, 4, 4, 4).sum(1), 4))["a4"]
    assert read(group) == [(i, i) for i in range(4)]
    assert sorted(group.members[0].root.tolist()) == sorted([*range(4)] * 2)


def test_what_cannot_be_followed_is_fixed_with_a_reason():
    found, _ = find_groups(
        ghost_of(Between(lambda x: torch.linalg.qr(x.squeeze(0).permute(1, 2, 0))[0].permute(2, 0, 1)[None], 4)),
        torch.empty(1, 3, 4, 4, device="meta"),
    )
    (group,) = [g for g in found if g.members[0].name == "a"]
    assert group.reason is not None
    assert "linalg_qr" in group.reason


def test_one_gate_for_all_channels_is_fixed_and_they_are_not():
    module = Between(lambda x: x, gate=nn.Conv2d(8, 1, 1))
    module.something = lambda x: x * module_gate(x)
    ghost = ghost_of(module)
    module_gate = ghost.gate
    found, _ = find_groups(ghost, torch.empty(1, 3, 4, 4, device="meta"))
    by_name = {group.members[0].name: group for group in found}
    assert by_name["a"].reason is None
    assert by_name["gate"].reason == "it acts on all channels of another layer at once"


def test_a_convolution_along_the_channels_orders_them():
    along = nn.Conv1d(1, 1, 3, padding=1)
    module = Between(lambda x: x)
    module.along = along
    ghost = ghost_of(module)
    ghost.something = lambda x: x * ghost.along(x.mean((2, 3))[:, None])[:, 0, :, None, None]
    found, _ = find_groups(ghost, torch.empty(1, 3, 4, 4, device="meta"))
    (group,) = [g for g in found if g.members[0].name == "a"]
    assert group.ordered
    assert read(group) == PLAIN


def test_blocks_of_channels():
    positions = np.arange(8)
    assert unit_of(positions, positions, 4) == 4
    assert unit_of(positions, positions // 2, 4) == 2
    assert unit_of(positions, positions % 4, 4) == 1
    assert unit_of(positions[1:5], positions[:4], 4) is None
    assert unit_of(positions, positions[::-1] // 3, 4) is None
    assert cut_alike(positions % 4, 4)
    assert not cut_alike(positions // 2, 2)
