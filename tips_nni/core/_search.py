"""The search for the front: accuracy against cost, under constraints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._cost import CostModel
from tips_nni.core._errors import InfeasibleError, TipsError, unknown
from tips_nni.core._pareto import crowding, hypervolume, non_dominated, rank
from tips_nni.core._space import Codes, SearchSpace, SubnetConfig

#: Spaces up to this size are enumerated where an exact answer over all subnets is wanted.
ENUMERABLE = 200_000

Measure = Callable[[Sequence[SubnetConfig]], NDArray[np.float64]]
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """Settings of the evolutionary search.

    Attributes:
        population: subnets measured in one generation, at least 4.
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
        history: hypervolume after every generation.
    """

    points: tuple[FrontPoint, ...]
    evaluated: tuple[FrontPoint, ...]
    hypervolume: float
    history: tuple[float, ...]


def check_feasible(space: SearchSpace, costs: Mapping[str, CostModel], constraints: Mapping[str, float]) -> None:
    """Check that some subnet keeps every constraint.

    The nearest feasible value of a cost is its smallest over the space: exact by enumeration up to `ENUMERABLE`
    subnets; beyond, the best that coordinate descent from the smallest subnet finds.

    Raises:
        TipsError: a constraint on an unknown cost.
        InfeasibleError: no subnet keeps a constraint, or none was found that keeps all together.
    """
    for name in constraints:
        if name not in costs:
            raise unknown("cost in the constraints", name, costs)
    if not constraints:
        return
    if space.size <= ENUMERABLE:
        codes = np.indices(tuple(space.sizes)).reshape(len(space.dims), -1).T.astype(np.int64)
        values = {name: costs[name].evaluate(codes) for name in constraints}
        least = {name: float(value.min()) for name, value in values.items()}
        together = np.logical_and.reduce([values[name] <= limit for name, limit in constraints.items()]).any()
    else:
        minima = {name: _descend(space, costs[name]) for name in constraints}
        least = {name: value for name, (_, value) in minima.items()}
        codes = np.stack([space.encode(space.smallest), *(code for code, _ in minima.values())])
        together = bool(_feasible(codes, costs, constraints).any())
    for name, limit in constraints.items():
        if least[name] > limit:
            raise InfeasibleError(
                f"no subnet has {name} <= {limit:g}; the smallest is {least[name]:.6g} {costs[name].unit}: raise the "
                "limit, or give the search space smaller choices"
            )
    if not together:
        wanted = ", ".join(f"{name} <= {limit:g}" for name, limit in constraints.items())
        raise InfeasibleError(f"no subnet keeps {wanted} all together, though each alone; raise one of the limits")


def _descend(space: SearchSpace, cost: CostModel) -> tuple[Codes, float]:
    """Return a code of locally smallest cost and the cost, by coordinate descent from the smallest subnet."""
    code = space.encode(space.smallest)
    best = float(cost.evaluate(code[None])[0])
    while True:
        neighbours = []
        for i, size in enumerate(space.sizes):
            for choice in range(int(size)):
                if choice != code[i]:
                    neighbour = code.copy()
                    neighbour[i] = choice
                    neighbours.append(neighbour)
        if not neighbours:
            return code, best
        values = cost.evaluate(np.stack(neighbours))
        if values.min() >= best:
            return code, best
        best, code = float(values.min()), neighbours[int(values.argmin())]


def _feasible(codes: Codes, costs: Mapping[str, CostModel], constraints: Mapping[str, float]) -> NDArray[np.bool_]:
    result = np.ones(len(codes), dtype=np.bool_)
    for name, limit in constraints.items():
        result &= costs[name].evaluate(codes) <= limit
    return result


def search_front(
    space: SearchSpace,
    measure: Measure,
    costs: Mapping[str, CostModel],
    objective_cost: str,
    constraints: Mapping[str, float],
    settings: SearchSettings,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> SearchResult:
    """Search the front of accuracy against one cost: NSGA-II (Deb et al. 2002) with constraints met by construction.

    Costs are look-ups, so a subnet that breaks a constraint is never measured, and none is measured twice. The first
    population holds the smallest and largest feasible subnets and is spread evenly over the logarithm of the cost.
    Deterministic for the state of `rng`, if `measure` is.

    Args:
        space: the search space.
        measure: returns the accuracy of subnets, shape (N,), each 0 to 1.
        costs: every cost to report.
        objective_cost: the one to trade against accuracy.
        constraints: cost name -> upper bound.
        settings: how long to search.
        rng: source of randomness.
        progress: called with (subnets measured, subnets planned, best accuracy).

    Raises:
        TipsError: unknown cost, or a measurement that is no accuracy.
        InfeasibleError: no subnet keeps the constraints.
    """
    if objective_cost not in costs:
        raise unknown("cost", objective_cost, costs)
    check_feasible(space, costs, constraints)
    planned = min(space.size, settings.population * (settings.generations + 1))
    known: dict[tuple[int, ...], float] = {}
    order: list[tuple[int, ...]] = []
    cost = costs[objective_cost]

    def evaluate(codes: Codes) -> None:
        new = [code for code in dict.fromkeys(map(tuple, codes.tolist())) if code not in known]
        if not new:
            return
        values = np.asarray(measure([space.decode(code) for code in new]), dtype=np.float64)
        if values.shape != (len(new),) or not ((values >= 0) & (values <= 1)).all():
            raise TipsError(f"measure returned {values!r} for {len(new)} subnets; it must be accuracies from 0 to 1")
        known.update(zip(new, values.tolist(), strict=True))
        order.extend(new)
        if progress is not None:
            progress(len(known), planned, max(known.values()))

    population = _first_population(space, costs, objective_cost, constraints, settings, rng)
    evaluate(population)
    reference = _box(space, cost, population)
    history = [_volume(np.array(order), known, cost, reference)]
    for _ in range(settings.generations):
        children = _children(population, known, space, costs, constraints, settings, rng)
        if not len(children):
            break
        evaluate(children)
        population = _survivors(np.concatenate([population, children]), known, cost, settings.population)
        history.append(_volume(np.array(order), known, cost, reference))
    codes = np.array(order, dtype=np.int64)
    values = {name: model.evaluate(codes) for name, model in costs.items()}
    accuracy = np.array([known[code] for code in order])
    points = tuple(
        FrontPoint(space.decode(code), known[code], {name: float(v[i]) for name, v in values.items()})
        for i, code in enumerate(order)
    )
    best = np.flatnonzero(non_dominated(np.stack([-accuracy, values[objective_cost]], axis=1)))
    # Of subnets with equal accuracy and cost the first measured stands for all.
    first: dict[tuple[float, float], int] = {}
    for i in best:
        first.setdefault((float(accuracy[i]), float(values[objective_cost][i])), int(i))
    front = sorted(first.values(), key=lambda i: values[objective_cost][i])
    return SearchResult(tuple(points[i] for i in front), points, history[-1], tuple(history))


def _first_population(
    space: SearchSpace,
    costs: Mapping[str, CostModel],
    objective_cost: str,
    constraints: Mapping[str, float],
    settings: SearchSettings,
    rng: np.random.Generator,
) -> Codes:
    """Return feasible codes spread over the logarithm of the cost, the ends among them, shape (P, D)."""
    if space.size <= settings.population * (settings.generations + 1):
        every = np.indices(tuple(space.sizes)).reshape(len(space.dims), -1).T.astype(np.int64)
        return every[_feasible(every, costs, constraints)]
    ends = np.stack([space.encode(space.smallest), space.encode(space.largest)])
    # Uniform draws gather around the middle; powers of them reach the ends.
    power = np.exp(rng.uniform(-2, 2, size=(settings.candidates, 1)))
    drawn = (rng.random((settings.candidates, len(space.dims))) ** power * space.sizes).astype(np.int64)
    pool = np.unique(np.concatenate([ends, drawn]), axis=0)
    feasible = pool[_feasible(pool, costs, constraints)]
    if len(feasible) < settings.population:
        minima = [_descend(space, costs[name])[0] for name in constraints]
        start = np.stack([space.encode(space.smallest), *minima])
        feasible = _grow(np.concatenate([feasible, start]), space, costs, constraints, settings, rng)
    logs = np.log(np.maximum(costs[objective_cost].evaluate(feasible), 1e-12))
    targets = np.linspace(logs.min(), logs.max(), settings.population)
    order = np.argsort(logs, kind="stable")
    chosen: list[int] = []
    free = np.ones(len(feasible), dtype=np.bool_)
    for target in targets:
        if free.any():
            candidates = order[free[order]]
            best = int(candidates[np.abs(logs[candidates] - target).argmin()])
            chosen.append(best)
            free[best] = False
    return feasible[chosen]


def _grow(
    codes: Codes,
    space: SearchSpace,
    costs: Mapping[str, CostModel],
    constraints: Mapping[str, float],
    settings: SearchSettings,
    rng: np.random.Generator,
) -> Codes:
    """Return more feasible codes under tight constraints, by mutating feasible ones."""
    codes = np.unique(codes[_feasible(codes, costs, constraints)], axis=0)
    for _ in range(16):
        parents = codes[rng.integers(len(codes), size=settings.candidates)]
        changed = rng.random(parents.shape) < max(settings.mutation, 1.5 / len(space.dims))
        mutants = np.where(changed, space.sample(rng, len(parents)), parents)
        codes = np.unique(np.concatenate([codes, mutants[_feasible(mutants, costs, constraints)]]), axis=0)
        if len(codes) >= settings.candidates:
            break
    return codes


def _objectives(codes: Codes, known: Mapping[tuple[int, ...], float], cost: CostModel) -> NDArray[np.float64]:
    """Return (−accuracy, log cost) of measured codes, shape (N, 2)."""
    accuracy = np.array([known[tuple(code)] for code in codes.tolist()])
    return np.stack([-accuracy, np.log(np.maximum(cost.evaluate(codes), 1e-12))], axis=1)


def _survivors(codes: Codes, known: Mapping[tuple[int, ...], float], cost: CostModel, count: int) -> Codes:
    """Return the `count` best codes by front, then crowding distance."""
    codes = np.unique(codes, axis=0)
    objectives = _objectives(codes, known, cost)
    levels = rank(objectives)
    distance = np.zeros(len(codes))
    for level in np.unique(levels):
        members = levels == level
        distance[members] = crowding(objectives[members])
    return codes[np.lexsort((-distance, levels))[:count]]


def _children(
    population: Codes,
    known: Mapping[tuple[int, ...], float],
    space: SearchSpace,
    costs: Mapping[str, CostModel],
    constraints: Mapping[str, float],
    settings: SearchSettings,
    rng: np.random.Generator,
) -> Codes:
    """Return up to one population of new feasible codes: uniform crossover of two parents, then mutation."""
    found: dict[tuple[int, ...], None] = {}
    for _ in range(32):
        pairs = population[rng.integers(len(population), size=(2, 4 * settings.population))]
        children = np.where(rng.random(pairs[0].shape) < 0.5, pairs[0], pairs[1])
        changed = rng.random(children.shape) < settings.mutation
        children = np.where(changed, space.sample(rng, len(children)), children)
        for code in map(tuple, children[_feasible(children, costs, constraints)].tolist()):
            if code not in known:
                found.setdefault(code)
        if len(found) >= settings.population:
            break
    codes = np.array(list(found), dtype=np.int64).reshape(-1, len(space.dims))
    return codes[: settings.population]


def _box(space: SearchSpace, cost: CostModel, population: Codes) -> tuple[float, float]:
    """Return the (lowest, highest) log cost that hypervolume is measured between."""
    codes = np.concatenate([population, space.encode(space.largest)[None]])
    logs = np.log(np.maximum(cost.evaluate(codes), 1e-12))
    return float(logs.min()), float(logs.max()) + 1e-9


def _volume(codes: Codes, known: Mapping[tuple[int, ...], float], cost: CostModel, box: tuple[float, float]) -> float:
    """Return the share of the box that the measured codes dominate."""
    values = _objectives(codes, known, cost)
    scaled = np.stack([1 + values[:, 0], (values[:, 1] - box[0]) / (box[1] - box[0])], axis=1)
    return hypervolume(np.maximum(scaled, 0.0), np.array([1.0, 1.0]))
