"""Elastic dimensions of a backbone: which coupled groups and stages get choices, and why the others do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from tips_nni.core import ElasticDim, TipsError
from tips_nni.core._space import DimKind
from tips_nni.elastic._coupling import Group, Member
from tips_nni.elastic._plan import AxisPlan, LayerPlan, Piece
from tips_nni.elastic._sections import Stage, within
from tips_nni.elastic._trace import Trace
from tips_nni.specs import RatioSpec, SpaceSpec


@dataclass
class Dimensions:
    """The result of `choose_dimensions`.

    Attributes:
        dims: the elastic dimensions in network order, depth after width, resolution last.
        layers: path of module or bare parameter -> its elastic axes.
        stages: depth dimension -> paths of the blocks.
        fixed: path -> reason.
        ordered: dimensions whose channels cannot be put in another order.
    """

    dims: list[ElasticDim] = field(default_factory=list)
    layers: dict[str, LayerPlan] = field(default_factory=dict)
    stages: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    ordered: set[str] = field(default_factory=set)


def choose_dimensions(
    model: nn.Module,
    traced: Trace,
    stages: Sequence[Stage],
    spec: SpaceSpec,
    vectors: frozenset[str],
    image_size: int,
    refused: Mapping[str, str],
) -> Dimensions:
    """Decide the elastic dimensions of `model` by a declared space.

    Args:
        model: the backbone.
        traced: its operations and coupled groups.
        stages: its stages.
        spec: the declared space.
        vectors: paths of the modules whose output is 1×1 while their block's is not (squeeze-excite).
        image_size: side of the input in pixels.
        refused: elastic dimension -> the reason why it is left out all the same.

    Raises:
        TipsError: nothing is elastic.
    """
    modules = dict(model.named_modules())
    result = Dimensions()
    position = {node.name: i for i, node in enumerate(traced.nodes)}
    groups = sorted(traced.groups, key=lambda g: min(position.get(m.name, len(position)) for m in g.members if m.out))
    taken: set[str] = set()
    pieces: dict[tuple[str, bool], list[Piece]] = {}
    for group in groups:
        producers = [m.name for m in group.members if m.out and isinstance(modules.get(m.name), nn.Conv2d | nn.Linear)]
        if not producers:
            continue
        dense = [name for name in producers if getattr(modules[name], "groups", 1) == 1] or producers
        kind, name = _name(dense, group, stages, taken)
        if kind != "heads":
            taken.add(name)
        reason = refused.get(f"{kind}.{name}") or _reason(group, modules, dense, vectors, spec, name)
        ratios = _ratios(spec, kind)
        if reason is None and ratios is None:
            reason = f"the space declares no {kind}"
        choices: tuple[int, ...] = ()
        if reason is None and ratios is not None:
            choices = _choices(group.channels, ratios, group.unit)
            if len(choices) < 2:
                reason = f"every ratio rounds to its {group.channels} " + (
                    "heads" if kind == "heads" else f"channels (divisor {ratios.divisor})"
                )
        if reason is not None:
            result.fixed[name] = reason
            continue
        dim = ElasticDim(f"{kind}.{name}", kind, choices)
        result.dims.append(dim)
        if group.ordered:
            result.ordered.add(dim.name)
        for member in group.members:
            pieces.setdefault((member.name, member.out), []).append(Piece(dim.name, member.index, member.root))
    _depths(stages, spec, refused, result)
    sizes = {(member.name, member.out): member.size for group in groups for member in group.members}
    shared: dict[object, AxisPlan] = {}

    def axis(key: tuple[str, bool]) -> AxisPlan | None:
        if key not in pieces:
            return None
        plan = AxisPlan(sizes[key], tuple(pieces[key]))
        same = (plan.size, tuple((p.dim, p.index.tobytes(), p.root.tobytes()) for p in plan.pieces))
        return shared.setdefault(same, plan)

    for path in dict.fromkeys(name for name, _ in pieces):
        result.layers[path] = LayerPlan(axis((path, False)), axis((path, True)))
    if spec.resolution is not None:
        sides = _sides(spec, image_size)
        if "resolution" in refused:
            result.fixed["resolution"] = refused["resolution"]
        elif len(sides) > 1:
            result.dims.append(ElasticDim("resolution", "resolution", sides))
        else:
            result.fixed["resolution"] = f"every choice rounds to {image_size} pixels"
    if not result.dims:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(result.fixed.items())[:3])
        raise TipsError(
            f"nothing in {type(model).__name__} is elastic under this search space ({reasons}); declare more "
            "ratios or a smaller divisor"
        )
    return result


def _name(dense: Sequence[str], group: Group, stages: Sequence[Stage], taken: set[str]) -> tuple[DimKind, str]:
    """Return (kind, name): ``hidden`` where all members lie in one block, named by the block or by the producer.

    The heads of an attention have its name.
    """
    if group.attention is not None:
        return "heads", group.attention
    for stage in stages:
        for block in stage.blocks:
            if all(within(member.name, block) for member in group.members):
                several = sum(1 for name in taken if within(name, block))
                return "hidden", block if not several and block not in taken else _free(dense[0], taken)
    for stage in stages:
        if any(within(name, stage.name) for name in dense) and stage.name not in taken:
            return "width", stage.name
    name = dense[0]
    for leaf in (".conv", ".0"):
        if name.endswith(leaf) and name.removesuffix(leaf) not in taken and "." not in name.removesuffix(leaf):
            name = name.removesuffix(leaf)
    return "width", _free(name, taken)


def _free(name: str, taken: set[str]) -> str:
    """Return a name that is not taken: a layer whose channels are of several groups names them one after the other."""
    count, free = 1, name
    while free in taken:
        count += 1
        free = f"{name}.{count}"
    return free


def _reason(
    group: Group,
    modules: Mapping[str, nn.Module],
    dense: Sequence[str],
    vectors: frozenset[str],
    spec: SpaceSpec,
    name: str,
) -> str | None:
    """Return why a group cannot be elastic, or None."""
    if group.reason is not None:
        return group.reason
    for pattern in spec.fixed:
        if fnmatchcase(name, pattern) or any(fnmatchcase(path, pattern) for path in dense):
            return f"the space fixes {pattern!r}"
    if dense and all(path in vectors for path in dense):
        return "a squeeze-excite reduction, too narrow to be worth a choice"
    if not all(_even(member, group.channels) for member in group.members):
        return "its channels are coupled in a way that cannot be cut (split among layers)"
    return None


def _even(member: Member, channels: int) -> bool:
    """Whether every channel of the group has equally many positions on the member's axis, and none is shared."""
    if len(np.unique(member.index)) != len(member.index) or member.root.max(initial=-1) >= channels:
        return False
    return len(np.unique(np.bincount(member.root, minlength=channels))) == 1


def _ratios(spec: SpaceSpec, kind: DimKind) -> RatioSpec | None:
    """Return the shares that a space declares for a kind of channels; those of heads are the hidden ones by default."""
    if kind == "heads":
        declared = spec.heads or spec.hidden
        return None if declared is None else RatioSpec(ratios=declared.ratios, divisor=1)
    return spec.hidden if kind == "hidden" else spec.width


def _choices(channels: int, ratios: RatioSpec, unit: int) -> tuple[int, ...]:
    """Return distinct ascending channel counts, multiples of the divisor and of `unit`, ending with `channels`."""
    step = math.lcm(ratios.divisor, unit)
    counts = {max(step, round(channels * ratio / step) * step) for ratio in ratios.ratios if ratio < 1.0}
    return (*sorted(count for count in counts if count < channels), channels)


def _sides(spec: SpaceSpec, image_size: int) -> tuple[int, ...]:
    """Return the input resolutions in pixels, ending with `image_size`."""
    declared = spec.resolution
    if declared is None:
        return (image_size,)
    if declared.choices:
        larger = [side for side in declared.choices if side > image_size]
        if larger:
            raise TipsError(
                f"resolution {larger[0]} is larger than the backbone's input of {image_size} pixels; "
                "choose at most that, or train with larger images"
            )
        sides = set(declared.choices)
    else:
        step = declared.divisor
        sides = {max(step, round(image_size * ratio / step) * step) for ratio in declared.ratios or ()}
    return (*sorted(side for side in sides if side < image_size), image_size)


def _depths(stages: Sequence[Stage], spec: SpaceSpec, refused: Mapping[str, str], result: Dimensions) -> None:
    """Add a depth dimension for every stage whose last blocks are residual."""
    for stage in stages:
        name = f"depth.{stage.name}"
        needed = max((i + 1 for i, addition in enumerate(stage.skippable) if addition is None), default=1)
        first = max(needed, spec.depth.min if spec.depth else 1)
        if spec.depth is None:
            reason = "the space declares no depth"
        elif any(fnmatchcase(stage.name, pattern) for pattern in spec.fixed):
            reason = "the space fixes it"
        elif len(stage.blocks) == 1:
            reason = "it has one block"
        elif needed >= len(stage.blocks):
            reason = f"{stage.blocks[-1]} is not its own input plus branches"
        elif first >= len(stage.blocks):
            reason = "the space keeps all its blocks"
        elif name in refused:
            reason = refused[name]
        else:
            result.dims.append(ElasticDim(name, "depth", tuple(range(first, len(stage.blocks) + 1))))
            result.stages[name] = stage.blocks
            continue
        result.fixed[f"depth of {stage.name}"] = reason
