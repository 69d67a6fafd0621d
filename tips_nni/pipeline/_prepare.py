"""From a run spec to the parts of a run: data, supernet, costs, policy."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from tips_nni.core import CostModel, CostTable, Policy, TipsError, make_policy, write_json
from tips_nni.elastic import Supernet, convert
from tips_nni.latency import LATENCY_TABLE, LatencyModel, latency_model
from tips_nni.latency.nn_meter import NnMeterTable
from tips_nni.specs import ARCHITECTURE, RunSpec, StrategySpec, load_space, load_strategy
from tips_nni.training import ImageData, check_training, load_data

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """All that a run works with.

    Attributes:
        spec: the resolved run spec.
        strategy: the strategy that it names.
        data: images and labels.
        supernet: the elastic backbone.
        table: exact multiply-adds, parameters and memory.
        latency: predicted latency on the target.
        policy: draws the subnets of training.
    """

    spec: RunSpec
    strategy: StrategySpec
    data: ImageData
    supernet: Supernet
    table: CostTable
    latency: LatencyModel
    policy: Policy

    @property
    def costs(self) -> Mapping[str, CostModel]:
        """Every cost by its name: mflops, params_m, memory_mb, latency_ms."""
        return {**self.table.models(), self.latency.name: self.latency}


def prepare(spec: RunSpec) -> Parts:
    """Load the data, convert the backbone and build costs and policy.

    Raises:
        TipsError: any of them cannot be had; see the message.
    """
    strategy = load_strategy(spec.strategy)
    check_training(spec.training)
    data = load_data(spec.data, seed=spec.seed, **_statistics(spec))
    torch.manual_seed(spec.seed)
    supernet = convert(
        spec.backbone.name,
        load_space(_space_of(spec)),
        image_size=data.image_size,
        in_chans=data.in_chans,
        num_classes=data.num_classes,
        pretrained=spec.backbone.pretrained,
        checkpoint_path=spec.backbone.checkpoint_path,
        arguments=spec.backbone.args,
    )
    table = CostTable(supernet.architecture)
    latency = latency_model(
        spec.constraints.target,
        supernet.architecture,
        supernet=supernet,
        backbone=spec.backbone.name,
        packs=spec.constraints.packs,
        coverage=spec.constraints.coverage,
    )
    policy = make_policy(strategy.policy.name, supernet.architecture, strategy.policy.options)
    return Parts(spec, strategy, data, supernet, table, latency, policy)


def describe_network(parts: Parts, folder: Path) -> None:
    """Write what readers without torch need: the architecture, and the latency table where it needs the modules."""
    write_json(folder / ARCHITECTURE, parts.supernet.architecture.to_json())
    if isinstance(parts.latency, NnMeterTable):
        parts.latency.save(folder / LATENCY_TABLE)


def _statistics(spec: RunSpec) -> dict[str, Any]:
    """Return the channels and normalisation that loaded weights were trained with; nothing where training is new."""
    if not (spec.backbone.pretrained or spec.backbone.checkpoint_path):
        return {}
    configuration = timm.get_pretrained_cfg(spec.backbone.name)
    if configuration is None:
        return {}
    return {"in_chans": configuration.input_size[0], "mean": configuration.mean, "std": configuration.std}


def _space_of(spec: RunSpec) -> str:
    """Return the name or path of the run's search space."""
    if spec.space is None:
        raise TipsError("the run spec names no search space; load it with load_run, which resolves it")
    return spec.space
