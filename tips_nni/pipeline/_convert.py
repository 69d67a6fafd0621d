"""`tips-nni convert`: what of a backbone is elastic, what is not and why, and a search space to edit."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tips_nni.core import CostTable, TipsError, write_text
from tips_nni.elastic import Supernet, convert, create_backbone
from tips_nni.specs import DepthSpec, HeadsSpec, RatioSpec, SpaceSpec, load_space, matching_space, space_yaml

#: For backbones without a space of their own.
GENERAL = SpaceSpec(
    family="general",
    width=RatioSpec(ratios=(0.5, 0.75, 1.0)),
    hidden=RatioSpec(ratios=(0.25, 0.5, 0.75, 1.0)),
    depth=DepthSpec(min=1),
)
#: What to write to make the resolution elastic.
_RESOLUTION = (
    "Remove the # of the three lines to use it; worth it for images of about 128 pixels and more.",
    "resolution:",
    "  ratios: [0.57, 0.72, 0.86, 1.0]",
    "  divisor: 32",
)
_KINDS = ("width", "hidden", "heads", "depth", "resolution")


def convert_backbone(
    backbone: str,
    output: Path,
    *,
    space: str | None = None,
    image_size: int = 224,
    pretrained: bool = False,
    checkpoint_path: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    detail: bool = False,
) -> SpaceSpec:
    """Convert a backbone, print what became of it, write its search space, and return that.

    Args:
        backbone: timm's name.
        output: YAML file to write.
        space: name or path of the search space to start from; by default the one that ships for the backbone's
            family, else a general one.
        image_size: side of the square input in pixels.
        pretrained: see `tips_nni.elastic.convert`.
        checkpoint_path: see `tips_nni.elastic.convert`.
        arguments: further arguments of timm's `create_model`.
        overwrite: replace `output` where it exists.
        detail: print every layer of every coupled group.

    Raises:
        TipsError: the backbone cannot be converted, or `output` exists.
    """
    if output.exists() and not overwrite:
        raise TipsError(f"{output} exists; add --overwrite to replace it, or choose another --output")
    for key in ("pretrained", "checkpoint_path"):
        if key in (arguments or {}):
            raise TipsError(f"{key} is no argument here; use --{key.replace('_', '-')}")
    name = space or matching_space(backbone)
    declared = load_space(name) if name else GENERAL
    options: dict[str, Any] = {"pretrained": pretrained, "checkpoint_path": checkpoint_path}
    # The same weights twice: timm's own and the supernet's.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = create_backbone(backbone, **options, **(arguments or {})).eval()
        torch.manual_seed(0)
        start = time.perf_counter()
        supernet = convert(
            backbone,
            declared,
            image_size=image_size,
            in_chans=_in_chans(plain),
            num_classes=int(getattr(plain, "num_classes", 1000)),
            arguments=arguments,
            **options,
        ).eval()
        seconds = time.perf_counter() - start
    console = Console(highlight=False)
    groups = coupled_groups(supernet)
    console.print(_dimensions(supernet, groups, detail))
    if supernet.fixed:
        console.print(_fixed(supernet))
    facts = _facts(supernet, plain, image_size)
    console.print(f"[bold]{backbone}[/] at {image_size}×{image_size}, space {name or 'general'}, {seconds:.1f} s")
    for line in facts:
        console.print(f"  {line}")
    written = _written(backbone, declared, supernet)
    header = [f"{backbone}, as `tips-nni convert` found it at {image_size}×{image_size} pixels:", *facts, ""]
    header.append(
        f"Edit it, look again with `tips-nni convert {backbone} --space {output}`, and name it in a run spec:"
    )
    header.append(f"space: {output}")
    write_text(output, space_yaml(written, header, _notes(supernet, groups)))
    console.print(f"search space   {output}")
    return written


def coupled_groups(supernet: Supernet) -> dict[str, tuple[list[str], list[str]]]:
    """Return for each elastic width the layers that make its channels and those that only take them."""
    groups: dict[str, tuple[list[str], list[str]]] = {}
    weighted = {op.name for op in supernet.architecture.operations if op.kind in ("conv", "linear")}
    for path, layer in supernet.plan.layers.items():
        for side, axis in ((0, layer.outputs), (1, layer.inputs)):
            for dim in {piece.dim for piece in axis.pieces} if axis is not None and path in weighted else ():
                groups.setdefault(dim, ([], []))[side].append(path)
    return groups


def _in_chans(model: torch.nn.Module) -> int:
    """Return the input channels that timm built the model for."""
    return int(getattr(model, "pretrained_cfg", {}).get("input_size", (3,))[0])


def _written(backbone: str, declared: SpaceSpec, supernet: Supernet) -> SpaceSpec:
    """Return the space to write: the declared one, for this backbone, without what cannot be elastic in it."""
    kinds = [kind for kind in _KINDS if any(dim.kind == kind for dim in supernet.space.dims)]
    words = {
        "width": "width per coupled group",
        "hidden": "hidden width per block",
        "heads": "heads per attention",
        "depth": "depth per stage",
    }
    changes: dict[str, Any] = {kind: None for kind in _KINDS if kind not in kinds}
    if "heads" in kinds and declared.heads is None and declared.hidden is not None:
        changes["heads"] = HeadsSpec(ratios=declared.hidden.ratios)
    description = ", ".join(words.get(kind, kind) for kind in kinds)
    return declared.model_copy(
        update={**changes, "family": backbone, "description": description, "matches": (backbone,)}
    )


def _facts(supernet: Supernet, plain: torch.nn.Module, image_size: int) -> list[str]:
    """Return what a user wants to know first, a line each."""
    space = supernet.space
    table = CostTable(supernet.architecture)
    ends = np.stack([space.encode(space.smallest), space.encode(space.largest)])
    flops, params = table.flops(ends) / 1e6, table.params(ends) / 1e6
    channels = supernet.plan.in_chans
    images = torch.randn(2, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = float((supernet(images) - plain(images)).abs().max())
    count = sum(math.log10(len(dim.choices)) for dim in space.dims)
    return [
        f"{len(space.dims)} elastic dimensions, 10^{count:.1f} subnets",
        f"{flops[0]:.4g} to {flops[1]:.4g} million multiply-adds",
        f"{params[0]:.3g} to {params[1]:.3g} million parameters",
        f"the largest subnet is the backbone: outputs differ by at most {difference:.1e}",
    ]


def _dimensions(supernet: Supernet, groups: Mapping[str, tuple[list[str], list[str]]], detail: bool) -> Table:
    table = Table(title="elastic dimensions", caption="layers of one line are coupled: they are cut together")
    for column in ("dimension", "choices", "layers that make the channels", "others"):
        table.add_column(column, overflow="fold")
    for dim in supernet.space.dims:
        made, taken = groups.get(dim.name, ([], []))
        if dim.kind == "depth":
            layers = _some(supernet.plan.stages[dim.name], 99 if detail else 3)
        else:
            layers = _some(made, 99 if detail else 3)
        others = _some(taken, 99) if detail else (str(len(taken)) if taken else "")
        table.add_row(dim.name, " ".join(map(str, dim.choices)), layers, others)
    return table


def _fixed(supernet: Supernet) -> Table:
    table = Table(title="what stays fixed")
    table.add_column("why", overflow="fold")
    table.add_column("what", overflow="fold")
    for reason, names in _by_reason(supernet.fixed).items():
        table.add_row(reason, _some(names, 4))
    return table


def _by_reason(fixed: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the fixed names by their reason."""
    result: dict[str, list[str]] = {}
    for name, reason in fixed.items():
        result.setdefault(reason, []).append(name)
    return result


def _some(names: Sequence[str], limit: int) -> str:
    """Return some names and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def _notes(supernet: Supernet, groups: Mapping[str, tuple[list[str], list[str]]]) -> dict[str, list[str]]:
    """Return the comments of the file's sections: what each dimension is, and what has none."""
    notes: dict[str, list[str]] = {kind: [] for kind in _KINDS if any(d.kind == kind for d in supernet.space.dims)}
    for dim in supernet.space.dims:
        choices = " ".join(map(str, dim.choices))
        name = dim.name.partition(".")[2]
        made = groups.get(dim.name, ([], []))[0]
        layers = f"  ({_some(made, 2)})" if made and made[0] != name else ""
        notes[dim.kind].append(f"  {name or 'pixels'}: {choices}{layers}")
    if "resolution" not in notes:
        notes["resolution"] = [*_RESOLUTION]
    reasons = _by_reason(supernet.fixed)
    if reasons:
        notes["fixed"] = ["Fixed in any case:", *(f"  {_some(names, 3)}: {why}" for why, names in reasons.items())]
    return notes
