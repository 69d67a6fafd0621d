"""Fitting a predictor pack to measured networks: robust non-negative least squares on the relative error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.optimize import nnls

from tips_nni.core import TipsError
from tips_nni.latency._kernels import WEIGHTED, Floats, Kernel, Shapes, feature
from tips_nni.latency._model import KernelModel
from tips_nni.latency._pack import PredictorPack
from tips_nni.latency._records import Record, parse_entry, shapes_of

#: Packs' names and the devices of nn-Meter's benchmark that they are fitted on.
DEVICES = {
    "pixel4_cpu": ("cortexA76cpu_tflite21", "Pixel 4, Cortex-A76 CPU, TensorFlow Lite 2.1"),
    "adreno640": ("adreno640gpu_tflite21", "Mi 9, Adreno 640 GPU, TensorFlow Lite 2.1"),
    "adreno630": ("adreno630gpu_tflite21", "Pixel 3 XL, Adreno 630 GPU, TensorFlow Lite 2.1"),
    "myriad_vpu": ("myriadvpu_openvino2019r2", "Intel NCS2, Myriad VPU, OpenVINO 2019 R2"),
}
#: Channel counts above which a device may need another tile. What the data do not show gets no cost.
_STEPS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768)
_BLOCKS = ("macs", "macs/8", "macs/16")
#: Relative errors above it count linearly, not squared: a few networks far off must not bend the others.
_ROBUST = 0.1
#: Weight of the pull towards zero, which decides what the data leave open.
_RIDGE = 1e-2
#: A start of a kernel, or an element moved, costs at most that many times what it would if nothing else took time in
#: the fastest network. Else what all measured networks have in common ends up in one kernel and explodes in others.
_MOST = 10.0
#: The same for a start of a kernel on the devices above, whose networks are all large: what starts cost these data do
#: not tell, and small images would pay for a guess. An assumption: 0.05 ms on the Pixel's CPU.
_MOST_STARTS = {device: 0.2 for device, _ in DEVICES.values()}


@dataclass(frozen=True)
class Design:
    """The linear model of some networks.

    Attributes:
        columns: for every unknown its kernel, side (None: all) and feature.
        networks: sums of the features in every network, shape (N, F).
        parts: features of single kernels with a time of their own, shape (P, F).
        owner: the network of every part, shape (P,).
        part_ms: their times, shape (P,).
        seen: for every kernel the shapes that occur.
    """

    columns: list[tuple[Kernel, int | None, str]]
    networks: Floats
    parts: Floats
    owner: NDArray[np.int64]
    part_ms: Floats
    seen: Mapping[Kernel, Shapes]


def fit_pack(
    records: Sequence[Record], name: str, device: str, description: str, *, ridge: float = _RIDGE
) -> PredictorPack:
    """Fit a pack: latency = Σ over kernels of non-negative coefficients · features.

    Least squares on the relative error of the networks (and, where records have them, of the times of their kernels
    relative to the network's), with Huber's weights. At the end one factor near 1 puts as many networks as possible
    within ±10% of their measurement: the errors of real measurements are skewed. The same records give the same pack.

    Args:
        records: measured networks.
        name: of the pack.
        device: key of `Record.latency_ms`.
        description: for people.
        ridge: weight of the pull towards zero.

    Raises:
        TipsError: no record was measured on the device, or none has a convolution.
    """
    known = [record for record in records if device in record.latency_ms]
    if not known:
        found = ", ".join(sorted({key for record in records for key in record.latency_ms}))
        raise TipsError(f"no record was measured on {device!r}; the records have {found or 'none'}")
    latency = np.array([record.latency_ms[device] for record in known])
    problem = design(known, device)
    solution = _solve(problem, latency, ridge, _MOST_STARTS.get(device, _MOST))
    solution *= _centre(problem.networks @ solution / latency)
    kernels = _models(problem, solution)
    sizes = [record.image_size for record in known]
    return PredictorPack.create(
        name=name,
        description=description,
        device=device,
        families=sorted({record.family for record in known}),
        networks=len(known),
        image_size=[min(sizes), max(sizes)],
        kernels={str(kernel): model.to_json() for kernel, model in kernels.items()},
        per_element_ms=float(f"{_per_element(kernels):.6g}"),
        per_mac_ms=float(f"{_per_mac(problem, solution):.6g}"),
    )


def design(records: Sequence[Record], device: str) -> Design:
    """Return the linear model of records."""
    places: dict[Kernel, dict[tuple[int, int, int, int, int], int]] = {}
    used: list[tuple[int, Kernel, int]] = []
    parts: list[tuple[int, Kernel, int, float]] = []
    for i, record in enumerate(records):
        times = record.kernel_ms.get(device)
        for position, entry in enumerate(record.kernels):
            kernel, numbers = parse_entry(entry)
            own = places.setdefault(kernel, {})
            place = own.setdefault(numbers, len(own))
            used.append((i, kernel, place))
            if times is not None:
                parts.append((i, kernel, place, times[position]))
    columns: list[tuple[Kernel, int | None, str]] = []
    blocks, part_blocks = [], []
    seen = {kernel: shapes_of(list(places[kernel])) for kernel in sorted(places, key=str)}
    for kernel, shapes in seen.items():
        names = _candidates(kernel, shapes)
        table = np.stack([_column(kernel, shapes, side, name) for side, name in names], axis=1)
        counts = np.zeros((len(records), len(table)))
        mine = [(i, place) for i, other, place in used if other == kernel]
        np.add.at(counts, tuple(np.array(mine).T), 1.0)
        columns += [(kernel, side, name) for side, name in names]
        blocks.append(counts @ table)
        rows = np.zeros((len(parts), len(names)))
        for row, (_, other, place, _) in enumerate(parts):
            if other == kernel:
                rows[row] = table[place]
        part_blocks.append(rows)
    owner = np.array([i for i, _, _, _ in parts], dtype=np.int64)
    part_ms = np.array([time for *_, time in parts])
    return Design(columns, np.concatenate(blocks, axis=1), np.concatenate(part_blocks, axis=1), owner, part_ms, seen)


def _candidates(kernel: Kernel, shapes: Shapes) -> list[tuple[int | None, str]]:
    """Return the unknowns of a kernel: side of the output (None: any) and feature."""
    result: list[tuple[int | None, str]] = [(None, name) for name in ("launch", "input", "output")]
    if kernel.type not in WEIGHTED:
        return result
    result.append((None, "weights"))
    if kernel.type != "conv":
        return [*result, *((None, name) for name in _BLOCKS)]
    sides = shapes.size_out[:, 0]
    for side in np.unique(sides):
        at = shapes.pick(sides == side)
        result += [(int(side), name) for name in _BLOCKS]
        for axis, values, again in (("cin", at.per_group, "output"), ("cout", at.cout, "input")):
            steps = [step for step in _STEPS if values.min() <= step < values.max()]
            result += [(int(side), f"{name} if {axis}>{step}") for step in steps for name in ("macs", again)]
    return result


def _column(kernel: Kernel, shapes: Shapes, side: int | None, name: str) -> Floats:
    values = feature(name, kernel, shapes)
    return values if side is None else np.where(shapes.size_out[:, 0] == side, values, 0.0)


def _solve(problem: Design, latency: Floats, ridge: float, most_starts: float) -> Floats:
    """Return the coefficients."""
    rows = np.concatenate([problem.networks / latency[:, None], problem.parts / latency[problem.owner, None]])
    wanted = np.concatenate([np.ones(len(latency)), problem.part_ms / latency[problem.owner]])
    scale = np.where(rows.max(axis=0) > 0, rows.max(axis=0), 1.0)
    rows = rows / scale
    pull = ridge**2 * len(latency) * np.maximum(rows[: len(latency)].std(axis=0), 1e-9) ** 2
    upper = _upper(problem, latency, most_starts) * scale
    weights = np.ones(len(wanted))
    for _ in range(3):
        gram = (rows.T * weights) @ rows + np.diag(pull)
        solution = _bounded(gram, (rows.T * weights) @ wanted, upper)
        error = np.abs(rows @ solution - wanted)
        weights = np.minimum(1.0, _ROBUST / np.maximum(error, 1e-9))
    return solution / scale


def _upper(problem: Design, latency: Floats, most_starts: float) -> Floats:
    """Return the largest sensible coefficient of every column, see `_MOST` and `_MOST_STARTS`."""
    upper = np.full(len(problem.columns), np.inf)
    # The few weights of a depthwise convolution stand for its channels, each of which may need a start of its own.
    names = np.array(
        ["" if kernel.type == "dwconv" and name == "weights" else name for kernel, _, name in problem.columns]
    )
    for name in ("launch", "input", "output", "weights"):
        total = problem.networks[:, names == name].sum(axis=1)
        if (total > 0).any():
            most = most_starts if name == "launch" else _MOST
            upper[names == name] = most * float((latency[total > 0] / total[total > 0]).min())
    return upper


def _bounded(gram: Floats, right: Floats, upper: Floats) -> Floats:
    """Minimise xᵀGx/2 − xᵀr over 0 <= x <= upper; what exceeds a bound is set to it and the rest solved again."""
    solution = np.zeros(len(right))
    free = np.ones(len(right), dtype=bool)
    while free.any():
        inner = gram[np.ix_(free, free)]
        factor = np.linalg.cholesky(inner + 1e-12 * np.trace(inner) / len(inner) * np.eye(len(inner)))
        reduced = right[free] - gram[np.ix_(free, ~free)] @ solution[~free]
        solution[free] = nnls(factor.T, np.linalg.solve(factor, reduced), maxiter=50 * len(right))[0]
        above = free & (solution > upper)
        if not above.any():
            break
        solution[above] = upper[above]
        free &= ~above
    return solution


def _centre(ratio: Floats) -> float:
    """Return the factor near 1 that puts most of predicted / measured within ±10%."""
    factors = np.linspace(0.97, 1.03, 61)
    share = [float((np.abs(factor * ratio - 1) <= 0.1).mean()) for factor in factors]
    smooth = uniform_filter1d(np.array(share), 9, mode="nearest")
    best = smooth >= smooth.max() - 1e-12
    return float(factors[best][np.argmin(np.abs(factors[best] - 1))])


def _models(problem: Design, solution: Floats) -> dict[Kernel, KernelModel]:
    """Return the models of all kernels, coefficients rounded to 6 digits."""
    everywhere: dict[Kernel, dict[str, float]] = {kernel: {} for kernel in problem.seen}
    sides: dict[Kernel, dict[int, dict[str, float]]] = {kernel: {} for kernel in problem.seen}
    for (kernel, side, name), value in zip(problem.columns, solution, strict=True):
        row = everywhere[kernel] if side is None else sides[kernel].setdefault(side, {})
        if value > 0:
            row[name] = float(f"{value:.6g}")
    return {
        kernel: KernelModel(
            everywhere[kernel],
            sides[kernel],
            (int(shapes.per_group.min()), int(shapes.per_group.max())),
            (int(shapes.cout.min()), int(shapes.cout.max())),
        )
        for kernel, shapes in problem.seen.items()
    }


def _per_element(kernels: Mapping[Kernel, KernelModel]) -> float:
    """Return ms per 1e6 elements read or written: of kernels that only move, else of those that compute least."""
    tiers = [[kernel for kernel in kernels if kernel.type not in WEIGHTED]]
    tiers += [
        [kernel for kernel in kernels if kernel.window == window] for window in sorted({k.window for k in kernels})
    ]
    for tier in tiers:
        costs = [kernels[kernel].everywhere.get(key, 0.0) for kernel in tier for key in ("input", "output")]
        positive = [cost for cost in costs if cost > 0]
        if positive:
            return float(np.median(positive))
    return 0.0


def _per_mac(problem: Design, solution: Floats) -> float:
    """Return ms per 1e6 multiply-adds: what all dense convolutions take, over what they multiply."""
    dense = np.array([kernel.type == "conv" for kernel, _, _ in problem.columns])
    plain = np.array([name == "macs" for _, _, name in problem.columns]) & dense
    total = problem.networks.sum(axis=0)
    return float((total * solution)[dense].sum() / max(total[plain].sum(), 1e-12))
