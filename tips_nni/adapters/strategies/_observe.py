"""What depends on which label of a foreign model space, seen in forwards of its supernet under chosen samples.

A base sample and, from it, every other option of every label show what depends on which choice. So that the
alternatives meet every width and depth too, the samples that take the first option of every choice, the second, and so
on are bases for the ordered labels; options that bring choices of their own (nested ones) are bases for these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce

from tips_nni.adapters.strategies._trace import Trace
from tips_nni.core import SearchSpace, SubnetConfig

#: label (a column of the code) -> the options under which something is present
Presence = dict[int, frozenset[int]]


@dataclass(frozen=True)
class Slice:
    """The traces of one label's options, all else equal.

    Attributes:
        dim: the label, a column of the code.
        start: the option of the base sample.
        traces: one for every option.
    """

    dim: int
    start: int
    traces: tuple[Trace, ...]


class Observations:
    """The slices of a space and what they say of operations.

    Args:
        space: the labels.
        trace: runs the supernet as a subnet.

    Attributes:
        slices: at least one for every label that matters.
        channels: operation -> the most channels seen.
    """

    def __init__(self, space: SearchSpace, trace: Callable[[SubnetConfig], Trace]) -> None:
        self.space = space
        self.slices = _observe(space, trace)
        self.channels: dict[str, int] = {}
        for seen in self.traces():
            for name, count in seen.channels.items():
                self.channels[name] = max(count, self.channels.get(name, 0))

    def traces(self) -> list[Trace]:
        """Return all traces."""
        return [trace for piece in self.slices for trace in piece.traces]

    def present(self, name: str) -> Presence:
        """Return when an operation runs: when it was seen, and when the modules around it were."""
        parts = name.partition("#")[0].split(".")
        around = [self._ran(".".join(parts[:i])) for i in range(1, len(parts) + 1)]
        return reduce(both, around, self.seen(lambda trace: name in trace.channels))

    def _ran(self, path: str) -> Presence:
        return self.seen(lambda trace: path in trace.modules)

    def seen(self, test: Callable[[Trace], bool]) -> Presence:
        """Return the options of each label under which `test` held; labels that do not matter are left out."""
        result: dict[int, frozenset[int]] = {}
        for piece in self.slices:
            options = frozenset(i for i, trace in enumerate(piece.traces) if test(trace))
            if options:
                result[piece.dim] = result.get(piece.dim, frozenset()) | options
        return {dim: options for dim, options in result.items() if len(options) < len(self.space.dims[dim].choices)}

    def scaled(self, name: str) -> dict[int, tuple[int, ...]]:
        """Return, for every ordered label that scales an operation's channels, its channels under each option."""
        result: dict[int, tuple[int, ...]] = {}
        for piece in self.slices:
            counts = [trace.channels.get(name, 0) for trace in piece.traces]
            there = {count for count in counts if count}
            ordered = self.space.dims[piece.dim].kind != "choice"
            if ordered and len(there) > 1 and counts == sorted(counts):
                result[piece.dim] = tuple(counts)
        return result


def both(first: Mapping[int, frozenset[int]], second: Mapping[int, frozenset[int]]) -> Presence:
    """Return when two things are both present."""
    return {
        dim: first[dim] & second[dim]
        if dim in first and dim in second
        else first.get(dim, second.get(dim, frozenset()))
        for dim in {**first, **second}
    }


def _observe(space: SearchSpace, trace: Callable[[SubnetConfig], Trace]) -> list[Slice]:
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
        shifted = [
            min(option, len(d.choices) - 1) if d.kind == "choice" else i for d, i in zip(space.dims, base, strict=True)
        ]
        queue.append((tuple(shifted), ordered))
    slices = []
    while queue:
        start, labels = queue.pop(0)
        matter = labels & run(start).labels
        for dim, name in enumerate(space.names):
            if name not in matter:
                continue
            codes = [(*start[:dim], option, *start[dim + 1 :]) for option in range(len(space.dims[dim].choices))]
            slices.append(Slice(dim, start[dim], tuple(run(code) for code in codes)))
            for code in codes:
                if nested := run(code).labels - seen:
                    seen |= nested
                    queue.append((code, nested))
    return slices or [Slice(0, base[0], (run(base),) * len(space.dims[0].choices))]
