"""One finished run that the tests of the pipeline look at, and its spec to run again."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tips_nni.pipeline import run
from tips_nni.specs import load_run

SPEC = """\
backbone: {name: test_resnet}
space: resnet
data: {kind: digits, image_size: 32, batch_size: 64, limit: 256}
training: {epochs: 3, lr: 0.05, calibration_images: 128, accelerator: cpu}
search: {population: 6, generations: 1, images: 64}
output: never-used
"""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "run.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory, spec: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return run(load_run(spec, [f"output={folder}"]), quiet=True, source=str(spec))


@pytest.fixture
def finished(_finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run's folder, to spoil."""
    return Path(shutil.copytree(_finished, tmp_path / "finished"))


@pytest.fixture
def outcome() -> Callable[[Path], dict[str, object]]:
    """What two runs of one spec must have in common, bit for bit."""

    def read(folder: Path) -> dict[str, object]:
        with (folder / "training.csv").open() as file:
            history = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
        state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        return {
            "weights": {name: tensor.numpy().tobytes() for name, tensor in state.items()},
            "history": history,
            "front": json.loads((folder / "front.json").read_text()),
            "explanations": json.loads((folder / "explain.json").read_text()),
        }

    return read
