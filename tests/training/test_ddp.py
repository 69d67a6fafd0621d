"""Several processes train as one does: real ones, started by Lightning from the command line.

Run as a program, ``python test_ddp.py TROUBLES SPEC ...``, it is ``tips-nni run SPEC ...`` with a trouble in the second
epoch, once for each of them:

- ``none``;
- ``nan``: one process alone meets a loss that is not a number;
- ``interrupt``: Ctrl-C;
- ``killed``: one process is killed.
"""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from tips_nni.cli import main
from tips_nni.core import TipsError
from tips_nni.pipeline import run
from tips_nni.specs import load_run
from tips_nni.training import SupernetModule
from tips_nni.training._batchnorm import GlobalBatchNorm

STRATEGY = """\
name: gradients
policy: {name: path_importance, edge_weight: gradient, refresh: 3}
"""
# Its activations are smooth: rounding differs with the number of processes, and a ReLU near zero can amplify that.
SPEC = """\
backbone: {name: test_efficientnet}
space: efficientnet
strategy: ./strategy.yaml
data: {kind: digits, image_size: 16, batch_size: 64, limit: 256}
training: {epochs: 3, lr: 0.05, mixup: 0.2, clip_grad: 1.0, warmup_epochs: 1, label_smoothing: 0.1, accelerator: cpu}
search: {population: 4, generations: 0, images: 64}
export: {onnx: 0}
output: never-used
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "run.yaml"
    path.write_text(SPEC)
    path.with_name("strategy.yaml").write_text(STRATEGY)
    return path


def start(
    spec: Path, folder: Path, *arguments: str, troubles: str = "none", env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a run of a spec on two devices, in a process group of its own."""
    settings = ["--set", "training.devices=2", "--set", f"output={folder}"]
    return subprocess.Popen(
        [sys.executable, __file__, troubles, str(spec), *settings, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return exit code, output and errors; what hangs, or leaves a process behind, fails."""
    try:
        out, err = process.communicate(timeout=120)
        assert processes_of(process.pid) == [], err
    finally:
        if processes_of(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def pair(spec: Path, folder: Path, troubles: str) -> list[tuple[int, str, str]]:
    """Run both processes as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [start(spec, folder, "--overwrite", troubles=troubles, env={**common, "LOCAL_RANK": r}) for r in "01"]
    return [end(process) for process in processes]


def processes_of(group: int) -> list[str]:
    """Return the living processes of a process group."""
    found = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in found.splitlines()]
    return [row[2] for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "training.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def numbers(data: Any) -> list[float]:
    """Return all numbers of nested lists and mappings, in order."""
    if isinstance(data, dict | list):
        return [x for part in (data.values() if isinstance(data, dict) else data) for x in numbers(part)]
    return [float(data)]


@pytest.mark.slow
def test_two_processes_end_where_one_does(spec: Path, tmp_path: Path) -> None:
    """Ctrl-C and going on are on the way."""
    torch.set_num_threads(1)
    one, two = tmp_path / "one", tmp_path / "two"
    code, out, err = end(start(spec, two, troubles="interrupt"))
    assert (code, out, err) == (130, "", "tips-nni: stopped; add --resume to the same command to go on\n")
    assert len(history(two)) == 1
    process = start(spec, two, "--resume")
    run(load_run(spec, [f"output={one}"]), quiet=True)
    code, out, err = end(process)
    assert (code, err) == (0, "")
    assert [out.count(words) for words in ("the front", "anytime model  ", "report  ", "next  ")] == [1] * 4

    a, b = state(one), state(two)
    assert set(a["state_dict"]) == set(b["state_dict"])
    apart = {name: float((t - b["state_dict"][name]).abs().max()) for name, t in a["state_dict"].items()}
    worst = max(apart, key=lambda name: apart[name])
    print(f"largest difference of weights and BatchNorm statistics: {apart[worst]:.1e} ({worst})")
    assert apart[worst] <= 1e-4, worst
    for row, other in zip(history(one), history(two), strict=True):
        assert other == pytest.approx(row, rel=1e-5)
    policy, same = (json.loads(content["tips_nni"]["policy"]) for content in (a, b))
    assert (policy["recent"], policy["refreshes"]) == (same["recent"], 4)
    assert set(policy) == set(same)
    for key in ("gradients", "importances"):
        np.testing.assert_allclose(numbers(same[key]), numbers(policy[key]), rtol=1e-4, err_msg=key)
    assert a["tips_nni"]["rng"] == b["tips_nni"]["rng"]
    assert sorted(p.relative_to(one) for p in one.rglob("*")) == sorted(p.relative_to(two) for p in two.rglob("*"))


@pytest.mark.slow
def test_one_process_alone_is_in_trouble(spec: Path, tmp_path: Path) -> None:
    (code, out, err), other = pair(spec, tmp_path, "nan,killed")
    assert (code, out) == (2, "nan 2\n")
    nan, killed = err.splitlines()
    assert nan.startswith("tips-nni: the loss is nan at step 5 with learning rate")
    assert killed.startswith("tips-nni: another process of the training ended, its own message says why")
    assert other == (-signal.SIGKILL, "nan 0\n", "")
    assert len(history(tmp_path)) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.mixup=0", "data.batch_size: a batch of 63 images is not for 2 devices.*multiple of 2, e.g. 62"),
        ("training.mixup=0.1", "data.batch_size: a batch of 63 images.*even number.*multiple of 4, e.g. 60"),
    ],
)
def test_batch_that_devices_do_not_share(spec: Path, override: str, message: str) -> None:
    with pytest.raises(TipsError, match=message) as caught:
        load_run(spec, ["data.batch_size=63", "training.devices=2", override])
    assert "\n" not in str(caught.value)
    assert load_run(spec, ["data.batch_size=63", override]).data.batch_size == 63


def test_fewer_images_than_a_batch_that_devices_do_not_share(spec: Path, tmp_path: Path) -> None:
    with pytest.raises(TipsError, match=r"a batch of 30 images is not for 2 devices.*e\.g\. 28"):
        run(load_run(spec, ["data.limit=30", "training.devices=2", f"output={tmp_path / 'run'}"]), quiet=True)


def test_other_processes_than_the_spec_says(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun does
    with pytest.raises(TipsError, match=r"2 processes were started, the spec is for 1.*training\.devices"):
        run(load_run(spec, [f"output={tmp_path / 'run'}"]), quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def _group(tmp_path: Path) -> Any:
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 5, 7)])
def test_batchnorm_of_one_process_is_torch_s(shape: tuple[int, ...], dtype: torch.dtype, affine: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [{2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](3, affine=affine) for _ in range(2)]
    x = torch.randn(shape, generator=generator).add(3).to(dtype)
    weights = torch.randn(shape, generator=generator)
    results = []
    for layer, mode in zip(layers, (torch.autograd.set_grad_enabled(True), GlobalBatchNorm()), strict=True):
        if affine:
            nn.init.uniform_(layer.weight, 0.5, 2, generator=torch.Generator().manual_seed(1))
        inputs = x.clone().requires_grad_()
        with mode:
            output = layer.to(torch.float64 if dtype == torch.float64 else torch.float32)(inputs)
        (output * weights).sum().backward()
        gradients = [parameter.grad for parameter in layer.parameters()]
        results.append([output, inputs.grad, layer.running_mean, layer.running_var, *gradients])
        with mode:
            evaluated = layer.eval()(x)
        mean, var = layer.running_mean, layer.running_var
        torch.testing.assert_close(evaluated, F.batch_norm(x, mean, var, layer.weight, layer.bias))
    for expected, found in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


def _with_trouble(trouble: str) -> Any:
    """Return `SupernetModule._accumulate` with a trouble in the second epoch."""
    accumulate = SupernetModule._accumulate

    def troubled(self: SupernetModule, *arguments: Any) -> torch.Tensor:
        loss = accumulate(self, *arguments)
        if self.global_step != 5:
            return loss
        if trouble == "interrupt" and self.global_rank == 0:
            os.killpg(0, signal.SIGINT)  # as a terminal does: to all of them
        elif trouble == "killed" and self.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss * math.nan if trouble == "nan" and self.global_rank == 1 else loss

    return troubled


def _ends_with(arguments: list[str]) -> int | str | None:
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


if __name__ == "__main__":
    troubles = sys.argv[1].split(",")
    for trouble in troubles:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SupernetModule, "_accumulate", _with_trouble(trouble))
            code = _ends_with(["run", *sys.argv[2:], "--quiet"])
        if trouble is not troubles[-1]:
            print(trouble, code, flush=True)
    sys.exit(code)
