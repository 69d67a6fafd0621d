"""FLASH as a search algorithm: a few samples, a predictor fitted to them, and the front that it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tips_nni.core._accuracy_predictor import PREDICTORS, make_predictor, rank_correlation
from tips_nni.core._algorithms import AlgorithmInfo, SearchProblem, register_algorithm
from tips_nni.core._architecture import Architecture
from tips_nni.core._cost import CostModel
from tips_nni.core._errors import TipsError, unknown
from tips_nni.core._flash import FlashSettings, FlashSolver, check_tabulated
from tips_nni.core._front import SearchSettings, fittest, objectives
from tips_nni.core._nn_degree import NNDegree
from tips_nni.core._proposals import Proposals
from tips_nni.core._search_algorithm import Code, SearchAlgorithm
from tips_nni.core._space import Codes, SubnetConfig


@dataclass(frozen=True)
class FlashOptions(FlashSettings):
    """Options of `FlashSearch`.

    Attributes:
        predictor: what is fitted to the samples: ``nn_degree`` (published), ``log_linear`` or ``ridge`` (ours).
        training_free: propose the front of NN-Degree itself, whatever the measurements say.
    """

    predictor: str = "ridge"
    training_free: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor not in PREDICTORS:
            raise unknown("predictor of search algorithm 'flash'", self.predictor, PREDICTORS)


class FlashSearch(SearchAlgorithm):
    """FLASH (Li, Mandal, Ogras and Marculescu 2021) over the subnets of a supernet.

    Published: a predictor of the accuracy fitted to as few as 25 measured networks, then a search on it by hierarchical
    SHGO under analytical costs. Ours: the samples are spread evenly over the logarithm of the cost; the front comes
    from sweeping an upper bound of the cost; its subnets are measured, the predictor is fitted anew to all that is
    known, and so on, for as long as somebody asks. Where the predicted front has too few new subnets, children of it
    that are predicted to be best fill the round.

    The settings' population is the number of samples, and of subnets of each further round.

    Args:
        problem: what is searched; its policy is not used.
        settings: of the search.
        rng: source of randomness.
        options: see there.

    Raises:
        TipsError: the architecture is not known, or a cost that is bounded or traded has no table.
        InfeasibleError: no subnet keeps the constraints.
    """

    def __init__(
        self, problem: SearchProblem, settings: SearchSettings, rng: np.random.Generator, options: FlashOptions
    ) -> None:
        network = problem.network
        if not isinstance(network, Architecture):
            raise TipsError(
                "search algorithm 'flash' needs the architecture, and of this network "
                f"{'nothing' if network is None else 'only the path graph'} is known; take search.algorithm: evolution"
            )
        check_tabulated(problem.costs, [problem.objective_cost])
        super().__init__(problem.space, problem.costs, problem.objective_cost, problem.constraints, settings, rng)
        check_tabulated(problem.costs, problem.constraints)
        self.options = options
        self.degree = NNDegree(network)
        self.predictor = make_predictor(options.predictor, self.degree, problem.costs)
        cost = problem.costs[problem.objective_cost]
        self._proposals = Proposals(
            problem.space, problem.costs, cost, problem.constraints, settings, problem.space.sample
        )

    def _first(self) -> Codes:
        if self.options.training_free:
            return self._degree_front(self.settings.population)
        return self._proposals.first(self._rng)

    def _next(self, taken: set[Code]) -> Codes:
        if self.options.training_free:
            return self._degree_front(self.settings.population * (1 + len(self._history)))
        if len(self._known) < self.predictor.least:
            return self._proposals.first(self._rng)
        self.predictor.fit(*self._measurements())
        solver = FlashSolver(self.degree, self.costs, self.constraints, self.predictor.predict, self.options)
        front = solver.front(self.objective_cost, self.settings.population, self._rng)
        new = [code for code in front if tuple(code.tolist()) not in taken]
        missing = self.settings.population - len(new)
        if missing > 0:
            seen = taken | {tuple(code) for code in front.tolist()}
            children = self._proposals.children(front, seen, self._rng)
            if len(children):
                accuracy = self.predictor.predict(children)
                values = objectives(accuracy, self.costs[self.objective_cost].evaluate(children))
                new += list(children[fittest(values, missing)])
        return np.array(new, dtype=np.int64).reshape(-1, len(self.space.dims))

    def _rest(self, taken: set[Code]) -> Codes:
        return self._proposals.rest(taken, self._rng)

    def _degree_front(self, count: int) -> Codes:
        solver = FlashSolver(self.degree, self.costs, self.constraints, self.degree.evaluate, self.options)
        return solver.front(self.objective_cost, count, self._rng)

    def _measurements(self) -> tuple[Codes, np.ndarray[tuple[int], np.dtype[np.float64]]]:
        codes = np.array(list(self._known), dtype=np.int64)
        return codes, np.array([point.accuracy for point in self._known.values()])

    def diagnostics(self) -> dict[str, float]:
        """Return how well the predictor does on measured subnets that it has not seen, and NN-Degree as it is.

        ``samples``, ``leave_one_out_error`` (mean absolute, in units of the accuracy), ``rank_correlation``
        (Spearman's, of the left-out predictions) and ``nn_degree_rank_correlation``; nothing before there are enough
        samples.
        """
        if len(self._known) <= self.predictor.least:
            return {}
        codes, accuracies = self._measurements()
        quality = self.predictor.fit(codes, accuracies)
        return {
            "samples": float(quality.samples),
            "leave_one_out_error": quality.leave_one_out_error,
            "rank_correlation": quality.rank_correlation,
            "nn_degree_rank_correlation": rank_correlation(self.degree.evaluate(codes), accuracies),
        }


@dataclass(frozen=True)
class RankedSubnet:
    """A subnet that nobody has measured.

    Attributes:
        config: the subnet.
        nn_degree: its NN-Degree.
        costs: cost name -> value.
    """

    config: SubnetConfig
    nn_degree: float
    costs: Mapping[str, float]


def training_free_front(
    architecture: Architecture,
    costs: Mapping[str, CostModel],
    cost: str,
    constraints: Mapping[str, float],
    count: int,
    rng: np.random.Generator,
    settings: FlashSettings | None = None,
) -> tuple[RankedSubnet, ...]:
    """Return the subnets of the highest NN-Degree within limits of a cost, without training or measuring anything.

    Args:
        architecture: the network under its search space.
        costs: tables.
        cost: the one whose limit is swept.
        constraints: cost name -> upper bound that everything keeps.
        count: limits, evenly spaced in the logarithm of the cost.
        rng: source of the random starts.
        settings: of the search.

    Raises:
        TipsError: a cost is unknown or has no table.
        InfeasibleError: no subnet keeps the constraints.
    """
    degree = NNDegree(architecture)
    codes = FlashSolver(degree, costs, constraints, degree.evaluate, settings).front(cost, count, rng)
    values = {name: model.evaluate(codes) for name, model in costs.items()}
    return tuple(
        RankedSubnet(
            architecture.space.decode(code), float(g), {name: float(column[i]) for name, column in values.items()}
        )
        for i, (code, g) in enumerate(zip(codes, degree.evaluate(codes), strict=True))
    )


register_algorithm(
    AlgorithmInfo("flash", "the front of a predictor fitted to a few samples (FLASH)", FlashSearch, FlashOptions)
)
