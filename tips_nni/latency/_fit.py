"""Fitting a predictor pack to measured networks: non-negative least squares on the relative error."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear
from scipy.stats import spearmanr

from tips_nni.core import TipsError
from tips_nni.latency._kernels import FEATURES, Kernel, features
from tips_nni.latency._pack import PredictorPack

#: Packs' names and the devices of nn-Meter's benchmark that they are fitted on.
DEVICES = {
    "pixel4_cpu": ("cortexA76cpu_tflite21", "Pixel 4, Cortex-A76 CPU, TensorFlow Lite 2.1"),
    "adreno640": ("adreno640gpu_tflite21", "Mi 9, Adreno 640 GPU, TensorFlow Lite 2.1"),
    "adreno630": ("adreno630gpu_tflite21", "Pixel 3 XL, Adreno 630 GPU, TensorFlow Lite 2.1"),
    "myriad_vpu": ("myriadvpu_openvino2019r2", "Intel NCS2, Myriad VPU, OpenVINO 2019 R2"),
}


#: Largest coefficients that make sense: 1 ms to start a kernel, 0.8 GB/s of memory traffic. Without them a constant
#: part of the measured networks ends up in whatever feature hardly varies, and explodes in other networks.
UPPER = dict.fromkeys(FEATURES, np.inf) | {"launch": 1.0, "input": 5.0, "output": 5.0, "weights": 5.0}


@dataclass(frozen=True)
class Record:
    """A measured network.

    Attributes:
        name: ``family_number``.
        kernels: each as [type, input side, channels in, channels out, window, stride].
        latency_ms: by device.
    """

    name: str
    kernels: Sequence[Sequence[Any]]
    latency_ms: Mapping[str, float]

    @property
    def family(self) -> str:
        """The family: ``vgg`` for all VGGs."""
        return self.name.split("_")[0].rstrip("0123456789") if self.name.startswith("vgg") else self.name.split("_")[0]


def read_records(path: str | Path) -> list[Record]:
    """Read measured networks from JSON lines (``.gz`` or plain).

    Raises:
        TipsError: the file cannot be read as such.
    """
    source = Path(path)
    try:
        raw = source.read_bytes()
        text = (gzip.decompress(raw) if source.suffix == ".gz" else raw).decode()
        rows = [json.loads(line) for line in text.splitlines()]
        return [Record(str(row["id"]), row["kernels"], row["latency_ms"]) for row in rows]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise TipsError(
            f"{source} holds no latency records (JSON lines with id, kernels, latency_ms): {error}"
        ) from error


def kernel_features(item: Sequence[Any]) -> tuple[Kernel, NDArray[np.float64]]:
    """Return the kernel of one entry of a record and its features, shape (len(FEATURES),)."""
    kind, side, cin, cout, window, stride = item
    size, stride = (int(window), int(stride)) if kind in ("conv", "dwconv", "maxpool") else (1, 1)
    kernel = Kernel(str(kind), size, stride)
    out = -(-int(side) // stride)

    def one(value: int) -> NDArray[np.int64]:
        return np.array([value], dtype=np.int64)

    side_in, side_out = np.array([[side, side]]), np.array([[out, out]])
    group = 1 if kind == "dwconv" else int(cin)
    return kernel, features(kernel, one(int(cin)), one(int(cout)), side_in, side_out, one(group))[0]


def design(records: Sequence[Record]) -> tuple[list[Kernel], NDArray[np.float64]]:
    """Return the kernels that occur and, for every record, the sums of their features, shape (N, K, F)."""
    cache: dict[tuple[Any, ...], tuple[Kernel, NDArray[np.float64]]] = {}
    rows: list[dict[Kernel, NDArray[np.float64]]] = []
    for record in records:
        sums: dict[Kernel, NDArray[np.float64]] = {}
        for item in record.kernels:
            key = tuple(item)
            if key not in cache:
                cache[key] = kernel_features(item)
            kernel, values = cache[key]
            sums[kernel] = sums.get(kernel, 0.0) + values
        rows.append(sums)
    kernels = sorted({kernel for row in rows for kernel in row}, key=str)
    table = np.zeros((len(records), len(kernels), len(FEATURES)))
    for i, row in enumerate(rows):
        for kernel, values in row.items():
            table[i, kernels.index(kernel)] = values
    return kernels, table


def fit_pack(
    records: Sequence[Record], name: str, device: str, description: str, *, strict: bool = True
) -> PredictorPack:
    """Fit a pack: latency = Σ over kernels of non-negative coefficients · features, least squares in relative error.

    A very weak pull towards zero decides what the data leave open.

    Args:
        records: measured networks.
        name: of the pack.
        device: key of `Record.latency_ms`.
        description: for people.
        strict: refuse records without one of the kernels that a pack needs.

    Raises:
        TipsError: no record was measured on the device.
    """
    known = [record for record in records if device in record.latency_ms]
    if not known:
        raise TipsError(f"no record was measured on {device!r}")
    kernels, table = design(known)
    latency = np.array([record.latency_ms[device] for record in known])
    sharing = _sharing(kernels)
    columns = np.zeros((len(known), sharing.max() + 1))
    np.add.at(columns.T, sharing.ravel(), table.reshape(len(known), -1).T)
    upper = np.zeros(columns.shape[1])
    upper[sharing] = np.broadcast_to([UPPER[feature] for feature in FEATURES], sharing.shape)
    scale = np.where(columns.max(axis=0) > 0, columns.max(axis=0), 1.0)
    matrix = columns / scale / latency[:, None]
    ridge = 1e-4 * np.sqrt(len(known)) * np.diag(np.maximum(matrix.std(axis=0), 1e-12))
    right = np.concatenate([np.ones(len(known)), np.zeros(len(ridge))])
    solved = lsq_linear(np.concatenate([matrix, ridge]), right, bounds=(0.0, upper * scale), method="bvls")
    coefficients = np.maximum(solved.x / scale, 0.0)[sharing].tolist()
    return PredictorPack.create(
        strict=strict,
        name=name,
        description=description,
        device=device,
        families=sorted({record.family for record in known}),
        networks=len(known),
        coefficients={str(kernel): values for kernel, values in zip(kernels, coefficients, strict=True)},
        per_element_ms=_per_element(kernels, coefficients),
    )


def _sharing(kernels: Sequence[Kernel]) -> NDArray[np.int64]:
    """Return which unknown each (kernel, feature) takes its coefficient from, shape (K, F).

    Kernels of one type and window share what a multiply-add and a weight cost; each stride has its own launch and
    traffic. A network's first convolution is often the only one with its stride: it must not decide what multiply-adds
    cost elsewhere.
    """
    own = {"launch", "input", "output"}
    keys = [[(k.type, k.size, k.stride if feature in own else 0, feature) for feature in FEATURES] for k in kernels]
    numbers: dict[tuple[str, int, int, str], int] = {}
    return np.array([[numbers.setdefault(key, len(numbers)) for key in row] for row in keys], dtype=np.int64)


def _per_element(kernels: Sequence[Kernel], coefficients: Sequence[Sequence[float]]) -> float:
    """Return ms per 1e6 elements read or written: of additions, which do nothing but move."""
    table = dict(zip(map(str, kernels), coefficients, strict=True))
    add = table.get("add-1-1", [0.0] * len(FEATURES))
    moved = (add[FEATURES.index("input")] + add[FEATURES.index("output")]) / 2
    if moved > 0:
        return float(moved)
    every = [row[FEATURES.index(key)] for row in coefficients for key in ("input", "output")]
    positive = [value for value in every if value > 0]
    return float(np.median(positive)) if positive else 0.0


def predict_records(pack: PredictorPack, records: Sequence[Record]) -> NDArray[np.float64]:
    """Return the predicted latency in ms of every record, shape (N,)."""
    kernels, table = design(records)
    return np.asarray(sum(table[:, i] @ pack.coefficients_of(kernel)[0] for i, kernel in enumerate(kernels)))


def evaluate(pack: PredictorPack, records: Iterable[Record]) -> dict[str, float]:
    """Return ``within_10`` (share of networks), ``median_error`` and ``rank_correlation`` on measured networks."""
    known = [record for record in records if pack.device in record.latency_ms]
    predicted = predict_records(pack, known)
    measured = np.array([record.latency_ms[pack.device] for record in known])
    error = np.abs(predicted / measured - 1)
    return {
        "networks": float(len(known)),
        "within_10": float((error <= 0.1).mean()),
        "median_error": float(np.median(error)),
        "rank_correlation": float(spearmanr(predicted, measured).statistic),
    }
