"""The search algorithms by name: a registry of descriptors, as for policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tips_nni.core._architecture import Architecture
from tips_nni.core._cost import CostModel
from tips_nni.core._errors import TipsError, unknown
from tips_nni.core._front import SearchSettings
from tips_nni.core._front_search import FrontSearch
from tips_nni.core._graph import PathGraph
from tips_nni.core._options import read_options
from tips_nni.core._policy import Policy
from tips_nni.core._search_algorithm import SearchAlgorithm
from tips_nni.core._space import SearchSpace


@dataclass(frozen=True)
class SearchProblem:
    """What is searched.

    Attributes:
        space: the search space.
        costs: every cost that a table gives, by name.
        objective_cost: the cost to trade against accuracy.
        constraints: cost name -> upper bound.
        network: the network of the space: its architecture, only its path graph, or None where neither is known.
        policy: draws new genes, for algorithms that need some; uniform where None.
    """

    space: SearchSpace
    costs: Mapping[str, CostModel]
    objective_cost: str
    constraints: Mapping[str, float]
    network: Architecture | PathGraph | None = None
    policy: Policy | None = None


@dataclass(frozen=True)
class NoOptions:
    """The options of an algorithm that has none beside the settings."""


@dataclass(frozen=True)
class AlgorithmInfo:
    """A registered search algorithm.

    Attributes:
        name: in specs.
        summary: one sentence.
        create: called with (problem, settings, rng, options).
        options: its options' class, a frozen dataclass that checks itself.
    """

    name: str
    summary: str
    create: Callable[[SearchProblem, SearchSettings, np.random.Generator, Any], SearchAlgorithm]
    options: type[Any] = NoOptions


#: The registered search algorithms, by name.
ALGORITHMS: dict[str, AlgorithmInfo] = {}


def register_algorithm(info: AlgorithmInfo) -> None:
    """Add a search algorithm under its name.

    Raises:
        TipsError: the name is taken.
    """
    if info.name in ALGORITHMS:
        raise TipsError(f"a search algorithm {info.name!r} is registered already; choose another name")
    ALGORITHMS[info.name] = info


def algorithm_names() -> list[str]:
    """Return the names of the registered search algorithms."""
    return sorted(ALGORITHMS)


def check_algorithm(name: str, options: Mapping[str, Any]) -> Any:
    """Check an algorithm's name and options and return the options, an instance of its options' class.

    Raises:
        TipsError: unknown algorithm or option, or a value that is not allowed.
    """
    if name not in ALGORITHMS:
        raise unknown("search algorithm", name, ALGORITHMS)
    return read_options(ALGORITHMS[name].options, options, f"search algorithm {name!r}")


def make_search(
    name: str,
    problem: SearchProblem,
    settings: SearchSettings,
    rng: np.random.Generator,
    options: Mapping[str, Any] | None = None,
) -> SearchAlgorithm:
    """Create a search.

    Args:
        name: see `algorithm_names`.
        problem: what is searched.
        settings: population and the like.
        rng: source of randomness.
        options: see the algorithm's options class; defaults where left out.

    Raises:
        TipsError: see `check_algorithm`; or the algorithm needs what is not known of the network.
        InfeasibleError: no subnet keeps the constraints.
    """
    checked = check_algorithm(name, options or {})
    return ALGORITHMS[name].create(problem, settings, rng, checked)


def _evolution(
    problem: SearchProblem, settings: SearchSettings, rng: np.random.Generator, _options: NoOptions
) -> FrontSearch:
    return FrontSearch(
        problem.space, problem.costs, problem.objective_cost, problem.constraints, settings, rng, problem.policy
    )


register_algorithm(AlgorithmInfo("evolution", "children of the best subnets so far (NSGA-II)", _evolution))
