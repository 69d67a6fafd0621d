"""NN-Degree, FLASH's analytical measure of a network's topology, for any subnet by table look-up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._architecture import Architecture, Operation
from tips_nni.core._cost import TabulatedCost, Term
from tips_nni.core._errors import TipsError
from tips_nni.core._space import Codes

#: Cells up to this many combinations of choices are one table.
_LARGEST_CELL = 1 << 16


@dataclass(frozen=True)
class Cell:
    """A run of layers that belong together.

    Attributes:
        name: its stage (``layer1``), or where it has none its first layer.
        layers: the layers with weights on the way from input to output; those of skips and gates are not among them.
        skips: (operation that joins, feature maps that it takes from earlier).
    """

    name: str
    layers: tuple[Operation, ...]
    skips: tuple[tuple[Operation, tuple[str, ...]], ...]


class NNDegree:
    """g = Σ_c (w_c + SC_c / (w_c · d_c)) over the cells c of a network.

    Published (FLASH, Li, Mandal, Ogras and Marculescu 2021): the formula, with w_c the average width, d_c the depth and
    SC_c the number of skip-connection channels of cell c. Our reading: w_c averages the output channels of the cell's
    layers (convolutions, depthwise ones too, and linear layers on feature maps) that the subnet has; d_c counts those
    layers, so that w_c · d_c is the number of the cell's channels and the second term the skip channels per channel;
    SC_c sums, over the joins that the subnet has, for an addition the channels of the identity, for a concatenation
    the channels taken from earlier. Of the inputs of a join those are skips that pass fewer layers on their longest way
    from the network's input than the others: a shortcut with a convolution of its own is a skip and that convolution no
    layer of the cell, parallel branches of one length are none. Layers of a squeeze-and-excitation gate, and the
    classifier, count nowhere. A cell of which a subnet has no layer adds nothing. For cells see `cells_of`.

    Args:
        architecture: the network under its search space.
    """

    name = "nn_degree"

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.space = architecture.space
        self.cells = cells_of(architecture)
        if not self.cells:
            raise TipsError("NN-Degree needs convolutions or linear layers on feature maps; this network has none")
        parts = [_CellTables(architecture, cell) for cell in self.cells]
        #: for every cell the columns of the code that its part of g depends on
        self.cell_dims = tuple(part.dims for part in parts)
        whole = [part.term() for part in parts if part.combinations <= _LARGEST_CELL]
        self._table = TabulatedCost(self.name, "", self.space, whole)
        self._large = [part for part in parts if part.combinations > _LARGEST_CELL]

    def evaluate(self, codes: Codes) -> NDArray[np.float64]:
        """Return g of every subnet.

        Args:
            codes: shape (N, D), int64.

        Returns:
            Shape (N,), float64, positive.
        """
        total = self._table.evaluate(codes)
        for part in self._large:
            total += part.evaluate(codes)
        return total


def cells_of(architecture: Architecture) -> tuple[Cell, ...]:
    """Return the cells of a network, from input to output (our reading of FLASH's cells).

    A stage of elastic depth is a cell: the layers that its dimension ``depth.NAME`` gates, and the others whose names
    begin with ``NAME.``. What lies outside of such stages (stem, head, stages of fixed depth) is cut into cells at
    those stages and where the size of the feature maps changes.
    """
    levels = _levels(architecture)
    trunk = _trunk(architecture, levels)
    stages = [dim.name.partition(".")[2] for dim in architecture.space.dims if dim.kind == "depth"]
    cells: list[Cell] = []
    positions: dict[str, int] = {}
    current: tuple[object, ...] | None = None
    for operation in architecture.operations:
        if operation.name not in trunk:
            continue
        layer = _is_layer(architecture, operation)
        skips = _skips(operation, levels)
        if not layer and not skips:
            continue
        stage = _stage(operation, stages)
        key = ("stage", stage) if stage else ("size", architecture.feature_map(operation.output).spatial)
        if stage in positions:
            position = positions[stage]
        elif key == current and cells:
            position = len(cells) - 1
        else:
            position = len(cells)
            cells.append(Cell(stage or operation.name, (), ()))
            if stage:
                positions[stage] = position
        current = key
        cell = cells[position]
        cells[position] = replace(
            cell,
            layers=(*cell.layers, operation) if layer else cell.layers,
            skips=(*cell.skips, (operation, skips)) if skips else cell.skips,
        )
    return tuple(cell for cell in cells if cell.layers)


def _stage(operation: Operation, stages: Iterable[str]) -> str:
    """Return the stage of elastic depth that an operation belongs to, or an empty string."""
    if operation.gate is not None:
        return operation.gate.dim.partition(".")[2] or operation.gate.dim
    return next((stage for stage in stages if operation.name.startswith(f"{stage}.")), "")


def _weighted(operation: Operation) -> bool:
    return operation.kind in ("conv", "linear")


def _is_layer(architecture: Architecture, operation: Operation) -> bool:
    """Whether an operation is a convolution or a linear layer on a feature map that has positions."""
    if operation.kind != "linear":
        return operation.kind == "conv"
    return any(size != (1, 1) for size in architecture.feature_map(operation.output).spatial)


def _levels(architecture: Architecture) -> dict[str, int]:
    """Return for every feature map the number of layers on the longest way to it from the network's input."""
    levels = {architecture.input.name: 0}
    for operation in architecture.operations:
        levels[operation.output] = max(levels[name] for name in operation.inputs) + _weighted(operation)
    return levels


def _skips(operation: Operation, levels: dict[str, int]) -> tuple[str, ...]:
    """Return the inputs of an addition or a concatenation that come from earlier than the others."""
    if operation.kind not in ("add", "concat"):
        return ()
    last = max(levels[name] for name in operation.inputs)
    return tuple(name for name in operation.inputs if levels[name] < last)


def _trunk(architecture: Architecture, levels: dict[str, int]) -> set[str]:
    """Return the operations on the way from input to output, without the layers of skips and gates."""
    makers = {operation.output: operation for operation in architecture.operations}
    found: set[str] = set()
    waiting = [architecture.operations[-1].output]
    while waiting:
        operation = makers.get(waiting.pop())
        if operation is None or operation.name in found:
            continue
        found.add(operation.name)
        inputs: Sequence[str] = operation.inputs
        if operation.kind == "add":
            last = max(levels[name] for name in inputs)
            inputs = [name for name in inputs if levels[name] == last]
        elif operation.kind == "mul":
            inputs = [max(inputs, key=lambda name: np.prod(architecture.feature_map(name).spatial[-1]))]
        waiting += inputs
    return found


class _CellTables:
    """The sums that a cell's part of g is made of: its channels w_c · d_c, its depth d_c, its skip channels SC_c."""

    def __init__(self, architecture: Architecture, cell: Cell) -> None:
        self._architecture = architecture
        space = architecture.space
        widths = [self._term(layer, (layer.output,)) for layer in cell.layers]
        counts = [self._term(layer, ()) for layer in cell.layers]
        skips = [self._term(operation, names) for operation, names in cell.skips]
        self._channels = TabulatedCost("channels", "", space, widths)
        self._depth = TabulatedCost("depth", "", space, counts)
        self._skips = TabulatedCost("skips", "", space, skips)
        self.dims = tuple(sorted({dim for term in (*widths, *counts, *skips) for dim in term.dims}))

    @cached_property
    def combinations(self) -> int:
        """The number of combinations of choices that the cell sees."""
        return int(np.prod(self._architecture.space.sizes[list(self.dims)], dtype=np.float64))

    def evaluate(self, codes: Codes) -> NDArray[np.float64]:
        """Return w_c + SC_c / (w_c · d_c) of every subnet, shape (N,); 0 where it has no layer of the cell."""
        channels, depth = self._channels.evaluate(codes), self._depth.evaluate(codes)
        empty = depth == 0
        value = channels / np.where(empty, 1, depth) + self._skips.evaluate(codes) / np.where(empty, 1, channels)
        return np.asarray(np.where(empty, 0.0, value))

    def term(self) -> Term:
        """Return the cell's part of g as one table."""
        shape = tuple(self._architecture.space.sizes[list(self.dims)].tolist())
        codes = np.zeros((self.combinations, len(self._architecture.space.dims)), dtype=np.int64)
        if self.dims:
            codes[:, list(self.dims)] = np.indices(shape).reshape(len(self.dims), -1).T
        return Term(self.dims, self.evaluate(codes).reshape(shape))

    def _term(self, operation: Operation, names: tuple[str, ...]) -> Term:
        """Tabulate the channels of feature maps, or 1 for none, where an operation exists."""
        architecture = self._architecture
        space = architecture.space
        named = {axis.dim for name in names for axis in architecture.feature_map(name).axes if axis.dim is not None}
        if operation.gate is not None:
            named.add(operation.gate.dim)
        dims = tuple(sorted(space.position(name) for name in named))
        shape = tuple(space.sizes[list(dims)].tolist())
        codes = np.zeros((int(np.prod(shape, dtype=np.int64)), len(space.dims)), dtype=np.int64)
        if dims:
            codes[:, list(dims)] = np.indices(shape).reshape(len(dims), -1).T
        channels = np.ones(len(codes), dtype=np.int64)
        if names:
            channels = np.sum([architecture.channels(name, codes) for name in names], axis=0)
        return Term(dims, np.where(architecture.present(operation, codes), channels, 0).reshape(shape))
