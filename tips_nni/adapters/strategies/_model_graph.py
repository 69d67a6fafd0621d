"""The path graph of a foreign model space.

An operation is a node, present for the options under which it ran; one whose channels a label scales is split into
chunks. What comes out of a choice is a node as well, through which its alternatives meet what follows. A connection
that exists for some options only passes a node of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tips_nni.adapters.strategies._observe import Observations, Presence, both
from tips_nni.adapters.strategies._trace import INPUT, Trace
from tips_nni.core import PathGraph, Requirement

OUTPUT = "output"
_MOST_CHUNKS = 64


def path_graph(observed: Observations) -> PathGraph:
    """Return the path graph of a space.

    Raises:
        TipsError: the operations have no order that holds for all subnets.
    """
    return _Builder(observed).build()


@dataclass(frozen=True)
class _Step:
    """Channels that an option of a label adds."""

    dim: int
    level: int
    first: int
    end: int
    total: int


@dataclass(frozen=True)
class _Part:
    """A node: an operation, or a chunk or an alternative of it."""

    name: str
    operation: str
    chunk: tuple[tuple[int, int], ...]
    share: float
    requires: tuple[Requirement, ...]

    def meets(self, other: _Part) -> bool:
        """Whether a subnet can have both."""
        exact = {r.dim: r.level for r in (*self.requires, *other.requires) if r.exact}
        return all(
            r.dim not in exact or (exact[r.dim] == r.level if r.exact else exact[r.dim] >= r.level)
            for r in (*self.requires, *other.requires)
        )


class _Builder:
    """Turns observations into a graph."""

    def __init__(self, observed: Observations) -> None:
        self._observed = observed
        self._space = observed.space
        traces = observed.traces()
        self._dense = set().union(*(trace.dense for trace in traces))
        self._weighted = set().union(*(trace.weighted for trace in traces))
        self._channels = {**observed.channels, OUTPUT: 1}
        self._edges = sorted({edge for trace in traces for edge in self._with_output(trace)})
        self._presence: dict[str, Presence] = {
            OUTPUT: {},
            **{name: observed.present(name) for name in observed.channels},
        }
        self._scale: dict[str, dict[int, tuple[int, ...]]] = {
            OUTPUT: {},
            **{name: observed.scaled(name) for name in observed.channels},
        }

    @staticmethod
    def _with_output(trace: Trace) -> set[tuple[str, str]]:
        return trace.edges | {(name, OUTPUT) for name in trace.output}

    def build(self) -> PathGraph:
        """Return the graph."""
        edges = self._joined(self._edges)
        parts = {name: list(self._parts(name)) for name in {name for edge in edges for name in edge}}
        table: dict[tuple[str, str], tuple[str, float]] = {}
        requires: dict[str, tuple[Requirement, ...]] = {}
        inputs: dict[str, float] = {}
        for source, target in edges:
            inputs[target] = inputs.get(target, 0) + self._channels[source]
        for source, target in edges:
            dense = target in self._dense or [p.chunk for p in parts[source]] != [p.chunk for p in parts[target]]
            share = self._channels[source] / inputs[target]
            operation = target.partition("#")[0]
            relay = self._relay(source, target)
            for u, v in itertools.product(parts[source], parts[target]):
                if not u.meets(v) or not (dense or u.chunk == v.chunk):
                    continue
                width = u.share * v.share * share if dense else v.share * share
                for edge, between in self._between(u, v, relay):
                    table[edge] = (operation, max(width, 1e-9))
                    requires.update({part.name: part.requires for part in (u, v, *between)})
        for node in (INPUT, OUTPUT):
            requires[node] = ()
        return PathGraph.from_edges(
            list(table),
            r=INPUT,
            d=OUTPUT,
            requires=requires,
            operations=[operation for operation, _ in table.values()],
            width=[width for _, width in table.values()],
            space=self._space,
        )

    def _between(
        self, u: _Part, v: _Part, relay: list[tuple[Requirement, ...]]
    ) -> Iterator[tuple[tuple[str, str], list[_Part]]]:
        """Yield the edges from u to v, through relays where the connection has requirements of its own."""
        if not relay:
            yield (u.name, v.name), []
            return
        for i, requires in enumerate(relay):
            name = f"{u.name}->{v.name}" + (f"@{i}" if len(relay) > 1 else "")
            part = _Part(name, u.operation, (), 1.0, requires)
            if part.meets(u) and part.meets(v):
                yield (u.name, name), [part]
                yield (name, v.name), [part]

    def _joined(self, edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Let normalisation, activation and the like belong to the operation before them."""
        while True:
            sources: dict[str, set[str]] = {}
            for u, v in edges:
                sources.setdefault(v, set()).add(u)
            merged = next((v for v, us in sources.items() if len(us) == 1 and self._belongs(v, next(iter(us)))), None)
            if merged is None:
                return edges
            before = next(iter(sources[merged]))
            renamed = {(before if u == merged else u, before if v == merged else v) for u, v in edges}
            edges = sorted((u, v) for u, v in renamed if u != v)
            if (merged, OUTPUT) in self._edges:
                self._edges.append((before, OUTPUT))

    def _belongs(self, name: str, before: str) -> bool:
        return (
            name not in self._weighted
            and name != OUTPUT
            and self._presence[name] == self._presence[before]
            and self._scale[name] == self._scale[before]
            and self._edge_presence(before, name) == self._presence[name]
        )

    def _edge_presence(self, source: str, target: str) -> Presence:
        own = self._observed.seen(lambda trace: (source, target) in self._with_output(trace))
        return both(own, both(self._presence[source], self._presence[target]))

    def _relay(self, source: str, target: str) -> list[tuple[Requirement, ...]]:
        """Return the alternatives of a connection that does not follow from its ends; empty where it does."""
        presence = self._edge_presence(source, target)
        if presence == both(self._presence[source], self._presence[target]):
            return []
        return list(self._alternatives(presence))

    def _parts(self, name: str) -> Iterator[_Part]:
        """Yield the nodes of an operation."""
        scale, presence = self._scale[name], self._presence.get(name, {})
        if np.prod([len(set(counts)) for counts in scale.values()], dtype=np.int64) > _MOST_CHUNKS:
            scale = dict(itertools.islice(scale.items(), 1))
        steps = [[_Step(dim, *step) for step in _steps(counts)] for dim, counts in scale.items()]
        rest = {dim: options for dim, options in presence.items() if dim not in scale}
        for i, alternative in enumerate(self._alternatives(rest)):
            for chunk in itertools.product(*steps):
                requires = (*alternative, *(Requirement(step.dim, step.level) for step in chunk if step.level))
                channels = f"[{','.join(f'{step.first}:{step.end}' for step in chunk)}]" if chunk else ""
                share = float(np.prod([(step.end - step.first) / step.total for step in chunk]))
                levels = tuple((step.dim, step.level) for step in chunk)
                yield _Part(f"{name}{channels}{f'@{i}' if i else ''}", name, levels, share, requires)

    def _alternatives(self, presence: Presence) -> Iterator[tuple[Requirement, ...]]:
        """Yield sets of requirements, one of which must be met."""
        per_label = []
        for dim, options in presence.items():
            size, least = len(self._space.dims[dim].choices), min(options)
            if self._space.dims[dim].kind != "choice" and options == frozenset(range(least, size)):
                per_label.append([Requirement(dim, least)])
            else:
                per_label.append([Requirement(dim, option, exact=True) for option in sorted(options)])
        yield from itertools.product(*per_label)


def _steps(counts: tuple[int, ...]) -> Iterator[tuple[int, int, int, int]]:
    """Yield (level, first channel, end, all channels) for every level that adds channels."""
    before = 0
    for level, count in enumerate(counts):
        if count > before:
            yield level, before, count, counts[-1]
            before = count
