"""A pack of real scikit-learn forests in nn-Meter's folder, and supernets of several families."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestRegressor

from tips_nni.elastic import Supernet, convert
from tips_nni.latency.nn_meter import NnMeterPack, load_nn_meter
from tips_nni.specs import DepthSpec, RatioSpec, ResolutionSpec, SpaceSpec

#: nn-Meter's kernels and the number of features that it gives to each.
KERNELS = {
    "conv-bn-relu": 7,
    "dwconv-bn-relu": 7,
    "fc": 4,
    "add": 3,
    "addrelu": 3,
    "maxpool": 5,
    "avgpool": 5,
    "global-avgpool": 2,
    "se": 2,
    "hswish": 2,
    "relu": 2,
    "bn": 2,
    "bnrelu": 2,
    "concat": 6,
    "split": 2,
    "channelshuffle": 2,
}
RULES = {
    f"BF_{pair}": {"obey": True} for pair in ("conv_bn", "conv_relu", "dwconv_bn", "dwconv_relu", "add_relu", "fc_relu")
}


def forest(features: int, seed: int = 0) -> RandomForestRegressor:
    """A forest on random data, of a kernel's features in their usual ranges."""
    rng = np.random.default_rng(seed)
    x = np.exp(rng.uniform(0, 6, size=(300, features))).round()
    x[:, -1] /= 97
    y = x[:, 0] * x[:, 1] / 1e4 + rng.uniform(0.01, 0.1, len(x))
    return RandomForestRegressor(n_estimators=7, max_features=min(6, features), random_state=seed, n_jobs=1).fit(x, y)


@dataclass(frozen=True)
class Folder:
    """nn-Meter's folder and what scikit-learn itself holds of it."""

    path: Path
    models: dict[str, Any]

    @property
    def rules(self) -> str:
        return str(self.path / "fusion_rules.json")


def write_pack(path: Path, models: dict[str, Any], rules: dict[str, Any] | None = None) -> Folder:
    path.mkdir(parents=True, exist_ok=True)
    (path / "fusion_rules.json").write_text(json.dumps(RULES if rules is None else rules))
    for name, model in models.items():
        (path / f"{name}.pkl").write_bytes(pickle.dumps(model))
    return Folder(path, models)


@pytest.fixture(scope="session")
def models() -> dict[str, Any]:
    return {name: forest(features, seed) for seed, (name, features) in enumerate(KERNELS.items())}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Any]) -> Folder:
    return write_pack(tmp_path_factory.mktemp("packs") / "forests", models)


@pytest.fixture(scope="session")
def pack(folder: Folder) -> NnMeterPack:
    return load_nn_meter(folder.path)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def supernet(name: str, size: int = 64, resolution: bool = True, **arguments: Any) -> Supernet:
    """A supernet with few choices per dimension, so that widths collide often."""
    space = SpaceSpec(
        family="test",
        width=RatioSpec(ratios=(0.5, 0.75, 1.0)),
        hidden=RatioSpec(ratios=(0.25, 0.5, 1.0)),
        depth=DepthSpec(min=1),
        resolution=ResolutionSpec(ratios=(0.5, 1.0), divisor=32) if resolution else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return convert(name, space, image_size=size, num_classes=7, arguments=arguments).eval()
