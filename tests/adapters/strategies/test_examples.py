"""Every script of examples/nni runs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from nni.runtime import log

EXAMPLES = Path(__file__).parents[3] / "examples" / "nni"
RUNS = {
    "one_shot.py": "--backbone test_resnet --space resnet --image-size 16 --epochs 1 --save supernet.safetensors",
    "multi_trial.py": "--trials 3 --steps 2",
    "hand_written_space.py": "--epochs 1",
    "compare.py": "--trials 2 --steps 2",
}
SAYS = {
    "one_shot.py": ["'latency_ms':", "ResNet"],
    "multi_trial.py": ["'host_ms':", "width.conv1"],
    "hand_written_space.py": ["'mflops':", "block2", "%"],
    "compare.py": ["Random:", "RegularizedEvolution:", "TPE:", "TIPSSearch:", "latency_ms"],
}


@pytest.fixture(autouse=True)
def _closed_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """NNI lets go of its log files without closing them."""
    stop = log.stop_experiment_logging

    def stop_and_close(experiment_id: str) -> None:
        handler = log._handlers.get(experiment_id)
        stop(experiment_id)
        if handler is not None:
            handler.close()

    monkeypatch.setattr("nni.experiment.experiment.stop_experiment_logging", stop_and_close)


def test_all_examples_are_run() -> None:
    assert sorted(RUNS) == sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", sorted(RUNS))
# The scripts do not quieten Lightning.
@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval")
def test_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *RUNS[name].split()])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    for text in SAYS[name]:
        assert text in printed
    if name == "one_shot.py":
        assert (tmp_path / "supernet.safetensors").is_file()
