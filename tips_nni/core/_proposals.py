"""Which subnets a search measures next: a first population spread over the cost, then children of the best."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._cost import CostModel
from tips_nni.core._feasible import ENUMERABLE, descend, every_code, feasible
from tips_nni.core._front import SearchSettings
from tips_nni.core._space import Codes, SearchSpace

#: Draws codes, shape (n, D): uniformly, or as a sampling policy does.
Genes = Callable[[np.random.Generator, int], Codes]


class Proposals:
    """Proposes subnets that keep the constraints.

    Args:
        space: the search space.
        costs: every cost that a table gives.
        spread_over: the cost over whose logarithm the first population is spread; None where no table gives it.
        constraints: cost name -> upper bound.
        settings: of the search.
        genes: draws the genes of mutants.
    """

    def __init__(
        self,
        space: SearchSpace,
        costs: Mapping[str, CostModel],
        spread_over: CostModel | None,
        constraints: Mapping[str, float],
        settings: SearchSettings,
        genes: Genes,
    ) -> None:
        self._space = space
        self._costs = costs
        self._spread_over = spread_over
        self._constraints = constraints
        self._settings = settings
        self._genes = genes

    def first(self, rng: np.random.Generator) -> Codes:
        """Return at most one population of feasible codes, the ends of the cost among them, shape (P, D)."""
        space, settings = self._space, self._settings
        ends = np.stack([space.encode(space.smallest), space.encode(space.largest)])
        # Draws gather around the middle; powers of uniform ones reach the ends.
        half = settings.candidates // 2
        power = np.exp(rng.uniform(-2, 2, size=(half, 1)))
        spread = (rng.random((half, len(space.dims))) ** power * space.sizes).astype(np.int64)
        drawn = self._genes(rng, settings.candidates - half)
        pool = np.unique(np.concatenate([ends, spread, drawn]), axis=0)
        pool = pool[self._feasible(pool)]
        if len(pool) < settings.population:
            minima = [descend(space, self._costs[name])[0] for name in self._constraints]
            pool = self._grow(np.concatenate([pool, ends[:1], *(code[None] for code in minima)]), rng)
        if self._spread_over is None:
            return rng.permutation(pool)[: settings.population]
        return pool[_spread(self._spread_over.evaluate(pool), settings.population)]

    def children(self, parents: Codes, known: Collection[tuple[int, ...]], rng: np.random.Generator) -> Codes:
        """Return at most one population of new feasible codes: uniform crossover of two parents, then mutation.

        Args:
            parents: shape (P, D), P at least 1.
            known: codes not to propose again.
            rng: source of randomness.
        """
        settings = self._settings
        found: dict[tuple[int, ...], None] = {}
        for _ in range(32):
            pairs = parents[rng.integers(len(parents), size=(2, 4 * settings.population))]
            children = np.where(rng.random(pairs[0].shape) < 0.5, pairs[0], pairs[1])
            changed = rng.random(children.shape) < settings.mutation
            children = np.where(changed, self._genes(rng, len(children)), children)
            for code in map(tuple, children[self._feasible(children)].tolist()):
                if code not in known:
                    found.setdefault(code)
            if len(found) >= settings.population:
                break
        return np.array(list(found), dtype=np.int64).reshape(-1, len(self._space.dims))[: settings.population]

    def rest(self, known: Collection[tuple[int, ...]], rng: np.random.Generator) -> Codes:
        """Return new feasible codes where crossover finds none: of all that is left in a small space."""
        if self._space.size > ENUMERABLE:
            codes = self._grow(np.array(list(known), dtype=np.int64), rng)
        else:
            codes = every_code(self._space)
            codes = codes[self._feasible(codes)]
        left = [code for code in map(tuple, codes.tolist()) if code not in known]
        order = rng.permutation(len(left))[: self._settings.population]
        return np.array([left[i] for i in order], dtype=np.int64).reshape(-1, len(self._space.dims))

    def _grow(self, codes: Codes, rng: np.random.Generator) -> Codes:
        """Return more feasible codes under tight constraints, by mutating feasible ones."""
        settings, space = self._settings, self._space
        codes = np.unique(codes[self._feasible(codes)], axis=0)
        for _ in range(16 if len(codes) else 0):
            parents = codes[rng.integers(len(codes), size=settings.candidates)]
            changed = rng.random(parents.shape) < max(settings.mutation, 1.5 / len(space.dims))
            mutants = np.where(changed, space.sample(rng, len(parents)), parents)
            codes = np.unique(np.concatenate([codes, mutants[self._feasible(mutants)]]), axis=0)
            if len(codes) >= settings.candidates:
                break
        return codes

    def _feasible(self, codes: Codes) -> NDArray[np.bool_]:
        return feasible(codes, self._costs, self._constraints)


def _spread(costs: NDArray[np.float64], count: int) -> list[int]:
    """Return at most `count` positions whose log costs lie nearest to an even grid between the ends."""
    logs = np.log(np.maximum(costs, 1e-12))
    order = np.argsort(logs, kind="stable")
    free = np.ones(len(logs), dtype=np.bool_)
    chosen: list[int] = []
    for target in np.linspace(logs.min(), logs.max(), min(count, len(logs))):
        candidates = order[free[order]]
        best = int(candidates[np.abs(logs[candidates] - target).argmin()])
        chosen.append(best)
        free[best] = False
    return chosen
