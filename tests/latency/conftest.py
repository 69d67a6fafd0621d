"""A network with known kernel times, and measurements made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tips_nni.elastic import Supernet, convert
from tips_nni.latency import PredictorPack, Record, predict_records
from tips_nni.specs import load_space

CONV = {"ms": {"launch": 0.02, "output": 0.3}, "ms_by_side": {"8": {"macs": 0.05}, "16": {"macs/8": 0.03}}}
SHAPES = {"cin": [3, 96], "cout": [8, 96]}
PLANTED = {
    "name": "planted",
    "description": "known times",
    "device": "planted",
    "families": ["mobilenetv2", "vgg"],
    "networks": 1,
    "image_size": [16, 16],
    "kernels": {
        "conv-1-1": {**SHAPES, **CONV},
        "conv-3-1": {**SHAPES, "ms": {"launch": 0.05}, "ms_by_side": {"8": {"macs": 0.01}, "16": {"macs": 0.02}}},
        "dwconv-3-1": {"cin": [1, 1], "cout": [8, 96], "ms": {"input": 1.5, "macs": 0.2}, "ms_by_side": {}},
        "add-1-1": {"cin": [16, 192], "cout": [8, 96], "ms": {"output": 0.4}, "ms_by_side": {}},
        "fc-1-1": {"cin": [8, 96], "cout": [10, 100], "ms": {"weights": 2.0}, "ms_by_side": {}},
    },
    "per_element_ms": 0.2,
    "per_mac_ms": 0.02,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def planted() -> PredictorPack:
    return PredictorPack.create(**PLANTED)


def random_networks(count: int, seed: int, family: str = "mobilenetv2") -> list[Record]:
    """Networks of random widths without a latency."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(count):
        a, b, c, classes = (int(value) for value in rng.integers(8, 97, 4))
        kernels = [("conv", 16, 3, a, 3, 1)]
        kernels += [("conv", 16, a, b, 1, 1), ("dwconv", 16, b, b, 3, 1), ("add", 16, b, b, 0, 1)] * int(
            rng.integers(1, 4)
        )
        kernels += [("conv", 8, b, c, 1, 1)] * int(rng.integers(1, 4)) + [("conv", 8, c, c, 3, 1)] * int(
            rng.integers(1, 3)
        )
        kernels += [("fc", 1, c, classes, 1, 1)]
        records.append(Record(f"{family}_{number}", kernels, {}))
    return records


def measured(records: Sequence[Record], pack: PredictorPack, device: str = "planted") -> list[Record]:
    """The same with the latency that the pack predicts."""
    times = predict_records(pack, records)
    return [Record(r.name, r.kernels, {device: float(t)}) for r, t in zip(records, times, strict=True)]


@pytest.fixture(scope="session")
def make_networks() -> Callable[..., list[Record]]:
    return random_networks


@pytest.fixture(scope="session")
def measure_with() -> Callable[..., list[Record]]:
    return measured


@pytest.fixture(scope="session")
def planted_content() -> dict[str, Any]:
    return PLANTED


@pytest.fixture(scope="session")
def records(planted: PredictorPack) -> list[Record]:
    return measured(random_networks(150, 0) + random_networks(150, 1, "vgg"), planted)


@pytest.fixture(scope="session")
def supernet() -> Supernet:
    """A small ResNet with grouped channels, depth and resolution to choose."""
    return convert("test_resnet", load_space("resnet"), image_size=32, num_classes=10)


@pytest.fixture(scope="session")
def mobilenet() -> Supernet:
    return convert("mobilenetv2_050", load_space("mobilenetv2"), image_size=64, num_classes=10)
