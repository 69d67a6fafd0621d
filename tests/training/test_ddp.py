"""Several processes train as one does: real ones, started by Lightning from the command line.

Run as a program, ``python test_ddp.py TROUBLE SPEC ...``, it is ``tips-nni run SPEC ...`` with a trouble:

- ``none``;
- ``nan``: one process alone meets a loss that is not a number;
- ``interrupt``: Ctrl-C in the second epoch;
- ``killed``: one process is killed in the second epoch.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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
SPEC = """\
backbone: {name: test_resnet}
space: resnet
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


def on_two(spec: Path, folder: Path, *arguments: str, trouble: str = "none") -> subprocess.CompletedProcess[str]:
    """Run a spec on two processes; one that hangs fails."""
    command = [sys.executable, __file__, trouble, str(spec), "--set", "training.devices=2", "--set", f"output={folder}"]
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=120)
    finally:
        leftover = processes_of(process.pid)
        if leftover:
            os.killpg(process.pid, signal.SIGKILL)
    assert leftover == [], err
    return subprocess.CompletedProcess(command, process.returncode, out, err)


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


@pytest.mark.slow
def test_two_processes_end_where_one_does(spec: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    one, two, cut = tmp_path / "one", tmp_path / "two", tmp_path / "cut"
    ended = on_two(spec, two)
    assert (ended.returncode, ended.stderr) == (0, "")
    for line in ("strategy", "the front", "anytime model", "next  "):
        assert ended.stdout.count(line) == 1, line
    run(load_run(spec, [f"output={one}"]), quiet=True)

    a, b = state(one), state(two)
    assert set(a["state_dict"]) == set(b["state_dict"])
    apart = {name: float((t - b["state_dict"][name]).abs().max()) for name, t in a["state_dict"].items()}
    assert max(apart.values()) <= 1e-4, max(apart, key=lambda name: apart[name])
    print(f"largest difference of weights and BatchNorm statistics: {max(apart.values()):.1e}")
    for row, other in zip(history(one), history(two), strict=True):
        assert other == pytest.approx(row, rel=1e-5)
    policies = [json.loads(c["tips_nni"]["policy"]) for c in (a, b)]
    gradients = [policy.pop("gradients") for policy in policies]
    assert policies[0] == policies[1]
    assert policies[0]["refreshes"] == 4
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-3)
    assert a["tips_nni"]["rng"] == b["tips_nni"]["rng"]
    assert sorted(p.relative_to(one) for p in one.rglob("*")) == sorted(p.relative_to(two) for p in two.rglob("*"))

    stopped = on_two(spec, cut, trouble="interrupt")
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == "tips-nni: stopped; add --resume to the same command to go on\n"
    assert len(history(cut)) == 1
    assert on_two(spec, cut, "--resume").returncode == 0
    assert history(cut) == history(two)
    assert all(torch.equal(tensor, b["state_dict"][name]) for name, tensor in state(cut)["state_dict"].items())


@pytest.mark.slow
def test_one_process_alone_meets_a_loss_that_is_no_number(spec: Path, tmp_path: Path) -> None:
    ended = on_two(spec, tmp_path / "nan", "--set", "training.sync_batchnorm=false", trouble="nan")
    assert ended.returncode == 2
    assert ended.stderr.startswith("tips-nni: the loss is nan at step 5 with learning rate")
    assert ended.stderr.count("\n") == 1
    assert len(history(tmp_path / "nan")) == 1


@pytest.mark.slow
def test_one_process_is_killed(spec: Path, tmp_path: Path) -> None:
    ended = on_two(spec, tmp_path / "killed", trouble="killed")
    assert ended.returncode == 2
    assert ended.stderr.startswith("tips-nni: another process of the training ended")
    assert ended.stderr.count("\n") == 1
    assert len(history(tmp_path / "killed")) == 1


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
            torch.testing.assert_close(layer.eval()(x), F.batch_norm(x, *list(layer.buffers())[:2], layer.weight, layer.bias))
    for expected, found in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


def _meet(trouble: str) -> None:
    """Let the second epoch of this process meet a trouble."""
    step = SupernetModule.training_step

    def training_step(self: SupernetModule, batch: Any, batch_idx: int) -> None:
        if (self.current_epoch, batch_idx) == (1, 1):
            if trouble == "nan" and self.global_rank == 1:
                batch[0].fill_(float("nan"))
            elif trouble == "interrupt" and self.global_rank == 0:
                os.killpg(0, signal.SIGINT)  # a terminal sends it to all
            elif trouble == "killed" and self.global_rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        step(self, batch, batch_idx)

    SupernetModule.training_step = training_step  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    _meet(sys.argv[1])
    sys.exit(main(["run", *sys.argv[2:], "--quiet"]))
