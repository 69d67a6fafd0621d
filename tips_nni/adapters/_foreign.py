"""The supernet that NNI makes of a hand-written model space, or of one of its hub."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tips_nni.adapters._labels import Labels
from tips_nni.adapters._model_graph import path_graph
from tips_nni.adapters._network import ModuleCost, Network
from tips_nni.adapters._space import Sample
from tips_nni.adapters._trace import Trace, trace_forward
from tips_nni.core import Codes, CostModel, SearchSpace, SubnetConfig
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
        self._switches = [m for m in module.modules() if isinstance(m, BaseSuperNetModule)]
        mutables = module.simplify()
        unsorted = Labels.of(mutables)
        self._labels = unsorted
        macs = MultiplyAdds(unsorted, module, images[:1])
        base = unsorted.space.encode(unsorted.space.largest)
        ranks: dict[str, list[float]] = {}
        for i, (dim, values) in enumerate(zip(unsorted.space.dims, unsorted.options, strict=True)):
            codes = np.tile(base, (len(values), 1))
            codes[:, i] = np.arange(len(values))
            if dim.kind == "choice":
                ranks[dim.name] = macs.evaluate(codes).tolist()
        self._labels = Labels.of(mutables, ranks)
        self.space = self._labels.space
        self._now = self.space.largest
        self.costs = {
            "mflops": MultiplyAdds(self._labels, module, images[:1]),
            "params_m": ModuleCost("params_m", self, lambda m: sum(p.numel() for p in m.parameters()) / 1e6, "M"),
        }

        def trace(config: SubnetConfig) -> Trace:
            with self.choosing(config):
                return trace_forward(module, images)

        self.structure = path_graph(self.space, trace)

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
        choose(self._switches, self._labels.sample(config))

    def sample(self, config: SubnetConfig) -> Sample:
        """See `Network`."""
        return self._labels.sample(config)

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
        frozen = copy.deepcopy(self.module.freeze(self._labels.sample(config))).to(device)
        if statistics:
            buffers = dict(frozen.named_buffers())
            for name, tensor in statistics.items():
                buffers[name].copy_(tensor)
        return frozen

    def extract(self, config: SubnetConfig, statistics: Statistics | None = None) -> nn.Module:
        """See `Network`."""
        return self.view(config, statistics).eval()


class MultiplyAdds(CostModel):
    """Multiply-adds of a subnet in millions, counted as it runs without data; each subnet is counted once."""

    name = "mflops"
    unit = "M"
    tabulated = False

    def __init__(self, labels: Labels, module: nn.Module, images: Tensor) -> None:
        self._labels = labels
        self._module = copy.deepcopy(module).to("meta").eval()
        self._images = images.to("meta")
        self._switches = [m for m in self._module.modules() if isinstance(m, BaseSuperNetModule)]
        self._known: dict[tuple[int, ...], float] = {}

    @torch.no_grad()
    def evaluate(self, codes: Codes) -> NDArray[np.float64]:
        """Return the multiply-adds of every subnet, shape (N,)."""
        space: SearchSpace = self._labels.space
        for code in map(tuple, codes.tolist()):
            if code not in self._known:
                choose(self._switches, self._labels.sample(space.decode(code)))
                with FlopCounterMode(display=False) as counter:
                    self._module(self._images)
                self._known[code] = counter.get_total_flops() / 2 / len(self._images) / 1e6
        return np.array([self._known[tuple(code)] for code in codes.tolist()])


def choose(switches: list[BaseSuperNetModule], sample: Sample) -> None:
    """Make the choices of a sample in NNI's supernet modules."""
    for switch in switches:
        switch.resample(memo=sample)
