"""What every option of a search space adds to the path graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tips_nni.core._graph import GraphNode, PathGraph
from tips_nni.core._space import Codes

Floats = NDArray[np.float64]


class Unlocks:
    """The options above the smallest one of every ordered dimension, and the nodes that each adds.

    A channel chunk belongs to the option that makes its layer so wide, the first chunk of a block that depth can leave
    out to the depth that brings the block.

    Args:
        graph: the path graph of a search space.

    Attributes:
        options: (dimension, level) of every option that adds a node, U of them.
        owner: for every node the index of its option, −1 where every subnet has the node, shape (V,).
    """

    def __init__(self, graph: PathGraph) -> None:
        self._graph = graph
        owners = [_owner(node) for node in graph.nodes]
        self.options: tuple[tuple[int, int], ...] = tuple(sorted({option for option in owners if option is not None}))
        index = {option: i for i, option in enumerate(self.options)}
        self.owner: NDArray[np.int64] = np.array([-1 if o is None else index[o] for o in owners], dtype=np.int64)
        owned = np.flatnonzero(self.owner >= 0)
        shape = len(graph.nodes), len(self.options)
        self._nodes = csr_array((np.ones(len(owned)), (owned, self.owner[owned])), shape=shape)

    def per_option(self, values: Floats) -> Floats:
        """Return the sum of node values (V,) or (T, V) over the nodes of every option: (U,) or (T, U)."""
        return np.asarray(values @ self._nodes)

    def presence(self, codes: Codes) -> Floats:
        """Return for every subnet the share of each option's nodes that it has, shape (T, U).

        0 for the width of a block that the subnet leaves out, whatever its code says.
        """
        mask = self._graph.node_mask(codes).astype(np.float64)
        return self.per_option(mask) / self.per_option(np.ones(mask.shape[1]))

    def edge_values(self, values: Floats) -> Floats:
        """Spread a value of every option (U,) evenly over the edges at its nodes: shape (E,).

        An edge between nodes of two options has a part of both; one that every subnet has gets 0.
        """
        ends = np.stack([self.owner[self._graph.source], self.owner[self._graph.target]])
        ends[1] = np.where(ends[1] == ends[0], -1, ends[1])
        counts = np.bincount(ends[ends >= 0], minlength=len(self.options))
        shares = np.append(values / np.maximum(counts, 1), 0.0)  # the last is for the owner −1
        return np.asarray(shares[ends].sum(axis=0))


def _owner(node: GraphNode) -> tuple[int, int] | None:
    """Return the option that adds a node; None where every subnet has it, or where an unordered choice brings it."""
    needs = [need for need in node.requires if need.level > 0 and not need.exact]
    if not needs:
        return None
    # The builder puts the chunk's own width before the depth of its block.
    return needs[0].dim, needs[0].level
