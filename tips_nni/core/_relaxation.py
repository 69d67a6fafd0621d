"""A search space relaxed to a few continuous variables, and SHGO on them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import shgo

from tips_nni.core._space import Codes, SearchSpace

Vector = NDArray[np.float64]

#: Subnets that a relaxation is tabulated on, at most.
_POINTS = 4096


class Relaxation:
    """Subnets as points of a cube: each variable moves the choices of a group of dimensions together.

    A variable v from 0 to 1 puts a dimension of its group at the relative position ``base + span · (v − pivot)``,
    clipped to 0 … 1, of its choices. Score and costs are exact on a lattice of the variables and multilinear between.

    Args:
        space: the search space.
        groups: columns of the code that move together; a column in none stays at its base.
        base: relative position of every dimension, shape (D,), 0 to 1.
        pivot: the value of the variables at which every dimension is at its base.
        span: how far a variable moves a dimension.

    Attributes:
        grid: the points of the lattice, shape (levels ** variables, variables).
        lattice: their subnets, shape (levels ** variables, D).
    """

    def __init__(
        self, space: SearchSpace, groups: Sequence[Sequence[int]], base: Vector, pivot: float, span: float
    ) -> None:
        self.space = space
        self.base = base
        self.count = len(groups)
        self._pivot, self._span = pivot, span
        self._column = np.full(len(space.dims), -1, dtype=np.int64)
        for number, group in enumerate(groups):
            self._column[list(group)] = number
        self.levels = max(2, min(9, int(_POINTS ** (1 / max(1, self.count)))))
        shape = (self.levels,) * self.count
        self.grid = np.indices(shape).reshape(self.count, -1).T / (self.levels - 1)
        self.lattice = self.codes(self.grid)
        self._strides = self.levels ** np.arange(self.count)[::-1]
        corners = np.indices((2,) * self.count).reshape(self.count, -1)
        self._corners = self._strides @ corners

    def positions(self, points: Vector) -> Vector:
        """Return the relative position of every dimension at points of the cube, shape (N, D)."""
        padded = np.concatenate([points, np.full((len(points), 1), self._pivot)], axis=1)
        return np.asarray(np.clip(self.base + self._span * (padded[:, self._column] - self._pivot), 0.0, 1.0))

    def codes(self, points: Vector) -> Codes:
        """Return the nearest subnets to points of the cube, shape (N, D)."""
        return np.rint(self.positions(points) * (self.space.sizes - 1)).astype(np.int64)

    def interpolate(self, tables: Vector, point: Vector) -> Vector:
        """Return tables over the lattice, shape (K, levels ** variables), at a point of the cube, shape (K,)."""
        scaled = np.clip(point, 0.0, 1.0) * (self.levels - 1)
        cell = np.minimum(scaled.astype(np.int64), self.levels - 2)
        weights = np.ones(1)
        for share in scaled - cell:
            weights = np.multiply.outer(weights, (1 - share, share)).ravel()
        return np.asarray(tables[:, cell @ self._strides + self._corners] @ weights)

    def minima(
        self, score: Vector, costs: Mapping[str, Vector], limits: Mapping[str, float], iterations: int
    ) -> Vector:
        """Return the points that SHGO ends at, best first, shape (M, variables); M may be 0.

        Args:
            score: on the lattice, to be maximised.
            costs: cost name -> values on the lattice.
            limits: cost name -> upper bound.
            iterations: steps of a local minimiser, at most.
        """
        names = list(limits)
        spread = float(np.ptp(score)) or 1.0
        tables = np.stack([-score / spread, *(1 - costs[name] / limits[name] for name in names)])
        last: dict[bytes, Vector] = {}

        def at(point: Vector) -> Vector:
            key = point.tobytes()
            if key not in last:
                last.clear()  # objective and constraints are asked for the same point one after the other
                last[key] = self.interpolate(tables, point)
            return last[key]

        minimise: Any = shgo  # its stubs know no dictionary of constraints as scipy documents it
        with warnings.catch_warnings():
            # SLSQP steps past the bounds of the cube and says so; values outside are those of its surface.
            warnings.filterwarnings("ignore", message="Values in x were outside bounds", category=RuntimeWarning)
            found = minimise(
                lambda point: float(at(point)[0]),
                [(0.0, 1.0)] * self.count,
                constraints=[{"type": "ineq", "fun": lambda point: at(point)[1:]}] if names else (),
                n=2**self.count + 1,
                iters=1,
                minimizer_kwargs={"method": "SLSQP", "options": {"maxiter": iterations, "ftol": 1e-4}},
            )
        points = getattr(found, "xl", None)
        return np.zeros((0, self.count)) if points is None else np.clip(np.asarray(points, dtype=np.float64), 0.0, 1.0)


def kind_groups(space: SearchSpace) -> list[list[int]]:
    """Return the columns of each kind of dimension; those of dimensions without an order are in none."""
    kinds = ("width", "hidden", "heads", "depth", "resolution")
    groups = [[i for i, dim in enumerate(space.dims) if dim.kind == kind] for kind in kinds]
    return [group for group in groups if group]
