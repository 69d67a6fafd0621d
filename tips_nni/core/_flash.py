"""FLASH's search: the best predicted subnet under constraints, by SHGO on relaxations and moves on the exact tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._cost import CostModel
from tips_nni.core._errors import InfeasibleError, TipsError
from tips_nni.core._feasible import check_feasible, descend
from tips_nni.core._nn_degree import NNDegree
from tips_nni.core._refinement import Moves, Refinement, Score, merit_of, violation_of
from tips_nni.core._relaxation import Relaxation, kind_groups
from tips_nni.core._space import CHANNEL_KINDS, Codes

Vector = NDArray[np.float64]

#: Variables of the second relaxation, at most; neighbouring cells share one where there are more cells.
_CELL_GROUPS = 6


@dataclass(frozen=True)
class FlashSettings:
    """Settings of `FlashSolver`.

    Attributes:
        starts: local minima, and as many random subnets near them, that are refined, at least 1.
        kicks: how often the best is left, to be found again or surpassed, at least 0.
        iterations: steps of SHGO's local minimiser, at least 1.
    """

    starts: int = 6
    kicks: int = 3
    iterations: int = 20

    def __post_init__(self) -> None:
        for name, least in (("starts", 1), ("kicks", 0), ("iterations", 1)):
            if getattr(self, name) < least:
                value = getattr(self, name)
                raise TipsError(f"{name} = {value} of search algorithm 'flash'; it must be at least {least}")


class FlashSolver:
    """Finds the subnet of the highest score under upper bounds of costs, in a fraction of a second.

    Published (FLASH 2021): a hierarchical search by simplicial homology global optimisation (SHGO) over relaxed
    architecture parameters, with analytical constraints. Our reading, in three stages:

    1. SHGO over one variable for each kind of dimension (width, hidden width, heads, depth, resolution), which scales
       all of that kind together;
    2. SHGO over one variable for each cell of the network, which shifts the dimensions of that cell around the result
       of the first stage;
    3. the local minima of both, rounded, and random subnets near them are improved and repaired on the exact tables,
       see `Refinement`.

    Stages 1 and 2 see score and costs exact on a lattice, multilinear between. The result is a local optimum with
    regard to all changes of one dimension and the most promising ones of two to four; no more is promised.

    Args:
        degree: NN-Degree of the network, for its cells.
        costs: tables.
        constraints: cost name -> upper bound that everything keeps.
        score: of subnets, to be maximised: codes (N, D) -> (N,).
        settings: of the search.

    Raises:
        TipsError: a constraint on a cost that is unknown or has no table.
        InfeasibleError: no subnet keeps the constraints.
    """

    def __init__(
        self,
        degree: NNDegree,
        costs: Mapping[str, CostModel],
        constraints: Mapping[str, float],
        score: Score,
        settings: FlashSettings | None = None,
    ) -> None:
        check_feasible(degree.space, costs, constraints)
        check_tabulated(costs, constraints)
        self.space = degree.space
        self.costs = costs
        self.constraints = dict(constraints)
        self.score = score
        self.settings = settings or FlashSettings()
        self._cells = _cell_groups(degree)
        self._kinds = kind_groups(self.space)
        self._moves = Moves(self.space)
        base = np.ones(len(self.space.dims))
        # A dimension without an order stays at the backbone's own choice until the moves.
        self._coarse = Relaxation(self.space, self._kinds, base, 1.0, 1.0) if self._kinds else None
        self._coarse_score = score(self._coarse.lattice) if self._coarse is not None else np.zeros(0)
        self._coarse_costs: dict[str, Vector] = {}

    def solve(
        self, limits: Mapping[str, float], rng: np.random.Generator, starts: Codes | None = None
    ) -> tuple[Codes, float]:
        """Return the code, shape (D,), and the score of the best subnet found within the constraints and `limits`.

        Args:
            limits: cost name -> further upper bound.
            rng: source of the random starts.
            starts: further subnets to start from, shape (S, D).

        Raises:
            InfeasibleError: no subnet that keeps all bounds was found.
        """
        bounds = dict(self.constraints)
        for name, limit in limits.items():
            bounds[name] = min(limit, bounds.get(name, limit))
        check_tabulated(self.costs, bounds)
        pool = [*self._relaxed(bounds), *([] if starts is None else list(starts))]
        if not pool:
            pool = [self.space.encode(self.space.smallest), self.space.encode(self.space.largest)]
        refinement = Refinement(self.space, self._moves, self.score, self.costs, bounds)
        found = refinement.best(np.stack(pool), self.settings.starts, self.settings.kicks, rng)
        if not refinement.feasible(found):
            wanted = ", ".join(f"{name} <= {limit:g}" for name, limit in bounds.items())
            raise InfeasibleError(f"no subnet was found that keeps {wanted} all together; raise one of the limits")
        return found, float(self.score(found[None])[0])

    def front(self, cost: str, count: int, rng: np.random.Generator) -> Codes:
        """Return the best subnets found within `count` limits of a cost, evenly spaced in its logarithm.

        Each limit starts also from the result of the one before.

        Returns:
            Distinct codes from the cheapest limit to the dearest, shape (at most count, D), none with a lower score
            than one before.
        """
        check_tabulated(self.costs, [cost])
        dearest, _ = self.solve({}, rng)
        ends = np.stack([descend(self.space, self.costs[cost])[0], dearest])
        low, high = np.maximum(self.costs[cost].evaluate(ends), 1e-12)
        codes: list[Codes] = []
        best = -np.inf
        for limit in np.geomspace(low, max(low, high), count):
            try:
                code, value = self.solve({cost: limit * (1 + 1e-9)}, rng, np.stack(codes[-1:] or [ends[0]]))
            except InfeasibleError:
                continue  # the other constraints leave nothing so cheap
            if value > best:
                best = value
                codes.append(code)
        return np.stack(codes or [dearest])

    def _relaxed(self, bounds: Mapping[str, float]) -> list[Codes]:
        """Return the rounded local minima of both relaxations, best first."""
        if self._coarse is None:
            return []
        coarse = self._coarse
        for name in bounds:
            if name not in self._coarse_costs:
                self._coarse_costs[name] = self.costs[name].evaluate(coarse.lattice)
        costs = {name: self._coarse_costs[name] for name in bounds}
        points = coarse.minima(self._coarse_score, costs, bounds, self.settings.iterations)[: self.settings.starts]
        if not len(points):
            # SHGO saw no feasible corner: go on from the best feasible point of the lattice, if there is one.
            merit = merit_of(self._coarse_score, violation_of(costs, bounds))
            points = coarse.grid[[int(merit.argmax())]]
        fine = Relaxation(self.space, self._cells, coarse.positions(points[:1])[0], 0.5, 1.0)
        values = {name: self.costs[name].evaluate(fine.lattice) for name in bounds}
        closer = fine.minima(self.score(fine.lattice), values, bounds, self.settings.iterations)
        return [*fine.codes(closer[: self.settings.starts]), *coarse.codes(points)]


def _cell_groups(degree: NNDegree) -> list[list[int]]:
    """Return the columns of ordered dimensions by cell: a dimension belongs to the first cell that sees it."""
    space = degree.space
    free = {i for i, dim in enumerate(space.dims) if dim.kind in CHANNEL_KINDS | {"depth"}}
    groups: list[list[int]] = []
    for dims in degree.cell_dims:
        own = [i for i in dims if i in free]
        free -= set(own)
        if own:
            groups.append(own)
    while len(groups) > _CELL_GROUPS:
        sizes = [len(a) + len(b) for a, b in pairwise(groups)]
        i = int(np.argmin(sizes))
        groups[i : i + 2] = [groups[i] + groups[i + 1]]
    return groups


def check_tabulated(costs: Mapping[str, CostModel], names: Iterable[str]) -> None:
    """Check that costs are known beforehand, for thousands of subnets at once.

    Raises:
        TipsError: one is not.
    """
    for name in names:
        if name not in costs:
            raise TipsError(
                f"search algorithm 'flash' must know {name} beforehand, and no table gives it (there are: "
                f"{', '.join(sorted(costs)) or 'none'}); take one of these, or search.algorithm: evolution"
            )
        if not costs[name].tabulated:
            raise TipsError(
                f"search algorithm 'flash' asks for {name} of thousands of subnets, and each is measured on its own; "
                "take another cost, or search.algorithm: evolution"
            )
