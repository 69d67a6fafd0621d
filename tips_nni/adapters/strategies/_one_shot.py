"""TIPS as a one-shot strategy of NNI: train the supernet, calibrate, search the front."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nni.nas.evaluator.pytorch import Lightning, LightningModule
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.space import ModelStatus, RawFormatModelSpace
from nni.nas.strategy import RandomOneShot
from numpy.typing import NDArray
from torch import nn

from tips_nni.adapters import _patches
from tips_nni.adapters.strategies._foreign import ForeignNetwork
from tips_nni.adapters.strategies._loaders import first, train_batches, validation_batches
from tips_nni.adapters.strategies._network import ModuleCost, Network, TimmNetwork
from tips_nni.adapters.strategies._sandwich import SandwichModule
from tips_nni.adapters.strategies._space import TimmSpace
from tips_nni.core import (
    FrontPoint,
    SearchResult,
    SearchSettings,
    SubnetConfig,
    TipsError,
    check_feasible,
    make_policy,
    search_front,
    unknown,
)
from tips_nni.elastic import Statistics, calibrate
from tips_nni.specs import load_strategy

_log = logging.getLogger(__name__)
_patches.apply()


class FrontModel(RawFormatModelSpace):
    """A subnet of the front as NNI exports it: ``sample``, and on demand the calibrated module.

    Attributes:
        point: the subnet with its accuracy and costs.
    """

    def __init__(self, network: Network, point: FrontPoint, statistics: Statistics) -> None:
        super().__init__(network.module, None)
        self._network = network
        self._statistics = statistics
        self.point = point
        self.sample = network.sample(point.config)
        self.status = ModelStatus.Trained
        self.metrics.final = point.accuracy

    @property
    def results(self) -> dict[str, float]:
        """The measured accuracy, 0 to 1, and every cost, by name."""
        return {"accuracy": self.point.accuracy, **self.point.costs}

    def executable_model(self) -> nn.Module:
        """Return the trained, calibrated subnet with weights of its own, in evaluation mode."""
        return self._network.extract(self.point.config, self._statistics or None)


class TIPS(RandomOneShot):
    """Topologically important path sampling (Li et al., ICML 2023) as a one-shot strategy.

    ``NasExperiment(space, evaluator, TIPS(...)).run()`` trains the supernet with the evaluator, one sandwich of
    subnets a step, drawn by the policy of a strategy file; then it calibrates subnets on training images, measures
    them on the validation images and searches the front. ``export_top_models(k)`` gives the front, most accurate
    first: ``formatter="dict"`` the samples, ``"instance"`` calibrated modules with the trained weights (of timm's own
    class for a `timm_space`), and without a formatter models whose ``results`` hold accuracy and costs.

    The space is a `timm_space`, whose supernet is ours and exact, or any model space of NNI, whose supernet is NNI's.

    Args:
        strategy: a strategy by name or path: policy, sampling and search.
        constraints: cost name -> upper bound that every subnet of the front keeps: mflops, params_m, and for a
            `timm_space` memory_mb and latency_ms.
        objective: the cost that the front trades against accuracy.
        calibration_images: training images that re-estimate BatchNorm statistics of a subnet.
        search: settings of the search, in place of the strategy's.
        measures: further costs by name: functions of a subnet's module, e.g. its latency on the device at hand.
        seed: of sampling and search.
        **kwargs: for NNI's `OneShotStrategy`.

    Attributes:
        result: what the search found; None before.

    Raises:
        TipsError: no such strategy, or a wrong value in it.
    """

    def __init__(
        self,
        strategy: str | Path = "tips",
        *,
        constraints: Mapping[str, float] | None = None,
        objective: str = "mflops",
        calibration_images: int = 512,
        search: SearchSettings | None = None,
        measures: Mapping[str, Callable[[nn.Module], float]] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if calibration_images < 2:
            raise TipsError(f"calibration_images = {calibration_images}; it must be at least 2, e.g. 512")
        self.spec = load_strategy(strategy)
        declared = self.spec.search
        self.search = search or SearchSettings(declared.population, declared.generations, declared.mutation)
        self.constraints = dict(constraints or {})
        self.objective = objective
        self.calibration_images = calibration_images
        self.seed = seed
        self.measures = dict(measures or {})
        self.result: SearchResult | None = None
        self._network: Network | None = None
        self._statistics: dict[SubnetConfig, Statistics] = {}

    @property
    def network(self) -> Network:
        """The supernet; there from the start of the experiment."""
        if self._network is None:
            raise TipsError("the strategy has no supernet yet; run the experiment first")
        return self._network

    def extra_repr(self) -> str:
        """Name the strategy (for NNI's logs)."""
        return f"strategy={self.spec.name!r}, objective={self.objective!r}, constraints={self.constraints}"

    def mutate_model(self, model: ModelSpace) -> ModelSpace:
        """Turn the model space into a supernet, in place (called by NNI)."""
        self._module = super().mutate_model(model)
        return self._module

    def mutate_evaluator(self, evaluator: Lightning) -> Lightning:
        """Wrap the evaluator of the model that has been mutated before (called by NNI).

        Raises:
            TipsError: an unknown objective or constraint, or a model space that cannot be traced.
            InfeasibleError: no subnet keeps the constraints.
        """
        self._network = network = _network_of(self._module, evaluator, self.seed)
        told = {name: ModuleCost(name, network, function) for name, function in self.measures.items()}
        network.costs = {**network.costs, **told}
        if self.objective not in network.costs:
            raise unknown("objective", self.objective, network.costs)
        check_feasible(network.space, network.costs, self.constraints)
        return super().mutate_evaluator(evaluator)

    def configure_oneshot_module(self, training_module: LightningModule) -> SandwichModule:
        """Make the Lightning module of the training (called by NNI).

        Raises:
            TipsError: the policy needs what is not known of this network, or the evaluator optimises by hand.
        """
        policy = make_policy(self.spec.policy.name, self.network.structure, self.spec.policy.options)
        return SandwichModule(training_module, self.network, policy, self.spec.sampling, self.seed)

    def _run(self) -> None:
        super()._run()
        self._search()

    def _search(self) -> None:
        """Search the front of the trained supernet, on the device that it was trained on."""
        assert self._mutated_model_space is not None
        evaluator: Any = self._mutated_model_space.evaluator
        network, module = self.network, self.network.module
        settings = self.search
        if not all(network.costs[name].tabulated for name in (self.objective, *self.constraints)):
            settings = replace(settings, candidates=min(settings.candidates, 4 * settings.population))
        home, device = next(module.parameters()).device, evaluator.trainer.strategy.root_device
        mode = module.training
        module.to(device).eval()
        calibration = [
            images.to(device) for images, _ in first(train_batches(evaluator, self.seed), self.calibration_images)
        ]
        held_out = first(validation_batches(evaluator), self.spec.search.images)
        validation = [(images.to(device), labels.to(device)) for images, labels in held_out]

        def measure(configs: Sequence[SubnetConfig]) -> NDArray[np.float64]:
            return np.array([network.measure(config, calibration, validation) for config in configs])

        self.result = search_front(
            network.space,
            measure,
            network.costs,
            self.objective,
            self.constraints,
            settings,
            np.random.default_rng([self.seed, 2]),
            lambda done, planned, best: _log.info("measured %d of %d subnets, best %.1f%%", done, planned, 100 * best),
            algorithm=self.spec.search.algorithm,
            options=self.spec.search.options,
            network=network.structure,
        )
        for point in self.result.points:
            statistics = calibrate(network.view(point.config), calibration)
            self._statistics[point.config] = {name: tensor.cpu() for name, tensor in statistics.items()}
        module.to(home).train(mode)

    def state_dict(self) -> dict[str, Any]:
        """Return where Lightning's last checkpoint is; while there is no new one, that of the resumed experiment."""
        evaluator: Any = None if self._mutated_model_space is None else self._mutated_model_space.evaluator
        saved = getattr(evaluator, "trainer", None) and evaluator.trainer.checkpoint_callback
        if saved and (path := getattr(saved, "last_model_path", "") or saved.best_model_path):
            return {"ckpt_path": str(path)}
        before = evaluator.fit_kwargs.get("ckpt_path") if evaluator is not None else None
        return {} if before is None else {"ckpt_path": str(before)}

    def list_models(self, sort: bool = True, limit: int | None = None) -> Iterator[FrontModel]:
        """Yield the front.

        Args:
            sort: most accurate first; else from the cheapest to the dearest.
            limit: at most so many; all where None.

        Raises:
            TipsError: the experiment has not been run.
        """
        if self.result is None:
            raise TipsError("there is no front yet; run the experiment first")
        points = sorted(self.result.points, key=lambda p: -p.accuracy) if sort else list(self.result.points)
        for point in points[:limit]:
            yield FrontModel(self.network, point, self._statistics[point.config])


def _network_of(module: ModelSpace, evaluator: Any, seed: int) -> Network:
    """Return the supernet behind a mutated model space."""
    if isinstance(module, TimmSpace):
        return TimmNetwork(module)
    if evaluator.datamodule is not None:
        evaluator.datamodule.prepare_data()
        evaluator.datamodule.setup("fit")
    images, _ = next(train_batches(evaluator, seed))
    return ForeignNetwork(module, images[:2])
