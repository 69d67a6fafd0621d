"""NSGA-II as a search algorithm: children of the best subnets so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tips_nni.core._cost import CostModel
from tips_nni.core._front import SearchSettings, fittest
from tips_nni.core._policy import Policy
from tips_nni.core._proposals import Proposals
from tips_nni.core._search_algorithm import Code, SearchAlgorithm
from tips_nni.core._space import Codes, SearchSpace, SubnetConfig


class FrontSearch(SearchAlgorithm):
    """NSGA-II (Deb et al. 2002) over subnets.

    The first population is spread evenly over the logarithm of the cost; later ones are children of the best measured
    so far. With a policy half of the first candidates and the genes of mutants are the policy's draws, and the policy
    learns from every measured subnet (our reconstruction of TIPS for searches that train each subnet apart).

    Args:
        space: see `SearchAlgorithm`, as all that follow.
        costs: tables.
        objective_cost: to trade against accuracy.
        constraints: upper bounds.
        settings: of the search.
        rng: source of randomness.
        policy: draws new genes; uniform where None.

    Raises:
        TipsError: a constraint on a cost that no table gives.
        InfeasibleError: no subnet keeps the constraints.
    """

    def __init__(
        self,
        space: SearchSpace,
        costs: Mapping[str, CostModel],
        objective_cost: str,
        constraints: Mapping[str, float],
        settings: SearchSettings,
        rng: np.random.Generator,
        policy: Policy | None = None,
    ) -> None:
        super().__init__(space, costs, objective_cost, constraints, settings, rng)
        self._policy = policy
        self._proposals = Proposals(space, costs, costs.get(objective_cost), constraints, settings, self._genes)

    def _genes(self, rng: np.random.Generator, n: int) -> Codes:
        if self._policy is None:
            return self.space.sample(rng, n)
        return self.space.encode_many(self._policy.sample(rng, n))

    def _first(self) -> Codes:
        return self._proposals.first(self._rng)

    def _next(self, taken: set[Code]) -> Codes:
        best = fittest(self._values(), self.settings.population)
        codes = list(self._known)
        return self._proposals.children(np.array([codes[i] for i in best], dtype=np.int64), taken, self._rng)

    def _rest(self, taken: set[Code]) -> Codes:
        return self._proposals.rest(taken, self._rng)

    def _learn(self, config: SubnetConfig) -> None:
        if self._policy is not None:
            self._policy.observe([config])
            if self._policy.refresh_every and len(self._known) % self.settings.population == 0:
                self._policy.refresh()

    def _own_state(self) -> dict[str, Any]:
        return {"policy": None if self._policy is None else self._policy.state_dict()}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        if self._policy is not None:
            self._policy.load_state_dict(state["policy"])
