"""The tuner's ``classArgs``, which NNI never checks: read by the tuner itself, and by `tips-nni check` before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tips_nni.adapters.tuner._task import SearchTask, load_task
from tips_nni.core import SearchAlgorithm, TipsError, unknown
from tips_nni.specs import is_path

_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "run": (str, "a path"),
    "strategy": (str, "a name or a path"),
    "constraints": (Mapping, "a mapping, e.g. {target: pixel4_cpu, latency_ms: 30}"),
    "objective": (str, "the name of a cost"),
    "population": (int, "a whole number"),
    "mutation": (int | float, "a number above 0, at most 1"),
    "seed": (int, "a whole number"),
}


def read_arguments(arguments: Mapping[str, Any], directory: Path) -> tuple[SearchTask, SearchAlgorithm]:
    """Return the task that ``classArgs`` describe and its search.

    Args:
        arguments: see `TIPSTuner`.
        directory: where relative paths start.

    Raises:
        TipsError: an argument is unknown, missing, of a wrong type or has a value that is not allowed.
        InfeasibleError: no subnet keeps the constraints.
    """
    _check(arguments)
    options = dict(arguments)
    run = directory / Path(options.pop("run")).expanduser()
    seed = options.pop("seed", 0)
    strategy = options.get("strategy")
    if strategy is not None and is_path(strategy):
        options["strategy"] = str(directory / Path(strategy).expanduser())
    task = load_task(run, **options)
    return task, task.search(seed)


def _check(arguments: Mapping[str, Any]) -> None:
    """Check names and types."""
    for name, value in arguments.items():
        if name not in _ARGUMENTS:
            raise unknown("classArgs key", str(name), _ARGUMENTS)
        kind, words = _ARGUMENTS[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TipsError(f"classArgs: {name} = {value!r}; it must be {words}")
    if "run" not in arguments:
        raise TipsError("classArgs lacks the key 'run': a run folder, or one that `tips-nni nni-config` wrote")
    if arguments.get("seed", 0) < 0:
        raise TipsError(f"classArgs: seed = {arguments['seed']}; it must be at least 0")
