"""Kernels: what a device runs, and the features that its time is modelled by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import Operation, TipsError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Types whose multiply-adds cost time.
WEIGHTED = ("conv", "dwconv", "groupconv", "fc", "attention")
#: Types that only move data; without measurements their time is estimated from the elements that they move.
MOVING = ("add", "maxpool", "avgpool", "mul", "act", "norm", "concat")
#: All types.
KERNEL_TYPES = (*WEIGHTED, *MOVING)
#: Activations that a device runs as a part of the convolution before them.
_FUSED_ACTIVATIONS = ("relu", "identity", "hardtanh", "threshold")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kind of kernel.

    Attributes:
        type: one of `KERNEL_TYPES`.
        size: side of the window, 1 where there is none; its height where the window is not square.
        stride: 1 or more.
        width: width of the window where it is not square, else 0.
    """

    type: str
    size: int = 1
    stride: int = 1
    width: int = 0

    @property
    def window(self) -> int:
        """Positions of the input that one output reads."""
        return self.size * (self.width or self.size)

    def __str__(self) -> str:
        return f"{self.type}-{self.size}{f'x{self.width}' if self.width else ''}-{self.stride}"


@dataclass(frozen=True)
class Shapes:
    """Shapes of M kernels of one kind.

    Attributes:
        cin: input channels, shape (M,).
        cout: output channels, shape (M,).
        size_in: (height, width) of the input, shape (M, 2).
        size_out: (height, width) of the output, shape (M, 2).
        per_group: input channels that one output channel reads (of an attention: keys and values), shape (M,).
    """

    cin: Ints
    cout: Ints
    size_in: Ints
    size_out: Ints
    per_group: Ints

    @property
    def side(self) -> Floats:
        """Side of the square with as many positions as the output, shape (M,)."""
        return np.sqrt(self.size_out.prod(axis=1).astype(np.float64))

    def pick(self, mask: NDArray[np.bool_]) -> Shapes:
        """Return the shapes where `mask`, shape (M,), is true."""
        return Shapes(self.cin[mask], self.cout[mask], self.size_in[mask], self.size_out[mask], self.per_group[mask])


def kernel_of(operation: Operation) -> Kernel | None:
    """Return the kernel that runs an operation, or None where it costs nothing of its own.

    Batch normalisation and ReLU-like activations are part of the convolution before them, views move nothing.
    """
    height, width = operation.kernel
    size, stride = height, max(operation.stride)
    width = 0 if width == height else width
    match operation.kind:
        case "conv":
            if operation.group_width is None and operation.groups is None:
                return Kernel("conv", size, stride, width)
            return Kernel("dwconv" if operation.group_width == 1 else "groupconv", size, stride, width)
        case "filter":
            return Kernel("dwconv", size, stride, width) if size else Kernel("avgpool", 2, 2)
        case "linear":
            return Kernel("fc")
        case "add" | "mul" | "concat" | "attention":
            return Kernel(operation.kind)
        case "scale":
            return Kernel("mul")
        case "pool":
            return Kernel("maxpool" if "max" in operation.type.lower() else "avgpool", 2, 2)
        case "norm":
            name, _, activation = operation.type.lower().partition("+")
            if "batchnorm" not in name:
                return Kernel("norm")
            return Kernel("act") if activation and not _is_fused(activation) else None
        case "act":
            return None if _is_fused(operation.type.lower()) else Kernel("act")
        case _:
            return None


def _is_fused(activation: str) -> bool:
    """Tell whether an activation runs as a part of what is before it; a norm traced in two is one."""
    return any(word in activation for word in (*_FUSED_ACTIVATIONS, "batchnorm", "layernorm"))


def check_feature(name: str) -> None:
    """Check that `feature` knows a name.

    Raises:
        TipsError: it does not.
    """
    base, _, condition = name.partition(" if ")
    axis, _, limit = condition.partition(">")
    word, _, block = base.partition("/")
    known = base in ("launch", "macs", "input", "output", "weights") or (word == "macs" and block.isdigit())
    if not known or (condition and not (axis in ("cin", "cout") and limit.isdigit())):
        raise TipsError(
            f"unknown feature {name!r}; write launch, macs, macs/8, input, output or weights, each with ` if cin>64` "
            "or ` if cout>64` behind it where it counts above that many channels only"
        )


def feature(name: str, kernel: Kernel, shapes: Shapes) -> Floats:
    """Return one feature of kernels of one kind, shape (M,).

    Each is nondecreasing in every channel count, so with coefficients that are not negative the predicted time is
    monotone in width:

    - ``launch``: 1.
    - ``macs``: multiply-adds in 1e6; ``macs/8``: with channels rounded up to multiples of 8, as a device that works on
      8 channels at a time pays.
    - ``input``, ``output``: elements read and written, in 1e6; ``weights``: entries of the weight, in 1e6.
    - ``macs if cin>64``: counts above so many input channels only: a device splits what exceeds its memory into tiles,
      and then ``output if cin>64`` is what each further tile adds up again, ``input if cout>64`` what is read again.
    """
    base, _, condition = name.partition(" if ")
    values = _base(base, kernel, shapes)
    if not condition:
        return values
    axis, _, limit = condition.partition(">")
    return values * ((shapes.per_group if axis == "cin" else shapes.cout) > int(limit))


def _base(name: str, kernel: Kernel, shapes: Shapes) -> Floats:
    if name == "launch":
        return np.ones(len(shapes.cin))
    if name == "input":
        return shapes.cin * shapes.size_in.prod(axis=1) / 1e6
    if name == "output":
        return shapes.cout * shapes.size_out.prod(axis=1) / 1e6
    if kernel.type not in WEIGHTED:
        return np.zeros(len(shapes.cin))
    if name == "weights":
        return shapes.cout * shapes.per_group * kernel.window / 1e6
    block = int(name.partition("/")[2] or 1)
    depth = _round_up(shapes.per_group, block) if kernel.type in ("conv", "fc") else shapes.per_group
    return _round_up(shapes.cout, block) * depth * kernel.window * shapes.size_out.prod(axis=1) / 1e6


def _round_up(values: Ints, block: int) -> Ints:
    return -(-values // block) * block
