"""What the strategies need of a model space: our own of timm backbones, or a foreign one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tips_nni.adapters.strategies._space import Sample, SampledBackbone, TimmSpace
from tips_nni.core import Architecture, Codes, CostModel, PathGraph, SearchSpace, SubnetConfig
from tips_nni.elastic import Statistics, calibrate
from tips_nni.training import accuracy, gradient_norms

Batch = tuple[Tensor, Tensor]


class Network(ABC):
    """A model space that a one-shot strategy has turned into a supernet.

    Attributes:
        module: the supernet.
        space: its search space.
        structure: what policies are made for.
        costs: every cost by its name.
    """

    module: nn.Module
    space: SearchSpace
    structure: Architecture | PathGraph
    costs: Mapping[str, CostModel]

    @abstractmethod
    def choosing(self, config: SubnetConfig) -> AbstractContextManager[None]:
        """Let the supernet run as one subnet for the block."""

    @abstractmethod
    def sample(self, config: SubnetConfig) -> Sample:
        """Return a subnet as NNI writes it: a value for every label."""

    @abstractmethod
    def gradient_norms(self) -> dict[str, float]:
        """Return the norm of the weight gradients by operation."""

    @abstractmethod
    def view(self, config: SubnetConfig, statistics: Statistics | None = None) -> nn.Module:
        """Return a subnet, in the supernet's mode; its weights may be the supernet's own."""

    @abstractmethod
    def extract(self, config: SubnetConfig, statistics: Statistics | None = None) -> nn.Module:
        """Return a subnet with weights of its own, in evaluation mode."""

    def measure(self, config: SubnetConfig, calibration: Sequence[Tensor], validation: Sequence[Batch]) -> float:
        """Return the accuracy of a subnet after calibration, 0 to 1."""
        statistics = calibrate(self.view(config), calibration)
        return accuracy(self.view(config, statistics or None), validation)


class ModuleCost(CostModel):
    """A cost that a function of the subnet's module tells; each subnet is asked about once."""

    tabulated = False

    def __init__(self, name: str, network: Network, function: Callable[[nn.Module], float], unit: str = "") -> None:
        self.name = name
        self.unit = unit
        self._network = network
        self._function = function
        self._known: dict[tuple[int, ...], float] = {}

    def evaluate(self, codes: Codes) -> NDArray[np.float64]:
        """Return the cost of every subnet, shape (N,)."""
        for code in map(tuple, codes.tolist()):
            if code not in self._known:
                self._known[code] = float(self._function(self._network.extract(self._network.space.decode(code))))
        return np.array([self._known[tuple(code)] for code in codes.tolist()])


class TimmNetwork(Network):
    """The supernet of a timm backbone."""

    def __init__(self, module: TimmSpace) -> None:
        self.module = module
        self._supernet = module.supernet
        self.space = self._supernet.space
        self.structure = self._supernet.architecture
        self.costs = module.costs

    def choosing(self, config: SubnetConfig) -> AbstractContextManager[None]:
        """See `Network`."""
        backbone = self.module.elastic
        assert isinstance(backbone, SampledBackbone)
        return backbone.choosing(config)

    def sample(self, config: SubnetConfig) -> Sample:
        """See `Network`."""
        return dict(config.as_dict())

    def gradient_norms(self) -> dict[str, float]:
        """See `Network`."""
        return gradient_norms(self._supernet)

    def view(self, config: SubnetConfig, statistics: Statistics | None = None) -> nn.Module:
        """See `Network`."""
        return self._supernet.view(config, statistics)

    def extract(self, config: SubnetConfig, statistics: Statistics | None = None) -> nn.Module:
        """See `Network`."""
        return self._supernet.extract(config, statistics)
