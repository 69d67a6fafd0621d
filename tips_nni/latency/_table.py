"""Predicted latency of every subnet, by table look-up, and how much of it was measured."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import (
    Architecture,
    Codes,
    CostModel,
    Operation,
    TabulatedCost,
    TipsError,
    inputs_of_group,
    multiply_adds,
    operation_terms,
)
from tips_nni.latency._kernels import Kernel, Shapes, kernel_of
from tips_nni.latency._pack import Source

#: Below that share of the multiply-adds in measured kernels a latency comes with a warning, or is refused.
COVERED = 0.95
_COVERED_TIME = 0.8


class KernelPredictor(Protocol):
    """What predicts the time of kernels on a device: a pack or a look-up table."""

    @property
    def name(self) -> str:
        """The device, for people."""

    @property
    def families(self) -> tuple[str, ...]:
        """Network families that were measured; empty where unknown."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Smallest and largest side of the measured networks' input; None where unknown."""

    @property
    def widest(self) -> tuple[int, int]:
        """Most input and output channels of a measured convolution."""

    def kernel_ms(self, kernel: Kernel, shapes: Shapes) -> NDArray[np.float64]:
        """Return the time in ms of kernels of one kind, shape (M,)."""

    def source_of(self, kernel: Kernel, shapes: Shapes) -> Source:
        """Return where the time of kernels comes from; the least certain source of all shapes."""


class LatencyModel(CostModel):
    """Latency of one image (batch size 1) in ms on a target.

    Attributes:
        target: name of the device or pack.
    """

    name = "latency_ms"
    unit = "ms"
    target: str

    @abstractmethod
    def coverage(self) -> dict[str, Any]:
        """Return how much of the largest subnet was measured.

        Returns:
            ``covered_flops_share``, ``covered_kernels_share`` and ``covered_ms_share`` (of the predicted time), 0 to 1,
            measured kernels only; ``estimates`` and ``neighbours``, the names of
            kernels that are neither; ``families``; ``warnings``, one line each.
        """


class LatencyTable(LatencyModel):
    """The sum over the kernels of a subnet.

    Args:
        architecture: the network.
        pack: predicts its kernels.
        backbone: the network's timm name, which tells its family; None where unknown.

    Attributes:
        pack: the same.
    """

    def __init__(self, architecture: Architecture, pack: KernelPredictor, backbone: str | None = None) -> None:
        self.pack = pack
        self.target = pack.name
        self._architecture = architecture
        self._backbone = backbone
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
        per_group = per_group_of(operation, cin, size_in)
        return self.pack.kernel_ms(kernel, Shapes(cin, cout, size_in, size_out, per_group))

    def breakdown(self, codes: Codes) -> list[dict[str, Any]]:
        """Return the kernels of one subnet in order: operation, kernel, shapes, ``ms`` and ``source``.

        Args:
            codes: shape (1, D).
        """
        rows = []
        for operation, kernel, shapes in kernels_in(self._architecture, codes):
            time = self.operation_ms(operation, shapes.cin, shapes.cout, shapes.size_in, shapes.size_out)
            macs = multiply_adds(operation, shapes.cin, shapes.cout, shapes.size_in, shapes.size_out)
            rows.append(
                {
                    "operation": operation.name,
                    "kernel": str(kernel),
                    "cin": int(shapes.cin[0]),
                    "cout": int(shapes.cout[0]),
                    "size_in": tuple(map(int, shapes.size_in[0])),
                    "mflops": float(macs[0]) / 1e6,
                    "ms": float(time[0]),
                    "source": self.pack.source_of(kernel, shapes),
                }
            )
        return rows

    def coverage(self) -> dict[str, Any]:
        """Return how much of the largest subnet was measured; see `LatencyModel.coverage`."""
        space = self._architecture.space
        rows = self.breakdown(space.encode(space.largest)[None])
        named = {
            source: sorted({row["kernel"] for row in rows if row["source"] == source})
            for source in ("neighbour", "estimate")
        }
        covered = [row for row in rows if row["source"] == "fitted"]
        share = sum(row["mflops"] for row in covered) / max(sum(row["mflops"] for row in rows), 1e-12)
        time = sum(row["ms"] for row in covered) / max(sum(row["ms"] for row in rows), 1e-12)
        return {
            "covered_flops_share": share,
            "covered_kernels_share": len(covered) / max(len(rows), 1),
            "covered_ms_share": time,
            "estimates": named["estimate"],
            "neighbours": named["neighbour"],
            "families": list(self.pack.families),
            "warnings": list(self._warnings(rows, share, time)),
        }

    def _warnings(self, rows: list[dict[str, Any]], share: float, time: float) -> Iterator[str]:
        start = f"latency on {self.target}"
        sides = [max(size) for size in self._architecture.input.spatial]
        measured = self.pack.image_size
        if measured is not None and not (min(sides) >= measured[0] / 2 and max(sides) <= measured[1] * 2):
            span = f"{measured[0]}" if measured[0] == measured[1] else f"{measured[0]} to {measured[1]}"
            own = f"{sides[0]}" if len(set(sides)) == 1 else f"{min(sides)} to {max(sides)}"
            yield f"{start} is extrapolated: it was measured on images of {span} pixels, these have {own}"
        families = self.pack.families
        if self._backbone is not None and families and not self._backbone.startswith(families):
            yield (
                f"{start} was measured on {', '.join(families)}; {self._backbone} is of another family: trust the "
                "order of subnets more than the milliseconds"
            )
        wide = [(row["cin"], row["cout"]) for row in rows if row["kernel"].startswith("conv-")]
        most = self.pack.widest
        if any(cin > most[0] or cout > most[1] for cin, cout in wide):
            cin, cout = np.array(wide).max(axis=0)
            yield (
                f"{start} is extrapolated: convolutions of up to {most[0]} to {most[1]} channels were measured, these "
                f"have up to {cin} to {cout}"
            )
        others = [row for row in rows if row["source"] != "fitted"]
        if share < COVERED:
            names = ", ".join(sorted({row["kernel"] for row in others if row["mflops"]}))
            yield f"{start}: {share:.0%} of the multiply-adds are in kernels that were measured; estimates: {names}"
        if time < _COVERED_TIME:
            names = ", ".join(sorted({row["kernel"] for row in others}))
            yield f"{start}: {1 - time:.0%} of the predicted time is estimated, not fitted to measurements: {names}"


def check_coverage(model: LatencyModel) -> None:
    """Refuse a latency of which too little was measured.

    Raises:
        TipsError: less than 95% of the multiply-adds of the largest subnet are in measured kernels.
    """
    found = model.coverage()
    if found["covered_flops_share"] < COVERED:
        others = ", ".join([*found["neighbours"], *found["estimates"], *found.get("missing", ())])
        raise TipsError(
            f"latency on {model.target}: only {found['covered_flops_share']:.0%} of the multiply-adds are in kernels "
            f"that were measured ({others} are not), and constraints.coverage is 'refuse'; measure your device with "
            "`tips-nni latency measure`, or set it to 'warn'"
        )


def kernels_in(architecture: Architecture, codes: Codes) -> Iterator[tuple[Operation, Kernel, Shapes]]:
    """Yield the kernels of one subnet in order.

    Args:
        architecture: the network.
        codes: of the subnet, shape (1, D).
    """
    for operation in architecture.operations:
        kernel = kernel_of(operation)
        if kernel is None or not architecture.present(operation, codes)[0]:
            continue
        cin = np.sum([architecture.channels(name, codes) for name in operation.inputs], axis=0)
        cout = architecture.channels(operation.output, codes)
        size_in = architecture.spatial(operation.inputs[0], codes)
        size_out = architecture.spatial(operation.output, codes)
        yield operation, kernel, Shapes(cin, cout, size_in, size_out, per_group_of(operation, cin, size_in))


def per_group_of(operation: Operation, cin: NDArray[np.int64], size_in: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the input channels that one output channel reads, shape (M,)."""
    if operation.kind == "attention":
        return 2 * size_in[:, 0]  # every output reads all keys and all values of its sequence
    return inputs_of_group(operation, cin)
