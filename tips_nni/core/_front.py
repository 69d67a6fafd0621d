"""What a search is told and what it returns: settings, measured subnets, the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._errors import TipsError
from tips_nni.core._pareto import crowding, hypervolume, non_dominated, rank
from tips_nni.core._space import SubnetConfig


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """Settings that every search algorithm has.

    Attributes:
        population: subnets measured in one generation, at least 4; of FLASH the samples of one fit.
        generations: rounds after the first population, at least 0.
        mutation: probability that a dimension of a child is drawn anew, above 0 and at most 1.
        candidates: feasible subnets drawn for the first population, which is spread over their cost.
    """

    population: int = 32
    generations: int = 10
    mutation: float = 0.1
    candidates: int = 2048

    def __post_init__(self) -> None:
        if self.population < 4 or self.generations < 0 or not 0 < self.mutation <= 1:
            raise TipsError(
                f"search with population {self.population}, generations {self.generations}, mutation {self.mutation}: "
                "allowed are population >= 4, generations >= 0 and 0 < mutation <= 1"
            )


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A measured subnet.

    Attributes:
        config: the subnet.
        accuracy: as measured, 0 to 1.
        costs: cost name -> value.
    """

    config: SubnetConfig
    accuracy: float
    costs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        points: the front, from the cheapest to the dearest: no other measured subnet is at least as accurate and as
            cheap.
        evaluated: every measured subnet, in order of measurement.
        hypervolume: of the front in (1 − accuracy, log cost), divided by that of the box between the cheapest and the
            largest feasible cost, with 0 as the accuracy to beat: 0 to 1.
        history: hypervolume after every generation, then at the end.
        diagnostics: what the algorithm has to say of itself, by name, e.g. the error of its predictor.
    """

    points: tuple[FrontPoint, ...]
    evaluated: tuple[FrontPoint, ...]
    hypervolume: float
    history: tuple[float, ...]
    diagnostics: Mapping[str, float] = field(default_factory=dict)


def objectives(accuracy: NDArray[np.float64], cost: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (−accuracy, log cost) of measured subnets, shape (N, 2), both to be minimised."""
    return np.stack([-accuracy, np.log(np.maximum(cost, 1e-12))], axis=1)


def fittest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the positions of the `count` best points by front, then crowding distance (NSGA-II)."""
    levels = rank(values, enough=count)
    distance = np.zeros(len(values))
    for level in np.unique(levels):
        members = levels == level
        distance[members] = crowding(values[members])
    return np.lexsort((-distance, levels))[:count]


def volume(values: NDArray[np.float64], box: tuple[float, float]) -> float:
    """Return the share of a box that points dominate, 0 to 1.

    Args:
        values: from `objectives`.
        box: lowest and highest log cost; the accuracy goes from 0 to 1.
    """
    span = max(box[1] - box[0], 1e-9)
    scaled = np.stack([1 + values[:, 0], (values[:, 1] - box[0]) / span], axis=1)
    return hypervolume(np.maximum(scaled, 0.0), np.array([1.0, 1.0 + 1e-9]))


def front_of(points: Sequence[FrontPoint], cost: str) -> tuple[FrontPoint, ...]:
    """Return the points that no other one dominates in accuracy and `cost`, from the cheapest to the dearest.

    Of points with equal accuracy and cost the first stands for all.
    """
    values = np.array([[-point.accuracy, point.costs[cost]] for point in points], dtype=np.float64).reshape(-1, 2)
    first: dict[tuple[float, ...], FrontPoint] = {}
    for i in np.flatnonzero(non_dominated(values)).tolist():
        first.setdefault(tuple(values[i].tolist()), points[i])
    return tuple(sorted(first.values(), key=lambda point: point.costs[cost]))
