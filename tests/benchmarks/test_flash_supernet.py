"""What FLASH's benchmark measures on: a supernet and accuracies that are kept on disk."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from anytime.data import load
from anytime.scales import SCALES
from flash_supernet import Measured, scale_of, trained

_FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in _FOLDER.glob("*.py")))
def test_every_benchmark_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__doc__


def test_a_supernet_and_its_measurements_are_kept(npz: Path, tmp_path: Path) -> None:
    scale = replace(scale_of(4), validation=100, batch=16, search_images=50, calibration=32, measured_batch=25)
    data = load(npz, scale, torch.device("cpu"))
    supernet, seconds = trained(scale, data, 2, tmp_path / "weights")
    again, same = trained(scale, data, 2, tmp_path / "weights")
    assert same == seconds
    torch.testing.assert_close(again.backbone.state_dict(), supernet.backbone.state_dict(), rtol=0, atol=0)
    configs = [supernet.space.smallest, supernet.space.largest]
    first = Measured(supernet, data, scale, "test", tmp_path / "known.json", 50)(configs)
    kept = Measured(again, data, scale, "test", tmp_path / "known.json", 50)
    assert kept([configs[1]]) == first[1:]
    assert kept._known.keys() == {"-".join(map(str, config.values)) for config in configs}
    assert np.all((first >= 0) & (first <= 1))


def test_measurements_of_other_weights_are_dropped(npz: Path, tmp_path: Path) -> None:
    scale = SCALES["smoke"]
    data = load(npz, scale, torch.device("cpu"))
    for seed in (0, 1):
        torch.manual_seed(seed)
        supernet = scale.supernet(data.classes).eval()
        measured = Measured(supernet, data, scale, "validation", tmp_path / "known.json", 50)
        assert not measured._known
        measured([supernet.space.smallest])
