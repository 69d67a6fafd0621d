"""`tips-nni spaces`, `strategies` and `check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tips_nni.core import check_feasible
from tips_nni.pipeline._prepare import prepare
from tips_nni.specs import kind_of_file, load_run, load_space, load_strategy, space_names, strategy_names


def print_spaces() -> None:
    """Print the built-in search spaces."""
    table = Table(title="search spaces", caption="space: NAME in a run spec, or a path to your own file")
    for column in ("name", "what is elastic", "timm backbones"):
        table.add_column(column)
    for name in space_names():
        space = load_space(name)
        table.add_row(name, space.description, ", ".join(space.matches))
    Console().print(table)


def print_strategies() -> None:
    """Print the built-in strategies."""
    table = Table(title="strategies", caption="strategy: NAME in a run spec, or a path to your own file")
    for column in ("name", "what it does", "policy", "subnets per step"):
        table.add_column(column)
    for name in strategy_names():
        strategy = load_strategy(name)
        sampling = strategy.sampling
        parts = [word for word, on in (("largest", sampling.largest), ("smallest", sampling.smallest)) if on]
        parts += [f"{sampling.random} drawn"] if sampling.random else []
        table.add_row(name, strategy.description, strategy.policy.name, " + ".join(parts))
    Console().print(table)


def check(path: str, overrides: Sequence[str] = ()) -> None:
    """Validate a run spec, search space or strategy and say what it describes.

    Raises:
        TipsError: the file is not valid, or the run it describes cannot start.
    """
    kind = kind_of_file(Path(path))
    if kind == "space":
        space = load_space(str(Path(path).absolute()))
        print(f"{path}: a valid search space for {', '.join(space.matches)}")
    elif kind == "strategy":
        strategy = load_strategy(str(Path(path).absolute()))
        print(f"{path}: a valid strategy with policy {strategy.policy.name}")
    else:
        spec = load_run(path, overrides)
        parts = prepare(spec)
        check_feasible(parts.supernet.space, parts.costs, spec.constraints.bounds)
        space_size = parts.supernet.space.size
        print(f"{path}: a valid run of {spec.backbone.name} with {space_size:.3g} subnets; output {spec.output}")
