"""A trial: measures the subnet that NNI's tuner proposes, and reports it with its code and costs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nni
import numpy as np
from torch import nn

from tips_nni.adapters.tuner._manager import final_result, own_parameters
from tips_nni.adapters.tuner._task import code_of
from tips_nni.core import SubnetConfig, TipsError
from tips_nni.elastic import calibrate, resize
from tips_nni.pipeline import Parts, load_parts, load_trained
from tips_nni.training import accuracy, load_batches, train_alone

_STAGES = 4
Report = Callable[[float], None]


def run_trial(folder: Path, *, weights: Path | None = None, train: bool = False, epochs: int | None = None) -> float:
    """Measure the subnet that NNI proposes and return its accuracy.

    Reports intermediate accuracies (after a quarter, a half, … of the validation images, or after every epoch) and the
    final metric: ``default`` (accuracy), ``latency_ms``, ``mflops``, ``params_m``, ``memory_mb``, and ``code``, the
    subnet that was really measured.

    Args:
        folder: with ``run.yaml``: of `tips-nni run` or of `tips-nni nni-config`.
        weights: run folder with the trained supernet; `folder` by default.
        train: train the subnet alone, from the run's initial weights, instead of taking the supernet's.
        epochs: of that training; the run's by default.

    Raises:
        TipsError: not started by NNI, no trained supernet, or parameters that are no subnet of the run.
    """
    if os.environ.get("NNI_PLATFORM") is None:
        raise TipsError("this command is a trial: NNI starts it, see trialCommand in the experiment's config.yaml")
    parameters = own_parameters()
    known = final_result()
    if known is not None:
        return float(known["default"])
    parts = load_parts(folder) if train else load_trained(folder, weights)
    space = parts.supernet.space
    config = space.config(parameters)
    codes = space.encode(config)[None]
    # NNI's page shows every digit: counts end at the sixth (1e-6 million), and nanoseconds say nothing.
    costs = {name: round(float(model.evaluate(codes)[0]), 6) for name, model in parts.costs.items()}

    def report(value: float) -> None:
        nni.report_intermediate_result({"default": value, **costs})

    value = _train(parts, config, epochs, report) if train else _measure(parts, config, report)
    nni.report_final_result({"default": value, **costs, "code": code_of(space, config)})
    return value


def _measure(parts: Parts, config: SubnetConfig, report: Report) -> float:
    """Return the accuracy of a subnet of the trained supernet after calibration."""
    device = next(parts.supernet.parameters()).device
    loader = parts.data.calibration_loader(parts.spec.training.calibration_images)
    statistics = calibrate(parts.supernet.view(config), [images for images, _ in load_batches(loader, device)])
    return _validate(parts, parts.supernet.view(config, statistics or None), config, report)


def _validate(parts: Parts, module: nn.Module, config: SubnetConfig, report: Report) -> float:
    """Return the accuracy on the validation images of the run's search, and report it on its way."""
    side = parts.supernet.plan.resolution(config)
    declared = parts.spec.search or parts.strategy.search
    device = next(module.parameters()).device
    batches = load_batches(parts.data.validation_loader(declared.images), device)
    right = seen = 0.0
    for positions in np.array_split(np.arange(len(batches)), min(_STAGES, len(batches))):
        part = [(resize(images, side), labels) for images, labels in (batches[i] for i in positions)]
        count = sum(len(labels) for _, labels in part)
        right += accuracy(module, part) * count
        seen += count
        report(right / seen)
    return right / seen


def _train(parts: Parts, config: SubnetConfig, epochs: int | None, report: Report) -> float:
    """Train a subnet alone and return its accuracy on the validation images."""
    spec = parts.spec.training
    if epochs is not None:
        warmup = min(spec.warmup_epochs, (epochs - 1) / 2)
        spec = spec.model_copy(update={"epochs": epochs, "steps": None, "warmup_epochs": warmup})
    module = parts.supernet.extract(config).train()
    value = 0.0

    def after_epoch(_epoch: int) -> None:
        nonlocal value
        value = _validate(parts, module, config, lambda _: None)
        report(value)

    train_alone(
        module,
        parts.data,
        spec,
        side=parts.supernet.plan.resolution(config),
        seed=parts.spec.seed,
        after_epoch=after_epoch,
    )
    return value
