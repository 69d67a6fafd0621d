"""The search for the front as ask and tell: whoever measures decides when, where and how many at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._cost import CostModel
from tips_nni.core._errors import TipsError
from tips_nni.core._feasible import check_feasible
from tips_nni.core._front import FrontPoint, SearchResult, SearchSettings, fittest, front_of, objectives, volume
from tips_nni.core._policy import Policy
from tips_nni.core._proposals import Proposals
from tips_nni.core._space import Codes, SearchSpace, SubnetConfig

_ATTEMPTS = 2
Code = tuple[int, ...]


class FrontSearch:
    """NSGA-II (Deb et al. 2002) over subnets, one question and one answer at a time.

    `ask` proposes a subnet that was not proposed before and keeps the constraints; `tell` takes its accuracy. The two
    may come in any order, so that many subnets can be measured at once; a measurement that fails is given back with
    `forget`. The first population is spread evenly over the logarithm of the cost; later ones are children of the best
    measured so far. With a policy half of the first candidates and the genes of mutants are the policy's draws, and the
    policy learns from every measured subnet (our reconstruction of TIPS for searches that train each subnet apart).
    Deterministic for the state of `rng` and the order of calls.

    Args:
        space: the search space.
        costs: every cost that a table gives; constraints are on these.
        objective_cost: the one to trade against accuracy: of `costs`, or one that is told with every accuracy.
        constraints: cost name -> upper bound.
        settings: population, mutation, candidates; generations are for whoever asks.
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
        check_feasible(space, costs, constraints)
        self.space = space
        self.costs = costs
        self.objective_cost = objective_cost
        self.settings = settings
        self._rng = rng
        self._policy = policy
        cost = costs.get(objective_cost)
        self._proposals = Proposals(space, costs, cost, constraints, settings, self._genes)
        self._known: dict[Code, FrontPoint] = {}
        self._pending: dict[Code, None] = {}
        self._failed: dict[Code, int] = {}
        self._queue: list[Code] = []
        self._begun = False
        self._history: list[float] = []
        self._box: tuple[float, float] | None = None

    def _genes(self, rng: np.random.Generator, n: int) -> Codes:
        if self._policy is None:
            return self.space.sample(rng, n)
        return self.space.encode_many(self._policy.sample(rng, n))

    @property
    def pending(self) -> tuple[SubnetConfig, ...]:
        """The subnets asked for and not yet told, oldest first."""
        return tuple(self.space.decode(code) for code in self._pending)

    @property
    def measured(self) -> int:
        """The number of measured subnets."""
        return len(self._known)

    def knows(self, config: SubnetConfig) -> bool:
        """Whether a subnet has been measured."""
        return self._code(config) in self._known

    def ask(self) -> SubnetConfig | None:
        """Return the next subnet to measure, or None when every feasible one that can be found is known or asked."""
        if not self._queue:
            self._propose()
        if not self._queue:
            return None
        code = self._queue.pop(0)
        self._pending[code] = None
        return self.space.decode(code)

    def tell(self, config: SubnetConfig, accuracy: float, costs: Mapping[str, float] | None = None) -> None:
        """Take the accuracy of a subnet, asked for or not; a later one replaces an earlier one.

        Args:
            config: the subnet.
            accuracy: finite; higher is better.
            costs: measured costs, by name; they take the place of the tables'.

        Raises:
            TipsError: the subnet is of another space, a value is not finite, or the objective cost is not known.
        """
        code = self._code(config)
        told = {name: float(value) for name, value in (costs or {}).items()}
        for name, value in {"accuracy": accuracy, **told}.items():
            if not np.isfinite(value):
                raise TipsError(f"{name} = {value} of subnet {list(code)}; it must be a finite number")
        row = np.array([code], dtype=np.int64)
        every = {**{name: float(model.evaluate(row)[0]) for name, model in self.costs.items()}, **told}
        if self.objective_cost not in every:
            raise TipsError(
                f"subnet {list(code)} came without its {self.objective_cost}, which the search trades against "
                "accuracy; report it with the accuracy"
            )
        self._pending.pop(code, None)
        self._failed.pop(code, None)
        self._queue = [queued for queued in self._queue if queued != code]
        self._known[code] = FrontPoint(self.space.decode(code), float(accuracy), every)
        if self._policy is not None:
            self._policy.observe([config])
            if self._policy.refresh_every and len(self._known) % self.settings.population == 0:
                self._policy.refresh()

    def forget(self, config: SubnetConfig) -> None:
        """Give back a subnet whose measurement failed: it is asked for once more, then never again."""
        code = self._code(config)
        if code in self._pending:
            del self._pending[code]
            self._failed[code] = self._failed.get(code, 0) + 1
            if self._failed[code] < _ATTEMPTS:
                self._queue.insert(0, code)

    def expect(self, config: SubnetConfig) -> None:
        """Take note that somebody measures a subnet that was not asked for here; it will not be asked for."""
        code = self._code(config)
        if code not in self._known:
            self._queue = [queued for queued in self._queue if queued != code]
            self._pending[code] = None

    def requeue(self) -> None:
        """Ask for all pending subnets again: whoever was to measure them is gone."""
        self._queue = [*self._pending, *self._queue]
        self._pending.clear()

    @property
    def result(self) -> SearchResult:
        """What has been found so far.

        Raises:
            TipsError: nothing has been measured.
        """
        if not self._known:
            raise TipsError("the search has no front yet: no subnet has been measured")
        points = tuple(self._known.values())
        value = self._volume()
        return SearchResult(front_of(points, self.objective_cost), points, value, (*self._history, value))

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides what is asked next, as plain JSON data."""
        return {
            "known": [[list(code), point.accuracy, dict(point.costs)] for code, point in self._known.items()],
            "pending": [list(code) for code in self._pending],
            "failed": [[list(code), count] for code, count in self._failed.items()],
            "queue": [list(code) for code in self._queue],
            "begun": self._begun,
            "box": self._box,
            "history": list(self._history),
            "rng": self._rng.bit_generator.state,
            "policy": None if self._policy is None else self._policy.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave.

        Raises:
            TipsError: the state belongs to another search space or policy, or is damaged.
        """
        try:
            known = {self._checked(code): (float(accuracy), costs) for code, accuracy, costs in state["known"]}
            pending = {self._checked(code): None for code in state["pending"]}
            failed = {self._checked(code): int(count) for code, count in state["failed"]}
            queue = [self._checked(code) for code in state["queue"]]
            box, begun = state["box"], bool(state["begun"])
            history = [float(value) for value in state["history"]]
            self._rng.bit_generator.state = state["rng"]
            if self._policy is not None:
                self._policy.load_state_dict(state["policy"])
        except (KeyError, TypeError, ValueError) as error:
            raise TipsError(
                f"this is no state of a search over this space ({error}); delete it to start anew"
            ) from error
        self._known = {
            code: FrontPoint(self.space.decode(code), accuracy, {str(k): float(v) for k, v in costs.items()})
            for code, (accuracy, costs) in known.items()
        }
        self._pending, self._failed, self._queue = pending, failed, queue
        self._box = None if box is None else (float(box[0]), float(box[1]))
        self._begun, self._history = begun, history

    def _code(self, config: SubnetConfig) -> Code:
        return tuple(self.space.encode(config).tolist())

    def _checked(self, code: Any) -> Code:
        return self._code(self.space.decode(code))

    def _propose(self) -> None:
        """Fill the queue with new subnets, at most one population."""
        taken = {*self._known, *self._pending, *self._failed}
        codes: Codes = np.empty((0, len(self.space.dims)), dtype=np.int64)
        if not self._begun or not self._known:
            codes = self._proposals.first(self._rng)
            if not self._begun and self.objective_cost in self.costs:
                largest = self.space.encode(self.space.largest)[None]
                values = self.costs[self.objective_cost].evaluate(np.concatenate([codes, largest]))
                logs = np.log(np.maximum(values, 1e-12))
                self._box = float(logs.min()), float(logs.max())
            self._begun = True
        else:
            self._history.append(self._volume())
            codes = self._proposals.children(self._parents(), taken, self._rng)
        self._queue = [code for code in map(tuple, codes.tolist()) if code not in taken]
        if not self._queue and taken:
            self._queue = [tuple(code) for code in self._proposals.rest(taken, self._rng).tolist()]

    def _parents(self) -> Codes:
        """Return the best measured codes, at most one population."""
        best = fittest(self._values(), self.settings.population)
        codes = list(self._known)
        return np.array([codes[i] for i in best], dtype=np.int64)

    def _values(self) -> NDArray[np.float64]:
        points = self._known.values()
        accuracy = np.array([point.accuracy for point in points])
        return objectives(accuracy, np.array([point.costs[self.objective_cost] for point in points]))

    def _volume(self) -> float:
        """Return the hypervolume, in the box of the first proposals or, for a told cost, of all measured subnets."""
        values = self._values()
        return volume(values, self._box or (float(values[:, 1].min()), float(values[:, 1].max())))
