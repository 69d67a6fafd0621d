"""What a user gets from a trained supernet: the best subnet within each budget, chosen on validation images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from anytime.data import Data
from anytime.scales import Scale
from tips_nni.core import CostTable, SearchSettings, SubnetConfig, search_front
from tips_nni.elastic import Supernet
from tips_nni.latency import latency_model
from tips_nni.training import accuracy, measure_subnets

BUDGETS = 10
TARGET = "pixel4_cpu"


class Evaluator:
    """Measures supernets of one space in one way: same search, same evaluations, same panel.

    Args:
        scale: sizes of the measurements.
        data: the images.
        supernet: any supernet of the space.
    """

    def __init__(self, scale: Scale, data: Data, supernet: Supernet) -> None:
        self.scale = scale
        self.space = supernet.space
        self.costs = {
            "mflops": CostTable(supernet.architecture).models()["mflops"],
            "latency_ms": latency_model(TARGET, supernet.architecture),
        }
        # Training images without augmentation, in batches of one size.
        self.calibration = [x for x, _ in data.train.batches(scale.measured_batch, scale.calibration)]
        self.validation = data.validation.batches(scale.measured_batch, scale.search_images)
        self.test = data.test.batches(scale.measured_batch)
        self.panel_test = data.test.batches(scale.measured_batch, scale.panel_images)
        rng = np.random.default_rng(2024)
        self.panel = [self.space.decode(code) for code in self.space.sample(rng, scale.panel)]
        ends = self.space.encode_many([self.space.smallest, self.space.largest])
        self.budgets: dict[str, np.ndarray] = {}
        for name, cost in self.costs.items():
            least, most = cost.evaluate(ends)
            self.budgets[name] = np.geomspace(least, most, BUDGETS + 1)[1:]

    def measure(self, supernet: Supernet, seed: int, *, test: bool = True) -> dict[str, Any]:
        """Return front accuracies, the panel's mean and the hypervolume, as plain data.

        Args:
            supernet: trained.
            seed: of the search.
            test: False for choices such as the learning rate, which must not see test images.
        """
        known: dict[SubnetConfig, float] = {}

        def validate(configs: Sequence[SubnetConfig]) -> np.ndarray:
            values = measure_subnets(supernet, configs, self.calibration, self.validation)
            known.update(zip(configs, values.tolist(), strict=True))
            return values

        settings = SearchSettings(population=self.scale.population, generations=self.scale.generations)
        found = search_front(self.space, validate, self.costs, "mflops", {}, settings, np.random.default_rng([seed, 2]))
        chosen = {name: self._within(name, known) for name in self.costs}
        result: dict[str, Any] = {
            "hypervolume": found.hypervolume,
            "evaluations": len(known),
            "validation": {name: [known[config] for config in configs] for name, configs in chosen.items()},
        }
        if test:
            distinct = sorted({config for configs in chosen.values() for config in configs}, key=lambda c: c.values)
            values = measure_subnets(supernet, distinct, self.calibration, self.test)
            tested = dict(zip(distinct, values.tolist(), strict=True))
            result["test"] = {name: [tested[config] for config in configs] for name, configs in chosen.items()}
            result["panel"] = measure_subnets(supernet, self.panel, self.calibration, self.panel_test).tolist()
            result["subnets"] = [list(config.values) for config in chosen["mflops"]]
        return result

    def _within(self, name: str, known: dict[SubnetConfig, float]) -> list[SubnetConfig]:
        """Return for every budget the measured subnet of the highest validation accuracy that keeps it."""
        configs = list(known)
        costs = self.costs[name].evaluate(self.space.encode_many(configs))
        accuracies = np.array([known[config] for config in configs])
        return [
            configs[int(np.where(costs <= limit * (1 + 1e-9), accuracies, -1.0).argmax())]
            for limit in self.budgets[name]
        ]

    def test_accuracy(self, module: nn.Module) -> float:
        """Return the test accuracy of a module trained alone."""
        return accuracy(module, self.test)


def front_accuracy(result: dict[str, Any], cost: str = "mflops", part: str = "test") -> float:
    """Return the mean accuracy over the budgets."""
    return float(np.mean(result[part][cost]))
