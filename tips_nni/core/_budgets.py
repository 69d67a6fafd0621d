"""Budgets of multiply-adds for the subnets of a training step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._architecture import Architecture
from tips_nni.core._cost import CostTable
from tips_nni.core._graph import PathGraph
from tips_nni.core._space import Codes

Floats = NDArray[np.float64]
#: What subnets (N, D) spend of a budget, shape (N,), positive.
Spending = Callable[[Codes], Floats]


def spending_of(network: Architecture | PathGraph) -> Spending:
    """Return multiply-adds; where only the path graph is known, operations weighted by their share of channels."""
    if isinstance(network, Architecture):
        table = CostTable(network)
        return lambda codes: table.flops(codes).astype(np.float64)
    graph = network
    return lambda codes: np.asarray(graph.edge_mask(graph.node_mask(codes)) @ graph.width)


def draw_budgets(rng: np.random.Generator, low: Floats, high: Floats, thrift: float) -> Floats:
    """Draw budgets, one for each pair of ends, with density ∝ budget^(−thrift) on the logarithmic scale.

    With thrift 0 every budget is as likely as any other, with 1 every budget gets as many multiply-adds. The draws are
    stratified: of n budgets one falls into each n-th of the distribution, so that a step trains cheap subnets and dear
    ones.

    Args:
        rng: decides the draws.
        low: logarithms of the smallest budgets, shape (N,).
        high: of the largest, shape (N,).
        thrift: at least 0.

    Returns:
        Logarithms of budgets, shape (N,).
    """
    n = len(low)
    u = (rng.permutation(n) + rng.random(n)) / max(n, 1)
    if thrift < 1e-9:
        return np.asarray(low + u * (high - low))
    return np.asarray(low - np.log1p(u * np.expm1(-thrift * (high - low))) / thrift)
