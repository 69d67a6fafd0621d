"""The networks that are measured: subnets of a search space, and their kernels."""

from __future__ import annotations

import numpy as np

from tips_nni.core import Architecture, Codes, Operation, SearchSpace
from tips_nni.latency._kernels import Kernel
from tips_nni.latency._records import Entry
from tips_nni.latency._table import kernels_in


def sample_subnets(space: SearchSpace, count: int, seed: int) -> Codes:
    """Return different subnets, shape (N, D), N <= count: the largest, the smallest, then random ones.

    Every second random one has all dimensions at about the same share of their choices, so that small and large
    networks are among them: independent choices average out.
    """
    rng = np.random.default_rng(seed)
    codes = {tuple(space.encode(space.largest).tolist()): None, tuple(space.encode(space.smallest).tolist()): None}
    for attempt in range(50 * count):
        if len(codes) >= count:
            break
        share = (
            rng.random(len(space.dims))
            if attempt % 2
            else np.clip(rng.random() + 0.2 * rng.standard_normal(len(space.dims)), 0, 0.999)
        )
        codes.setdefault(tuple(int(value) for value in share * space.sizes), None)
    return np.array(list(codes)[:count], dtype=np.int64)


def entries_of(architecture: Architecture, code: Codes) -> list[tuple[Operation, Kernel, Entry]]:
    """Return the kernels of a subnet in order, each with its entry of a record.

    Args:
        architecture: the network.
        code: shape (D,).
    """
    result = []
    for operation, kernel, shapes in kernels_in(architecture, code[None]):
        cin = int(shapes.cin[0]) // (len(operation.inputs) if kernel.type in ("add", "mul") else 1)
        side = round(float(np.sqrt(shapes.size_in[0].prod())))
        entry: Entry = (kernel.type, side, max(cin, 1), int(shapes.cout[0]), kernel.size, kernel.stride)
        result.append((operation, kernel, (*entry, int(shapes.per_group[0])) if kernel.type == "groupconv" else entry))
    return result
