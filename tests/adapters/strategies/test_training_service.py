"""The multi-trial strategy with NNI's training service: a node server and trials in processes of their own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment

from tips_nni.adapters import TimmSpace, TIPSSearch

CODE = """
import os, time
import nni

def evaluate(module):
    time.sleep(0.2 * (os.getpid() % 3))  # trials overtake each other
    params = sum(p.numel() for p in module.parameters())
    stem = module.conv1[0].out_channels
    nni.report_final_result({"default": params / 1e6, "stem": float(stem)})
"""


class Interrupted(TIPSSearch):
    """Gets Ctrl-C after two results."""

    def wait_for_resource(self) -> bool:
        while not self.engine.idle_worker_available() and self.search.measured < 2:
            time.sleep(0.2)
        if self.search.measured >= 2:
            raise KeyboardInterrupt
        return True


@pytest.mark.nni
@pytest.mark.slow
# NNI's launcher and its logging leave a socket and a file to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <(socket.socket|_io.FileIO) :pytest.PytestUnraisableExceptionWarning"
)
def test_trials_of_the_training_service_and_a_resume(
    make_space: Callable[..., TimmSpace], run: Callable[..., NasExperiment], tmp_path: Path, monkeypatch
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "trial_code.py").write_text(CODE)
    monkeypatch.chdir(code)
    monkeypatch.syspath_prepend(code)
    trial_code = __import__("trial_code")
    monkeypatch.setitem(sys.modules, "trial_code", trial_code)
    space = make_space()
    evaluator = FunctionalEvaluator(trial_code.evaluate)

    def check(strategy: TIPSSearch) -> None:
        points = strategy.result.evaluated
        assert len(points) == len({point.config for point in points})
        for point in points:
            assert point.accuracy == pytest.approx(point.costs["params_m"]), "results belong to their subnets"
            assert point.costs["stem"] == point.config["width.conv1"]

    arguments = {"constraints": {"params_m": 0.3}, "population": 4}
    config = {"engine": "ts", "trial_concurrency": 2, "trial_gpu_number": 0}
    first = Interrupted(**arguments)
    stopped = run(space, evaluator, first, 4, **config)  # NNI ends quietly
    run.stop(stopped)
    check(first)
    done = first.result.evaluated
    assert 2 <= len(done) < 4
    second = TIPSSearch(**arguments)
    resumed = run(space, evaluator, second, 4, experiment_id=stopped.id, **config)
    check(second)
    assert second.result.evaluated[: len(done)] == done
    assert len(second.result.evaluated) > len(done)
    best = resumed.export_top_models(1)[0]
    assert best.metric == max(point.accuracy for point in second.result.evaluated)
