"""Kernels: what a device runs, and the features that its time is modelled by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import Operation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Features of a kernel; each is nondecreasing in every channel count, so with non-negative coefficients the predicted
#: time is monotone in width. ``macs/n``: multiply-adds with channels rounded up to multiples of n, as a device that
#: works on n channels at a time pays; in 1e6. Sizes in 1e6 elements.
FEATURES = ("launch", "macs", "macs/4", "macs/8", "macs/16", "macs/32", "input", "output", "weights")

#: Kernels that the packs are fitted on.
FITTED = ("conv", "dwconv", "fc", "add", "maxpool")
#: Kernels that the measurements lack and that multiply; they go by the dense convolutions.
MULTIPLYING = ("groupconv", "attention")
#: Kernels that the measurements lack; their time is estimated from the bytes that they move, but for those above.
ESTIMATED = (*MULTIPLYING, "avgpool", "mul", "act", "norm", "concat")
#: Kernels whose multiply-adds and weights count.
_COUNTED = ("conv", "dwconv", "fc", *MULTIPLYING)
#: Activations that a device runs as a part of the convolution before them.
_FUSED_ACTIVATIONS = ("relu", "identity", "hardtanh", "threshold")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kind of kernel.

    Attributes:
        type: one of `FITTED` or `ESTIMATED`.
        size: side of the window, 1 where there is none.
        stride: 1 or more.
    """

    type: str
    size: int = 1
    stride: int = 1

    def __str__(self) -> str:
        return f"{self.type}-{self.size}-{self.stride}"


def kernel_of(operation: Operation) -> Kernel | None:
    """Return the kernel that runs an operation, or None where it costs nothing of its own.

    Batch normalisation and ReLU-like activations are part of the convolution before them, views move nothing.
    """
    size, stride = max(operation.kernel), max(operation.stride)
    match operation.kind:
        case "conv":
            if operation.group_width is None and operation.groups is None:
                return Kernel("conv", size, stride)
            return Kernel("dwconv" if operation.group_width == 1 else "groupconv", size, stride)
        case "filter":
            return Kernel("dwconv", size, stride) if size else Kernel("avgpool", 2, 2)
        case "linear":
            return Kernel("fc")
        case "add" | "attention":
            return Kernel(operation.kind)
        case "mul" | "concat":
            return Kernel(operation.kind)
        case "pool":
            return Kernel("maxpool" if "max" in operation.type.lower() else "avgpool", 2, 2)
        case "norm":
            return None if "batchnorm" in operation.type.lower() else Kernel("norm")
        case "act":
            fused = any(word in operation.type.lower() for word in _FUSED_ACTIVATIONS)
            return None if fused else Kernel("act")
        case _:
            return None


def features(kernel: Kernel, cin: Ints, cout: Ints, size_in: Ints, size_out: Ints, per_group: Ints) -> Floats:
    """Return the features of kernels of one kind, shape (M, len(FEATURES)).

    Args:
        kernel: the kind.
        cin: input channels, shape (M,).
        cout: output channels, shape (M,).
        size_in: (height, width) of the input, shape (M, 2).
        size_out: (height, width) of the output, shape (M, 2).
        per_group: input channels that one output channel reads (of an attention: keys and values), shape (M,).
    """
    positions = size_out.prod(axis=1)
    window = kernel.size**2
    columns = [np.ones(len(cin))]
    for block in (1, 4, 8, 16, 32):
        depth = per_group if kernel.type in ("dwconv", "groupconv") else _round_up(per_group, block)
        columns.append(_round_up(cout, block) * depth * window * positions / 1e6)
    if kernel.type not in _COUNTED:
        columns[1:] = [np.zeros(len(cin))] * 5
    columns.append(cin * size_in.prod(axis=1) / 1e6)
    columns.append(cout * positions / 1e6)
    weights = cout * per_group * window / 1e6
    columns.append(weights if kernel.type in _COUNTED else np.zeros(len(cin)))
    return np.stack(columns, axis=1).astype(np.float64)


def _round_up(values: Ints, block: int) -> Ints:
    return -(-values // block) * block
