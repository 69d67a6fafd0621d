"""The path graph of a foreign model space, from forwards of its supernet under chosen samples.

A base sample and, from it, every other option of every label show what depends on which choice. So that the
alternatives meet every width and depth too, the samples that take the first option of every choice, the second, and so
on are bases for the ordered labels; options that bring choices of their own (nested ones) are bases for these.

An operation is a node, present for the options under which it ran; one whose channels a label scales is split into
chunks. What comes out of a choice is a node as well, through which its alternatives meet what follows. A connection
that exists for some options only passes a node of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tips_nni.adapters._trace import INPUT, Trace
from tips_nni.core import PathGraph, Requirement, SearchSpace, SubnetConfig, TipsError

OUTPUT = "output"
_MOST_CHUNKS = 64
#: label (a column of the code) -> the options under which something is present
Presence = dict[int, frozenset[int]]


def path_graph(space: SearchSpace, trace: Callable[[SubnetConfig], Trace]) -> PathGraph:
    """Return the path graph of a space.

    Args:
        space: the labels.
        trace: runs the supernet as a subnet.

    Raises:
        TipsError: the operations have no order that holds for all subnets.
    """
    return _Builder(space, _observe(space, trace)).build()


@dataclass(frozen=True)
class _Slice:
    """The traces of one label's options, all else equal; None where an option was not tried."""

    dim: int
    traces: tuple[Trace, ...]


def _observe(space: SearchSpace, trace: Callable[[SubnetConfig], Trace]) -> list[_Slice]:
    """Return a slice for every label that matters anywhere."""
    known: dict[tuple[int, ...], Trace] = {}

    def run(code: tuple[int, ...]) -> Trace:
        if code not in known:
            known[code] = trace(space.decode(code))
        return known[code]

    base = tuple(space.encode(space.largest).tolist())
    ordered = {dim.name for dim in space.dims if dim.kind != "choice"}
    seen = set(run(base).labels)
    queue = [(base, set(seen))]
    for option in range(max((len(d.choices) for d in space.dims if d.kind == "choice"), default=0)):
        shifted = [min(option, len(d.choices) - 1) if d.kind == "choice" else i for d, i in zip(space.dims, base, strict=True)]
        queue.append((tuple(shifted), ordered))
    slices = []
    while queue:
        start, labels = queue.pop(0)
        matter = labels & run(start).labels
        for dim, name in enumerate(space.names):
            if name not in matter:
                continue
            codes = [(*start[:dim], option, *start[dim + 1 :]) for option in range(len(space.dims[dim].choices))]
            slices.append(_Slice(dim, tuple(run(code) for code in codes)))
            for code in codes:
                if nested := run(code).labels - seen:
                    seen |= nested
                    queue.append((code, nested))
    return slices or [_Slice(0, (run(base),))]


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
    """Turns slices into a graph."""

    def __init__(self, space: SearchSpace, slices: list[_Slice]) -> None:
        self._space = space
        self._slices = slices
        traces = [trace for piece in slices for trace in piece.traces]
        self._dense = set().union(*(trace.dense for trace in traces))
        self._weighted = set().union(*(trace.weighted for trace in traces))
        self._channels: dict[str, int] = {}
        for trace in traces:
            for name, count in trace.channels.items():
                self._channels[name] = max(count, self._channels.get(name, 0))
        self._edges = sorted({edge for trace in traces for edge in self._with_output(trace)})
        self._channels[OUTPUT] = 1
        self._presence = {name: self._present(name) for name in self._channels}
        self._scale = {name: self._scaled(name) for name in self._channels}

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
                for node, between in self._between(u, v, relay):
                    table[node] = (operation, max(width, 1e-9))
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

    def _present(self, name: str) -> Presence:
        """Return when an operation runs: when it was seen, and when the modules around it were."""
        place = name.partition("#")[0]
        parts = place.split(".")
        around = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
        result = self._seen(lambda trace: name in trace.channels or name == OUTPUT)
        for path in around:
            result = _both(result, self._seen(lambda trace, path=path: path in trace.modules))
        return result

    def _seen(self, test: Callable[[Trace], bool]) -> Presence:
        """Return the options of each label under which `test` held; labels that do not matter are left out."""
        result: dict[int, frozenset[int]] = {}
        for piece in self._slices:
            options = frozenset(i for i, trace in enumerate(piece.traces) if test(trace))
            if options:
                result[piece.dim] = result.get(piece.dim, frozenset()) | options
        return {dim: options for dim, options in result.items() if len(options) < len(self._space.dims[dim].choices)}

    def _edge_presence(self, source: str, target: str) -> Presence:
        own = self._seen(lambda trace: (source, target) in self._with_output(trace))
        return _both(own, _both(self._presence[source], self._presence[target]))

    def _relay(self, source: str, target: str) -> list[tuple[Requirement, ...]]:
        """Return the alternatives of a connection that does not follow from its ends; empty where it does."""
        presence = self._edge_presence(source, target)
        if presence == _both(self._presence[source], self._presence[target]):
            return []
        return list(self._alternatives(presence))

    def _scaled(self, name: str) -> dict[int, tuple[int, ...]]:
        """Return, for every ordered label that scales an operation's channels, its channels under each option."""
        result: dict[int, tuple[int, ...]] = {}
        for piece in self._slices:
            counts = [trace.channels.get(name, 0) for trace in piece.traces]
            there = [count for count in counts if count]
            ordered = self._space.dims[piece.dim].kind != "choice"
            if ordered and len(set(there)) > 1 and counts == sorted(counts):
                result[piece.dim] = tuple(counts)
        return result

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


def _both(first: Mapping[int, frozenset[int]], second: Mapping[int, frozenset[int]]) -> Presence:
    """Return when two things are both present."""
    return {
        dim: first[dim] & second[dim] if dim in first and dim in second else first.get(dim, second.get(dim, frozenset()))
        for dim in {**first, **second}
    }
