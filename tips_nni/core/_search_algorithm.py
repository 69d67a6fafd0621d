"""What every search algorithm is: ask for a subnet, tell its accuracy. Book-keeping here, proposals in the subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._cost import CostModel
from tips_nni.core._errors import TipsError
from tips_nni.core._feasible import check_feasible
from tips_nni.core._front import FrontPoint, SearchResult, SearchSettings, front_of, objectives, volume
from tips_nni.core._space import Codes, SearchSpace, SubnetConfig

_ATTEMPTS = 2
Code = tuple[int, ...]


class SearchAlgorithm(ABC):
    """A search for the front, one question and one answer at a time: whoever measures decides when, where, how many.

    `ask` proposes a subnet that was not proposed before and keeps the constraints; `tell` takes its accuracy. The two
    may come in any order, so that many subnets can be measured at once; a measurement that fails is given back with
    `forget`. Deterministic for the state of `rng` and the order of calls.

    A subclass defines `_first` and `_next`; one with more state of its own also `_own_state` and `_load_own_state`.
    `tips_nni.testing.SearchContract` tests what is said here.

    Args:
        space: the search space.
        costs: every cost that a table gives; constraints are on these.
        objective_cost: the one to trade against accuracy: of `costs`, or one that is told with every accuracy.
        constraints: cost name -> upper bound.
        settings: population, mutation, candidates; generations are for whoever asks.
        rng: source of randomness.

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
    ) -> None:
        check_feasible(space, costs, constraints)
        self.space = space
        self.costs = costs
        self.objective_cost = objective_cost
        self.constraints = constraints
        self.settings = settings
        self._rng = rng
        self._known: dict[Code, FrontPoint] = {}
        self._pending: dict[Code, None] = {}
        self._failed: dict[Code, int] = {}
        self._queue: list[Code] = []
        self._begun = False
        self._history: list[float] = []
        self._box: tuple[float, float] | None = None

    @abstractmethod
    def _first(self) -> Codes:
        """Return what is measured first, feasible, shape (P, D)."""

    @abstractmethod
    def _next(self, taken: set[Code]) -> Codes:
        """Return what is measured next, feasible, shape (P, D), going by what is known.

        Args:
            taken: codes known, pending or failed; those among the returned ones are left out.
        """

    @abstractmethod
    def _rest(self, taken: set[Code]) -> Codes:
        """Return feasible codes, shape (P, D), where the other two found nothing that is not taken."""

    def _learn(self, config: SubnetConfig) -> None:  # noqa: B027
        """Take note that `config` was told."""

    def diagnostics(self) -> dict[str, float]:
        """Return what the algorithm has to say of itself, by name; nothing by default."""
        return {}

    def _own_state(self) -> dict[str, Any]:
        """Return the subclass's part of `state_dict`."""
        return {}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take up the subclass's part of the state."""

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
        self._learn(config)

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
        return SearchResult(
            front_of(points, self.objective_cost), points, value, (*self._history, value), self.diagnostics()
        )

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
            **self._own_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave.

        Raises:
            TipsError: the state belongs to another search, or is damaged.
        """
        try:
            known = {self._checked(code): (float(accuracy), costs) for code, accuracy, costs in state["known"]}
            pending = {self._checked(code): None for code in state["pending"]}
            failed = {self._checked(code): int(count) for code, count in state["failed"]}
            queue = [self._checked(code) for code in state["queue"]]
            box, begun = state["box"], bool(state["begun"])
            history = [float(value) for value in state["history"]]
            self._rng.bit_generator.state = state["rng"]
            self._load_own_state(state)
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
        """Fill the queue with new subnets."""
        taken = {*self._known, *self._pending, *self._failed}
        if not self._begun or not self._known:
            codes = self._first()
            if not self._begun and self.objective_cost in self.costs:
                largest = self.space.encode(self.space.largest)[None]
                values = self.costs[self.objective_cost].evaluate(np.concatenate([codes, largest]))
                logs = np.log(np.maximum(values, 1e-12))
                self._box = float(logs.min()), float(logs.max())
            self._begun = True
        else:
            self._history.append(self._volume())
            codes = self._next(taken)
        self._queue = [code for code in map(tuple, codes.tolist()) if code not in taken]
        if not self._queue and taken:
            self._queue = [code for code in map(tuple, self._rest(taken).tolist()) if code not in taken]

    def _values(self) -> NDArray[np.float64]:
        points = self._known.values()
        accuracy = np.array([point.accuracy for point in points])
        return objectives(accuracy, np.array([point.costs[self.objective_cost] for point in points]))

    def _volume(self) -> float:
        """Return the hypervolume, in the box of the first proposals or, for a told cost, of all measured subnets."""
        values = self._values()
        return volume(values, self._box or (float(values[:, 1].min()), float(values[:, 1].max())))
