"""From scores to subnets: three ways to draw by importance, each our reconstruction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._budgets import Spending, draw_budgets
from tips_nni.core._graph import PathGraph
from tips_nni.core._space import Codes, SearchSpace

Floats = NDArray[np.float64]


class MarginalForm:
    """Options of each dimension, drawn independently with probability softmax(standardised importance / temperature).

    Args:
        importances: of the options of every dimension, arrays of shape (choices,).
        temperature: > 0.

    Attributes:
        probabilities: of the options of every dimension, arrays of shape (choices,).
    """

    def __init__(self, importances: Sequence[Floats], temperature: float) -> None:
        self.probabilities = [_softmax(_standardised(values) / temperature) for values in importances]

    def draw(self, rng: np.random.Generator, n: int) -> Codes:
        """Return `n` codes, shape (n, D)."""
        columns = [rng.choice(len(p), size=n, p=p) for p in self.probabilities]
        return np.stack(columns, axis=1).astype(np.int64)


class PathForm:
    """Whole paths with probability ∝ exp(TPS / temperature); a subnet is the smallest that holds its paths.

    TPS is the sum of standardised TAS over the nodes of a path, so that its weight factorises and a path is drawn node
    by node. Resolutions, which are on no path, are drawn uniformly, and so are choices that no drawn path passes.

    Args:
        graph: the path graph of a search space.
        space: the space.
        tas: score of every node, shape (V,).
        temperature: > 0.
        paths: a subnet joins 1 to so many paths, at least 1.
    """

    def __init__(self, graph: PathGraph, space: SearchSpace, tas: Floats, temperature: float, paths: int) -> None:
        self._graph = graph
        self._space = space
        self._paths = paths
        self.node_logits = _standardised(tas) / temperature
        # For every node the log of the sum, over the paths from r to it, of their weights.
        self._continuations = np.full(len(graph.nodes), -np.inf)
        self._continuations[graph.r] = self.node_logits[graph.r]
        for v in range(len(graph.nodes)):
            edges = graph.incoming(v)
            if edges.stop > edges.start:
                before = self._continuations[graph.source[edges]]
                self._continuations[v] = np.logaddexp.reduce(before) + self.node_logits[v]

    def draw(self, rng: np.random.Generator, n: int) -> Codes:
        """Return `n` codes, shape (n, D)."""
        codes = np.zeros((n, len(self._space.dims)), dtype=np.int64)
        free = unordered(self._space)
        codes[:, free] = self._space.sample(rng, n)[:, free]
        for row in codes:
            for _ in range(int(rng.integers(1, self._paths + 1))):
                for node in self.draw_path(rng):
                    for requirement in self._graph.nodes[node].requires:
                        # Paths through operations that exclude each other: the one drawn last decides.
                        level = requirement.level
                        row[requirement.dim] = level if requirement.exact else max(row[requirement.dim], level)
        return codes

    def draw_path(self, rng: np.random.Generator) -> list[int]:
        """Draw a path with probability ∝ exp(TPS / temperature) and return its nodes, d first."""
        path = [self._graph.d]
        while path[-1] != self._graph.r:
            sources = self._graph.source[self._graph.incoming(path[-1])]
            path.append(int(rng.choice(sources, p=_softmax(self._continuations[sources]))))
        return path


class BudgetForm:
    """A budget for the whole subnet; every layer keeps the share of importance that the budget allows.

    The options of a dimension hold shares of its importance: the mean worth of the nodes that an option adds, to the
    power 1 / temperature. A subnet with share b takes in each dimension the first option at which the shares add up to
    b, or to a layer's own b + jitter · normal. Choices of different layers are so correlated: where one is narrow, all
    are narrow by their importance. b is drawn such that the multiply-adds follow `draw_budgets`, from the smallest
    subnet's to the largest one's. Dimensions without order are drawn on their own.

    Args:
        graph: the path graph of a search space.
        space: the space.
        spending: multiply-adds of subnets.
        worth: TAS of every node, per subnet that has it, shape (V,).
        others: draws the dimensions without order.
        temperature: > 0; high values give every option the same share.
        jitter: at least 0.
        thrift: see `draw_budgets`.

    Attributes:
        shares: cumulated shares of the options of every dimension, arrays of shape (choices,) that end with 1.
    """

    def __init__(
        self,
        graph: PathGraph,
        space: SearchSpace,
        spending: Spending,
        worth: Floats,
        others: MarginalForm,
        temperature: float,
        jitter: float,
        thrift: float = 0.0,
    ) -> None:
        self._free, self._others = unordered(space), others
        self._jitter = jitter
        self._thrift = thrift
        self.shares = [np.cumsum(values) / values.sum() for values in _added_worth(graph, space, worth, temperature)]
        # How a budget becomes a share: mean log multiply-adds on a grid of shares, made monotone. Three deviations
        # below 0 and above 1 jitter is without effect, so that budgets reach the smallest and the largest subnet.
        self._grid = np.linspace(-3 * jitter, 1 + 3 * jitter, 49)
        rng = np.random.default_rng(0)
        codes = self._at(rng, np.repeat(self._grid, 64))
        means = np.log(spending(codes)).reshape(len(self._grid), -1).mean(axis=1)
        self._log_flops = np.maximum.accumulate(means)

    def draw(self, rng: np.random.Generator, n: int) -> Codes:
        """Return `n` codes, shape (n, D)."""
        low, high = (np.full(n, self._log_flops[end]) for end in (0, -1))
        budgets = draw_budgets(rng, low, high, self._thrift)
        return self._at(rng, np.interp(budgets, self._log_flops, self._grid))

    def _at(self, rng: np.random.Generator, shares: Floats) -> Codes:
        """Return a code for every common share, shape (n, D)."""
        own = shares[:, None] + self._jitter * rng.standard_normal((len(shares), len(self.shares)))
        # The last share is 1 only up to rounding; above it there is no option.
        columns = [
            np.minimum(np.searchsorted(limits, column), len(limits) - 1)
            for limits, column in zip(self.shares, own.T, strict=True)
        ]
        codes = np.stack(columns, axis=1).astype(np.int64)
        codes[:, self._free] = self._others.draw(rng, len(codes))[:, self._free]
        return codes


def _added_worth(graph: PathGraph, space: SearchSpace, worth: Floats, temperature: float) -> list[Floats]:
    """Return for every dimension the mean worth of the nodes that each option adds, to the power 1 / temperature.

    Depth's smallest option adds no node of its own: it counts the nodes that every subnet has.
    """
    always = float(worth[[not any(need.level for need in node.requires) for node in graph.nodes]].mean())
    sums = [np.zeros(len(dim.choices)) for dim in space.dims]
    counts = [np.zeros(len(dim.choices)) for dim in space.dims]
    for node, value in zip(graph.nodes, worth.tolist(), strict=True):
        for need in node.requires:
            sums[need.dim][need.level] += value
            counts[need.dim][need.level] += 1
    means = [np.where(c > 0, s / np.maximum(c, 1), always) for s, c in zip(sums, counts, strict=True)]
    return [np.maximum(values / values.max(), 1e-6) ** (1 / temperature) for values in means]


def unordered(space: SearchSpace) -> list[int]:
    """Return the dimensions without order: resolutions, on no path, and choices, whose options exclude each other."""
    return [i for i, dim in enumerate(space.dims) if dim.kind in ("resolution", "choice")]


def _standardised(values: Floats) -> Floats:
    """Return values with mean 0 and standard deviation 1; zeros where they are (nearly) equal."""
    spread = float(values.std())
    if spread <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return np.zeros_like(values)
    return np.asarray((values - values.mean()) / spread)


def _softmax(logits: Floats) -> Floats:
    values = np.exp(logits - logits.max())
    return np.asarray(values / values.sum())
