"""Constraints: which subnets keep them, and whether any does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._cost import CostModel
from tips_nni.core._errors import InfeasibleError, unknown
from tips_nni.core._space import Codes, SearchSpace

#: Spaces up to this size are enumerated where an exact answer over all subnets is wanted.
ENUMERABLE = 200_000


def every_code(space: SearchSpace) -> Codes:
    """Return the codes of all subnets, shape (size, D), the last dimension changing fastest."""
    return np.indices(tuple(space.sizes)).reshape(len(space.dims), -1).T.astype(np.int64)


def check_feasible(space: SearchSpace, costs: Mapping[str, CostModel], constraints: Mapping[str, float]) -> None:
    """Check that some subnet keeps every constraint.

    The nearest feasible value of a cost is its smallest over the space: exact by enumeration up to `ENUMERABLE`
    subnets; beyond, or where costs are not tabulated, the best that coordinate descent from the smallest subnet finds.

    Raises:
        TipsError: a constraint on an unknown cost.
        InfeasibleError: no subnet keeps a constraint, or none was found that keeps all together.
    """
    for name in constraints:
        if name not in costs:
            raise unknown("cost in the constraints", name, costs)
    if not constraints:
        return
    if space.size <= ENUMERABLE and all(costs[name].tabulated for name in constraints):
        codes = every_code(space)
        values = {name: costs[name].evaluate(codes) for name in constraints}
        least = {name: float(value.min()) for name, value in values.items()}
        together = np.logical_and.reduce([values[name] <= limit for name, limit in constraints.items()]).any()
    else:
        minima = {name: descend(space, costs[name]) for name in constraints}
        least = {name: value for name, (_, value) in minima.items()}
        codes = np.stack([space.encode(space.smallest), *(code for code, _ in minima.values())])
        together = bool(feasible(codes, costs, constraints).any())
    for name, limit in constraints.items():
        if least[name] > limit:
            raise InfeasibleError(
                f"no subnet has {name} <= {limit:g}; the smallest is {least[name]:.6g} {costs[name].unit}: raise the "
                "limit, or give the search space smaller choices"
            )
    if not together:
        wanted = ", ".join(f"{name} <= {limit:g}" for name, limit in constraints.items())
        raise InfeasibleError(f"no subnet keeps {wanted} all together, though each alone; raise one of the limits")


def descend(space: SearchSpace, cost: CostModel) -> tuple[Codes, float]:
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


def feasible(codes: Codes, costs: Mapping[str, CostModel], constraints: Mapping[str, float]) -> NDArray[np.bool_]:
    """Return which subnets keep every constraint, shape (N,)."""
    result = np.ones(len(codes), dtype=np.bool_)
    for name, limit in constraints.items():
        result &= costs[name].evaluate(codes) <= limit
    return result
