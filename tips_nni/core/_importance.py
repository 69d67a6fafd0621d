"""Scores of nodes and paths: TAS, TPS, best paths, and what they say of operations and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._errors import TipsError, unknown
from tips_nni.core._graph import PathGraph

Score = Literal["mean", "sum"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredPath:
    """A path from r to d.

    Attributes:
        nodes: indices of its nodes, r first.
        score: its TPS.
    """

    nodes: tuple[int, ...]
    score: float


def accumulated_scores(stationary: Floats) -> Floats:
    """Return TAS: for every node its stationary probability summed over the T subnets; (T, V) to (V,)."""
    return np.asarray(stationary.sum(axis=0))


class PathScores:
    """Topological path scores on a graph whose nodes have scores.

    TPS of a path is the mean (or sum) of the TAS of its nodes. The sum needs one forward and one backward pass over
    the topological order. For the mean the passes keep the best sum for every length, which makes it exact: a path
    through an edge is the best beginning of some length joined to the best end of some length.

    Args:
        graph: the path graph.
        tas: score of every node, shape (V,), finite.
        score: ``mean`` or ``sum``.
    """

    def __init__(self, graph: PathGraph, tas: Floats, score: Score = "mean") -> None:
        if score not in get_args(Score):
            raise unknown("score", str(score), get_args(Score))
        if tas.shape != (len(graph.nodes),) or not np.isfinite(tas).all():
            raise TipsError(
                f"TAS of shape {tas.shape} does not fit a graph of {len(graph.nodes)} nodes, or is not finite"
            )
        self.graph = graph
        self.tas = tas
        self.score: Score = score
        self._begin = self._pass(forward=True)
        self._end = self._pass(forward=False)

    def _pass(self, *, forward: bool) -> Floats:
        """Return the best sum of node scores from r (or to d), the node included, by number of nodes: (V, L + 1).

        With ``sum`` the length does not matter and there is one column.
        """
        graph = self.graph
        count = len(graph.nodes)
        lengths = self._longest() + 1 if self.score == "mean" else 1
        best = np.full((count, lengths), -np.inf)
        start = graph.r if forward else graph.d
        best[start, 1 if self.score == "mean" else 0] = self.tas[start]
        shift = 1 if self.score == "mean" else 0
        for v in range(count) if forward else range(count - 1, -1, -1):
            edges = graph.incoming(v)
            if edges.stop == edges.start:
                continue
            sources = graph.source[edges]
            if forward:
                reached = best[sources].max(axis=0)
                best[v, shift:] = np.maximum(best[v, shift:], reached[: lengths - shift] + self.tas[v])
            else:
                reached = best[v, : lengths - shift] + self.tas[sources][:, None]
                best[sources, shift:] = np.maximum(best[sources, shift:], reached)
        return best

    def _longest(self) -> int:
        """Return the number of nodes on the longest path from r to d."""
        depth = np.full(len(self.graph.nodes), -1, dtype=np.int64)
        depth[self.graph.r] = 1
        for v in range(len(depth)):
            before = depth[self.graph.source[self.graph.incoming(v)]]
            if len(before) and before.max() > 0:
                depth[v] = before.max() + 1
        return int(depth[self.graph.d])

    def through_edges(self) -> Floats:
        """Return for every edge the TPS of the best path through it, shape (E,); −inf where no path passes."""
        graph = self.graph
        if self.score == "sum":
            return np.asarray(self._begin[graph.source, 0] + self._end[graph.target, 0])
        lengths = self._begin.shape[1]
        result = np.full(len(graph.source), -np.inf)
        ends = np.arange(lengths)
        for edge, (u, v) in enumerate(zip(graph.source.tolist(), graph.target.tolist(), strict=True)):
            i = np.flatnonzero(np.isfinite(self._begin[u]))
            j = np.flatnonzero(np.isfinite(self._end[v]))
            if len(i) and len(j):
                totals = self._begin[u, i][:, None] + self._end[v, j][None]
                result[edge] = (totals / (ends[i][:, None] + ends[j][None])).max()
        return result

    def best(self, count: int = 1) -> list[ScoredPath]:
        """Return the `count` paths of highest TPS, best first (fewer where there are fewer).

        Every node keeps its `count` best beginnings, for every length where the score is the mean. Of paths with equal
        scores those come first whose last nodes have the lower indices.
        """
        graph = self.graph
        lengths = self._begin.shape[1]
        shift = 1 if self.score == "mean" else 0
        values = np.full((len(graph.nodes), lengths, count), -np.inf)
        origin = np.zeros(values.shape, dtype=np.int64)
        values[graph.r, shift, 0] = self.tas[graph.r]
        for v in range(len(graph.nodes)):
            sources = graph.source[graph.incoming(v)]
            if not len(sources):
                continue
            # All beginnings of one length side by side: (length, source and rank).
            pool = values[sources].transpose(1, 0, 2).reshape(lengths, -1)[: lengths - shift]
            order = np.argsort(-pool, axis=1, kind="stable")[:, :count]
            values[v, shift:, : order.shape[1]] = np.take_along_axis(pool, order, axis=1) + self.tas[v]
            origin[v, shift:, : order.shape[1]] = sources[order // count] * count + order % count
        found = []
        for length, rank in zip(*np.nonzero(np.isfinite(values[graph.d])), strict=True):
            nodes, at, left = [graph.d], int(rank), int(length)
            while nodes[0] != graph.r:
                previous, at = divmod(int(origin[nodes[0], left, at]), count)
                nodes.insert(0, previous)
                left -= shift
            total = float(values[graph.d, length, rank])
            found.append(ScoredPath(tuple(nodes), total / len(nodes) if shift else total))
        return sorted(found, key=lambda path: -path.score)[:count]


def operation_importance(graph: PathGraph, through: Floats) -> dict[str, float]:
    """Return for every operation the TPS of the best path through any of its edges, most important first.

    Operations on one best path have equal scores but for rounding: scores equal to 10 digits keep the network's order.
    """
    best: dict[str, float] = {}
    for name, value in zip(graph.operations, through.tolist(), strict=True):
        best[name] = max(best.get(name, -np.inf), value)
    return dict(sorted(best.items(), key=lambda item: -float(f"{item[1]:.10g}")))


def option_importance(graph: PathGraph, through: Floats) -> list[Floats]:
    """Return for every elastic dimension the importance of each of its options, arrays of shape (choices,).

    An option unlocks the edges that need its level and not a higher one; its importance is their mean best-path TPS.
    An option that unlocks no edge of its own (the smallest depth, any resolution) gets the mean over all edges. Our
    reconstruction.

    Raises:
        TipsError: the graph belongs to no search space.
    """
    if graph.space is None:
        raise TipsError("this path graph belongs to no search space, so it has no options")
    finite = np.isfinite(through)
    neutral = float(through[finite].mean())
    sums = [np.zeros(len(dim.choices)) for dim in graph.space.dims]
    counts = [np.zeros(len(dim.choices)) for dim in graph.space.dims]
    for value, usable, requirements in zip(through.tolist(), finite.tolist(), graph.edge_requirements(), strict=True):
        if not usable:
            continue
        highest: dict[int, int] = {}
        for requirement in requirements:
            highest[requirement.dim] = max(highest.get(requirement.dim, 0), requirement.level)
        for dim, level in highest.items():
            sums[dim][level] += value
            counts[dim][level] += 1
    return [np.where(c > 0, s / np.maximum(c, 1), neutral) for s, c in zip(sums, counts, strict=True)]
