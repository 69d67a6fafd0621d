"""The front of a trained supernet: searched on validation images, measured on test images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tips_nni import __version__
from tips_nni.core import FrontPoint, SearchResult, SearchSettings, SubnetConfig, TipsError, search_front, write_json
from tips_nni.elastic import AnytimeModel, FrontEntry, calibrate
from tips_nni.pipeline._prepare import Parts
from tips_nni.training import accuracy, load_batches, measure_subnets


@dataclass(frozen=True)
class MeasuredPoint:
    """A subnet of the front with both accuracies and its BatchNorm statistics."""

    point: FrontPoint
    test_accuracy: float
    statistics: Mapping[str, Tensor]

    @property
    def entry(self) -> FrontEntry:
        """The same for the anytime model."""
        point = self.point
        return FrontEntry(point.config, point.accuracy, point.costs, self.statistics, self.test_accuracy)

    def row(self) -> dict[str, Any]:
        """The same as a row of front.json."""
        return {**point_row(self.point), "test_accuracy": self.test_accuracy}


def point_row(point: FrontPoint) -> dict[str, Any]:
    """Return a searched subnet as plain data."""
    return {"subnet": point.config.as_dict(), "validation_accuracy": point.accuracy, **point.costs}


class Measurements:
    """Validation accuracies by subnet, kept on disk so that a resumed search measures nothing twice.

    Args:
        parts: of the run; the supernet is trained and in evaluation mode.
        path: the file.
        device: where the supernet is.
        weights: hash of the weights; measurements of other weights are dropped.
    """

    def __init__(self, parts: Parts, path: Path, device: torch.device, weights: str) -> None:
        declared = parts.spec.search or parts.strategy.search
        self._supernet = parts.supernet
        self._path = path
        self._weights = weights
        calibration = parts.data.calibration_loader(parts.spec.training.calibration_images)
        self.calibration = [images for images, _ in load_batches(calibration, device)]
        self._validation = load_batches(parts.data.validation_loader(declared.images), device)
        self._known = self._stored()

    def _stored(self) -> dict[str, float]:
        if not self._path.is_file():
            return {}
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            return dict(stored["accuracy"]) if stored["weights"] == self._weights else {}
        except (ValueError, KeyError, TypeError) as error:
            raise TipsError(f"{self._path} is damaged ({error}); delete it to measure again") from error

    def __call__(self, configs: Sequence[SubnetConfig]) -> NDArray[np.float64]:
        """Return the accuracy of every subnet, shape (N,), and keep it."""
        names = [",".join(map(str, config.values)) for config in configs]
        for name, config in zip(names, configs, strict=True):
            if name not in self._known:
                value = measure_subnets(self._supernet, [config], self.calibration, self._validation)
                self._known[name] = float(value[0])
        write_json(self._path, {"weights": self._weights, "accuracy": self._known})
        return np.array([self._known[name] for name in names])


def search(parts: Parts, measure: Measurements, progress: Callable[[int, int, float], None] | None) -> SearchResult:
    """Search the front under the run's constraints."""
    declared = parts.spec.search or parts.strategy.search
    settings = SearchSettings(
        population=declared.population, generations=declared.generations, mutation=declared.mutation
    )
    costs = parts.costs
    return search_front(
        parts.supernet.space,
        measure,
        costs,
        objectives(parts),
        parts.spec.constraints.bounds,
        settings,
        np.random.default_rng([parts.spec.seed, 2]),
        progress,
        algorithm=declared.algorithm,
        options=declared.options,
        network=parts.supernet.architecture,
    )


def objectives(parts: Parts) -> str:
    """Return the cost that the front trades against accuracy: latency where it is bounded, else multiply-adds."""
    return "latency_ms" if parts.spec.constraints.latency_ms is not None else "mflops"


def measure_front(
    parts: Parts, points: Sequence[FrontPoint], calibration: Sequence[Tensor], device: torch.device
) -> list[MeasuredPoint]:
    """Calibrate every subnet of the front and measure it on the test images, which the search never saw.

    The order is that of the anytime model's rows: the most accurate on validation images first.
    """
    test = load_batches(parts.data.test_loader(), device)
    measured = []
    parts.supernet.eval()
    for point in sorted(points, key=lambda p: (-p.accuracy, sorted(p.costs.items()))):
        statistics = calibrate(parts.supernet.view(point.config), calibration)
        value = accuracy(parts.supernet.view(point.config, statistics or None), test)
        measured.append(MeasuredPoint(point, value, statistics))
    return measured


def anytime_model(parts: Parts, points: Sequence[FrontPoint]) -> AnytimeModel:
    """Make the anytime model of a trained run and a front that somebody else searched; measures the test accuracy."""
    device = next(parts.supernet.parameters()).device
    loader = parts.data.calibration_loader(parts.spec.training.calibration_images)
    measured = measure_front(parts, points, [images for images, _ in load_batches(loader, device)], device)
    return AnytimeModel.from_supernet(parts.supernet.cpu(), [point.entry for point in measured], information(parts))


def information(parts: Parts) -> dict[str, Any]:
    """Return what the user of the anytime model needs to feed and read it."""
    data = parts.data
    return {
        "backbone": parts.spec.backbone.name,
        "class_names": list(data.class_names),
        "mean": list(data.mean),
        "std": list(data.std),
        "latency_target": parts.latency.target,
        "tips-nni": __version__,
    }
