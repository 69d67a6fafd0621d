"""A small supernet of real parts: handwritten digits and timm's smallest ResNet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tips_nni.core import CostTable, make_policy
from tips_nni.elastic import Supernet, convert
from tips_nni.specs import DataSpec, SamplingSpec, TrainingSpec, load_space
from tips_nni.training import ImageData, TrainingSummary, load_data, train


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data(DataSpec(kind="digits", image_size=32, batch_size=64, limit=256), seed=0)


@pytest.fixture
def make_supernet() -> Callable[..., Supernet]:
    def make(seed: int = 0, name: str = "test_resnet", scales: bool = True) -> Supernet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            supernet = convert(name, load_space("resnet"), image_size=32, in_chans=1, num_classes=10)
            for parameter in supernet.backbone.parameters() if scales else ():
                if parameter.ndim == 1:  # timm starts some scales at 0: their branches would get no gradient
                    torch.nn.init.uniform_(parameter, 0.5, 1.5)
            return supernet

    return make


@pytest.fixture
def fit(digits: ImageData, make_supernet: Callable[..., Supernet], tmp_path: Path) -> Callable[..., TrainingSummary]:
    """Train a fresh supernet into `tmp_path`; keywords are keys of the training spec."""

    def run(
        supernet: Supernet | None = None,
        folder: Path = tmp_path,
        *,
        policy: str = "path_importance",
        options: dict[str, object] | None = None,
        sampling: SamplingSpec | None = None,
        resume: bool = False,
        seed: int = 0,
        quiet: bool = True,
        **keys: object,
    ) -> TrainingSummary:
        supernet = supernet or make_supernet()
        return train(
            supernet,
            digits,
            TrainingSpec(**{"epochs": 1, "lr": 0.05, "accelerator": "cpu", **keys}),
            sampling or SamplingSpec(),
            make_policy(policy, supernet.architecture, options or {}),
            folder,
            seed=seed,
            resume=resume,
            quiet=quiet,
            flops=CostTable(supernet.architecture).flops,
        )

    return run
