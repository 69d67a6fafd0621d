"""Subnets that grow by importance per multiply-add: the fourth way to draw, our reconstruction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._budgets import draw_budgets
from tips_nni.core._cost import CostTable
from tips_nni.core._path_forms import unordered
from tips_nni.core._space import Codes
from tips_nni.core._unlocks import Unlocks

Floats = NDArray[np.float64]

_CHAINS = 64


class GrowthForm:
    """Subnets on chains from the smallest to the largest one, cut at a drawn budget.

    A chain adds, one after the other, the option of the highest importance per multiply-add that it costs then and
    there: exp(noise · Gumbel) · importance / added multiply-adds. Along a chain subnets are nested, and each has what
    is worth its price; `noise` says how far chains differ. Dimensions without order are drawn uniformly.

    Args:
        unlocks: the options.
        table: exact multiply-adds.
        gains: importance of every option, shape (U,), positive.
        noise: at least 0.
        thrift: see `draw_budgets`.
        rng: decides the chains.

    Attributes:
        codes: the subnets of every chain, shape (chains, length, D).
        log_flops: logarithms of their multiply-adds, shape (chains, length); a chain that ended repeats its end.
    """

    def __init__(
        self,
        unlocks: Unlocks,
        table: CostTable,
        gains: Floats,
        noise: float,
        thrift: float,
        rng: np.random.Generator,
    ) -> None:
        self._thrift = thrift
        space = table.space
        codes = np.zeros((_CHAINS, len(space.dims)), dtype=np.int64)
        free = unordered(space)
        codes[:, free] = space.sample(rng, _CHAINS)[:, free]
        worth = np.full((_CHAINS, len(space.dims), int(space.sizes.max())), -np.inf)
        for (dim, level), gain in zip(unlocks.options, gains.tolist(), strict=True):
            worth[:, dim, level] = np.log(gain) + noise * rng.gumbel(size=_CHAINS)
        flops = table.flops(codes).astype(np.float64)
        steps = [(codes, flops)]
        while True:
            scores, costs = self._candidates(table, worth, codes, flops)
            best = scores.argmax(axis=1)
            rows = np.flatnonzero(np.isfinite(scores.max(axis=1)))
            if not len(rows):
                break
            codes, flops = codes.copy(), flops.copy()
            codes[rows, best[rows]] += 1
            flops[rows] = costs[rows, best[rows]]
            steps.append((codes, flops))
        self.codes: Codes = np.stack([step[0] for step in steps], axis=1)
        self.log_flops: Floats = np.log(np.stack([step[1] for step in steps], axis=1))

    @staticmethod
    def _candidates(table: CostTable, worth: Floats, codes: Codes, flops: Floats) -> tuple[Floats, Floats]:
        """Return the score of widening every dimension by one option, and the multiply-adds then: (chains, D) each.

        −∞ at the last option, and where it would change nothing: the width of a block that is left out.
        """
        chains, dims = codes.shape
        scores, costs = np.full((chains, dims), -np.inf), np.zeros((chains, dims))
        rows = np.arange(chains)
        for dim, size in enumerate(table.space.sizes.tolist()):
            wider = codes.copy()
            wider[:, dim] = np.minimum(wider[:, dim] + 1, size - 1)
            costs[:, dim] = table.flops(wider)
            added = costs[:, dim] - flops
            price = np.log(np.maximum(added, 1.0))
            scores[:, dim] = np.where(added > 0, worth[rows, dim, wider[:, dim]] - price, -np.inf)
        return scores, costs

    def draw(self, rng: np.random.Generator, n: int) -> Codes:
        """Return `n` codes, shape (n, D)."""
        chains = rng.integers(len(self.codes), size=n)
        log_flops = self.log_flops[chains]
        budgets = draw_budgets(rng, log_flops[:, 0], log_flops[:, -1], self._thrift)
        nearest = np.abs(log_flops - budgets[:, None]).argmin(axis=1)
        return np.asarray(self.codes[chains, nearest])
