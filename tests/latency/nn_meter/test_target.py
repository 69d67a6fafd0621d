"""nn-Meter's packs as targets: in a run spec, on the command line, and in a process without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.latency.nn_meter.conftest import Folder, write_pack
from tips_nni.cli import main
from tips_nni.core import TipsError
from tips_nni.latency import LATENCY_TABLE, latency_model
from tips_nni.latency.nn_meter import NnMeterTable, load_nn_meter
from tips_nni.pipeline import describe_network, prepare
from tips_nni.specs import RUN_SPEC, load_run

SPEC = """\
backbone: {name: test_resnet}
space: resnet
data: {kind: digits, image_size: 32, limit: 256}
training: {epochs: 1}
constraints: {target: ./forests, packs: ./kept}
output: out
"""
WITHOUT_TORCH = """\
import sys
import numpy as np
from pathlib import Path
from tips_nni.adapters.tuner._task import load_task
task = load_task(Path(sys.argv[1]))
print(repr(task.costs["latency_ms"].evaluate(np.zeros((1, len(task.space.dims)), dtype=np.int64)).tolist()))
assert not {"torch", "nn_meter", "onnx", "sklearn"} & set(sys.modules)
"""


def test_a_run_spec_names_a_folder(tmp_path: Path, folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    write_pack(tmp_path / "forests", folder.models)
    (tmp_path / "run.yaml").write_text(SPEC)
    spec = load_run(tmp_path / "run.yaml")
    parts = prepare(spec)
    assert isinstance(parts.latency, NnMeterTable)
    codes = parts.supernet.space.sample(np.random.default_rng(0), 20)
    pack = load_nn_meter(tmp_path / "forests")
    expected = NnMeterTable(parts.supernet, pack).evaluate(codes)
    np.testing.assert_array_equal(parts.latency.evaluate(codes), expected)
    assert list((tmp_path / "kept" / "tables").glob("*.npz"))

    # The folder of a run tells the tuner all, which does not import torch.
    run = tmp_path / "run"
    (run / RUN_SPEC).parent.mkdir()
    (run / RUN_SPEC).write_text(spec.to_yaml())
    with pytest.raises(TipsError, match=f"has no {LATENCY_TABLE}"):
        latency_model(spec.constraints.target, parts.supernet.architecture, run=run)
    describe_network(parts, run)
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    smallest = parts.latency.evaluate(np.zeros((1, codes.shape[1]), dtype=np.int64)).tolist()
    assert done.stdout.strip() == repr(smallest)

    assert main(["latency", "predict", str(run), "--target", spec.constraints.target, "--subnet", "smallest"]) == 0
    assert f"{smallest[0]:.4g}" in capsys.readouterr().out
    (tmp_path / "forests" / "bn.pkl").unlink()
    with pytest.raises(TipsError, match="is for 'forests', not for"):
        latency_model(spec.constraints.target, parts.supernet.architecture, run=run)


def test_a_folder_is_checked_and_predicts(tmp_path: Path, folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", "check", str(folder.path)]) == 0
    assert f"a valid nn-Meter pack 'forests' with {len(folder.models)} kernels" in capsys.readouterr().out
    command = ["latency", "predict", "test_resnet", "--space", "resnet", "--image-size", "32", "--target"]
    assert main([*command, str(folder.path)]) == 0
    assert "forests" in " ".join(capsys.readouterr().out.split())
    assert main([*command, str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*command, "cortexA76cpu_tflite21"]) == 2
    assert "give a folder to keep it in" in capsys.readouterr().err
