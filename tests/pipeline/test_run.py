"""Whole runs: what they leave, how they go on after an interruption, and when they refuse to start."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tips_nni.cli import main
from tips_nni.core import CostTable, InfeasibleError, TipsError, non_dominated
from tips_nni.elastic import AnytimeModel, example_images
from tips_nni.pipeline import prepare, run
from tips_nni.pipeline._front import search
from tips_nni.specs import RunSpec, load_run

Outcome = Callable[[Path], dict[str, object]]


def start(spec: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tips_nni.cli", "run", str(spec), "--quiet", "--set", f"output={folder}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def front_of(folder: Path) -> list[dict]:
    return json.loads((folder / "front.json").read_text())


# What a run leaves


def test_front(finished: Path) -> None:
    front = front_of(finished)
    assert len(front) >= 2
    accuracy = [row["validation_accuracy"] for row in front]
    mflops = [row["mflops"] for row in front]
    assert accuracy == sorted(accuracy, reverse=True), "the most accurate one is row 0"
    assert mflops == sorted(mflops, reverse=True)
    assert non_dominated(np.array([[-a, m] for a, m in zip(accuracy, mflops, strict=True)])).all()
    assert all(0 <= row["test_accuracy"] <= 1 for row in front)


def test_costs_of_the_front_are_those_of_the_tables(finished: Path) -> None:
    parts = prepare(load_run(finished / "run.yaml"))
    table = CostTable(parts.supernet.architecture)
    for row in front_of(finished):
        config = parts.supernet.space.config(row["subnet"])
        code = parts.supernet.space.encode(config)[None]
        assert row["mflops"] == pytest.approx(table.flops(code)[0] / 1e6)
        assert row["params_m"] == pytest.approx(table.params(code)[0] / 1e6)
        assert round(row["params_m"] * 1e6) == sum(p.numel() for p in parts.supernet.extract(config).parameters())
        assert row["latency_ms"] == parts.latency.evaluate(code)[0]


def test_tables_as_csv(finished: Path) -> None:
    with (finished / "front.csv").open() as file:
        rows = list(csv.DictReader(file))
    front = front_of(finished)
    assert len(rows) == len(front)
    for row, entry in zip(rows, front, strict=True):
        values = {**entry, **entry["subnet"]}
        del values["subnet"]
        assert {key: float(value) for key, value in row.items()} == values
    with (finished / "evaluated.csv").open() as file:
        evaluated = list(csv.DictReader(file))
    measured = json.loads((finished / "measurements.json").read_text())["accuracy"]
    assert len(evaluated) == len(measured)
    best = max(float(row["validation_accuracy"]) for row in evaluated)
    assert front[0]["validation_accuracy"] == best == max(measured.values())


def test_spec_in_the_folder_loads_again(finished: Path, spec: Path) -> None:
    again = load_run(finished / "run.yaml")
    original = load_run(spec, [f"output={again.output}"])
    assert again == original
    assert RunSpec.model_validate(again.model_dump()) == again


def test_report_stands_alone(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "test_resnet" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="http' not in page


def test_no_temporary_files_stay(finished: Path) -> None:
    assert list(finished.rglob(".*")) == []


def test_anytime_model_equals_its_exports(finished: Path) -> None:
    model = AnytimeModel.load(finished / "anytime.safetensors")
    front = front_of(finished)
    assert [row["mflops"] for row in model.front] == [row["mflops"] for row in front]
    data = prepare(load_run(finished / "run.yaml")).data
    images, _ = next(iter(data.test_loader()))
    files = sorted((finished / "onnx").glob("*.onnx"))
    assert len(files) == 2
    for file in files:
        row = int(file.name.split("_")[1])
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (onnx,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad(), model.budget(mflops=front[row]["mflops"]):
            switched = model(images)
        torch.testing.assert_close(torch.from_numpy(onnx), switched, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(model.extract(row)(images), switched, rtol=1e-4, atol=1e-4)
    assert example_images(model, 0, 3).shape == (3, 1, 32, 32)


def test_test_accuracy_is_the_models(finished: Path) -> None:
    model = AnytimeModel.load(finished / "anytime.safetensors")
    batches = list(prepare(load_run(finished / "run.yaml")).data.test_loader())
    for row in front_of(finished):
        model.set_budget(mflops=row["mflops"])
        with torch.no_grad():
            right = sum(int((model(images).argmax(dim=1) == labels).sum()) for images, labels in batches)
        assert right / sum(len(labels) for _, labels in batches) == pytest.approx(row["test_accuracy"], abs=0.003)


# Interruptions


@pytest.mark.parametrize("moment", ["checkpoints/last.ckpt", "measurements.json"])
def test_kill_and_resume(spec: Path, finished: Path, tmp_path: Path, outcome: Outcome, moment: str) -> None:
    folder = tmp_path / "killed"
    process = start(spec, folder)
    wait_for(folder / moment, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "front.json").exists()
    assert main(["run", str(spec), "--resume", "--quiet", "--set", f"output={folder}"]) == 0
    found, expected = outcome(folder), outcome(finished)
    for name in expected:
        assert found[name] == expected[name], name


def test_interrupt_and_resume(spec: Path, finished: Path, tmp_path: Path, outcome: Outcome) -> None:
    folder = tmp_path / "stopped"
    process = start(spec, folder)
    wait_for(folder / "checkpoints" / "last.ckpt", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err == "tips-nni: stopped; add --resume to the same command to go on\n"
    assert main(["run", str(spec), "--resume", "--quiet", "--set", f"output={folder}"]) == 0
    assert outcome(folder) == outcome(finished)


def test_resume_of_a_finished_run_trains_and_measures_nothing(
    finished: Path, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = outcome(finished)
    clock = (finished / "checkpoints" / "last.ckpt").stat().st_mtime_ns

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("tips_nni.pipeline._front.measure_subnets", never)
    run(load_run(finished / "run.yaml", [f"output={finished}"]), resume=True, quiet=True)
    assert outcome(finished) == before
    assert (finished / "checkpoints" / "last.ckpt").stat().st_mtime_ns == clock


def test_another_seed_gives_another_run(finished: Path, tmp_path: Path, outcome: Outcome, spec: Path) -> None:
    other = run(load_run(spec, ["seed=1", f"output={tmp_path / 'other'}", "training.epochs=1"]), quiet=True)
    assert front_of(other) != front_of(finished)
    assert outcome(other)["weights"] != outcome(finished)["weights"]


# Constraints


def test_constraints_are_kept(spec: Path, tmp_path: Path) -> None:
    keys = [
        "training.epochs=1",
        "constraints.mflops=2",
        "constraints.params_m=0.2",
        "search.images=16",
        "export.onnx=0",
    ]
    folder = run(load_run(spec, [f"output={tmp_path / 'small'}", *keys]), quiet=True)
    front = front_of(folder)
    assert front
    assert all(row["mflops"] <= 2 and row["params_m"] <= 0.2 for row in front)
    assert not (folder / "onnx").exists()


def test_infeasible_constraint_is_found_before_anything_is_written(spec: Path, tmp_path: Path) -> None:
    folder = tmp_path / "never"
    with pytest.raises(InfeasibleError, match=r"mflops") as caught:
        run(load_run(spec, [f"output={folder}", "constraints.mflops=0.01"]), quiet=True)
    assert "\n" not in str(caught.value)
    assert not folder.exists()


def test_nothing_is_written_where_the_optimizer_is_unknown(spec: Path, tmp_path: Path) -> None:
    with pytest.raises(TipsError, match="'sgdd'; did you mean 'sgd"):
        run(load_run(spec, [f"output={tmp_path / 'never'}", "training.optimizer=sgdd"]), quiet=True)
    assert not (tmp_path / "never").exists()


# FLASH


def test_flash_as_a_strategy(spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says how far its predictor can be trusted."""
    keys = ["strategy=flash", "training.epochs=1", "search.population=8", "search.images=16", "export.onnx=0"]
    folder = run(load_run(spec, [f"output={tmp_path / 'flash'}", *keys, "constraints.mflops=4"]), quiet=True)
    front = front_of(folder)
    assert front
    assert all(row["mflops"] <= 4 for row in front)
    facts = json.loads((folder / "run.json").read_text())["search"]
    assert (facts["algorithm"], facts["measured"]) == ("flash", 16)
    diagnostics = facts["diagnostics"]
    assert diagnostics["samples"] == 16
    assert 0 <= diagnostics["leave_one_out_error"] < 1
    assert -1 <= diagnostics["rank_correlation"] <= 1
    said = f"leave one out error {diagnostics['leave_one_out_error']:.2%}, rank correlation"
    assert said in capsys.readouterr().out
    assert said in (folder / "report.html").read_text(encoding="utf-8")


def test_flash_as_the_search_after_another_training(spec: Path) -> None:
    settings = ["strategy=tips", "search.algorithm=flash"]
    settings += ["constraints.target=adreno640", "constraints.latency_ms=0.7"]  # of 0.50 to 0.88 ms
    parts = prepare(load_run(spec, settings))
    result = search(parts, lambda configs: np.array([sum(c.values) / 10000 for c in configs]), None)  # type: ignore[arg-type]
    assert max(point.costs["latency_ms"] for point in result.evaluated) <= 0.7
    assert result.diagnostics["samples"] == len(result.evaluated) == 12
