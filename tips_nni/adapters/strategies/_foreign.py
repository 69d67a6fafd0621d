"""The supernet that NNI makes of a hand-written model space, or of one of its hub."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import Tensor, nn

from tips_nni.adapters.strategies._labels import Labels
from tips_nni.adapters.strategies._model_costs import multiply_adds
from tips_nni.adapters.strategies._model_graph import path_graph
from tips_nni.adapters.strategies._network import ModuleCost, Network
from tips_nni.adapters.strategies._observe import Observations
from tips_nni.adapters.strategies._space import Sample
from tips_nni.adapters.strategies._trace import Trace, trace_forward
from tips_nni.core import SubnetConfig
from tips_nni.elastic import Statistics


class ForeignNetwork(Network):
    """NNI's own supernet of a model space: only the policy, calibration and search are ours.

    Options without an order are sorted by multiply-adds, so that the largest and the smallest subnet of a step are what
    their names say.

    Args:
        module: a model space that `RandomOneShot.mutate_model` has changed.
        images: an example input (N, C, H, W).

    Raises:
        TipsError: a label that is no finite choice, or operations without a common order.
    """

    def __init__(self, module: ModelSpace, images: Tensor) -> None:
        self.module = module
        self._images = images
        switches: list[Any] = [m for m in module.modules() if isinstance(m, BaseSuperNetModule)]
        self._resample = [switch.resample for switch in switches]
        mutables = module.simplify()
        self._labels = Labels.of(mutables)
        self._now = self._labels.space.largest
        self._labels = Labels.of(mutables, self._ranks())
        self._now = self._labels.space.largest
        self.space = self._labels.space
        observed = Observations(self.space, self.trace)
        self.structure = path_graph(observed)
        mflops = multiply_adds(observed, self.trace, np.random.default_rng(0))
        params = ModuleCost("params_m", self, lambda m: sum(p.numel() for p in m.parameters()) / 1e6, "M")
        self.costs = {"mflops": mflops, "params_m": params}

    def trace(self, config: SubnetConfig) -> Trace:
        """Return what runs in a subnet."""
        with self.choosing(config):
            return trace_forward(self.module, self._images)

    def _ranks(self) -> dict[str, list[float]]:
        """Return the multiply-adds with every option of the labels that have no order of their own."""
        space = self._labels.space
        base = space.largest.as_dict()
        return {
            dim.name: [
                sum(self.trace(space.config({**base, dim.name: choice})).multiply_adds.values())
                for choice in dim.choices
            ]
            for dim in space.dims
            if dim.kind == "choice"
        }

    @contextmanager
    def choosing(self, config: SubnetConfig) -> Iterator[None]:
        """See `Network`."""
        before = self._now
        self._choose(config)
        try:
            yield
        finally:
            self._choose(before)

    def _choose(self, config: SubnetConfig) -> None:
        self._now = config
        sample = self._labels.sample(config)
        for resample in self._resample:
            resample(memo=sample)

    def sample(self, config: SubnetConfig) -> Sample:
        """See `Network`."""
        return self._labels.sample(config)

    def config(self, sample: Sample) -> SubnetConfig:
        """Return the subnet of a sample.

        Raises:
            TipsError: a label is missing, or its value is unknown.
        """
        return self._labels.config(sample)

    def gradient_norms(self) -> dict[str, float]:
        """See `Network`."""
        found = {
            name: weight.grad
            for name, module in self.module.named_modules()
            if isinstance(weight := getattr(module, "weight", None), nn.Parameter)
            and weight.ndim > 1
            and weight.grad is not None
        }
        norms = torch.stack(torch._foreach_norm(list(found.values()))).tolist()
        return dict(zip(found, norms, strict=True))

    def view(self, config: SubnetConfig, statistics: Statistics | None = None) -> nn.Module:
        """See `Network`."""
        # NNI shares the weights of plain candidates between a frozen module and the supernet, and makes the others on
        # the CPU.
        device = next(self.module.parameters()).device
        space: Any = self.module
        frozen: nn.Module = copy.deepcopy(space.freeze(self._labels.sample(config))).to(device)
        if statistics:
            buffers = dict(frozen.named_buffers())
            for name, tensor in statistics.items():
                buffers[name].copy_(tensor)
        return frozen

    def extract(self, config: SubnetConfig, statistics: Statistics | None = None) -> nn.Module:
        """See `Network`."""
        return self.view(config, statistics).eval()
