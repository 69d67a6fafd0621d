"""Improving subnets on exact tables by changes of one, two and more dimensions, under upper bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._cost import CostModel
from tips_nni.core._space import Codes, SearchSpace

Vector = NDArray[np.float64]
Score = Callable[[Codes], Vector]

#: Changes of three dimensions that are considered, at most; where there are more, so many are drawn once for all.
_TRIPLES = 4_000
#: Changes of two and three dimensions that one step looks up, at most.
_PROMISING = 64
#: Least and largest share of the dimensions that a random start draws anew.
_CHANGED = 0.1, 0.8
#: Codes that go on from steps of one dimension to steps of more.
_IMPROVED = 3
#: Above every score.
_WORST = 1e12


class Moves:
    """Changes of a subnet: every choice of every dimension, and which two and three of these go together.

    Attributes:
        dims: dimension of every change of one dimension, shape (M,).
        choices: its new choice, shape (M,).
        pairs: changes of two dimensions as numbers of changes of one, shape (2, P).
        steps: changes of two and three dimensions likewise, shape (3, S); M stands for none.
    """

    def __init__(self, space: SearchSpace) -> None:
        sizes = space.sizes
        self.dims = np.repeat(np.arange(len(sizes)), sizes)
        self.choices = np.concatenate([np.arange(size) for size in sizes])
        count = len(self.dims)
        pairs = np.stack([*np.triu_indices(count, 1), np.full(count * (count - 1) // 2, count)], axis=1)
        if math.comb(count, 3) <= _TRIPLES:
            triples = np.array(list(combinations(range(count), 3)), dtype=np.int64).reshape(-1, 3)
        else:
            triples = np.random.default_rng(0).integers(count, size=(_TRIPLES, 3))
        two = self.dims[pairs[:, 0]] != self.dims[pairs[:, 1]]
        self.pairs = np.ascontiguousarray(pairs[two, :2].T)
        steps = np.concatenate([pairs, triples])
        dims = np.append(self.dims, -1)[steps]
        apart = (dims[:, 0] != dims[:, 1]) & (dims[:, 1] != dims[:, 2]) & (dims[:, 0] != dims[:, 2])
        self.steps = np.ascontiguousarray(steps[apart].T) if apart.any() else np.full((3, 1), count)


class Refinement:
    """Local search for the highest score among subnets that keep upper bounds of costs.

    What breaks a bound has less merit than all that keep them, and the less the more it does: the same steps repair it.

    Args:
        space: the search space.
        moves: its changes.
        score: to be maximised: codes (N, D) -> (N,).
        costs: tables.
        bounds: cost name -> upper bound, above 0.
    """

    def __init__(
        self,
        space: SearchSpace,
        moves: Moves,
        score: Score,
        costs: Mapping[str, CostModel],
        bounds: Mapping[str, float],
    ) -> None:
        self._space = space
        self._score = score
        self._costs = {name: costs[name] for name in bounds}
        self._bounds = dict(bounds)
        self._moves, self._dims, self._choices = moves, moves.dims, moves.choices

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

        Steps of one dimension from every code and from `starts` random ones near them, then of up to four dimensions
        from the best. Then `kicks` times: leave the optimum by the changes that cost least and by random ones, keep
        what was changed, let the other dimensions follow, and improve the best of these.

        Args:
            codes: to start from.
            starts: random codes near them, and changes that leave an optimum.
            kicks: how often an optimum is left.
            rng: source of randomness.
        """
        drawn, _ = self._around(codes, starts, rng)
        code, merit = self._improved(np.concatenate([codes, drawn]))
        for _ in range(kicks):
            drawn, changed = self._around(code[None], starts, rng)
            near, _ = self._exchanges(code, starts)
            left = np.concatenate([near, drawn])
            frozen = np.concatenate([near != code, changed])
            other, found = self._improved(self._climbed(left, frozen)[0], code)
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
        codes, merit = codes.copy(), self.merit(codes)
        moves = np.arange(len(self._dims))
        active = np.arange(len(codes))
        while len(active):
            around = np.repeat(codes[active, None], len(moves), axis=1)
            around[:, moves, self._dims] = self._choices
            found = self.merit(around.reshape(-1, codes.shape[1])).reshape(len(active), -1)
            if frozen is not None:
                found[frozen[active][:, self._dims]] = -np.inf
            step = found.argmax(axis=1)
            rows = np.flatnonzero(exceeds(found[np.arange(len(active)), step], merit[active]))
            active, step = active[rows], step[rows]
            codes[active], merit[active] = around[rows, step], found[rows, step]
        return codes, merit

    def _improved(self, codes: Codes, optimum: Codes | None = None) -> tuple[Codes, float]:
        """Return the best code that steps of one dimension from `codes`, then of more, lead to, and its merit.

        Those that come back to a known optimum are left out, where there are others.
        """
        codes, merit = self._climbed(np.unique(codes, axis=0))
        _, distinct = np.unique(codes, axis=0, return_index=True)
        if optimum is not None:
            others = distinct[(codes[distinct] != optimum).any(axis=1)]
            distinct = others if len(others) else distinct
        order = distinct[np.argsort(-merit[distinct], kind="stable")][:_IMPROVED]
        ends = []
        for i in order:
            code, value = codes[i], float(merit[i])
            while True:
                (after, *_), (found, *_) = self._exchanges(code, 1)
                if not exceeds(found, value):
                    break
                code, value = after, float(found)
            ends.append((code, value))
        return max(ends, key=lambda end: end[1])

    def _exchanges(self, code: Codes, count: int) -> tuple[Codes, Vector]:
        """Return the best codes found that differ from `code` in up to four dimensions, best first, with merits.

        Which of them may be good is estimated from the changes of one dimension alone, as if these added up; only the
        most promising ones are looked up.
        """
        single = self._changed(code, np.arange(len(self._dims))[None])
        gains = np.append(self._score(single) - self._score(code[None]), 0.0)
        gains[:-1][self._choices == code[self._dims]] = -np.inf  # no change
        here = {name: float(cost.evaluate(code[None])[0]) for name, cost in self._costs.items()}
        deltas = {name: np.append(cost.evaluate(single) - here[name], 0.0) for name, cost in self._costs.items()}
        steps = self._moves.steps
        costs = {name: here[name] + delta[steps].sum(axis=0) for name, delta in deltas.items()}
        merit = merit_of(gains[steps].sum(axis=0), violation_of(costs, self._bounds))
        chosen = [np.pad(steps[:, _highest(merit)], ((0, 1), (0, 0)), constant_values=len(self._dims))]
        pairs = self._moves.pairs
        pairs = pairs[:, np.isfinite(gains[pairs].sum(axis=0))]
        for name, delta in deltas.items():
            chosen.append(_joined(pairs, gains, delta, self._bounds[name] - here[name]))
        around = np.concatenate([single, self._changed(code, np.concatenate(chosen, axis=1))])
        around = around[(around != code).any(axis=1)]
        if not len(around):
            around = code[None]
        found = self.merit(around)
        order = np.argsort(-found, kind="stable")[:count]
        return around[order], found[order]

    def _changed(self, code: Codes, steps: Codes) -> Codes:
        """Return `code` after each of some steps, numbers of changes of shape (K, N); shape (N, D)."""
        padded = np.repeat(np.append(code, 0)[None], steps.shape[1], axis=0)
        dims, choices = np.append(self._dims, len(code)), np.append(self._choices, 0)
        rows = np.arange(steps.shape[1])
        for changes in steps:
            padded[rows, dims[changes]] = choices[changes]
        return padded[:, :-1]


def _highest(values: Vector) -> Codes:
    """Return the positions of the most promising values."""
    return np.argpartition(-values, min(_PROMISING, len(values) - 1))[:_PROMISING]


def _joined(pairs: Codes, gains: Vector, delta: Vector, slack: float) -> Codes:
    """Return the most promising two pairs of changes that together keep one bound, shape (4, N).

    For each pair the best one is found that the rest of the slack allows.

    Args:
        pairs: numbers of changes, shape (2, P).
        gains: of changes of one dimension.
        delta: what these add to the cost.
        slack: what may be added.
    """
    if not pairs.shape[1]:
        return np.zeros((4, 0), dtype=np.int64)
    gain, cost = gains[pairs].sum(axis=0), delta[pairs].sum(axis=0)
    order = np.argsort(cost, kind="stable")
    best = np.maximum.accumulate(gain[order])
    # Where the running best is reached anew stands its own place; after it, the latest such place.
    places = np.maximum.accumulate(np.where(gain[order] == best, np.arange(len(order)), 0))
    last = np.searchsorted(cost[order], slack - cost, side="right") - 1
    total = np.where(last >= 0, gain + best[last], -np.inf)
    chosen = _highest(total)
    chosen = chosen[np.isfinite(total[chosen])]
    return np.concatenate([pairs[:, chosen], pairs[:, order[places[last[chosen]]]]])


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
