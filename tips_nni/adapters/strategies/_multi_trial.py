"""TIPS as a multi-trial strategy of NNI: a search for the front whose trials run wherever NNI runs them."""

from __future__ import annotations

import copy
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nni.nas.execution import ExecutionEngine
from nni.nas.execution.event import FinalMetricEvent, ModelEventType, TrainingEndEvent
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.strategy import is_supernet
from nni.nas.space import ExecutableModelSpace, ModelStatus, RawFormatModelSpace
from nni.nas.strategy import RandomOneShot, Strategy

from tips_nni.adapters import _patches
from tips_nni.adapters.strategies._foreign import ForeignNetwork
from tips_nni.adapters.strategies._labels import Labels, Sample
from tips_nni.adapters.strategies._space import TimmSpace, config_of
from tips_nni.core import (
    Architecture,
    CostModel,
    PathGraph,
    Policy,
    SearchAlgorithm,
    SearchProblem,
    SearchResult,
    SearchSettings,
    SearchSpace,
    SubnetConfig,
    TipsError,
    make_policy,
    make_search,
    unknown,
)
from tips_nni.specs import load_strategy

_log = logging.getLogger(__name__)
_patches.apply()


class TIPSSearch(Strategy):
    """Multi-trial search for the front of accuracy against a cost.

    Every trial trains or evaluates one subnet: the evaluator's function gets its module and reports the accuracy, a
    number, or ``{"default": accuracy, "latency_ms": ..., ...}`` where it measured costs too; those take the place of
    predicted ones. New subnets come from the strategy's search algorithm: with ``evolution`` they are children of the
    best so far, and new genes come from the policy of the strategy, which learns from every subnet measured; ``flash``
    works on a `timm_space`. Nothing is measured twice; a subnet whose trial failed is tried once more.

    Of a `timm_space` all costs are known beforehand, so that trials that break a constraint are never started. Of
    another model space multiply-adds and parameters are, where the shape of an image is given, and the path graph that
    the policy needs; without it new genes are uniform, and only what the trials report is known.

    Args:
        strategy: a strategy by name or path, for its policy and its search algorithm.
        objective: the cost to trade against accuracy.
        constraints: cost name -> upper bound, on costs known beforehand.
        population: subnets of a generation.
        input_shape: (channels, height, width) of an image, for model spaces that are no `timm_space`.
        seed: of the search.

    Attributes:
        search: the search itself; there from the start of the experiment.

    Raises:
        TipsError: no such strategy, or a wrong value in it.
    """

    def __init__(
        self,
        strategy: str | Path = "tips",
        *,
        objective: str = "latency_ms",
        constraints: Mapping[str, float] | None = None,
        population: int = 16,
        input_shape: tuple[int, int, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.spec = load_strategy(strategy)
        self.objective = objective
        self.constraints = dict(constraints or {})
        self.input_shape = input_shape
        self.seed = seed
        self._settings = SearchSettings(population=population, mutation=self.spec.search.mutation)
        self._lock = threading.RLock()
        # The engine forgets a model, and whatever is reported for it, when nobody holds it.
        self._running: dict[SubnetConfig, ExecutableModelSpace] = {}
        self._error: TipsError | None = None
        self._search: SearchAlgorithm | None = None

    @property
    def search(self) -> SearchAlgorithm:
        """The search.

        Raises:
            TipsError: the experiment has not begun.
        """
        if self._search is None:
            raise TipsError("the strategy has no search yet; run the experiment first")
        return self._search

    @property
    def result(self) -> SearchResult:
        """What has been found so far.

        Raises:
            TipsError: nothing has been measured.
        """
        with self._lock:
            return self.search.result

    def extra_repr(self) -> str:
        """Name the strategy (for NNI's logs)."""
        return f"strategy={self.spec.name!r}, objective={self.objective!r}, constraints={self.constraints}"

    def _initialize(self, model_space: ExecutableModelSpace, engine: ExecutionEngine) -> ExecutableModelSpace:
        described = _describe(model_space, self.input_shape)
        known = described.costs
        if known and self.objective not in known:
            _log.info("%s is no predicted cost (%s); every trial must report it", self.objective, ", ".join(known))
        for name in self.constraints:
            if name not in known:
                raise unknown("cost in the constraints", name, known)
        policy: Policy | None = None
        if described.structure is not None:
            policy = make_policy(self.spec.policy.name, described.structure, self.spec.policy.options)
        self._described = described
        problem = SearchProblem(described.space, known, self.objective, self.constraints, described.structure, policy)
        declared = self.spec.search
        rng = np.random.default_rng([self.seed, 3])
        self._search = make_search(declared.algorithm, problem, self._settings, rng, declared.options)
        engine.register_model_event_callback(ModelEventType.FinalMetric, self._on_metric)
        engine.register_model_event_callback(ModelEventType.TrainingEnd, self._on_end)
        return model_space

    def _cleanup(self) -> None:
        self.engine.unregister_model_event_callback(ModelEventType.FinalMetric, self._on_metric)
        self.engine.unregister_model_event_callback(ModelEventType.TrainingEnd, self._on_end)

    def _run(self) -> None:
        while self.wait_for_resource():
            with self._lock:
                if self._error is not None:
                    raise self._error
                config = self.search.ask()
                if config is not None:
                    self._running[config] = self._freeze(config)
            if config is not None:
                # The sequential engine runs the trial in here.
                self.engine.submit_models(self._running[config])
            elif self._running:
                time.sleep(0.2)  # their results may allow new subnets
            else:
                _log.info("every subnet that keeps the constraints has been measured")
                break
        self.engine.wait_models()
        if self._error is not None:
            raise self._error

    def _freeze(self, config: SubnetConfig) -> ExecutableModelSpace:
        return self.model_space.freeze(self._described.sample(config))

    def _on_metric(self, event: FinalMetricEvent) -> None:
        """Take what a trial reports. The event carries the model whose parameters the trial really got."""
        with self._lock:
            config = self._described.config(event.model.sample or {})
            try:
                accuracy, costs = _read_report(event.metric)
                self.search.tell(config, accuracy, costs)
            except TipsError as error:
                # This may be a thread of NNI's that must live on: the strategy's own thread raises it.
                self._error = self._error or error
                self.search.forget(config)

    def _on_end(self, event: TrainingEndEvent) -> None:
        """Take note of a trial's end; with several trials at a time NNI may tell the end of one for another's."""
        with self._lock:
            config = self._described.config(event.model.sample or {})
            self._running.pop(config, None)
            if not self.search.knows(config):
                _log.warning("the trial of %s ended (%s) without a result", config.as_dict(), event.status.value)
                self.search.forget(config)

    def list_models(self, sort: bool = True, limit: int | None = None) -> Iterator[ExecutableModelSpace]:
        """Yield the front: frozen models with their accuracy as ``metric`` and everything known in ``results``.

        Args:
            sort: most accurate first; else from the cheapest to the dearest.
            limit: at most so many; all where None.

        Raises:
            TipsError: nothing has been measured.
        """
        points = self.result.points
        for point in (sorted(points, key=lambda p: -p.accuracy) if sort else list(points))[:limit]:
            model: Any = self._freeze(point.config)
            model.status = ModelStatus.Trained
            model.metrics.final = point.accuracy
            model.results = {"accuracy": point.accuracy, **point.costs}
            yield model

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the search, as text that any serialiser keeps."""
        with self._lock:
            return {} if self._search is None else {"search": json.dumps(self._search.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; trials that were running then are asked for again."""
        with self._lock:
            if "search" in state_dict:
                self.search.load_state_dict(json.loads(state_dict["search"]))
                self.search.requeue()


@dataclass(frozen=True)
class _Described:
    """A model space as the search sees it.

    Attributes:
        space: its search space.
        costs: what is known of subnets before they are measured.
        structure: what policies are made for; None where it is not known.
        sample: returns a subnet as NNI writes it.
        config: undoes `sample`.
    """

    space: SearchSpace
    costs: Mapping[str, CostModel]
    structure: Architecture | PathGraph | None
    sample: Callable[[SubnetConfig], Sample]
    config: Callable[[Sample], SubnetConfig]


def _describe(model_space: Any, input_shape: tuple[int, int, int] | None) -> _Described:
    """Describe an executable model space of either of NNI's formats.

    Raises:
        TipsError: a label is no finite choice, or the evaluator has labels of its own.
    """
    module = _module_of(model_space)
    labels = {str(label) for label in model_space.simplify()}
    if others := sorted(labels - {str(label) for label in module.simplify()}):
        raise TipsError(f"the evaluator has choices of its own ({', '.join(others)}); fix them, TIPS searches subnets")
    if isinstance(module, TimmSpace):
        space = module.supernet.space
        return _Described(
            space,
            module.costs,
            module.supernet.architecture,
            lambda config: dict(config.as_dict()),
            lambda sample: config_of(space, sample),
        )
    if input_shape is None:
        found = Labels.of(model_space.simplify())
        return _Described(found.space, {}, None, found.sample, found.config)
    if not is_supernet(module):
        RandomOneShot().mutate_model(module)
    network = ForeignNetwork(module, torch.zeros(1, *input_shape))
    return _Described(network.space, network.costs, network.structure, network.sample, network.config)


def _module_of(model_space: Any) -> ModelSpace:
    """Return a model space like the one behind an executable one, to look at: made again or copied."""
    if isinstance(model_space, RawFormatModelSpace):
        module = model_space.model_space
        return module if isinstance(module, TimmSpace) else copy.deepcopy(module)
    shell = model_space.model.trace_copy()
    if shell.trace_symbol is TimmSpace:
        shell.trace_kwargs = {**shell.trace_kwargs, "pretrained": False, "checkpoint_path": None, "weights": None}
    return shell.get(traceable=False)


def _read_report(metric: Any) -> tuple[float, dict[str, float]]:
    """Return (accuracy, measured costs) of what a trial reports.

    Raises:
        TipsError: it is neither a number nor a dictionary of numbers with the key "default".
    """
    report = metric if isinstance(metric, dict) else {"default": metric}
    if "default" not in report or not all(_is_number(value) for value in report.values()):
        raise TipsError(
            f"a trial reported {metric!r}; report the accuracy, or a dictionary of numbers with the accuracy as "
            "'default'"
        )
    return float(report["default"]), {name: float(value) for name, value in report.items() if name != "default"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
