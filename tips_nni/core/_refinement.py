"""Improving subnets on exact tables by changes of one, two and more dimensions, under upper bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._cost import CostModel
from tips_nni.core._space import Codes, SearchSpace

Vector = NDArray[np.float64]
Score = Callable[[Codes], Vector]

#: Changes of two dimensions that one step looks at, at most.
_PAIRS = 4096
#: Least and largest share of the dimensions that a random start draws anew.
_CHANGED = 0.1, 0.8
#: Codes that go on from steps of one dimension to steps of two: those are many.
_IMPROVED = 4
#: Above every score.
_WORST = 1e12


class Refinement:
    """Local search for the highest score among subnets that keep upper bounds of costs.

    What breaks a bound has less merit than all that keep them, and the less the more it does: the same steps repair it.

    Args:
        space: the search space.
        score: to be maximised: codes (N, D) -> (N,).
        costs: tables.
        bounds: cost name -> upper bound, above 0.
    """

    def __init__(
        self, space: SearchSpace, score: Score, costs: Mapping[str, CostModel], bounds: Mapping[str, float]
    ) -> None:
        self._space = space
        self._score = score
        self._costs = {name: costs[name] for name in bounds}
        self._bounds = dict(bounds)
        sizes = space.sizes
        self._dims = np.repeat(np.arange(len(sizes)), sizes)
        self._choices = np.concatenate([np.arange(size) for size in sizes])

    def merit(self, codes: Codes) -> Vector:
        """Return the score of subnets that keep the bounds, and less than any score for others, shape (N,)."""
        violation = violation_of({name: cost.evaluate(codes) for name, cost in self._costs.items()}, self._bounds)
        kept = np.broadcast_to(violation <= 0, len(codes))
        score = np.zeros(len(codes))
        score[kept] = self._score(codes[kept])
        return merit_of(score, violation)

    def feasible(self, code: Codes) -> bool:
        """Whether a subnet keeps the bounds."""
        return bool(self.merit(code[None])[0] > -_WORST)

    def best(self, codes: Codes, starts: int, kicks: int, rng: np.random.Generator) -> Codes:
        """Return the best code that steps from `codes`, shape (S, D), lead to, shape (D,).

        Steps of one dimension from every code and from `starts` random ones near them, then of two dimensions from the
        best. Then `kicks` times: leave the optimum by the changes of two that cost least and by random ones, keep what
        was changed, let the other dimensions follow, and improve the best of these.

        Args:
            codes: to start from.
            starts: random codes near them, and changes that leave an optimum.
            kicks: how often an optimum is left.
            rng: source of randomness.
        """
        drawn, _ = self._around(codes, starts, rng)
        code, merit = self._improved(np.concatenate([codes, drawn]), rng)
        for _ in range(kicks):
            drawn, changed = self._around(code[None], starts, rng)
            pairs, _ = self._pairs(code, 2 * starts, rng)
            left = np.concatenate([pairs, drawn])
            frozen = np.concatenate([pairs != code, changed])
            other, found = self._improved(self._climbed(left, frozen)[0], rng)
            if exceeds(found, merit):
                code, merit = other, found
        return code

    def _around(self, codes: Codes, count: int, rng: np.random.Generator) -> tuple[Codes, NDArray[np.bool_]]:
        """Return codes with some dimensions of given ones drawn anew, few or most of them, and which, (count, D)."""
        drawn = codes[rng.integers(len(codes), size=count)]
        changed = rng.random(drawn.shape) < rng.uniform(*_CHANGED, size=(count, 1))
        return np.where(changed, self._space.sample(rng, count), drawn), changed

    def _climbed(self, codes: Codes, frozen: NDArray[np.bool_] | None = None) -> tuple[Codes, Vector]:
        """Return codes improved by steps of one dimension that is not frozen, shape (S, D), and their merits."""
        merit = self.merit(codes)
        rows, moves = np.arange(len(codes)), np.arange(len(self._dims))
        while True:
            around = np.repeat(codes[:, None], len(moves), axis=1)
            around[:, moves, self._dims] = self._choices
            found = self.merit(around.reshape(-1, codes.shape[1])).reshape(len(codes), -1)
            if frozen is not None:
                found[frozen[:, self._dims]] = -np.inf
            step = found.argmax(axis=1)
            better = exceeds(found[rows, step], merit)
            if not better.any():
                return codes, merit
            codes = np.where(better[:, None], around[rows, step], codes)
            merit = np.where(better, found[rows, step], merit)

    def _improved(self, codes: Codes, rng: np.random.Generator) -> tuple[Codes, float]:
        """Return the best code that steps of one dimension from `codes`, then of two, lead to, and its merit."""
        codes, merit = self._climbed(codes)
        _, distinct = np.unique(codes, axis=0, return_index=True)
        order = distinct[np.argsort(-merit[distinct], kind="stable")][:_IMPROVED]
        ends = []
        for i in order:
            code, value = codes[i], float(merit[i])
            while True:
                (after, *_), (found, *_) = self._pairs(code, 1, rng)
                if not exceeds(found, value):
                    break
                code, value = after, float(found)
            ends.append((code, value))
        return max(ends, key=lambda end: end[1])

    def _pairs(self, code: Codes, count: int, rng: np.random.Generator) -> tuple[Codes, Vector]:
        """Return the best `count` codes that differ from `code` in one or two dimensions, best first, with merits."""
        first, second = np.triu_indices(len(self._dims), 1)
        keep = (self._dims[first] != self._dims[second]) & (self._choices[first] != code[self._dims[first]])
        first, second = first[keep], second[keep]
        if len(first) > _PAIRS:
            drawn = rng.choice(len(first), size=_PAIRS, replace=False)
            first, second = first[drawn], second[drawn]
        rows = np.arange(len(first))
        around = np.repeat(code[None], len(first), axis=0)
        around[rows, self._dims[first]] = self._choices[first]
        around[rows, self._dims[second]] = self._choices[second]
        if not len(around):
            around = code[None]
        found = self.merit(around)
        order = np.argsort(-found, kind="stable")[:count]
        return around[order], found[order]


def violation_of(costs: Mapping[str, Vector], bounds: Mapping[str, float]) -> Vector:
    """Return by how much bounds are exceeded, relative to each and in sum, shape (N,), or () without a bound."""
    parts = [np.maximum(costs[name] / limit - 1, 0.0) for name, limit in bounds.items()]
    return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


def merit_of(score: Vector, violation: Vector) -> Vector:
    """Return the score where there is no violation, else less than any score, shape (N,)."""
    return np.where(violation > 0, -_WORST * (1 + violation), score)


def exceeds(found: Vector | float, before: Vector | float) -> NDArray[np.bool_]:
    """Whether merits are better by more than rounding."""
    return np.asarray(found > before + 1e-12 * np.abs(before))
