"""The path graph: feature maps (or channel chunks of them) are nodes, operations are edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._architecture import Architecture, FeatureMap, Operation
from tips_nni.core._errors import TipsError
from tips_nni.core._space import Codes, SearchSpace

_TRANSPARENT = ("norm", "scale", "act", "pool", "view")


@dataclass(frozen=True, slots=True)
class Requirement:
    """Present iff the choice index in dimension `dim` (a column of the code) is at least `level`.

    With `exact` it must be `level`: of operations that exclude each other a subnet has only the chosen one.
    """

    dim: int
    level: int
    exact: bool = False

    def met(self, codes: Codes) -> NDArray[np.bool_]:
        """Return which subnets meet it, shape (T,)."""
        column = codes[:, self.dim]
        return np.asarray(column == self.level if self.exact else column >= self.level)


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A feature map, or a channel chunk of it.

    Attributes:
        name: unique in the graph.
        feature_map: name of the feature map that it belongs to.
        chunk: number of the chunk, 0 being the channels that every subnet has.
        channels: channels of the chunk.
        requires: present in a subnet iff all hold.
    """

    name: str
    feature_map: str
    chunk: int = 0
    channels: int = 1
    requires: tuple[Requirement, ...] = ()


@dataclass(frozen=True)
class PathGraph:
    """A directed acyclic graph from the input node r to the output node d; nodes are in topological order.

    A subnet keeps the nodes whose requirements it meets, as far as they lie on a path from r to d in it, and the edges
    between them. There is at most one edge between two nodes.

    Attributes:
        nodes: V nodes in topological order.
        source: for every edge the node it leaves, shape (E,), int64.
        target: for every edge the node it enters, shape (E,), int64; ascending, and ascending `source` within.
        operations: for every edge the operation's name, length E.
        width: for every edge the share of its operation's channel pairs that it connects, shape (E,), in (0, 1].
        r: index of the input node.
        d: index of the output node.
        space: the search space that requirements refer to; None where there are none.
    """

    nodes: tuple[GraphNode, ...]
    source: NDArray[np.int64]
    target: NDArray[np.int64]
    operations: tuple[str, ...]
    width: NDArray[np.float64]
    r: int
    d: int
    space: SearchSpace | None = None
    _starts: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not len(self.source) or self.r == self.d:
            raise TipsError("the path graph has no path from r to d: it needs at least one edge")
        if (self.source >= self.target).any():
            raise TipsError("the nodes of the path graph are not in topological order; build it with from_edges")
        starts = np.searchsorted(self.target, np.arange(len(self.nodes) + 1))
        object.__setattr__(self, "_starts", starts)

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of the nodes, in order."""
        return tuple(node.name for node in self.nodes)

    def incoming(self, node: int) -> slice:
        """Return the edges that enter `node`, as a slice of the edge arrays."""
        return slice(int(self._starts[node]), int(self._starts[node + 1]))

    def node_mask(self, codes: Codes) -> NDArray[np.bool_]:
        """Return which nodes every subnet has, shape (T, V).

        Raises:
            TipsError: the codes do not fit the space, or a subnet has no path from r to d.
        """
        if self.space is not None:
            codes = self.space.check_codes(codes)
        mask = np.ones((len(codes), len(self.nodes)), dtype=np.bool_)
        for v, node in enumerate(self.nodes):
            for requirement in node.requires:
                mask[:, v] &= requirement.met(codes)
        mask = self._on_paths(mask)
        if not mask[:, self.d].all() or not mask[:, self.r].all():
            subnet = int(np.flatnonzero(~(mask[:, self.d] & mask[:, self.r]))[0])
            raise TipsError(
                f"subnet {subnet} of {len(codes)} has no path from {self.nodes[self.r].name!r} to "
                f"{self.nodes[self.d].name!r}; every subnet must connect input and output"
            )
        return mask

    def _on_paths(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Keep the nodes that r reaches and that reach d, within each subnet."""
        forward = np.zeros_like(mask)
        forward[:, self.r] = mask[:, self.r]
        for v in range(len(self.nodes)):
            edges = self.incoming(v)
            if edges.stop > edges.start:
                forward[:, v] |= forward[:, self.source[edges]].any(axis=1) & mask[:, v]
        backward = np.zeros_like(mask)
        backward[:, self.d] = mask[:, self.d]
        for v in range(len(self.nodes) - 1, -1, -1):
            edges = self.incoming(v)
            if edges.stop > edges.start:
                # Sources of one target are distinct, so the assignment touches each column once.
                sources = self.source[edges]
                backward[:, sources] |= (backward[:, v, None]) & mask[:, sources]
        return np.asarray(forward & backward)

    def edge_mask(self, nodes: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which edges every subnet has, given its nodes (T, V): shape (T, E)."""
        return np.asarray(nodes[:, self.source] & nodes[:, self.target])

    def edge_requirements(self) -> list[frozenset[Requirement]]:
        """Return for every edge what a subnet must meet to have it, length E."""
        return [
            frozenset(self.nodes[u].requires) | frozenset(self.nodes[v].requires)
            for u, v in zip(self.source.tolist(), self.target.tolist(), strict=True)
        ]

    @classmethod
    def from_edges(
        cls,
        edges: Sequence[tuple[str, str]],
        *,
        r: str,
        d: str,
        requires: Mapping[str, Sequence[Requirement]] | None = None,
        operations: Sequence[str] | None = None,
        width: Sequence[float] | None = None,
        space: SearchSpace | None = None,
    ) -> PathGraph:
        """Build a graph by hand.

        Args:
            edges: (from, to) node names.
            r: the input node.
            d: the output node.
            requires: node name -> requirements; none by default.
            operations: names of the edges' operations; ``"from->to"`` by default.
            width: shares of channels; 1 by default.
            space: the search space that requirements refer to.

        Raises:
            TipsError: a cycle, an edge given twice, an unknown node, or no path from r to d.
        """
        names = list(dict.fromkeys(name for edge in edges for name in edge))
        for name in (r, d, *(requires or {})):
            if name not in names:
                raise TipsError(f"node {name!r} is at no edge; the nodes are {', '.join(names)}")
        if len(set(edges)) != len(edges):
            twice = next(edge for edge in edges if list(edges).count(edge) > 1)
            raise TipsError(
                f"the edge {twice[0]!r} -> {twice[1]!r} is given twice; there is one edge between two nodes"
            )
        order = _topological(names, edges)
        position = {name: i for i, name in enumerate(order)}
        nodes = tuple(GraphNode(name, name, requires=tuple((requires or {}).get(name, ()))) for name in order)
        labels = operations if operations is not None else [f"{u}->{v}" for u, v in edges]
        shares = width if width is not None else [1.0] * len(edges)
        table = sorted(
            (position[v], position[u], label, share) for (u, v), label, share in zip(edges, labels, shares, strict=True)
        )
        graph = cls(
            nodes,
            np.array([row[1] for row in table], dtype=np.int64),
            np.array([row[0] for row in table], dtype=np.int64),
            tuple(row[2] for row in table),
            np.array([row[3] for row in table], dtype=np.float64),
            position[r],
            position[d],
            space,
        )
        every = graph._on_paths(np.ones((1, len(nodes)), dtype=np.bool_))
        if not every[0, graph.d]:
            raise TipsError(f"there is no path from {r!r} to {d!r}; connect them")
        return graph

    @classmethod
    def from_architecture(cls, architecture: Architecture) -> PathGraph:
        """Build the graph of a network.

        A feature map whose channels are elastic is split into chunks: chunk i exists iff the width's choice index is
        at least i. Normalisation, activation, pooling, layer scale and views belong to the feature map that they act
        on; a concatenation is the list of its inputs' nodes. A dense operation links every chunk of its input with
        every chunk of its output, a depthwise or grouped one, an addition and a gating product link chunk i with
        chunk i. The nodes of a block that depth leaves out are absent; its addition stays, as the identity.
        """
        builder = _Builder(architecture.space)
        places: dict[str, list[int]] = {}
        places[architecture.input.name] = builder.add_nodes(architecture.input, None)
        for operation in architecture.operations:
            inputs = [places[name] for name in operation.inputs]
            if operation.kind in _TRANSPARENT and len(inputs) == 1:
                places[operation.output] = inputs[0]
            elif operation.kind == "concat":
                places[operation.output] = [node for nodes in inputs for node in nodes]
            else:
                places[operation.output] = builder.add_operation(operation, architecture, inputs)
        sinks = places[architecture.operations[-1].output]
        if len(sinks) != 1:
            raise TipsError("the output of the network has elastic channels; the classes must be fixed")
        return builder.build(places[architecture.input.name][0], sinks[0])


class _Builder:
    """Collects nodes and edges of a network."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._nodes: list[GraphNode] = []
        self._edges: dict[tuple[int, int], tuple[str, float]] = {}

    def add_nodes(self, feature_map: FeatureMap, gate: Requirement | None) -> list[int]:
        """Add the chunks of a feature map and return their numbers."""
        numbers: list[int] = []
        for axis in feature_map.axes:
            previous = 0
            for level, size in enumerate(axis.sizes):
                requires = []
                if axis.dim is not None:
                    requires.append(Requirement(self._space.position(axis.dim), level))
                if gate is not None:
                    requires.append(gate)
                chunk = len(numbers)
                name = feature_map.name if len(axis.sizes) == 1 else f"{feature_map.name}[{previous}:{size}]"
                numbers.append(len(self._nodes))
                self._nodes.append(GraphNode(name, feature_map.name, chunk, size - previous, tuple(requires)))
                previous = size
        return numbers

    def add_operation(self, operation: Operation, architecture: Architecture, inputs: Sequence[list[int]]) -> list[int]:
        """Add an operation's output nodes and edges and return the nodes' numbers."""
        gate = operation.gate
        gated = operation.kind != "add" and gate is not None
        requirement = Requirement(self._space.position(gate.dim), gate.at_least) if gated and gate is not None else None
        outputs = self.add_nodes(architecture.feature_map(operation.output), requirement)
        dense = operation.kind in ("conv", "linear") and operation.group_width is None
        total_out = sum(self._nodes[v].channels for v in outputs)
        for nodes in inputs:
            total_in = sum(self._nodes[u].channels for u in nodes)
            if dense or len(nodes) != len(outputs):
                pairs = [(u, v) for v in outputs for u in nodes]
                for u, v in pairs:
                    share = self._nodes[u].channels * self._nodes[v].channels / (total_in * total_out)
                    self._edges.setdefault((u, v), (operation.name, share))
            else:
                for u, v in zip(nodes, outputs, strict=True):
                    self._edges.setdefault((u, v), (operation.name, self._nodes[v].channels / total_out))
        return outputs

    def build(self, r: int, d: int) -> PathGraph:
        """Return the graph."""
        table = sorted((v, u, *label) for (u, v), label in self._edges.items())
        return PathGraph(
            tuple(self._nodes),
            np.array([row[1] for row in table], dtype=np.int64),
            np.array([row[0] for row in table], dtype=np.int64),
            tuple(row[2] for row in table),
            np.array([row[3] for row in table], dtype=np.float64),
            r,
            d,
            self._space,
        )


def _topological(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> list[str]:
    """Return the names in topological order; ties keep the order given.

    Raises:
        TipsError: there is a cycle.
    """
    before: dict[str, set[str]] = {name: set() for name in names}
    for u, v in edges:
        before[v].add(u)
    order: list[str] = []
    done: set[str] = set()
    while len(order) < len(names):
        ready = [name for name in names if name not in done and before[name] <= done]
        if not ready:
            rest = ", ".join(name for name in names if name not in done)
            raise TipsError(f"the path graph has a cycle among {rest}; information flows from r to d only")
        order.extend(ready)
        done.update(ready)
    return order
