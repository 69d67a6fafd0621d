"""Subnets that grow by importance per multiply-add: the fourth way to draw, our reconstruction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._budgets import Spending, draw_budgets
from tips_nni.core._path_forms import MarginalForm, unordered
from tips_nni.core._space import Codes, SearchSpace
from tips_nni.core._unlocks import Unlocks

Floats = NDArray[np.float64]

#: Chains between two refreshes: some thousand subnets, and a refresh that stays far below a step's time.
_CHAINS = 64


class GrowthForm:
    """Subnets on chains from the smallest to the largest one, cut at a drawn budget.

    A chain adds, one after the other, the option of the highest importance for what it costs then and there:
    exp(noise · Gumbel) · importance / added multiply-adds. Along a chain subnets are nested, and each has what is
    worth its price; `noise` says how far chains differ. Dimensions without order are drawn on their own.

    Args:
        unlocks: the options.
        space: the search space.
        spending: multiply-adds of subnets.
        others: draws the dimensions without order.
        gains: importance of every option, shape (U,), positive.
        noise: at least 0.
        thrift: see `draw_budgets`.
        rng: decides the chains.

    Attributes:
        codes: the subnets of every chain, shape (chains, length, D).
        log_spent: logarithms of their multiply-adds, shape (chains, length); a chain that ended repeats its end.
    """

    def __init__(
        self,
        unlocks: Unlocks,
        space: SearchSpace,
        spending: Spending,
        others: MarginalForm,
        gains: Floats,
        noise: float,
        thrift: float,
        rng: np.random.Generator,
    ) -> None:
        self._thrift = thrift
        self._sizes, self._spending = space.sizes.tolist(), spending
        codes = np.zeros((_CHAINS, len(space.dims)), dtype=np.int64)
        free = unordered(space)
        codes[:, free] = others.draw(rng, _CHAINS)[:, free]
        worth = np.full((_CHAINS, len(space.dims), int(space.sizes.max())), -np.inf)
        for (dim, level), gain in zip(unlocks.options, gains.tolist(), strict=True):
            worth[:, dim, level] = np.log(gain) + noise * rng.gumbel(size=_CHAINS)
        spent = spending(codes)
        steps = [(codes, spent)]
        while True:
            scores, costs = self._candidates(worth, codes, spent)
            best = scores.argmax(axis=1)
            rows = np.flatnonzero(np.isfinite(scores.max(axis=1)))
            if not len(rows):
                break
            codes, spent = codes.copy(), spent.copy()
            codes[rows, best[rows]] += 1
            spent[rows] = costs[rows, best[rows]]
            steps.append((codes, spent))
        self.codes: Codes = np.stack([step[0] for step in steps], axis=1)
        self.log_spent: Floats = np.log(np.stack([step[1] for step in steps], axis=1))

    def _candidates(self, worth: Floats, codes: Codes, spent: Floats) -> tuple[Floats, Floats]:
        """Return the score of widening every dimension by one option, and the multiply-adds then: (chains, D) each.

        −∞ at the last option, and where it would change nothing: the width of a block that is left out.
        """
        chains, dims = codes.shape
        scores, costs = np.full((chains, dims), -np.inf), np.zeros((chains, dims))
        rows = np.arange(chains)
        for dim, size in enumerate(self._sizes):
            wider = codes.copy()
            wider[:, dim] = np.minimum(wider[:, dim] + 1, size - 1)
            costs[:, dim] = self._spending(wider)
            added = costs[:, dim] - spent
            dearer = added > 0
            price = np.log(np.where(dearer, added, 1.0))
            scores[:, dim] = np.where(dearer, worth[rows, dim, wider[:, dim]] - price, -np.inf)
        return scores, costs

    def draw(self, rng: np.random.Generator, n: int) -> Codes:
        """Return `n` codes, shape (n, D)."""
        chains = rng.integers(len(self.codes), size=n)
        log_spent = self.log_spent[chains]
        budgets = draw_budgets(rng, log_spent[:, 0], log_spent[:, -1], self._thrift)
        nearest = np.abs(log_spent - budgets[:, None]).argmin(axis=1)
        return np.asarray(self.codes[chains, nearest])
