"""Channel labels: what every operation of a network does to the channels of its tensors.

A label is a number for one channel of one layer. The labels of a tensor are an integer tensor with as many axes, whose
length is 1 along those that tell no channels apart; -1 stands for what belongs to no layer (the image, a constant).
Operations that move data are run on the labels themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

_MOVES = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "permute",
        "transpose",
        "t",
        "squeeze",
        "unsqueeze",
        "expand",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "unbind",
        "chunk",
        "alias",
        "flip",
        "roll",
        "unfold",
        "index_select",
        "repeat",
        "narrow",
        "pixel_shuffle",
        "pixel_unshuffle",
        "_reshape_alias",
    ]
)
_SPLITS = frozenset({"split", "split_with_sizes", "chunk", "unbind"})
_VIEWS = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias"})
_REDUCTIONS = frozenset(
    [
        "mean",
        "sum",
        "amax",
        "amin",
        "max",
        "min",
        "var",
        "std",
        "var_mean",
        "prod",
        "norm",
        "linalg_vector_norm",
        "logsumexp",
        "argmax",
        "any",
        "all",
    ]
)
_PRODUCTS = frozenset({"bmm", "mm", "baddbmm", "addmm"})


class Labels:
    """Labels given out, and what is known of them.

    Attributes:
        count: how many there are.
    """

    def __init__(self) -> None:
        self.count = 0
        self._pairs: list[Tensor] = []
        self._pins: list[tuple[Tensor, str]] = []
        self._ordered: list[Tensor] = []

    def new(self, count: int) -> Tensor:
        """Return new labels, shape (count,), int64."""
        self.count += count
        return torch.arange(self.count - count, self.count)

    def join(self, one: Tensor, other: Tensor) -> None:
        """Note that the channels at the same place of both (broadcast against each other) are cut together."""
        one, other = torch.broadcast_tensors(one, other)
        both = (one >= 0) & (other >= 0) & (one != other)
        if both.any():
            self._pairs.append(torch.stack([one[both], other[both]]))

    def pin(self, labels: Tensor, reason: str) -> None:
        """Note that these channels cannot be cut."""
        self._pins.append((labels[labels >= 0], reason))

    def order(self, labels: Tensor) -> None:
        """Note that these channels have neighbours: they can be cut from the end, but not be put in another order."""
        self._ordered.append(labels[labels >= 0])

    def ordered(self, components: NDArray[np.int64]) -> set[int]:
        """Return the components of channels that have neighbours."""
        return {c for labels in self._ordered for c in components[labels.numpy()].tolist()}

    def pairs(self) -> NDArray[np.int64]:
        """Return the labels that are cut together two by two, shape (2, P)."""
        return torch.cat(self._pairs, 1).numpy() if self._pairs else np.empty((2, 0), dtype=np.int64)

    def components(self) -> NDArray[np.int64]:
        """Return for each label the number of the component (of channels that are cut together) that it is in."""
        pairs = self.pairs()
        graph = coo_array((np.ones(pairs.shape[1], dtype=np.int8), (pairs[0], pairs[1])), shape=(self.count,) * 2)
        return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)

    def pinned(self, components: NDArray[np.int64]) -> dict[int, str]:
        """Return ``{component: reason}`` of those that cannot be cut; the first reason counts."""
        reasons: dict[int, str] = {}
        for labels, reason in self._pins:
            for component in np.unique(components[labels.numpy()]).tolist():
                reasons.setdefault(component, reason)
        return reasons


def compressed(labels: Tensor) -> Tensor:
    """Return labels with length 1 along every axis on which they do not change."""
    for axis in range(labels.ndim):
        first = labels.narrow(axis, 0, min(1, labels.shape[axis]))
        if labels.shape[axis] > 1 and (labels.stride(axis) == 0 or bool((labels == first).all())):
            labels = first
    return labels


def varying(labels: Tensor) -> list[int]:
    """Return the axes along which labels change."""
    return [axis for axis, size in enumerate(labels.shape) if size > 1]


def follow(known: Labels, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any, get: Any) -> list[Any]:
    """Return the labels of each tensor that an operation gives, None where it has none.

    Args:
        known: the labels; what the operation says about them is noted.
        func: the operator (`torch._ops.OpOverload`).
        args: its arguments.
        kwargs: its keyword arguments.
        output: what it gave.
        get: returns the labels of a tensor, or None.
    """
    outputs = [t for t in (output if isinstance(output, tuple | list) else [output]) if isinstance(t, Tensor)]
    name = func.overloadpacket.__name__.rstrip("_").removesuffix("_copy")
    inputs = [t for arg in (*args, *kwargs.values()) for t in (arg if isinstance(arg, list | tuple) else [arg])]
    found = [(t, labels) for t in inputs if isinstance(t, Tensor) and (labels := get(t)) is not None]
    if not found or not outputs:
        return [None] * len(outputs)
    if name in ("cat", "stack"):
        return [_joined(known, func, args, kwargs, get, name == "stack")]
    if name in _PRODUCTS:
        left, right = [t for t in inputs if isinstance(t, Tensor)][-2:]
        return [_product(known, left, right, get)]
    if torch.Tag.pointwise in func.tags or name == "copy":
        return [_pointwise(known, found, outputs[0])]
    (tensor, labels), rest = found[0], found[1:]
    if not rest and name in _MOVES:
        return _moved(known, func, name, args, kwargs, labels, tensor)
    if not rest and name in _REDUCTIONS:
        return [_reduced(known, func, args, kwargs, labels, tensor)] * len(outputs)
    if not rest and name == "constant_pad_nd":
        return [_padded(args[1], labels, tensor)]
    grouped = name == "convolution" and args[8] != tensor.shape[1]
    if not rest and not grouped and all(_fits(labels, t) for t in outputs):
        # Pooling, resizing, a softmax: each channel stays where it is.
        return [labels] * len(outputs)
    for _, each in found:
        known.pin(each, f"its channels go into {name}, which mixes them in a way that cannot be followed")
    return [None] * len(outputs)


def _fits(labels: Tensor, tensor: Tensor) -> bool:
    return tensor.ndim == labels.ndim and all(tensor.shape[a] == labels.shape[a] for a in varying(labels))


def _moved(
    known: Labels, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any], labels: Tensor, tensor: Tensor
) -> list[Any]:
    """Run an operation that moves data on the labels."""
    full = labels.expand(tensor.shape)
    if name in _VIEWS:
        # The labels may lie in memory otherwise than the tensor.
        moved = full.reshape(args[1])
    else:
        moved = func(*(full if arg is tensor else arg for arg in args), **kwargs)
    results = [compressed(t) for t in (moved if isinstance(moved, tuple | list) else [moved])]
    if name in _VIEWS:
        # An axis of channels became several: the parts before the last must stay equally long.
        axes = varying(results[0])
        if len(axes) > len(varying(labels)):
            for axis in axes[:-1]:
                known.join(results[0], results[0].narrow(axis, 0, 1))
    if name in _SPLITS and len(results) > 1 and len({tuple(t.shape) for t in results}) == 1:
        for other in results[1:]:
            if not torch.equal(other, results[0]):
                known.join(results[0], other)
    return results


def _joined(known: Labels, func: Any, args: Sequence[Any], kwargs: dict[str, Any], get: Any, stacked: bool) -> Tensor:
    """Return the labels of a concatenation."""
    tensors = args[0]
    axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    parts = [get(t) for t in tensors]
    parts = [torch.full((1,) * t.ndim, -1) if p is None else p for p, t in zip(parts, tensors, strict=True)]
    ndim = tensors[0].ndim
    lengths = [max(p.shape[a] for p in parts) for a in range(ndim)]
    if not stacked:
        axis %= ndim
        labelled = [part for part in parts if varying(part)]
        if labelled and len(labelled) == len(parts) and all(part.shape[axis] == 1 for part in parts):
            # Tokens beside tokens: the channels lie along another axis, and each one is the same in all parts.
            for part in parts[1:]:
                known.join(parts[0], part)
            return parts[0]
    full = []
    for part, tensor in zip(parts, tensors, strict=True):
        shape = list(lengths)
        if not stacked:
            shape[axis] = tensor.shape[axis]
        full.append(part.expand(shape))
    return compressed(func(full, axis))


def _pointwise(known: Labels, found: list[tuple[Tensor, Tensor]], output: Tensor) -> Tensor | None:
    """Couple the inputs of an elementwise operation channel by channel."""
    shape = output.shape
    result: Tensor | None = None
    size: tuple[int, ...] = ()
    for tensor, own in found:
        labels = own.reshape((1,) * (len(shape) - own.ndim) + tuple(own.shape))
        real = (1,) * (len(shape) - tensor.ndim) + tuple(tensor.shape)
        if result is None:
            result, size = labels, real
            continue
        stretched = [
            (few, many)
            for few, few_size, many, many_size in ((labels, real, result, size), (result, size, labels, real))
            if any(few_size[a] == 1 and many_size[a] > 1 and many.shape[a] > 1 for a in range(len(shape)))
        ]
        size = tuple(max(a, b) for a, b in zip(size, real, strict=True))
        if stretched:
            few, many = stretched[0]
            known.pin(few, "it acts on all channels of another layer at once")
            if few.numel() > 1:
                known.pin(many, "other channels act on all of it at once")
            result = many
            continue
        known.join(result, labels)
        one, other = torch.broadcast_tensors(result, labels)
        result = compressed(torch.where(one >= 0, one, other))
    return result


def _reduced(
    known: Labels, func: Any, args: Sequence[Any], kwargs: dict[str, Any], labels: Tensor, tensor: Tensor
) -> Tensor | None:
    """Return the labels behind a mean, a sum, a maximum: the same for channels in any order."""
    names = [argument.name for argument in func._schema.arguments]
    values = {**dict(zip(names, args, strict=False)), **kwargs}
    axes = values.get("dim")
    axes = range(tensor.ndim) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    for axis in sorted({a % tensor.ndim for a in axes}, reverse=True):
        if labels.shape[axis] > 1:
            first = labels.narrow(axis, 0, 1)
            if len(varying(labels)) == 1:
                return None
            known.join(labels, first)
            labels = first
        if not values.get("keepdim", False):
            labels = labels.squeeze(axis)
    return labels


def _padded(pads: Sequence[int], labels: Tensor, tensor: Tensor) -> Tensor:
    """Return the labels behind a padding with a constant."""
    for i in range(len(pads) // 2):
        axis = tensor.ndim - 1 - i
        if labels.shape[axis] > 1 and (pads[2 * i] or pads[2 * i + 1]):
            spare = [0] * (2 * i) + [pads[2 * i], pads[2 * i + 1]]
            labels = torch.nn.functional.pad(labels, spare, value=-1)
    return labels


def _product(known: Labels, left: Tensor, right: Tensor, get: Any) -> Tensor | None:
    """Return the labels of a (batched) matrix product; channels that it sums over are coupled with each other."""
    a, b = get(left), get(right)
    mixed = "its channels are weighted by something else than a layer"
    summed_a = a is not None and a.shape[-1] > 1
    summed_b = b is not None and b.shape[-2] > 1
    if summed_a and summed_b:
        if a.shape[-2] > 1 or b.shape[-1] > 1:
            known.pin(a, mixed)
            known.pin(b, mixed)
            return None
        known.join(a, b.transpose(-1, -2))
        batch = torch.broadcast_tensors(a[..., :1], b[..., :1, :])[0]
        return batch if varying(batch) else None
    if summed_a:
        known.pin(a, mixed)
        a = None
    if summed_b:
        known.pin(b, mixed)
        b = None
    if a is not None and b is not None and 1 in (a.numel(), b.numel()):
        few, many = (a, b) if a.numel() == 1 else (b, a)
        known.pin(few, "it acts on all channels of another layer at once")
        return many
    if a is not None and b is not None:
        known.join(a[..., :1, :1], b[..., :1, :1])
        if a.shape[-2] > 1 and b.shape[-1] > 1:
            known.pin(a, mixed)
            known.pin(b, mixed)
            return None
        return a if a.shape[-2] > 1 else b
    return a if a is not None else b
