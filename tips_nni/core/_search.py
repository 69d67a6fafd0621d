"""The search for the front where one process measures one generation after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._algorithms import SearchProblem, make_search
from tips_nni.core._architecture import Architecture
from tips_nni.core._cost import CostModel
from tips_nni.core._errors import TipsError, unknown
from tips_nni.core._front import SearchResult, SearchSettings
from tips_nni.core._graph import PathGraph
from tips_nni.core._space import SearchSpace, SubnetConfig

Measure = Callable[[Sequence[SubnetConfig]], NDArray[np.float64]]
Progress = Callable[[int, int, float], None]


def search_front(
    space: SearchSpace,
    measure: Measure,
    costs: Mapping[str, CostModel],
    objective_cost: str,
    constraints: Mapping[str, float],
    settings: SearchSettings,
    rng: np.random.Generator,
    progress: Progress | None = None,
    *,
    algorithm: str = "evolution",
    options: Mapping[str, Any] | None = None,
    network: Architecture | PathGraph | None = None,
) -> SearchResult:
    """Search the front of accuracy against one cost, a population at a time.

    Costs are look-ups, so a subnet that breaks a constraint is never measured, and none is measured twice. A space no
    larger than all the generations together is measured whole.

    Args:
        space: the search space.
        measure: returns the accuracy of subnets, shape (N,), each 0 to 1.
        costs: every cost to report.
        objective_cost: the one to trade against accuracy.
        constraints: cost name -> upper bound.
        settings: how long to search.
        rng: source of randomness.
        progress: called with (subnets measured, subnets planned, best accuracy).
        algorithm: see `algorithm_names`.
        options: of the algorithm.
        network: the network of the space, for algorithms that look at it.

    Raises:
        TipsError: unknown cost, algorithm or option, or a measurement that is no accuracy.
        InfeasibleError: no subnet keeps the constraints.
    """
    if objective_cost not in costs:
        raise unknown("cost", objective_cost, costs)
    problem = SearchProblem(space, costs, objective_cost, constraints, network)
    search = make_search(algorithm, problem, settings, rng, options)
    planned = min(space.size, settings.population * (settings.generations + 1))
    best = 0.0
    while search.measured < planned:
        asked = (search.ask() for _ in range(min(settings.population, planned - search.measured)))
        configs = [config for config in asked if config is not None]
        if not configs:
            break
        values = np.asarray(measure(configs), dtype=np.float64)
        if values.shape != (len(configs),) or not ((values >= 0) & (values <= 1)).all():
            raise TipsError(
                f"measure returned {values!r} for {len(configs)} subnets; it must be accuracies from 0 to 1"
            )
        for config, value in zip(configs, values.tolist(), strict=True):
            search.tell(config, value)
        best = max(best, float(values.max()))
        if progress is not None:
            progress(search.measured, planned, best)
    return search.result
