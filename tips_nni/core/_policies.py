"""The policies of other methods: uniform, global_width, attentive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tips_nni.core._architecture import Architecture
from tips_nni.core._errors import TipsError
from tips_nni.core._graph import PathGraph
from tips_nni.core._policy import Policy, PolicyInfo, PolicyOptions, cost_table, register_policy
from tips_nni.core._space import CHANNEL_KINDS, Codes


class UniformPolicy(Policy):
    """Every choice of every dimension is equally likely: the random part of the sandwich rule (US-Nets, 2019)."""

    def _draw(self, rng: np.random.Generator, n: int) -> Codes:
        return self.space.sample(rng, n)


class GlobalWidthPolicy(Policy):
    """One width for all layers, as US-Nets draw it: one uniform number picks the choice of every width at once."""

    def _draw(self, rng: np.random.Generator, n: int) -> Codes:
        codes = self.space.sample(rng, n)
        widths = [i for i, dim in enumerate(self.space.dims) if dim.kind in CHANNEL_KINDS]
        share = rng.random((n, 1))
        codes[:, widths] = (share * self.space.sizes[widths]).astype(np.int64)
        return codes


@dataclass(frozen=True)
class AttentiveOptions(PolicyOptions):
    """Options of `AttentivePolicy`.

    Attributes:
        candidates: subnets drawn for each that is kept, at least 1.
    """

    candidates: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < 1:
            raise TipsError(f"candidates = {self.candidates}; it must be at least 1")


class AttentivePolicy(Policy):
    """FLOPs-conditioned sampling, after AttentiveNAS (Wang et al. 2021).

    A budget is drawn evenly between the smallest and the largest subnet's multiply-adds, and of several uniform
    candidates the one nearest to it is kept. AttentiveNAS then chooses by a predicted accuracy; that part is left out,
    there being no prediction yet.
    """

    def __init__(self, network: Architecture | PathGraph, options: AttentiveOptions) -> None:
        super().__init__(network, options)
        self._candidates = options.candidates
        self._table = cost_table(network, "policy 'attentive'")
        ends = self.space.encode_many([self.space.smallest, self.space.largest])
        self._low, self._high = self._table.flops(ends).tolist()

    def _draw(self, rng: np.random.Generator, n: int) -> Codes:
        codes = self.space.sample(rng, n * self._candidates).reshape(n, self._candidates, -1)
        flops = self._table.flops(codes.reshape(-1, codes.shape[2])).reshape(n, -1)
        budget = rng.uniform(self._low, self._high, size=(n, 1))
        return np.asarray(codes[np.arange(n), np.abs(flops - budget).argmin(axis=1)])


@dataclass(frozen=True)
class UniformOptions(PolicyOptions):
    """Uniform sampling has nothing to explore or to neutralise."""

    exploration: float = 0.0


register_policy(PolicyInfo("uniform", "every choice is equally likely", UniformPolicy, UniformOptions))
register_policy(PolicyInfo("global_width", "one width for all layers", GlobalWidthPolicy, PolicyOptions))
register_policy(PolicyInfo("attentive", "budgets drawn evenly in multiply-adds", AttentivePolicy, AttentiveOptions))
