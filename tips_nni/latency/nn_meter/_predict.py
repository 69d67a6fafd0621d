"""Latency of one network by a pack of nn-Meter, with what the pack does not cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tips_nni.core import TipsError
from tips_nni.latency.nn_meter._kernels import Block, Reading, detect
from tips_nni.latency.nn_meter._library import load_part
from tips_nni.latency.nn_meter._onnx import export_graph, to_graph
from tips_nni.latency.nn_meter._pack import NnMeterPack

if TYPE_CHECKING:
    from torch import nn

_COVERED = 0.95
_COVERED_KERNELS = 0.8


@dataclass(frozen=True)
class KernelTime:
    """A kernel and its predicted time.

    Attributes:
        name: the operators in it, as nn-Meter names them (``conv-relu``), or ``grouped convolution``.
        predictor: the name of its predictor; None where the pack has none.
        latency_ms: 0 where the pack has no predictor.
        mflops: multiply-adds in 1e6.
    """

    name: str
    predictor: str | None
    latency_ms: float
    mflops: float


@dataclass(frozen=True)
class Coverage:
    """How much of a network a pack predicts.

    Attributes:
        flops_share: share of the multiply-adds, 0 to 1.
        kernels_share: share of the kernels, 0 to 1; views are none.
        missing: kernels without a predictor, and how many of each.
        warnings: one line each.
    """

    flops_share: float
    kernels_share: float
    missing: dict[str, int]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """The predicted latency of a network.

    Attributes:
        latency_ms: of one image, the sum over the kernels that the pack covers, as nn-Meter computes it.
        kernels: in nn-Meter's order.
        coverage: what share of the network that is.
    """

    latency_ms: float
    kernels: tuple[KernelTime, ...]
    coverage: Coverage


def predict(
    module: nn.Module, pack: NnMeterPack, image_size: int | tuple[int, int], *, refuse: bool = False
) -> Prediction:
    """Predict the latency of a network by nn-Meter's kernel detection and arithmetic.

    What nn-Meter would take for something else counts as not covered: a grouped convolution (neither dense nor
    depthwise) for a dense one, a linear layer on many positions for one on a single position, a product of matrices
    for a linear layer.

    Args:
        module: maps images (1, C, H, W) to logits; in evaluation mode.
        pack: the predictors.
        image_size: side of the square input in pixels.
        refuse: refuse a network of which the pack covers less than 95% of the multiply-adds.

    Raises:
        TipsError: nn-Meter is not installed, the network cannot be exported, nn-Meter would read it wrongly (a map
            that is not square, dilations), or it is not covered and `refuse` is set.
    """
    graph, _ = to_graph(export_graph(module, image_size))
    return predict_blocks(detect(graph, pack.rules), pack, refuse=refuse)


def predict_blocks(blocks: Sequence[Block], pack: NnMeterPack, *, refuse: bool = False) -> Prediction:
    """Predict the latency of a network that was split into kernels; see `predict`."""
    work = [(block, block.reading()) for block in blocks if not block.view]
    found = [covers(pack, reading) for _, reading in work]
    covered = [block.kernel for (block, _), known in zip(work, found, strict=True) if known]
    latency = float(load_part("predictor.prediction.predict_by_kernel").nn_predict(pack.kernels, covered))
    coverage = coverage_of(work, pack)
    if refuse and coverage.flops_share < _COVERED:
        raise TipsError(f"{coverage.warnings[0]}; take another pack, or do not refuse")
    times = tuple(
        KernelTime(
            block.operation if reading.features is not None else reading.predictor,
            reading.predictor if known else None,
            float(pack.kernels[reading.predictor].predict([reading.features])[0])
            if known and reading.features is not None
            else 0.0,
            block.multiply_adds / 1e6,
        )
        for (block, reading), known in zip(work, found, strict=True)
    )
    return Prediction(latency, times, coverage)


def covers(pack: NnMeterPack, reading: Reading) -> bool:
    """Return whether the pack predicts a kernel."""
    return reading.features is not None and reading.predictor in pack.kernels


def coverage_of(work: Sequence[tuple[Block, Reading]], pack: NnMeterPack) -> Coverage:
    """Return how much of these kernels a pack predicts."""
    known = np.array([covers(pack, reading) for _, reading in work], dtype=np.bool_)
    flops = np.array([block.multiply_adds for block, _ in work], dtype=np.float64)
    missing: dict[str, int] = {}
    for (_, reading), covered in zip(work, known, strict=True):
        if not covered:
            missing[reading.predictor] = missing.get(reading.predictor, 0) + 1
    share = float(flops[known].sum() / flops.sum()) if flops.sum() > 0 else 1.0
    named = ", ".join(f"{name} ({count})" for name, count in sorted(missing.items()))
    kernels = float(known.mean()) if len(known) else 1.0
    warnings = (
        (
            f"latency by {pack.name}: its predictors cover {share:.0%} of the multiply-adds and {kernels:.0%} of the "
            f"kernels; not counted: {named}",
        )
        if share < _COVERED or kernels < _COVERED_KERNELS
        else ()
    )
    return Coverage(share, kernels, missing, warnings)


def coverage_json(coverage: Coverage) -> dict[str, Any]:
    """Return the coverage as plain data, with the keys of the other latency tables."""
    return {
        "covered_flops_share": coverage.flops_share,
        "covered_kernels_share": coverage.kernels_share,
        "covered_ms_share": 1.0,
        "missing": dict(coverage.missing),
        "estimates": [],
        "neighbours": [],
        "families": [],
        "warnings": list(coverage.warnings),
    }
