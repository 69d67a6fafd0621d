"""Costs of subnets by table look-up: multiply-adds, parameters, activation memory, and whatever is additive."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from tips_nni.core._architecture import Architecture, Operation
from tips_nni.core._space import Codes, SearchSpace

#: Subnets looked up at once: few enough to stay in the processor's cache.
_CHUNK = 1 << 13
_LARGEST_TABLE = 1 << 16
#: An operation that depends on more combinations than this is computed for every subnet, not looked up.
_LARGEST_OPERATION = 1 << 14


class CostModel(ABC):
    """A cost of subnets that the search can bound or minimise: smaller is better.

    Attributes:
        name: the key in constraints, tables and files, e.g. ``mflops``.
        unit: for people, e.g. ``ms``.
        tabulated: whether many subnets cost hardly more than one; False where each is measured on its own, so that
            searches ask about few.
    """

    name: str
    unit: str
    tabulated: bool = True

    @abstractmethod
    def evaluate(self, codes: Codes) -> NDArray[np.float64]:
        """Return the cost of every subnet.

        Args:
            codes: shape (N, D), int64.

        Returns:
            Shape (N,), float64, finite and not negative.
        """


@dataclass(frozen=True)
class Term:
    """A cost that depends on a few dimensions.

    Attributes:
        dims: columns of the code, ascending.
        table: one axis per dimension, indexed by the choice.
    """

    dims: tuple[int, ...]
    table: NDArray[Any]

    def look_up(self, codes: Codes) -> NDArray[Any]:
        """Return the term for every subnet, shape (N,)."""
        return self.table.ravel()[codes[:, list(self.dims)] @ np.array(_strides(self.table.shape), dtype=np.int64)]


@dataclass(frozen=True)
class Formula:
    """A cost that depends on too many dimensions for a table: one operation behind a long concatenation.

    Attributes:
        dims: columns of the code, ascending.
        look_up: returns the cost of every subnet, shape (N,), for codes of shape (N, D).
    """

    dims: tuple[int, ...]
    look_up: Callable[[Codes], NDArray[Any]]


#: Cost of one operation for arrays of (input channels, output channels, input (h, w), output (h, w)): shapes
#: (M,), (M,), (M, 2), (M, 2), all int64; returns shape (M,).
OperationCost = Callable[
    [Operation, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], NDArray[Any]
]


def seen_dimensions(architecture: Architecture, operation: Operation) -> tuple[int, ...]:
    """Return the columns of the code that an operation's shapes and presence depend on, ascending."""
    space = architecture.space
    names: set[str] = set()
    for name in (*operation.inputs, operation.output):
        feature_map = architecture.feature_map(name)
        names.update(axis.dim for axis in feature_map.axes if axis.dim is not None)
        if len(feature_map.spatial) > 1:
            names.add("resolution")
    if operation.gate is not None:
        names.add(operation.gate.dim)
    return tuple(sorted(space.position(name) for name in names))


def operation_terms(architecture: Architecture, cost: OperationCost) -> list[Term | Formula]:
    """Tabulate the cost of every operation over the dimensions that it sees; zero where it does not exist."""
    space = architecture.space
    base = np.zeros(len(space.dims), dtype=np.int64)
    terms: list[Term | Formula] = []
    for operation in architecture.operations:
        dims = seen_dimensions(architecture, operation)
        shape = tuple(len(space.dims[dim].choices) for dim in dims)
        values_of = partial(_operation_cost, architecture, operation, cost)
        if np.prod(shape, dtype=np.float64) > _LARGEST_OPERATION:
            if values_of(np.array([space.sizes - 1])).any():
                terms.append(Formula(dims, values_of))
            continue
        codes = np.tile(base, (int(np.prod(shape, dtype=np.int64)), 1))
        if dims:
            codes[:, list(dims)] = np.indices(shape).reshape(len(dims), -1).T
        values = values_of(codes)
        if values.any():
            terms.append(Term(dims, values.reshape(shape)))
    return terms


def _operation_cost(
    architecture: Architecture, operation: Operation, cost: OperationCost, codes: Codes
) -> NDArray[Any]:
    """Return the cost of one operation in every subnet, shape (N,)."""
    first = operation.inputs[0]
    values = cost(
        operation,
        np.sum([architecture.channels(name, codes) for name in operation.inputs], axis=0),
        architecture.channels(operation.output, codes),
        architecture.spatial(first, codes),
        architecture.spatial(operation.output, codes),
    )
    return np.where(architecture.present(operation, codes), values, 0)


def merge_terms(terms: Sequence[Term], combine: Callable[..., NDArray[Any]]) -> list[Term]:
    """Put terms together into fewer, larger tables: fewer look-ups per subnet.

    Args:
        terms: to combine.
        combine: `numpy.add` for sums, `numpy.maximum` for peaks; tables are broadcast against each other.
    """
    merged: list[Term] = []
    for term in sorted(terms, key=lambda t: (-t.table.size, t.dims)):
        for i, host in enumerate(merged):
            union = tuple(sorted({*host.dims, *term.dims}))
            size = 1
            sizes = dict(zip((*host.dims, *term.dims), (*host.table.shape, *term.table.shape), strict=True))
            for dim in union:
                size *= sizes[dim]
            if union == host.dims or size <= min(_LARGEST_TABLE, 64 * host.table.size):
                merged[i] = Term(union, combine(_spread(host, union), _spread(term, union)))
                break
        else:
            merged.append(term)
    return merged


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Return the distance of neighbours along every axis of a raveled table."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _spread(term: Term, union: tuple[int, ...]) -> NDArray[Any]:
    """Return the table with an axis of length 1 for every dimension of `union` that it lacks."""
    shape = [1] * len(union)
    for dim, size in zip(term.dims, term.table.shape, strict=True):
        shape[union.index(dim)] = size
    return term.table.reshape(shape)


@final
class TabulatedCost(CostModel):
    """A sum (or, with `numpy.maximum`, a peak) of terms."""

    def __init__(
        self,
        name: str,
        unit: str,
        space: SearchSpace,
        terms: Sequence[Term | Formula],
        *,
        combine: Callable[..., NDArray[Any]] = np.add,
        scale: float = 1.0,
    ) -> None:
        self.name = name
        self.unit = unit
        self.space = space
        self.scale = scale
        self._combine = combine
        self._terms = merge_terms([term for term in terms if isinstance(term, Term)], combine)
        self._formulas = [term for term in terms if isinstance(term, Formula)]
        self._flat = [term.table.ravel() for term in self._terms]
        kinds = {table.dtype for table in self._flat}
        kinds |= {formula.look_up(np.zeros((1, len(space.dims)), dtype=np.int64)).dtype for formula in self._formulas}
        self._dtype = np.result_type(*kinds) if kinds else np.dtype(np.int64)
        # The place of a subnet in every raveled table is one product with its code, exact below 2 ** 53.
        self._strides = np.zeros((len(space.dims), len(self._terms)))
        for column, term in enumerate(self._terms):
            for dim, stride in zip(term.dims, _strides(term.table.shape), strict=True):
                self._strides[dim, column] = stride

    def exact(self, codes: Codes) -> NDArray[Any]:
        """Return the unscaled value of every subnet, shape (N,), in the dtype of the tables.

        Raises:
            TipsError: the codes do not fit the search space.
        """
        codes = self.space.check_codes(codes)
        result = np.zeros(len(codes), dtype=self._dtype)
        for start in range(0, len(codes), _CHUNK):
            places = (self._strides.T @ codes[start : start + _CHUNK].T.astype(np.float64)).astype(np.int64)
            part = result[start : start + _CHUNK]
            for table, place in zip(self._flat, places, strict=True):
                self._combine(part, table[place], out=part)
            for formula in self._formulas:
                self._combine(part, formula.look_up(codes[start : start + _CHUNK]), out=part)
        return result

    def evaluate(self, codes: Codes) -> NDArray[np.float64]:
        return np.asarray(self.exact(codes) * self.scale, dtype=np.float64)


class CostTable:
    """Exact costs of every subnet of an architecture.

    A multiply-add counts as one FLOP, as the mobile field counts; convolutions, filters, linear layers and the matrix
    products of attention count.
    """

    def __init__(self, architecture: Architecture) -> None:
        space = architecture.space
        self.space = space
        self._flops = TabulatedCost("mflops", "M", space, operation_terms(architecture, multiply_adds), scale=1e-6)
        self._params = TabulatedCost("params_m", "M", space, operation_terms(architecture, _parameters), scale=1e-6)
        self._memory = TabulatedCost(
            "memory_mb", "MB", space, operation_terms(architecture, _activations), combine=np.maximum, scale=4e-6
        )

    def flops(self, codes: Codes) -> NDArray[np.int64]:
        """Return the multiply-adds of one image, shape (N,), int64, exact."""
        return np.asarray(self._flops.exact(codes), dtype=np.int64)

    def params(self, codes: Codes) -> NDArray[np.int64]:
        """Return the number of parameters, shape (N,), int64, exact."""
        return np.asarray(self._params.exact(codes), dtype=np.int64)

    def models(self) -> Mapping[str, CostModel]:
        """Return ``mflops``, ``params_m`` (both 1e6) and ``memory_mb`` as cost models.

        ``memory_mb`` is the largest sum of an operation's inputs and output, float32, one image, in 1e6 bytes.
        """
        return {model.name: model for model in (self._flops, self._params, self._memory)}


def weights_of(operation: Operation, cin: NDArray[np.int64], cout: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the entries of the weight of a convolution or linear layer, shape (M,); zero for other kinds."""
    if operation.kind not in ("conv", "linear"):
        return np.zeros_like(cout)
    per_group = inputs_of_group(operation, cin)
    return cout * per_group * (operation.kernel[0] * operation.kernel[1])


def inputs_of_group(operation: Operation, cin: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the input channels that each output channel of a convolution or linear layer sees, shape (M,)."""
    if operation.group_width is not None:
        return np.full_like(cin, operation.group_width)
    return cin // (operation.groups or 1)


def multiply_adds(
    operation: Operation,
    cin: NDArray[np.int64],
    cout: NDArray[np.int64],
    size_in: NDArray[np.int64],
    size_out: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the multiply-adds of an operation for arrays of shapes (see `OperationCost`), shape (M,)."""
    if operation.kind == "attention":
        # Queries by keys, and their softmax by values: every output position looks at all tokens of its sequence.
        return np.asarray(2 * cout * size_out.prod(axis=1) * size_in[:, 0], dtype=np.int64)
    if operation.kind == "filter":
        height, width = operation.kernel
        kernel = np.asarray(height * width if height else size_in.prod(axis=1))
        return np.asarray(cout * kernel * size_out.prod(axis=1), dtype=np.int64)
    return np.asarray(weights_of(operation, cin, cout) * size_out.prod(axis=1), dtype=np.int64)


def _parameters(
    operation: Operation,
    cin: NDArray[np.int64],
    cout: NDArray[np.int64],
    _size_in: NDArray[np.int64],
    _size_out: NDArray[np.int64],
) -> NDArray[np.int64]:
    if operation.kind == "attention":
        return cout // (operation.group_width or 1) * operation.channel_params + operation.params
    return weights_of(operation, cin, cout) + cout * (operation.channel_params + int(operation.bias)) + operation.params


def _activations(
    operation: Operation,
    cin: NDArray[np.int64],
    cout: NDArray[np.int64],
    size_in: NDArray[np.int64],
    size_out: NDArray[np.int64],
) -> NDArray[np.int64]:
    return np.asarray(cin * size_in.prod(axis=1) + cout * size_out.prod(axis=1), dtype=np.int64)
