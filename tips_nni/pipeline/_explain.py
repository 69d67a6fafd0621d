"""`tips-nni explain`: what the policy finds important, as tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
from rich.console import Console

from tips_nni.core import PathImportancePolicy, Policy, TipsError, lambda_sweep, make_policy
from tips_nni.elastic import convert
from tips_nni.pipeline._prepare import prepare
from tips_nni.report import explain_tables, write_explain_pictures
from tips_nni.specs import RUN_SPEC, load_run, load_space, load_strategy
from tips_nni.training import load_policy_state


def explain_run(folder: Path, picture: Path | None) -> None:
    """Print the explanation that a run's training left, and draw it.

    Args:
        folder: the run folder.
        picture: PNG file to write; ``explain.png`` in the run folder by default.

    Raises:
        TipsError: the folder holds no trained run.
    """
    record = folder / "explain.json"
    if not (folder / RUN_SPEC).is_file() or not record.is_file():
        raise TipsError(f"{folder} holds no trained run (no explain.json); run `tips-nni run SPEC` first")
    parts = prepare(load_run(folder / RUN_SPEC))
    parts.policy.load_state_dict(load_policy_state(folder))
    explanations = json.loads(record.read_text(encoding="utf-8"))
    _show(explanations, _sweep(parts.policy), picture or folder / "explain.png", parts.spec.strategy)


def explain_space(
    space: str, *, backbone: str | None, image_size: int, strategy: str, picture: Path, seed: int
) -> None:
    """Print and draw the explanation of a search space before any training.

    The estimator runs on the largest, the smallest and 64 uniformly drawn subnets.

    Raises:
        TipsError: unknown space, backbone or strategy.
    """
    declared = load_space(space)
    name = backbone or default_backbone(declared.matches)
    supernet = convert(name, declared, image_size=image_size)
    chosen = load_strategy(strategy)
    policy = make_policy(chosen.policy.name, supernet.architecture, chosen.policy.options)
    before = policy.explain().to_json()
    drawn = supernet.space.sample(np.random.default_rng(seed), 64)
    policy.observe([supernet.space.decode(code) for code in drawn])
    policy.refresh()
    Console(highlight=False).print(f"[bold]{name}[/] at {image_size}×{image_size}, space {space}")
    _show([before, policy.explain().to_json()], _sweep(policy), picture, strategy)


def default_backbone(matches: Sequence[str]) -> str:
    """Return the first timm backbone that fits the patterns of a search space.

    Raises:
        TipsError: none fits.
    """
    found = [name for pattern in matches for name in timm.list_models(pattern)]
    if not found:
        raise TipsError(f"no timm backbone fits {list(matches)}; name one with --backbone")
    return str(found[0])


def _sweep(policy: Policy) -> list[dict[str, Any]] | None:
    """Return the sweep over λ where the policy has a Markov chain."""
    return lambda_sweep(policy) if isinstance(policy, PathImportancePolicy) else None


def _show(
    explanations: Sequence[Mapping[str, Any]], sweep: Sequence[Mapping[str, Any]] | None, picture: Path, strategy: str
) -> None:
    console = Console(highlight=False)
    for table in explain_tables(explanations[-1]):
        console.print(table)
    if not explanations[-1]["nodes"]:
        console.print(f"strategy {strategy} draws subnets without path importance: there is no network to colour")
    for path in write_explain_pictures(explanations, sweep, picture):
        print(f"picture  {path}")
