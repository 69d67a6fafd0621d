"""Conversion of a timm backbone (or any traceable module) into a supernet."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tips_nni.core import Architecture, SearchSpace
from tips_nni.elastic._attention import fold_attention
from tips_nni.elastic._backbone import create_backbone
from tips_nni.elastic._describe import describe
from tips_nni.elastic._dimensions import choose_dimensions
from tips_nni.elastic._meta import collector_paused, ghost_of
from tips_nni.elastic._plan import ElasticPlan
from tips_nni.elastic._sections import find_stages, within
from tips_nni.elastic._sort import sort_channels
from tips_nni.elastic._supernet import Supernet
from tips_nni.elastic._trace import module_shapes, trace
from tips_nni.elastic._verify import check_description, find_inexact
from tips_nni.specs import SpaceSpec

_log = logging.getLogger(__name__)


def convert(
    backbone: str | nn.Module,
    space: SpaceSpec,
    *,
    image_size: int,
    in_chans: int = 3,
    num_classes: int = 1000,
    pretrained: bool = False,
    checkpoint_path: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Supernet:
    """Turn a backbone into a supernet.

    The largest subnet is the backbone: same function, same state dict. With loaded weights the channels of every
    elastic group are first put in order of importance (L1 norm of the weights that make them), which leaves the
    function as it is and makes the leading channels the ones worth keeping.

    Args:
        backbone: a timm model's name, or a module that maps images (N, C, H, W) to logits.
        space: the declared elastic dimensions.
        image_size: side of the square input in pixels.
        in_chans: channels of the input.
        num_classes: classes of the output; ignored for a module.
        pretrained: see `create_backbone`.
        checkpoint_path: see `create_backbone`.
        arguments: further arguments of timm's `create_model`.

    Raises:
        TipsError: unknown backbone, an input size it does not accept, a network that cannot be traced, or a space
            under which nothing is elastic.
    """
    recipe: dict[str, object] = {}
    if isinstance(backbone, str):
        extra = {"in_chans": in_chans, "num_classes": num_classes, **(arguments or {})}
        model = create_backbone(backbone, pretrained=pretrained, checkpoint_path=checkpoint_path, **extra)
        recipe = {"model_name": backbone, **extra}
    else:
        model = backbone
    with collector_paused():
        plan, architecture, fixed = _make_elastic(model, space, image_size, in_chans)
    if pretrained or checkpoint_path or not isinstance(backbone, str):
        sort_channels(model, plan)
    for name, reason in fixed.items():
        _log.info("%s stays fixed: %s", name, reason)
    return Supernet(model, plan, architecture, fixed, recipe)


def _make_elastic(
    model: nn.Module, space: SpaceSpec, image_size: int, in_chans: int
) -> tuple[ElasticPlan, Architecture, dict[str, str]]:
    """Return the plan of a backbone, its description, and what stays fixed and why; the backbone stays as it is."""
    ghost = ghost_of(model).requires_grad_(False)
    shapes = {image_size: module_shapes(ghost, in_chans, image_size)}
    # Depends on the graph only: one image of the smallest accepted size would do, but sizes change the graph in
    # backbones that pad, so the real one is traced.
    traced = trace(model, ghost, torch.zeros(1, in_chans, image_size, image_size))
    traced = fold_attention(model, traced, shapes[image_size])
    stages = find_stages(ghost, traced, image_size, in_chans)
    vectors = frozenset(
        path
        for stage in stages
        for block in stage.blocks
        for path, (_, out) in shapes[image_size].items()
        if within(path, block) and len(out) == 4 and out[2:] == (1, 1) and shapes[image_size][block][1][2:] != (1, 1)
    )
    refused: dict[str, str] = {}
    while True:
        dimensions = choose_dimensions(model, traced, stages, space, vectors, image_size, refused)
        search_space = SearchSpace(tuple(dimensions.dims))
        plan = ElasticPlan(
            search_space, dimensions.layers, dimensions.stages, image_size, in_chans, frozenset(dimensions.ordered)
        )
        found = find_inexact(model, ghost, plan, traced.wired)
        if not found:
            break
        refused |= found
    sides = search_space["resolution"].choices if "resolution" in search_space else (image_size,)
    tables = [shapes.get(side) or module_shapes(ghost, in_chans, side) for side in sides]
    architecture = describe(model, traced, stages, dimensions, search_space, tables, in_chans)
    check_description(ghost, plan, architecture)
    return plan, architecture, dimensions.fixed
