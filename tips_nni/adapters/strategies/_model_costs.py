"""Multiply-adds of a foreign model space: a table over what was observed, or a count where that does not hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tips_nni.adapters.strategies._observe import Observations
from tips_nni.adapters.strategies._trace import Trace
from tips_nni.core import Codes, CostModel, SearchSpace, SubnetConfig, TabulatedCost, Term

_CHECKED = 8
_LARGEST_TABLE = 1 << 16


def multiply_adds(
    observed: Observations, trace: Callable[[SubnetConfig], Trace], rng: np.random.Generator
) -> CostModel:
    """Return ``mflops``: exact multiply-adds of every subnet, in millions.

    An operation's multiply-adds are a product of factors (input channels, output channels, kernel, positions), so that
    those seen while one label changed give those of any sample. Where random subnets show that some operation is not
    such a product, every subnet is counted on its own.
    """
    space = observed.space
    counted = CountedMultiplyAdds(space, trace)
    terms = _terms(observed)
    if terms is None:
        return counted
    table = TabulatedCost("mflops", "M", space, terms, scale=1e-6)
    codes = space.sample(rng, _CHECKED)
    return table if np.array_equal(table.exact(codes), counted.exact(codes)) else counted


class CountedMultiplyAdds(CostModel):
    """Multiply-adds counted in a forward of every subnet, each once."""

    name = "mflops"
    unit = "M"
    tabulated = False

    def __init__(self, space: SearchSpace, trace: Callable[[SubnetConfig], Trace]) -> None:
        self._space = space
        self._trace = trace
        self._known: dict[tuple[int, ...], int] = {}

    def exact(self, codes: Codes) -> NDArray[np.int64]:
        """Return the multiply-adds of every subnet, shape (N,)."""
        for code in map(tuple, codes.tolist()):
            if code not in self._known:
                self._known[code] = sum(self._trace(self._space.decode(code)).multiply_adds.values())
        return np.array([self._known[tuple(code)] for code in codes.tolist()], dtype=np.int64)

    def evaluate(self, codes: Codes) -> NDArray[np.float64]:
        """Return the multiply-adds of every subnet in millions, shape (N,)."""
        return np.asarray(self.exact(codes) * 1e-6, dtype=np.float64)


def _terms(observed: Observations) -> list[Term] | None:
    """Return a term for every operation; None where a table would be too large."""
    terms = []
    for name in dict.fromkeys(name for trace in observed.traces() for name in trace.multiply_adds):
        factors = _factors(observed, name)
        dims = tuple(sorted(factors))
        if np.prod([len(factors[dim]) for dim in dims], dtype=np.float64) > _LARGEST_TABLE:
            return None
        table = np.array(float(_reference(observed, name)))
        for dim in dims:
            table = table[..., None] * factors[dim]
        terms.append(Term(dims, np.rint(table).astype(np.int64)))
    return terms


def _reference(observed: Observations, name: str) -> int:
    """Return the multiply-adds in the first base sample that has the operation."""
    starts = (piece.traces[piece.start] for piece in observed.slices)
    bases = [trace.multiply_adds[name] for trace in starts if name in trace.multiply_adds]
    return bases[0] if bases else max(t.multiply_adds.get(name, 0) for t in observed.traces())


def _factors(observed: Observations, name: str) -> dict[int, NDArray[np.float64]]:
    """Return for every label that matters to an operation the factor of each option: 0 where it does not run."""
    factors: dict[int, NDArray[np.float64]] = {}
    for piece in observed.slices:
        counts = np.array([trace.multiply_adds.get(name, 0) for trace in piece.traces], dtype=np.float64)
        if piece.dim not in factors and counts[piece.start] > 0 and (counts != counts[0]).any():
            factors[piece.dim] = counts / counts[piece.start]
    for dim, options in observed.present(name).items():
        there = np.isin(np.arange(len(observed.space.dims[dim].choices)), sorted(options))
        factors[dim] = factors.get(dim, np.ones(len(there))) * there
    return factors
