"""NNI for real: handwritten digits at 16 × 16 pixels, tiny spaces, and experiments that always end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from nni.nas.evaluator import Evaluator
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.strategy import Strategy
from nni.runtime.log import _handlers
from nni.tools.nnictl.config_utils import Experiments
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import TensorDataset

from tips_nni.adapters import TimmSpace, timm_space

SPACE = """
family: tiny
width: {ratios: [0.5, 1.0], divisor: 8}
hidden: {ratios: [0.5, 1.0], divisor: 8}
"""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    small = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return torch.nn.functional.interpolate(small, size=16), torch.tensor(labels)


@pytest.fixture
def space_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture
def make_space(space_file: Path) -> Callable[..., TimmSpace]:
    """A space of a few dimensions over timm's smallest ResNet."""

    def make(seed: int = 0, **arguments: Any) -> TimmSpace:
        torch.manual_seed(seed)
        given = {"space": space_file, "image_size": 16, "in_chans": 1, "num_classes": 10, **arguments}
        return timm_space("test_resnet", **given)

    return make


@pytest.fixture
def make_evaluator(digits: tuple[Tensor, Tensor], tmp_path: Path) -> Callable[..., Classification]:
    """NNI's own classification evaluator on `images` digits; keywords are the trainer's."""

    def make(images: int = 256, **arguments: Any) -> Classification:
        x, y = digits
        train, held_out = TensorDataset(x[:images], y[:images]), TensorDataset(x[-300:], y[-300:])
        given: dict[str, Any] = {"max_epochs": 1, "logger": False, **arguments}
        return Classification(
            learning_rate=3e-3,
            num_classes=10,
            train_dataloaders=DataLoader(train, batch_size=64, shuffle=True),
            val_dataloaders=DataLoader(held_out, batch_size=150),
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            num_sanity_val_steps=0,
            **given,
        )

    return make


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., NasExperiment]]:
    """Run an experiment; at the end of the test it is stopped, and what it started is gone."""
    started: list[NasExperiment] = []
    # NNI keeps a list of experiments at home: in its Python part by this default, in the node server by HOME.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Experiments.__init__, "__defaults__", (str(tmp_path / "nni-experiments"),))

    def go(
        space: ModelSpace,
        evaluator: Evaluator,
        strategy: Strategy,
        trials: int | None = None,
        *,
        engine: str | None = None,
        model_format: str | None = None,
        experiment_id: str | None = None,
        failing: bool = False,
        **config: Any,
    ) -> NasExperiment:
        made = None
        if engine is not None:
            made = NasExperimentConfig(engine, model_format or "simplified", "local" if engine == "ts" else None)
        experiment = NasExperiment(space, evaluator, strategy, config=made, id=experiment_id)
        experiment.config.experiment_working_directory = tmp_path / "nni"
        experiment.config.max_trial_number = trials
        if failing:
            experiment.config.execution_engine.continue_on_failure = True
        for key, value in config.items():
            setattr(experiment.config, key, value)
        started.append(experiment)
        (experiment.run if experiment_id is None else experiment.resume)(port=free_port())
        return experiment

    def stop(experiment: NasExperiment) -> None:
        log_file = _handlers.get(experiment.id)
        if experiment._engine is not None:
            experiment.stop()
        if log_file is not None:
            log_file.close()  # NNI lets go of it without closing it
        started.remove(experiment)

    go.started, go.stop = started, stop  # type: ignore[attr-defined]
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    try:
        yield go
    finally:
        for experiment in list(started):
            stop(experiment)
        for child in psutil.Process().children(recursive=True):
            if child.pid not in before:
                os.kill(child.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
