"""What every search algorithm must keep, as a test class to subclass."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod

import numpy as np
import pytest

from tips_nni.core import (
    Architecture,
    CostTable,
    InfeasibleError,
    SearchAlgorithm,
    SearchProblem,
    SearchSettings,
    SubnetConfig,
    TipsError,
)


class SearchContract(ABC):
    """Contract tests of a search algorithm.

    Subclass it in a test module, name the class ``Test...``, define `make`, and give a fixture ``architecture`` whose
    space has at most some hundred subnets, among them some of less and some of more than half the largest one's
    multiply-adds; pytest finds the tests.
    """

    @abstractmethod
    def make(self, problem: SearchProblem, settings: SearchSettings, rng: np.random.Generator) -> SearchAlgorithm:
        """Return a new search."""

    def search(self, architecture: Architecture, bound: float | None = None, seed: int = 0) -> SearchAlgorithm:
        """Return a search of subnets of at most `bound` million multiply-adds."""
        constraints = {} if bound is None else {"mflops": bound}
        problem = SearchProblem(
            architecture.space, CostTable(architecture).models(), "mflops", constraints, architecture
        )
        return self.make(problem, SearchSettings(population=5, candidates=256), np.random.default_rng(seed))

    def half(self, architecture: Architecture) -> float:
        """Return half the multiply-adds of the largest subnet, in millions."""
        space = architecture.space
        return float(CostTable(architecture).flops(space.encode_many([space.largest]))[0]) / 2e6

    def drive(self, search: SearchAlgorithm, count: int, at_once: int = 1, seed: int = 0) -> list[SubnetConfig]:
        """Measure at most `count` subnets, `at_once` at a time, answered in a shuffled order; return those asked."""
        rng = np.random.default_rng(seed)
        asked: list[SubnetConfig] = []
        running: list[SubnetConfig] = []
        while len(asked) < count or running:
            while len(asked) < count and len(running) < at_once:
                config = search.ask()
                if config is None:
                    count = len(asked)
                    break
                asked.append(config)
                running.append(config)
            if running:
                config = running.pop(int(rng.integers(len(running))))
                search.tell(config, self.accuracy(config))
        return asked

    def accuracy(self, config: SubnetConfig) -> float:
        """Return a made-up accuracy, 0 to 1, that grows with every dimension."""
        gains = 1 + np.arange(len(config.values)) % 3
        return float(1 - 1 / (1 + np.log(config.values) @ gains / 10))

    @pytest.mark.parametrize("at_once", [1, 3])
    def test_every_feasible_subnet_is_asked_for_once_and_then_none(
        self, architecture: Architecture, at_once: int
    ) -> None:
        bound = self.half(architecture)
        search = self.search(architecture, bound)
        space = architecture.space
        every = list(space.enumerate())
        costs = CostTable(architecture).flops(space.encode_many(every)) / 1e6
        feasible = {config for config, cost in zip(every, costs, strict=True) if cost <= bound}
        assert 0 < len(feasible) < len(every)
        asked = self.drive(search, 10 * len(every), at_once)
        assert len(asked) == len(set(asked))
        assert set(asked) == feasible
        assert search.ask() is None
        assert max(point.accuracy for point in search.result.points) == max(map(self.accuracy, feasible))

    def test_more_can_be_asked_for_at_once_than_a_population(self, architecture: Architecture) -> None:
        search = self.search(architecture)
        asked = [search.ask() for _ in range(8)]
        assert None not in asked
        assert len(set(asked)) == 8
        assert list(search.pending) == asked
        assert search.measured == 0

    def test_the_generator_and_the_answers_decide_everything(self, architecture: Architecture) -> None:
        runs = [self.drive(self.search(architecture, seed=seed), 14) for seed in (3, 3)]
        assert runs[0] == runs[1]

    @pytest.mark.parametrize("told", [0, 3, 5, 12])
    def test_its_state_is_plain_and_restores_it(self, architecture: Architecture, told: int) -> None:
        search, copy = self.search(architecture), self.search(architecture, seed=9)
        self.drive(search, told, at_once=2)
        pending = [search.ask() for _ in range(2)]
        copy.load_state_dict(json.loads(json.dumps(search.state_dict())))
        assert list(copy.pending) == pending
        for config in pending:
            assert config is not None
            for one in (search, copy):
                one.tell(config, self.accuracy(config))
        assert self.drive(search, 8) == self.drive(copy, 8)
        assert json.dumps(search.state_dict()) == json.dumps(copy.state_dict())
        assert search.result == copy.result

    def test_looking_at_the_result_changes_nothing(self, architecture: Architecture) -> None:
        one, other = self.search(architecture), self.search(architecture)
        for _ in range(12):
            for search in (one, other):
                self.drive(search, 1)
            assert one.result.points
        assert json.dumps(one.state_dict()) == json.dumps(other.state_dict())

    def test_what_others_measure_is_not_asked_for(self, architecture: Architecture) -> None:
        search, space = self.search(architecture), architecture.space
        search.tell(space.largest, 0.9)
        search.expect(space.smallest)
        asked = self.drive(search, 10 * space.size)
        assert set(asked) == set(space.enumerate()) - {space.largest, space.smallest}

    def test_lost_subnets_are_asked_for_again_and_failed_ones_twice(self, architecture: Architecture) -> None:
        search = self.search(architecture)
        self.drive(search, 6)
        lost = [search.ask() for _ in range(2)]
        search.requeue()
        assert [search.ask() for _ in range(2)] == lost
        assert lost[0] is not None
        search.forget(lost[0])
        assert search.ask() == lost[0]
        search.forget(lost[0])
        assert lost[0] not in self.drive(search, 10 * architecture.space.size)

    def test_what_it_says_of_itself_is_numbers(self, architecture: Architecture) -> None:
        search = self.search(architecture)
        self.drive(search, 12)
        diagnostics = search.result.diagnostics
        assert all(isinstance(name, str) and math.isfinite(value) for name, value in diagnostics.items())
        json.dumps(dict(diagnostics))

    def test_wrong_input_is_refused(self, architecture: Architecture) -> None:
        with pytest.raises(InfeasibleError):
            self.search(architecture, 1e-9)
        search = self.search(architecture)
        config = search.ask()
        assert config is not None
        with pytest.raises(TipsError):
            search.tell(config, float("nan"))
        assert search.pending == (config,)
        with pytest.raises(TipsError):
            search.load_state_dict({})
