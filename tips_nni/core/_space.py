"""The search space: elastic dimensions, their choices, and subnets as points in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._errors import TipsError, unknown

DimKind = Literal["width", "hidden", "heads", "depth", "resolution", "choice"]
#: Kinds that cut channels: all layers that they reach become narrower.
CHANNEL_KINDS = frozenset({"width", "hidden", "heads"})
Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ElasticDim:
    """One elastic dimension.

    Attributes:
        name: unique in the space, e.g. ``width.layer1``, ``hidden.layer1.0``, ``heads.blocks.0.attn``,
            ``depth.layer1``, ``resolution``.
        kind: ``width`` (channels of a coupled group), ``hidden`` (channels inside one block), ``heads`` (heads of
            one attention), ``depth`` (blocks kept in a stage), ``resolution`` (side of the square input in pixels) or
            ``choice`` (the number, from 1, of one of several operations that exclude each other; these have no order).
        choices: strictly ascending positive integers; but for ``choice`` the last one is the backbone's own value.
    """

    name: str
    kind: DimKind
    choices: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.kind not in get_args(DimKind):
            raise unknown("kind of elastic dimension", str(self.kind), get_args(DimKind))
        if not self.choices or min(self.choices) < 1 or list(self.choices) != sorted(set(self.choices)):
            raise TipsError(
                f"elastic dimension {self.name!r} has choices {list(self.choices)}; "
                "they must be distinct positive integers in ascending order"
            )


@dataclass(frozen=True, slots=True)
class SubnetConfig:
    """One value for every elastic dimension, in the order of the space. Immutable and hashable."""

    names: tuple[str, ...]
    values: tuple[int, ...]

    def __getitem__(self, name: str) -> int:
        try:
            return self.values[self.names.index(name)]
        except ValueError:
            raise unknown("elastic dimension", name, self.names) from None

    def as_dict(self) -> dict[str, int]:
        """Return ``{dimension name: value}``, ready for JSON."""
        return dict(zip(self.names, self.values, strict=True))


@dataclass(frozen=True)
class SearchSpace:
    """Elastic dimensions and their choices: immutable, countable, enumerable.

    A subnet is a `SubnetConfig` (values) or, for vectorised work, a row of integers (the index of the choice in
    every dimension): ``codes`` are arrays of shape (N, D), dtype int64.
    """

    dims: tuple[ElasticDim, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        names = [dim.name for dim in self.dims]
        if not names:
            raise TipsError("the search space is empty: it needs at least one elastic dimension")
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise TipsError(f"elastic dimensions declared twice: {', '.join(twice)}; names must be unique")
        object.__setattr__(self, "_index", {name: i for i, name in enumerate(names)})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the dimensions, in order."""
        return tuple(dim.name for dim in self.dims)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """The number of choices of every dimension, shape (D,); read-only."""
        sizes = np.array([len(dim.choices) for dim in self.dims], dtype=np.int64)
        sizes.setflags(write=False)
        return sizes

    @property
    def size(self) -> int:
        """The number of subnets (an exact integer)."""
        return math.prod(len(dim.choices) for dim in self.dims)

    @property
    def largest(self) -> SubnetConfig:
        """The backbone itself."""
        return SubnetConfig(self.names, tuple(dim.choices[-1] for dim in self.dims))

    @property
    def smallest(self) -> SubnetConfig:
        """The subnet with the first choice of every dimension."""
        return SubnetConfig(self.names, tuple(dim.choices[0] for dim in self.dims))

    def __getitem__(self, name: str) -> ElasticDim:
        return self.dims[self.position(name)]

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def position(self, name: str) -> int:
        """Return the column of dimension `name` in a code.

        Raises:
            TipsError: there is no such dimension.
        """
        try:
            return self._index[name]
        except KeyError:
            raise unknown("elastic dimension", name, self.names) from None

    def config(self, values: Mapping[str, int]) -> SubnetConfig:
        """Build a subnet from ``{name: value}``; every dimension must be given.

        Raises:
            TipsError: a dimension is missing or unknown, or a value is not among its choices.
        """
        for name in values:
            self.position(name)
        missing = [name for name in self.names if name not in values]
        if missing:
            raise TipsError(f"the subnet lacks a value for {', '.join(missing)}; give one for every elastic dimension")
        config = SubnetConfig(self.names, tuple(int(values[name]) for name in self.names))
        self.encode(config)
        return config

    def encode(self, config: SubnetConfig) -> Codes:
        """Return the code of one subnet, shape (D,).

        Raises:
            TipsError: the subnet belongs to another space, or a value is not among the choices.
        """
        if config.names != self.names:
            raise TipsError(
                f"this subnet belongs to another search space: it has the dimensions {list(config.names)}, "
                f"this space has {list(self.names)}"
            )
        code = np.empty(len(self.dims), dtype=np.int64)
        for i, (dim, value) in enumerate(zip(self.dims, config.values, strict=True)):
            if value not in dim.choices:
                raise TipsError(f"{dim.name} = {value} is not in the search space; choose from {list(dim.choices)}")
            code[i] = dim.choices.index(value)
        return code

    def encode_many(self, configs: Iterable[SubnetConfig]) -> Codes:
        """Return the codes of subnets, shape (N, D)."""
        rows = [self.encode(config) for config in configs]
        return np.stack(rows) if rows else np.empty((0, len(self.dims)), dtype=np.int64)

    def decode(self, code: Sequence[int] | NDArray[np.integer[Any]]) -> SubnetConfig:
        """Return the subnet of one code.

        Raises:
            TipsError: the code has a wrong length or an index out of range.
        """
        indices = [int(i) for i in code]
        if len(indices) != len(self.dims) or any(
            not 0 <= i < len(d.choices) for i, d in zip(indices, self.dims, strict=False)
        ):
            raise TipsError(
                f"the code {indices} does not fit this search space: it needs {len(self.dims)} integers, "
                f"each from 0 to below {self.sizes.tolist()}"
            )
        return SubnetConfig(self.names, tuple(d.choices[i] for i, d in zip(indices, self.dims, strict=True)))

    def check_codes(self, codes: NDArray[np.integer[Any]]) -> Codes:
        """Return `codes` as int64 of shape (N, D) after checking its shape and range.

        Raises:
            TipsError: wrong shape or an index out of range.
        """
        checked: Codes = np.atleast_2d(np.asarray(codes)).astype(np.int64, copy=False)
        if checked.ndim != 2 or checked.shape[1] != len(self.dims):
            raise TipsError(f"codes have shape {checked.shape}; this search space needs (N, {len(self.dims)})")
        # As unsigned numbers negative ones are the largest: one comparison sees both ends.
        if (checked.view(np.uint64) >= self.sizes.view(np.uint64)).any():
            raise TipsError(f"codes have an index out of range; the dimensions have {self.sizes.tolist()} choices")
        return checked

    def sample(self, rng: np.random.Generator, n: int) -> Codes:
        """Draw `n` codes uniformly and independently, shape (n, D)."""
        return rng.integers(0, self.sizes, size=(n, len(self.dims)), dtype=np.int64)

    def enumerate(self) -> Iterator[SubnetConfig]:
        """Yield every subnet, the last dimension changing fastest."""
        for values in itertools.product(*(dim.choices for dim in self.dims)):
            yield SubnetConfig(self.names, values)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the space as plain JSON data; `from_json` reads it back."""
        return [{"name": d.name, "kind": d.kind, "choices": list(d.choices)} for d in self.dims]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any]]) -> SearchSpace:
        """Read what `to_json` wrote.

        Raises:
            TipsError: a key is missing, or a dimension is not valid.
        """
        try:
            dims = tuple(ElasticDim(str(d["name"]), d["kind"], tuple(int(c) for c in d["choices"])) for d in data)
        except (KeyError, TypeError) as error:
            raise TipsError(f"not a search space: each dimension needs name, kind and choices ({error!r})") from None
        return cls(dims)
