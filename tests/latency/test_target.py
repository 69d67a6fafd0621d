"""Targets by name and by path, in Python, in a run spec and on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tips_nni.cli import main
from tips_nni.core import TipsError
from tips_nni.elastic import Supernet
from tips_nni.latency import Kernel, KernelRow, PredictorPack, latency_model, load_pack, pack_names, write_table
from tips_nni.specs import load_run

SPEC = """\
backbone: {name: test_resnet}
space: resnet
data: {kind: digits, image_size: 32, limit: 256}
training: {epochs: 1}
constraints: {target: ./mine.json}
output: out
"""


def test_a_carried_pack_predicts_the_same(tmp_path: Path, supernet: Supernet) -> None:
    load_pack("adreno640").save(tmp_path / "carried.json")
    codes = supernet.space.sample(np.random.default_rng(0), 50)
    here = latency_model("adreno640", supernet.architecture).evaluate(codes)
    there = latency_model(str(tmp_path / "carried.json"), supernet.architecture).evaluate(codes)
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("pixel_cpu", "did you mean 'pixel4_cpu'"),
        ("./none.json", "No such file"),
        ("./none.csv", "No such file"),
        ("cortexA76cpu_tflite21", "nn-Meter"),
    ],
)
def test_what_is_no_target_is_refused_in_one_line(supernet: Supernet, target: str, message: str) -> None:
    with pytest.raises(TipsError, match=message) as caught:
        latency_model(target, supernet.architecture)
    assert "\n" not in str(caught.value)


def test_a_target_in_a_spec_is_relative_to_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: PredictorPack
) -> None:
    folder = tmp_path / "specs"
    folder.mkdir()
    (folder / "run.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TipsError, match=r'run\.yaml:5: constraints\.target = "\./mine\.json": there is no'):
        load_run(folder / "run.yaml")
    planted.save(folder / "mine.json")
    assert load_run(folder / "run.yaml").constraints.target == str(folder / "mine.json")
    planted.save(tmp_path / "here.json")
    spec = load_run(folder / "run.yaml", ["constraints.target=here.json"])
    assert spec.constraints.target == str(tmp_path / "here.json")
    assert load_run(folder / "run.yaml", ["constraints.target=adreno630"]).constraints.target == "adreno630"


def test_check_refuses_a_target_that_covers_too_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], planted: PredictorPack
) -> None:
    (tmp_path / "run.yaml").write_text(SPEC)
    planted.save(tmp_path / "mine.json")
    assert main(["check", str(tmp_path / "run.yaml")]) == 0
    assert main(["check", str(tmp_path / "run.yaml"), "--set", "constraints.coverage=refuse"]) == 2
    assert "of the multiply-adds are in kernels that were measured" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "run.yaml"), "--set", "constraints.coverage=no"]) == 2
    assert "must be one of warn, refuse" in capsys.readouterr().err


def test_list_names_every_pack_and_its_families(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in pack_names())
    assert "mobilenetv2" in out


def test_predict_says_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["latency", "predict", "test_resnet", "--space", "resnet", "--image-size", "32", "--target", "pixel4_cpu"]
    assert main([*command, "--detail", "--subnet", "smallest"]) == 0
    out = capsys.readouterr().out
    assert "subnet smallest" in out
    assert "avgpool-2-2" in out
    assert "test_resnet is of another family" in out
    assert main([*command, "--subnet", "9-9"]) == 2
    err = capsys.readouterr().err
    assert "subnet '9-9' is not of this space" in err
    assert err.count("\n") == 1
    write_table(tmp_path / "t.csv", [KernelRow(Kernel("conv", 3), 16, 16, 8, 8, 1.0)])
    assert main([*command[:-1], str(tmp_path / "t.csv")]) == 2
    assert "has no row for the kernel" in capsys.readouterr().err
