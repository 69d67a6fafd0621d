"""The kernels of every subnet of a supernet, from one export of the largest."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tips_nni.core import Codes, SearchSpace, TipsError
from tips_nni.latency.nn_meter._kernels import Block, Reading, detect
from tips_nni.latency.nn_meter._onnx import export_graph, to_graph
from tips_nni.latency.nn_meter._shapes import Sizes, channels_last, dims_of, module_path, sizes_at, tensor_sizes

if TYPE_CHECKING:
    from tips_nni.elastic import Supernet

#: What tells kernels apart: the predictor, the first node, and the dimensions of the tensors that nn-Meter reads.
_Key = tuple[str, str, tuple[Sizes, ...], tuple[Sizes, ...]]

_LARGEST_TABLE = 1 << 16


@dataclass(eq=False)
class ElasticKernel:
    """A kernel in every subnet.

    Attributes:
        block: the kernel with the largest shapes.
        inputs: dimensions of the tensors that its first node reads.
        outputs: dimensions of those that it makes.
        present: for each dimension that decides about its existence, the choices with which it exists.
        dims: columns of the code that it depends on, ascending.
        readings: how nn-Meter predicts it for each combination of choices of `dims`, in C order; None where it does
            not exist.
    """

    block: Block
    inputs: tuple[Sizes, ...]
    outputs: tuple[Sizes, ...]
    present: Mapping[int, frozenset[int]]
    dims: tuple[int, ...] = ()
    readings: list[Reading | None] = field(default_factory=list)

    def tabulate(self, space: SearchSpace) -> None:
        """Fill `dims` and `readings`."""
        elastic = {space.position(name) for sizes in (*self.inputs, *self.outputs) for name in dims_of(sizes)}
        self.dims = tuple(sorted(elastic | set(self.present)))
        choices = [len(space.dims[dim].choices) for dim in self.dims]
        if np.prod(choices, dtype=np.float64) > _LARGEST_TABLE:
            raise TipsError(f"{self.block.members[0]} depends on {len(self.dims)} elastic dimensions; fix some of them")
        codes = np.zeros((int(np.prod(choices, dtype=np.int64)), len(space.dims)), dtype=np.int64)
        if self.dims:
            codes[:, list(self.dims)] = np.indices(choices).reshape(len(self.dims), -1).T
        inputs = [sizes_at(sizes, space, codes).tolist() for sizes in self.inputs]
        outputs = [sizes_at(sizes, space, codes).tolist() for sizes in self.outputs]
        known: dict[Any, Reading] = {}
        self.readings = []
        for i, code in enumerate(codes):
            if any(int(code[dim]) not in kept for dim, kept in self.present.items()):
                self.readings.append(None)
                continue
            ins = tuple(channels_last(shapes[i]) for shapes in inputs)
            outs = tuple(channels_last(shapes[i]) for shapes in outputs)
            if (ins, outs) not in known:
                known[ins, outs] = self.block.reading_of(ins, outs)
            self.readings.append(known[ins, outs])

    def reading(self, space: SearchSpace, code: Sequence[int]) -> Reading | None:
        """Return how nn-Meter predicts the kernel in one subnet; None where it does not exist."""
        place = 0
        for dim in self.dims:
            place = place * len(space.dims[dim].choices) + int(code[dim])
        return self.readings[place]


class Layout:
    """The kernels of every subnet.

    nn-Meter splits a network by the types of its operators and by who reads whom, not by widths. So the largest subnet
    is exported once at each resolution (a mean over a single pixel is simplified away), its blocks are cut out of the
    exported graph one depth at a time, and each cut graph is split: a kernel exists with those depths in whose graphs
    it was found.

    Attributes:
        space: the search space.
        kernels: of all subnets.
        largest: those of the largest subnet, as nn-Meter found them.
    """

    def __init__(self, supernet: Supernet, rules: str) -> None:
        space = self.space = supernet.space
        resolution = space.position("resolution") if "resolution" in space else None
        every = range(1 if resolution is None else len(space.dims[resolution].choices))
        blocks: dict[Any, Block] = {}
        at: dict[Any, set[int]] = {}
        for choice in every:
            code = space.encode(space.largest)
            if resolution is not None:
                code[resolution] = choice
            self.largest, found = _split(supernet, rules, code)
            for key, (block, depths) in found.items():
                blocks.setdefault((key, depths), block)
                at.setdefault((key, depths), set()).add(choice)
        self.kernels = []
        for (key, depths), block in blocks.items():
            present = dict(depths)
            if resolution is not None and len(at[key, depths]) < len(every):
                present[resolution] = frozenset(at[key, depths])
            _, _, inputs, outputs = key
            self.kernels.append(ElasticKernel(block, inputs, outputs, present))
        for kernel in self.kernels:
            kernel.tabulate(space)

    def readings(self, code: Sequence[int]) -> Counter[Reading]:
        """Return how nn-Meter predicts the kernels of one subnet, and how often each occurs; views are left out."""
        found = (kernel.reading(self.space, code) for kernel in self.kernels if not kernel.block.view)
        return Counter(reading for reading in found if reading is not None)

    def verify(self, supernet: Supernet, rules: str, codes: Codes) -> list[list[Block]]:
        """Compare subnets with nn-Meter's split of their own exports; return their kernels.

        Raises:
            TipsError: a subnet has other kernels.
        """
        result = []
        for code in codes:
            config = self.space.decode(code)
            model = export_graph(supernet.extract(config).cpu(), supernet.plan.resolution(config))
            blocks = detect(to_graph(model)[0], rules)
            actual = Counter(block.reading() for block in blocks if not block.view)
            expected = self.readings(code.tolist())
            if actual != expected:
                differing = next(iter((actual - expected) or (expected - actual)))
                raise TipsError(
                    "nn-Meter's kernels of this supernet cannot be tabulated: a subnet's own export has "
                    f"{actual[differing]} of {differing.predictor} {differing.features}, the table "
                    f"{expected[differing]}; fix its depths, or predict single subnets"
                )
            result.append(blocks)
        return result


def _split(
    supernet: Supernet, rules: str, code: Codes
) -> tuple[list[Block], dict[_Key, tuple[Block, tuple[tuple[int, frozenset[int]], ...]]]]:
    """Split a subnet that has all blocks, at every depth.

    Returns:
        The kernels of the subnet, and all kernels with the depths at which they exist: (dimension, choices).
    """
    space = supernet.space
    config = space.decode(code)
    model = export_graph(supernet.extract(config).cpu(), supernet.plan.resolution(config))
    graph, shapes = to_graph(model)
    sizes = tensor_sizes(model, supernet.architecture, code, shapes)
    whole = {_key(block, sizes): block for block in detect(graph, rules)}
    blocks = dict(whole)
    where: dict[_Key, dict[int, set[int]]] = {key: {} for key in whole}
    for name, paths in supernet.plan.stages.items():
        dim, choices = space.position(name), space[name].choices
        for choice, kept in enumerate(choices[:-1]):
            cut = detect(to_graph(_without(model, paths[kept:]))[0], rules)
            keys = {_key(block, sizes): block for block in cut}
            for key in whole.keys() - keys.keys():
                where[key].setdefault(dim, set(range(len(choices)))).discard(choice)
            for key in keys.keys() - whole.keys():
                blocks.setdefault(key, keys[key])
                where.setdefault(key, {}).setdefault(dim, set()).add(choice)
    found = {
        key: (block, tuple(sorted((dim, frozenset(kept)) for dim, kept in where[key].items())))
        for key, block in blocks.items()
    }
    return list(whole.values()), found


def _key(block: Block, sizes: Mapping[str, Sizes]) -> _Key:
    """Tell kernels apart by all that nn-Meter's prediction depends on; how far they reach is no part of it."""
    unknown = [name for name in (*block.inputs, *block.outputs) if name not in sizes]
    if unknown:
        raise TipsError(f"the latency table cannot follow {unknown[0]} in the exported network; predict single subnets")
    return (
        block.reading().predictor,
        block.members[0],
        tuple(sizes[name] for name in block.inputs),
        tuple(sizes[name] for name in block.outputs),
    )


def _without(model: Any, paths: Iterable[str]) -> Any:
    """Return an exported network without some of its blocks: who read a block's output reads its input.

    Raises:
        TipsError: a block has more than one input or output.
    """
    cut = copy.deepcopy(model)
    graph = cut.graph
    constants = {tensor.name for tensor in graph.initializer}
    instead: dict[str, str] = {}
    for path in paths:
        inside = [node for node in graph.node if f"{module_path(node.name)}.".startswith(f"{path}.")]
        names = {node.name for node in inside}
        made = {name for node in inside for name in node.output}
        read = {name for node in inside for name in node.input if name} - made - constants
        outside = {name for node in graph.node if node.name not in names for name in node.input}
        given = made & (outside | {tensor.name for tensor in graph.output})
        if len(read) != 1 or len(given) != 1:
            raise TipsError(f"the block {path} has {len(read)} inputs and {len(given)} outputs; fix its stage's depth")
        instead[given.pop()] = read.pop()
        for node in inside:
            graph.node.remove(node)
    for node in graph.node:
        for i, name in enumerate(node.input):
            while name in instead:
                name = instead[name]
            node.input[i] = name
    return cut
