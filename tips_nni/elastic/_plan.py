"""The elastic plan: which channels of which layer, and which blocks, a subnet keeps. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import SearchSpace, SubnetConfig, TipsError

Kept = slice | NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Positions of one channel axis that one elastic dimension cuts.

    Attributes:
        dim: the elastic dimension.
        index: positions on the axis, ascending, shape (n,), int64.
        root: for each position the channel of the coupled group that it follows, shape (n,), int64: kept iff it is
            below the subnet's value of `dim`.
    """

    dim: str
    index: NDArray[np.int64]
    root: NDArray[np.int64]

    def to_json(self) -> list[Any]:
        """Return plain data; runs are abbreviated."""
        return [self.dim, _runs(self.index), _runs(self.root)]


@dataclass(frozen=True)
class AxisPlan:
    """How one channel axis of `size` channels is cut; positions in no piece are always kept."""

    size: int
    pieces: tuple[Piece, ...]

    def kept(self, config: SubnetConfig) -> Kept:
        """Return what `config` keeps: a slice (a view, no copy) where it is leading and contiguous, else positions."""
        if len(self.pieces) == 1 and len(self.pieces[0].index) == self.size:
            piece = self.pieces[0]
            if np.array_equal(piece.root, np.arange(self.size)):
                return slice(0, min(config[piece.dim], self.size))
        mask = np.ones(self.size, dtype=np.bool_)
        for piece in self.pieces:
            mask[piece.index[piece.root >= config[piece.dim]]] = False
        positions = np.flatnonzero(mask)
        leading = len(positions) > 0 and int(positions[-1]) == len(positions) - 1
        return slice(0, len(positions)) if leading else positions


@dataclass(frozen=True)
class LayerPlan:
    """The elastic axes of one module (or bare parameter); None where the axis is not elastic."""

    inputs: AxisPlan | None = None
    outputs: AxisPlan | None = None


@dataclass(frozen=True)
class ElasticPlan:
    """All that turns a subnet into slices and skipped blocks.

    Attributes:
        space: the search space.
        layers: path of the module or bare parameter -> its elastic axes.
        stages: depth dimension -> paths of the stage's blocks, in order; a subnet keeps the first ones.
        image_size: side of the backbone's input in pixels.
        in_chans: channels of the input.
        ordered: dimensions whose channels have neighbours, so that they cannot be put in another order.
    """

    space: SearchSpace
    layers: Mapping[str, LayerPlan]
    stages: Mapping[str, tuple[str, ...]]
    image_size: int
    in_chans: int
    ordered: frozenset[str] = frozenset()
    _blocks: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_blocks", frozenset(b for blocks in self.stages.values() for b in blocks))

    def skipped(self, config: SubnetConfig) -> frozenset[str]:
        """Return the paths of the blocks that `config` leaves out."""
        return frozenset(block for dim, blocks in self.stages.items() for block in blocks[config[dim] :])

    def resolution(self, config: SubnetConfig) -> int:
        """Return the side of the subnet's input in pixels."""
        return config["resolution"] if "resolution" in self.space else self.image_size

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; `from_json` reads it back."""

        def axis(plan: AxisPlan | None) -> Any:
            return None if plan is None else [plan.size, [piece.to_json() for piece in plan.pieces]]

        return {
            "space": self.space.to_json(),
            "layers": {name: [axis(layer.inputs), axis(layer.outputs)] for name, layer in self.layers.items()},
            "stages": {dim: list(blocks) for dim, blocks in self.stages.items()},
            "image_size": self.image_size,
            "in_chans": self.in_chans,
            "ordered": sorted(self.ordered),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ElasticPlan:
        """Read what `to_json` wrote.

        Raises:
            TipsError: the data are not a plan.
        """

        def axis(item: Any) -> AxisPlan | None:
            if item is None:
                return None
            pieces = tuple(Piece(str(dim), _expand(index), _expand(root)) for dim, index, root in item[1])
            return AxisPlan(int(item[0]), pieces)

        try:
            layers = {name: LayerPlan(axis(i), axis(o)) for name, (i, o) in data["layers"].items()}
            stages = {dim: tuple(blocks) for dim, blocks in data["stages"].items()}
            space = SearchSpace.from_json(data["space"])
            ordered = frozenset(str(dim) for dim in data.get("ordered", ()))
            return cls(space, layers, stages, int(data["image_size"]), int(data["in_chans"]), ordered)
        except (KeyError, TypeError, ValueError) as error:
            raise TipsError(f"not an elastic plan ({error!r}); make the file again with this version") from error


def _runs(values: NDArray[np.int64]) -> list[list[int]]:
    """Abbreviate integers as [first, length] of ascending runs."""
    cuts = np.flatnonzero(np.diff(values) != 1) + 1
    return [[int(run[0]), len(run)] for run in np.split(values, cuts)] if len(values) else []


def _expand(runs: list[list[int]]) -> NDArray[np.int64]:
    """Undo `_runs`."""
    parts = [np.arange(first, first + length, dtype=np.int64) for first, length in runs]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
