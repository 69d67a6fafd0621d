"""The architecture: a backbone's operations and feature maps under a search space, without torch.

Everything that reasons about a network (path graph, cost tables, latency kernels) reads this description;
`tips_nni.elastic` makes it from a timm backbone, and a test or a user can write one by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._errors import TipsError, unknown
from tips_nni.core._space import Codes, SearchSpace

OpKind = Literal[
    "conv", "linear", "attention", "filter", "norm", "scale", "act", "pool", "add", "mul", "concat", "view"
]


@dataclass(frozen=True, slots=True)
class Axis:
    """Channels of a feature map that change together.

    Attributes:
        sizes: the number of channels for every choice of `dim`; one entry where fixed.
        dim: the elastic dimension that selects the entry, or None.
    """

    sizes: tuple[int, ...]
    dim: str | None = None


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """The output of an operation.

    Attributes:
        name: unique in the architecture.
        axes: the channels; more than one axis after a concatenation, in order.
        spatial: (height, width) for every choice of the dimension ``resolution``; one entry where the space has
            none; (1, 1) for vectors.
    """

    name: str
    axes: tuple[Axis, ...]
    spatial: tuple[tuple[int, int], ...] = ((1, 1),)


@dataclass(frozen=True, slots=True)
class Gate:
    """Present in a subnet iff its choice index in `dim` is at least `at_least`."""

    dim: str
    at_least: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation from its input feature maps to its output.

    Attributes:
        name: the module's path in the backbone (``layer1.0.conv1``) or a made-up unique name (``add_3``).
        kind: ``conv``; ``linear`` (on the channels, at every position); ``attention`` (both matrix products of a
            multi-head attention, between the layers that make queries, keys and values and the one that reads the
            result; the first input has the keys; spatial sizes are tokens of a sequence by sequences); ``filter``
            (each channel by itself, with weights that no layer has: a blur, a weighted mean over all positions, then
            with the kernel (0, 0)); ``norm``; ``scale`` (layer scale, embeddings); ``act``; ``pool``; ``add``,
            ``mul``, ``concat`` (two or more inputs); ``view`` (flatten, permute).
        inputs: names of feature maps.
        output: name of a feature map; each one is the output of exactly one operation, the network's input of none.
        kernel: (height, width), for ``conv``, ``filter`` and ``pool``.
        stride: (vertical, horizontal).
        group_width: input channels of one group of a grouped convolution; None where dense, 1 where depthwise. The
            channels of one head of an ``attention``.
        groups: of a grouped convolution whose groups all become narrower; its `group_width` is None.
        bias: whether there is one bias per output channel.
        channel_params: further parameters per output channel (2 for an affine norm, 1 for layer scale); of an
            ``attention``: per head.
        params: further parameters that do not depend on any width (a scalar gain).
        gate: the depth at which the operation exists; None where always. A gated operation whose subnet is
            shallower does not exist, and neither does its output, except for an ``add``: it is then the identity
            of its first input that exists, one without the same gate, or another such ``add``.
        type: the class name of the module (``Conv2d``, ``SiLU``), with that of an activation in a norm
            (``BatchNormAct2d+SiLU``), for people and kernels.
    """

    name: str
    kind: OpKind
    inputs: tuple[str, ...]
    output: str
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    group_width: int | None = None
    groups: int | None = None
    bias: bool = False
    channel_params: int = 0
    params: int = 0
    gate: Gate | None = None
    type: str = ""


@dataclass(frozen=True)
class Architecture:
    """A backbone under a search space: feature maps and operations in topological order.

    Attributes:
        space: the search space.
        feature_maps: in order of creation; the first is the network's input r.
        operations: in topological order; the output of the last is the network's output d.
    """

    space: SearchSpace
    feature_maps: tuple[FeatureMap, ...]
    operations: tuple[Operation, ...]
    _maps: Mapping[str, FeatureMap] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        maps = {fm.name: fm for fm in self.feature_maps}
        object.__setattr__(self, "_maps", maps)
        known = {self.feature_maps[0].name}
        for op in self.operations:
            absent = [name for name in op.inputs if name not in known]
            if absent or op.output not in maps or op.output in known:
                raise TipsError(
                    f"operation {op.name!r} is out of order: its inputs {list(op.inputs)} must be made before, and "
                    f"its output {op.output!r} by no other operation"
                )
            known.add(op.output)
        for fm in self.feature_maps:
            for axis in fm.axes:
                needed = 1 if axis.dim is None else len(self.space[axis.dim].choices)
                if len(axis.sizes) != needed:
                    raise TipsError(f"feature map {fm.name!r}: {len(axis.sizes)} sizes for {needed} choices")
        for op in self.operations:
            if op.gate is not None:
                self.space.position(op.gate.dim)

    @property
    def input(self) -> FeatureMap:
        """The network's input r."""
        return self.feature_maps[0]

    @property
    def output(self) -> FeatureMap:
        """The network's output d."""
        return self._maps[self.operations[-1].output]

    def feature_map(self, name: str) -> FeatureMap:
        """Return the feature map called `name`."""
        return self._maps[name]

    def channels(self, name: str, codes: Codes) -> NDArray[np.int64]:
        """Return the channels of feature map `name` in every subnet, shape (N,)."""
        total = np.zeros(len(codes), dtype=np.int64)
        for axis in self._maps[name].axes:
            sizes = np.array(axis.sizes, dtype=np.int64)
            total += sizes[0] if axis.dim is None else sizes[codes[:, self.space.position(axis.dim)]]
        return total

    def spatial(self, name: str, codes: Codes) -> NDArray[np.int64]:
        """Return (height, width) of feature map `name` in every subnet, shape (N, 2)."""
        sizes = np.array(self._maps[name].spatial, dtype=np.int64)
        if "resolution" in self.space and len(sizes) > 1:
            return sizes[codes[:, self.space.position("resolution")]]
        return np.broadcast_to(sizes[0], (len(codes), 2))

    def present(self, op: Operation, codes: Codes) -> NDArray[np.bool_]:
        """Return whether `op` exists in every subnet, shape (N,)."""
        if op.gate is None:
            return np.ones(len(codes), dtype=np.bool_)
        return codes[:, self.space.position(op.gate.dim)] >= op.gate.at_least

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; `from_json` reads it back."""
        return {
            "space": self.space.to_json(),
            "feature_maps": [
                [fm.name, [[list(axis.sizes), axis.dim] for axis in fm.axes], [list(size) for size in fm.spatial]]
                for fm in self.feature_maps
            ],
            "operations": [
                {
                    "name": op.name,
                    "kind": op.kind,
                    "inputs": list(op.inputs),
                    "output": op.output,
                    "kernel": list(op.kernel),
                    "stride": list(op.stride),
                    "group_width": op.group_width,
                    "groups": op.groups,
                    "bias": op.bias,
                    "channel_params": op.channel_params,
                    "params": op.params,
                    "gate": None if op.gate is None else [op.gate.dim, op.gate.at_least],
                    "type": op.type,
                }
                for op in self.operations
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Architecture:
        """Read what `to_json` wrote.

        Raises:
            TipsError: the data describe no network.
        """
        try:
            space = SearchSpace.from_json(data["space"])
            maps = tuple(
                FeatureMap(
                    str(name),
                    tuple(Axis(tuple(int(size) for size in sizes), dim) for sizes, dim in axes),
                    tuple(_pair(size) for size in spatial),
                )
                for name, axes, spatial in data["feature_maps"]
            )
            operations = tuple(_operation(item) for item in data["operations"])
            return cls(space, maps, operations)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise TipsError(f"not an architecture ({error}); write the file again with this version") from error


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


def _operation(item: Mapping[str, Any]) -> Operation:
    if item["kind"] not in get_args(OpKind):
        raise unknown("kind of operation", str(item["kind"]), get_args(OpKind))
    gate, group_width = item["gate"], item["group_width"]
    return Operation(
        name=str(item["name"]),
        kind=item["kind"],
        inputs=tuple(str(name) for name in item["inputs"]),
        output=str(item["output"]),
        kernel=_pair(item["kernel"]),
        stride=_pair(item["stride"]),
        group_width=None if group_width is None else int(group_width),
        bias=bool(item["bias"]),
        channel_params=int(item["channel_params"]),
        # Files of earlier versions lack these two.
        params=int(item.get("params", 0)),
        groups=item.get("groups"),
        gate=None if gate is None else Gate(str(gate[0]), int(gate[1])),
        type=str(item["type"]),
    )
