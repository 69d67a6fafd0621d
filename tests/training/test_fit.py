"""Training: checkpoints, going on after an interruption, accounts, and what goes wrong."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tips_nni.core import CostTable, PathImportancePolicy, SubnetConfig, TipsError, make_policy
from tips_nni.elastic import Supernet
from tips_nni.specs import SamplingSpec, TrainingSpec
from tips_nni.training import ImageData, TrainingSummary, load_policy_state, train
from tips_nni.training._fit import _Recorder

Fit = Callable[..., TrainingSummary]


class PowerCutError(Exception):
    """Stands for a power cut."""


def checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def rows(folder: Path) -> list[dict[str, str]]:
    """training.csv without the column that differs from run to run."""
    with (folder / "training.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def equal(one: Supernet, other: Supernet) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_what_a_training_leaves(fit: Fit, make_supernet: Callable[..., Supernet], tmp_path: Path) -> None:
    supernet = make_supernet()
    start = {name: p.clone() for name, p in supernet.named_parameters()}
    summary = fit(supernet, epochs=2, lr=0.01)  # at the other tests' 0.05 the loss of so few steps may rise
    assert (summary.epochs, summary.steps) == (2, 8)
    assert not supernet.training
    assert all(not torch.equal(start[name], p) for name, p in supernet.named_parameters())
    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2"]
    assert [float(row["train_loss"]) for row in rows(tmp_path)] == [row["train_loss"] for row in summary.history]
    assert summary.history[1]["train_loss"] < summary.history[0]["train_loss"]
    stored = torch.load(checkpoint(tmp_path), weights_only=True)["state_dict"]
    assert all(torch.equal(stored[f"supernet.{name}"], t) for name, t in supernet.state_dict().items())
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["last.ckpt", "training.csv"]


def test_the_bar(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit(quiet=False)
    assert "1/1 epochs" in " ".join(capsys.readouterr().out.split())


def test_training_learns(fit: Fit, make_supernet: Callable[..., Supernet]) -> None:
    summary = fit(make_supernet(scales=False), epochs=8)
    assert summary.history[-1]["accuracy_largest"] > 0.7, "ten classes: chance is 0.1"
    assert summary.history[-1]["accuracy_smallest"] > 0.3


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("path_importance", {}),
        # Refreshed between two checkpoints, so that what was heard and not yet used must be kept too.
        ("path_importance", {"form": "growth", "edge_weight": "loss", "refresh": 3}),
        ("path_importance", {"form": "budget", "edge_weight": "gradient", "refresh": 3}),
        ("uniform", {}),
    ],
)
def test_resumed_training_equals_an_uninterrupted_one(
    fit: Fit,
    make_supernet: Callable[..., Supernet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    options: dict[str, object],
) -> None:
    keys = {"epochs": 4, "mixup": 0.2, "label_smoothing": 0.1, "warmup_epochs": 1, "policy": policy, "options": options}
    whole = make_supernet()
    expected = fit(whole, tmp_path / "whole", **keys)
    (tmp_path / "cut").mkdir()

    broken = make_supernet()
    original = _Recorder.on_train_epoch_start

    def stop(self: _Recorder, trainer, module) -> None:
        if trainer.current_epoch == 2:
            raise PowerCutError
        original(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(_Recorder, "on_train_epoch_start", stop)
        with pytest.raises(PowerCutError):
            fit(broken, tmp_path / "cut", **keys)
    assert len(rows(tmp_path / "cut")) == 2

    torch.manual_seed(12345)  # another state of the process
    resumed = make_supernet(seed=9)  # its weights come from the checkpoint
    summary = fit(resumed, tmp_path / "cut", resume=True, **keys)
    assert equal(whole, resumed)
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    assert (summary.steps, summary.epochs, summary.train_flops) == (16, 4, expected.train_flops)
    assert load_policy_state(tmp_path / "whole") == load_policy_state(tmp_path / "cut")


@pytest.mark.parametrize("distill", [True, False])
def test_a_policy_hears_the_losses_of_subnets_with_equal_targets(
    fit: Fit, make_supernet: Callable[..., Supernet], monkeypatch: pytest.MonkeyPatch, distill: bool
) -> None:
    heard: list[tuple[list[SubnetConfig], list[float]]] = []
    monkeypatch.setattr(
        PathImportancePolicy, "observe_losses", lambda self, configs, losses: heard.append((configs, losses))
    )
    supernet = make_supernet()
    summary = fit(supernet, sampling=SamplingSpec(distill=distill), options={"edge_weight": "loss"})
    assert len(heard) == summary.steps
    largest, smallest = supernet.space.largest, supernet.space.smallest
    for configs, losses in heard:
        assert len(configs) == len(losses) == (3 if distill else 4)
        assert np.isfinite(losses).all()
        assert (largest in configs[:1]) == (not distill)
        assert smallest in configs
    if not distill:
        means = [np.mean(losses) for _, losses in heard]
        assert np.mean(means) == pytest.approx(summary.history[0]["train_loss"], rel=1e-5)


def test_resuming_a_finished_training_trains_nothing(
    fit: Fit, make_supernet: Callable[..., Supernet], tmp_path: Path
) -> None:
    one = make_supernet()
    first = fit(one, epochs=2)
    before = checkpoint(tmp_path).read_bytes()
    other = make_supernet(seed=9)
    again = fit(other, epochs=2, resume=True)
    assert equal(one, other)
    assert checkpoint(tmp_path).read_bytes() == before
    assert (again.steps, again.train_flops, again.history) == (first.steps, first.train_flops, first.history)


def test_steps_that_end_within_an_epoch(fit: Fit, make_supernet: Callable[..., Supernet], tmp_path: Path) -> None:
    one = make_supernet()
    summary = fit(one, epochs=None, steps=6)
    assert summary.steps == 6
    assert [row["step"] for row in summary.history] == [4, 6]
    other = make_supernet(seed=9)
    again = fit(other, epochs=None, steps=6, resume=True)
    assert again.steps == 6
    assert equal(one, other)


def test_resume_without_a_checkpoint_starts(fit: Fit) -> None:
    assert fit(resume=True).steps == 4


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "foreign", "list"])
def test_damaged_checkpoint(fit: Fit, tmp_path: Path, damage: str) -> None:
    path = checkpoint(tmp_path)
    path.parent.mkdir()
    if damage == "truncated":
        fit()
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage in ("empty", "text"):
        path.write_text("" if damage == "empty" else "hello\n")
    else:
        torch.save({"state_dict": {}} if damage == "foreign" else [1], path)
    with pytest.raises(TipsError, match=r"last\.ckpt.*delete it") as caught:
        fit(resume=True)
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_backbone(fit: Fit, make_supernet: Callable[..., Supernet]) -> None:
    fit(make_supernet())
    with pytest.raises(TipsError, match="delete it") as caught:
        fit(make_supernet(name="resnet10t"), resume=True)
    assert "\n" not in str(caught.value)


def test_policy_state_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(TipsError, match="no checkpoint"):
        load_policy_state(tmp_path)


def test_loss_that_is_not_finite(fit: Fit, make_supernet: Callable[..., Supernet], tmp_path: Path) -> None:
    fit(make_supernet(), epochs=1)
    kept = checkpoint(tmp_path).read_bytes()
    spoilt = make_supernet()
    with torch.no_grad():
        spoilt.backbone.conv1[0].weight.fill_(float("nan"))
    with pytest.raises(
        TipsError, match=r"loss is nan at step 0 with learning rate 0\.05.*lower training\.lr"
    ) as caught:
        fit(spoilt, epochs=1)
    assert "\n" not in str(caught.value)
    assert checkpoint(tmp_path).read_bytes() == kept


def test_two_seeds(fit: Fit, make_supernet: Callable[..., Supernet], tmp_path: Path) -> None:
    nets = [make_supernet() for _ in range(3)]
    for i, (net, seed) in enumerate(zip(nets, (0, 0, 1), strict=True)):
        fit(net, tmp_path / str(i), seed=seed)
    assert equal(nets[0], nets[1])
    assert not equal(nets[0], nets[2])


def test_account_of_multiply_adds(digits: ImageData, make_supernet: Callable[..., Supernet], tmp_path: Path) -> None:
    supernet = make_supernet()
    seen: list[SubnetConfig] = []
    plain = make_policy("uniform", supernet.architecture)

    class Recording(type(plain)):
        def observe(self, configs: Sequence[SubnetConfig]) -> None:
            seen.extend(configs)
            super().observe(configs)

    table = CostTable(supernet.architecture)
    policy = Recording(supernet.architecture, plain.options)
    training = TrainingSpec(steps=5, accelerator="cpu")
    summary = train(
        supernet, digits, training, SamplingSpec(random=3), policy, tmp_path, seed=0, quiet=True, flops=table.flops
    )
    assert len(seen) == 5 * 5
    each = [int(table.flops(supernet.space.encode(config)[None])[0]) for config in seen]
    assert summary.train_flops == 3 * 64 * sum(each)
    assert summary.history[-1]["train_gflops"] == pytest.approx(3 * 64 * sum(each) / 1e9)
    assert np.unique(each).size > 2


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions(fit: Fit, make_supernet: Callable[..., Supernet], precision: str) -> None:
    supernet = make_supernet()
    summary = fit(supernet, precision=precision, clip_grad=1.0, label_smoothing=0.1, mixup=0.2)
    assert np.isfinite(summary.history[0]["train_loss"])
    assert 0 <= summary.history[0]["accuracy_largest"] <= 1
    assert all(bool(torch.isfinite(p).all()) for p in supernet.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_on_a_gpu_learns(fit: Fit, make_supernet: Callable[..., Supernet], precision: str) -> None:
    summary = fit(make_supernet(scales=False), epochs=8, accelerator="gpu", precision=precision)
    assert summary.history[-1]["accuracy_largest"] > 0.7, "ten classes: chance is 0.1"
    assert summary.history[-1]["accuracy_smallest"] > 0.3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there(fit: Fit) -> None:
    with pytest.raises(TipsError, match="accelerator 'gpu'") as caught:
        fit(accelerator="gpu")
    assert "\n" not in str(caught.value)


def test_full_disk(fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(TipsError, match="cannot write"):
        fit()
