"""Predicted latency of every subnet, by table look-up."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import (
    Architecture,
    Codes,
    CostModel,
    Operation,
    TabulatedCost,
    inputs_of_group,
    multiply_adds,
    operation_terms,
)
from tips_nni.latency._kernels import kernel_of
from tips_nni.latency._pack import PredictorPack

_COVERED = 0.95


class LatencyTable(CostModel):
    """Latency of one image in ms, the sum over the kernels of a subnet.

    Attributes:
        pack: the predictor pack.
    """

    name = "latency_ms"
    unit = "ms"

    def __init__(self, architecture: Architecture, pack: PredictorPack) -> None:
        self.pack = pack
        self._architecture = architecture
        terms = operation_terms(architecture, self.operation_ms)
        self._total = TabulatedCost(self.name, self.unit, architecture.space, terms)

    def evaluate(self, codes: Codes) -> NDArray[np.float64]:
        """Return the predicted latency of every subnet in ms, shape (N,)."""
        return self._total.evaluate(codes)

    def operation_ms(
        self,
        operation: Operation,
        cin: NDArray[np.int64],
        cout: NDArray[np.int64],
        size_in: NDArray[np.int64],
        size_out: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Return the predicted time of one operation in ms for arrays of shapes, shape (M,)."""
        kernel = kernel_of(operation)
        if kernel is None:
            return np.zeros(len(cin))
        # Every output of an attention reads all keys and all values of its sequence.
        per_group = 2 * size_in[:, 0] if operation.kind == "attention" else inputs_of_group(operation, cin)
        return self.pack.kernel_ms(kernel, cin, cout, size_in, size_out, per_group)

    def coverage(self) -> dict[str, Any]:
        """Return how much of the largest subnet the pack was fitted for.

        Returns:
            ``covered_flops_share`` and ``covered_kernels_share``, 0 to 1 (fitted kernels only); ``estimates`` and
            ``neighbours``, the kernels that are neither; ``families``; ``warnings``, one line each.
        """
        space = self._architecture.space
        largest = space.encode(space.largest)[None]
        flops = {"fitted": 0, "neighbour": 0, "estimate": 0}
        counts = dict.fromkeys(flops, 0)
        named: dict[str, set[str]] = {key: set() for key in flops}
        small = False
        for operation in self._architecture.operations:
            kernel = kernel_of(operation)
            if kernel is None:
                continue
            source = self.pack.coefficients_of(kernel)[1]
            cin = np.sum([self._architecture.channels(name, largest) for name in operation.inputs], axis=0)
            cout = self._architecture.channels(operation.output, largest)
            sizes = [self._architecture.spatial(name, largest) for name in (operation.inputs[0], operation.output)]
            flops[source] += int(multiply_adds(operation, cin, cout, *sizes)[0])
            counts[source] += 1
            named[source].add(str(kernel))
        if self._architecture.input.spatial[-1][0] < 112:
            small = True
        share = flops["fitted"] / max(sum(flops.values()), 1)
        warnings = []
        if small:
            side = self._architecture.input.spatial[-1][0]
            warnings.append(
                f"latency on {self.pack.name} is extrapolated: the pack was fitted on images of 224 pixels, these have "
                f"{side}"
            )
        if share < _COVERED:
            warnings.append(
                f"latency on {self.pack.name}: {share:.0%} of the multiply-adds are in kernels that were measured; "
                f"the others ({', '.join(sorted(named['neighbour'] | named['estimate']))}) are estimates"
            )
        return {
            "covered_flops_share": share,
            "covered_kernels_share": counts["fitted"] / max(sum(counts.values()), 1),
            "estimates": sorted(named["estimate"]),
            "neighbours": sorted(named["neighbour"]),
            "families": list(self.pack.families),
            "warnings": warnings,
        }
