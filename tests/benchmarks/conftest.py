"""The benchmarks are scripts beside the package: their folder goes on the path, as when one of them is run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of six classes that differ in brightness."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "data.npz"
    parts = {}
    for part, count in (("train", 400), ("test", 120)):
        labels = rng.integers(0, 6, count)
        noise = rng.integers(0, 120, (count, 32, 32, 3))
        parts[f"x_{part}"] = (noise + 20 * labels[:, None, None, None]).astype(np.uint8)
        parts[f"y_{part}"] = labels
    np.savez(path, **parts)
    return path
