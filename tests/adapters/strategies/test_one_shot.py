"""TIPS as a one-shot strategy: what is drawn, what is learnt, what comes out."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytest
import pytorch_lightning as pl
import scipy.stats
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.experiment import NasExperiment
from nni.nas.strategy import RandomOneShot
from torch import Tensor
from torch.utils.data import TensorDataset

from tips_nni.adapters import TIPS, TimmSpace, TIPSSearch
from tips_nni.core import SearchSettings, TipsError, make_policy
from tips_nni.elastic import Supernet
from tips_nni.specs import SamplingSpec, TrainingSpec
from tips_nni.training import SupernetModule

QUICK = SearchSettings(population=8, generations=1)
Make = Callable[..., TimmSpace]
MakeEvaluator = Callable[..., Classification]
Run = Callable[..., NasExperiment]


class Catch(pl.Callback):
    """Keeps the gradients that the optimizer sees."""

    def __init__(self, backbone: torch.nn.Module) -> None:
        self._backbone = backbone

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients = {n: p.grad.clone() for n, p in self._backbone.named_parameters() if p.grad is not None}


@pytest.fixture
def strategy_file(tmp_path: Path) -> Callable[[SamplingSpec], Path]:
    def write(sampling: SamplingSpec, policy: str = "uniform") -> Path:
        path = tmp_path / "strategy.yaml"
        lines = [f"  {key}: {str(value).lower()}" for key, value in sampling.model_dump().items()]
        path.write_text("\n".join(["name: mine", f"policy: {{name: {policy}}}", "sampling:", *lines]))
        return path

    return write


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingSpec(random=2),
        SamplingSpec(random=2, divergence="alpha"),
        SamplingSpec(random=2, distill=False),
        SamplingSpec(largest=False, smallest=True, random=1, distill=False),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_equal_those_of_our_own_training_step(
    make_space: Make,
    run: Run,
    strategy_file: Callable[..., Path],
    digits: tuple[Tensor, Tensor],
    tmp_path: Path,
    sampling: SamplingSpec,
    accumulate: int,
) -> None:
    """Same weights, same batch, same generator: the sum of the same subnets' gradients reaches the optimizer."""
    space = make_space().double()
    ours: Supernet = copy.deepcopy(space.supernet)
    images, labels = digits[0][:8].double(), digits[1][:8]
    loader = DataLoader(TensorDataset(images, labels), batch_size=8 // accumulate)
    catch = Catch(space.supernet.backbone)
    evaluator = Classification(
        num_classes=10,
        train_dataloaders=loader,
        val_dataloaders=loader,
        max_steps=1,
        callbacks=[catch],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
    )
    strategy = TIPS(strategy_file(sampling), search=SearchSettings(4, 0), seed=5)
    run(space, evaluator, strategy)

    policy = make_policy("uniform", ours.architecture)
    module = SupernetModule(ours, policy, sampling, TrainingSpec(steps=1), seed=5, steps_per_epoch=1)
    trainer = pl.Trainer(
        max_steps=accumulate,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    caught: list[dict[str, Tensor]] = []

    class Reference(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            caught.append({n: p.grad.clone() for n, p in ours.backbone.named_parameters() if p.grad is not None})
            for group in optimizer.param_groups:
                group["lr"] = 0.0  # the second half of the batch meets the same weights

    trainer.callbacks.append(Reference())
    module._schedule = None
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=8 // accumulate))
    assert len(caught) == accumulate
    assert set(catch.gradients) == set(caught[0])
    for name, gradient in catch.gradients.items():
        expected = sum(part[name] for part in caught) / accumulate
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9, msg=name)


def test_the_front_comes_out_calibrated(
    make_space: Make, make_evaluator: MakeEvaluator, run: Run, digits: tuple[Tensor, Tensor]
) -> None:
    space = make_space()
    strategy = TIPS("tips_marginal", search=QUICK, calibration_images=128)
    experiment = run(space, make_evaluator(images=1200, max_epochs=2), strategy)
    models = experiment.export_top_models(99)
    assert 2 <= len(models) <= 16
    accuracy = [model.results["accuracy"] for model in models]
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[0] > 0.5, "it learns"
    costs = [model.results["mflops"] for model in models]
    assert costs == sorted(costs, reverse=True), "a front: less accurate is cheaper"
    assert set(models[0].results) == {"accuracy", "mflops", "params_m", "memory_mb", "latency_ms"}
    samples = experiment.export_top_models(99, formatter="dict")
    instances = experiment.export_top_models(99, formatter="instance")
    images, labels = digits[0][-300:], digits[1][-300:]
    for model, sample, instance in zip(models, samples, instances, strict=True):
        assert space.supernet.space.config(sample) == model.point.config
        assert not [m for m in instance.modules() if type(m).__module__.startswith(("tips_nni", "nni"))]
        right = (instance(images).argmax(dim=1) == labels).double().mean()
        assert float(right) == pytest.approx(model.metric, abs=1e-9), "what is exported is what was measured"
    assert [m.point.config for m in strategy.list_models(sort=False)] == [m.point.config for m in models][::-1]


def test_subnets_are_drawn_by_our_policy(make_space: Make, make_evaluator: MakeEvaluator, run: Run) -> None:
    strategy = TIPS("tips_marginal", search=SearchSettings(4, 0), calibration_images=64)
    run(make_space(), make_evaluator(images=320), strategy)
    module = strategy.oneshot_module
    assert module.policy.name == "path_importance"
    recent = module.policy.state_dict()["recent"]
    assert len(recent) == 5 * 4, "it has seen the four subnets of each of five steps"
    assert recent[::4] == [strategy.network.space.encode(strategy.network.space.largest).tolist()] * 5
    module.policy.refresh()
    draws = [config for _ in range(1000) for config in module.draw()[2:]]
    skewed = 0
    for table in module.policy.explain().dims:
        counts = Counter(config[table.name] for config in draws)
        observed = np.array([counts[choice] for choice in table.choices])
        expected = np.array(table.probabilities) * len(draws)
        assert scipy.stats.chisquare(observed, expected).pvalue > 1e-4, table.name
        skewed += scipy.stats.chisquare(observed).pvalue < 1e-6
    assert skewed > 0, "and it is not the uniform one"


def test_constraints_and_other_objectives(make_space: Make, make_evaluator: MakeEvaluator, run: Run) -> None:
    asked: list[int] = []

    def channels(module: torch.nn.Module) -> float:
        asked.append(1)
        return float(module.conv1[0].out_channels)

    limits = {"params_m": 0.2, "stem": 8}
    strategy = TIPS("uniform", search=QUICK, constraints=limits, objective="latency_ms", measures={"stem": channels})
    run(make_space(), make_evaluator(images=64), strategy)
    assert strategy.result is not None
    assert len(strategy.result.evaluated) > 4
    for point in strategy.result.evaluated:
        assert point.costs["params_m"] <= 0.2
        assert point.costs["stem"] == point.config["width.conv1"] == 8
    assert len(asked) < 200, "a slow measure is asked about few of the 2,048 subnets"
    latency = [model.results["latency_ms"] for model in strategy.list_models()]
    assert latency == sorted(latency, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "tipps"}, "tips"),
        ({"objective": "latency"}, "latency_ms"),
        ({"constraints": {"flops": 1.0}}, "mflops"),
        ({"constraints": {"mflops": 1e-6}}, "smallest"),
        ({"calibration_images": 0}, "calibration_images"),
    ],
)
def test_wrong_arguments_are_one_line_before_training(
    make_space: Make, make_evaluator: MakeEvaluator, run: Run, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TipsError, match=message) as caught:
        run(make_space(), make_evaluator(images=64), TIPS(**{"search": QUICK, **arguments}))
    assert "\n" not in str(caught.value)


def test_nothing_to_export_before_the_run() -> None:
    with pytest.raises(TipsError, match="run the experiment"):
        next(TIPS().list_models())


def test_validation_measures_the_largest_subnet(
    make_space: Make, make_evaluator: MakeEvaluator, run: Run, digits: tuple[Tensor, Tensor]
) -> None:
    space = make_space()
    strategy = TIPS("uniform", search=SearchSettings(4, 0))
    evaluator = make_evaluator(images=128)
    run(space, evaluator, strategy)
    logged = float(strategy.oneshot_module.trainer.callback_metrics["val_acc"])
    images, labels = digits[0][-300:], digits[1][-300:]
    right = (space.supernet.backbone.eval()(images).argmax(dim=1) == labels).double().mean()
    assert logged == pytest.approx(float(right), abs=1e-6)


# Lightning's word on the folder that it resumes in.
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_experiment_ends_like_one_that_was_never_interrupted(
    make_space: Make, digits: tuple[Tensor, Tensor], run: Run, tmp_path: Path
) -> None:
    """NNI's own resume: weights, policy and generator go on from Lightning's last checkpoint."""

    class Interrupt(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    def evaluator(folder: str, *callbacks: pl.Callback) -> Classification:
        x, y = digits
        loader = DataLoader(TensorDataset(x[:128], y[:128]), batch_size=32)
        saved = pl.callbacks.ModelCheckpoint(tmp_path / folder, save_last=True)
        return Classification(
            num_classes=10,
            train_dataloaders=loader,
            val_dataloaders=loader,
            max_epochs=3,
            accelerator="cpu",
            callbacks=[saved, *callbacks],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            num_sanity_val_steps=0,
        )

    def strategy() -> TIPS:
        return TIPS(search=SearchSettings(4, 0), calibration_images=64)

    whole, first, second = make_space(), make_space(), make_space(seed=9)
    straight = strategy()
    run(whole, evaluator("straight"), straight)
    with pytest.raises(SystemExit):  # Lightning's way to hand on Ctrl-C
        run(first, evaluator("cut", Interrupt()), strategy())
    experiment = run.started[-1]
    run.stop(experiment)
    resumed = strategy()
    run(second, evaluator("cut"), resumed, experiment_id=experiment.id)
    assert resumed.oneshot_module.policy.state_dict() == straight.oneshot_module.policy.state_dict()
    for name, tensor in whole.supernet.backbone.state_dict().items():
        torch.testing.assert_close(second.supernet.backbone.state_dict()[name], tensor, rtol=0, atol=0, msg=name)
    assert [p.accuracy for p in resumed.result.points] == [p.accuracy for p in straight.result.points]


def test_nnis_own_random_strategy_trains_the_same_space(
    make_space: Make, make_evaluator: MakeEvaluator, run: Run
) -> None:
    space = make_space()
    before = copy.deepcopy(space.supernet.backbone.state_dict())
    with pytest.warns(UserWarning, match="arbitrary architecture"):
        instance = run(space, make_evaluator(), RandomOneShot()).export_top_models(formatter="instance")[0]
    assert not torch.equal(
        before["layer1.0.conv1.weight"], space.supernet.backbone.state_dict()["layer1.0.conv1.weight"]
    )
    assert instance(torch.randn(2, 1, 16, 16)).shape == (2, 10)


def evaluate(module: torch.nn.Module, images: Tensor, labels: Tensor) -> None:
    module.eval()
    nni.report_final_result(float((module(images).argmax(dim=1) == labels).double().mean()))


def test_a_trained_supernet_trains_on_and_is_searched_by_trials(
    make_space: Make, make_evaluator: MakeEvaluator, run: Run, digits: tuple[Tensor, Tensor]
) -> None:
    space = make_space()
    for _ in range(2):
        run(space, make_evaluator(images=64, enable_checkpointing=False), TIPS("uniform", search=SearchSettings(4, 0)))
    images, labels = digits[0][:100], digits[1][:100]
    search = TIPSSearch(population=4)
    run(space, FunctionalEvaluator(evaluate, images=images, labels=labels), search, 4)
    space.eval()
    for point in search.result.evaluated:
        right = (space.supernet(images, point.config).argmax(dim=1) == labels).double().mean()
        assert point.accuracy == pytest.approx(float(right)), "trials got the trained weights"


class Digits(pl.LightningDataModule):
    """Loaders that exist after `setup` only."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self._data = TensorDataset(images, labels)

    def setup(self, stage: str) -> None:
        self._loader = DataLoader(self._data, batch_size=32)

    def train_dataloader(self) -> DataLoader:
        return self._loader

    def val_dataloader(self) -> DataLoader:
        return self._loader


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_data_modules_and_mixed_precision(
    make_space: Make, run: Run, digits: tuple[Tensor, Tensor], tmp_path: Path, precision: str
) -> None:
    evaluator = Classification(
        num_classes=10, datamodule=Digits(digits[0][:96], digits[1][:96]), max_epochs=1, accelerator="cpu",
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path, num_sanity_val_steps=0, precision=precision, gradient_clip_val=1.0,
    )  # fmt: skip
    strategy = TIPS(search=SearchSettings(4, 0), calibration_images=32)
    run(make_space(), evaluator, strategy)
    assert strategy.result is not None
    assert len(strategy.result.evaluated) == 4
