"""TIPS as a multi-trial strategy: the sequential engine, and NNI's own strategies beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nni
import pytest
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableConv2d, Repeat
from nni.nas.strategy import TPE, Random, RegularizedEvolution
from torch import Tensor, nn

from tips_nni.adapters import TimmSpace, TIPSSearch
from tips_nni.core import TipsError

Make = Callable[..., TimmSpace]
Run = Callable[..., NasExperiment]


def size_of(module: nn.Module) -> float:
    """Between 0 and 1; more for subnets with more parameters in the first layers."""
    return 1 - 1 / (1 + sum(p.numel() ** 0.5 for p in module.parameters()) / 1000)


def report_size(module: nn.Module) -> None:
    nni.report_final_result(size_of(module))


def report_costs(module: nn.Module) -> None:
    params = sum(p.numel() for p in module.parameters())
    nni.report_final_result({"default": size_of(module), "measured_ms": params / 1000})


def test_the_front_of_a_timm_space(make_space: Make, run: Run) -> None:
    space = make_space()
    strategy = TIPSSearch(constraints={"params_m": 0.2}, population=8)
    experiment = run(space, FunctionalEvaluator(report_size), strategy, 10, engine="sequential")
    points = strategy.result.evaluated
    assert len({p.config for p in points}) == len(points) == 10, "nothing is measured twice"
    for point in points:
        assert point.costs["params_m"] <= 0.2, "no trial breaks a constraint"
        assert point.accuracy == size_of(space.freeze(point.config.as_dict())), "results belong to their subnets"
    models = experiment.export_top_models(99)
    assert [m.metric for m in models] == sorted((m.metric for m in models), reverse=True)
    latency = [m.results["latency_ms"] for m in models]
    assert latency == sorted(latency, reverse=True)
    assert models[0].metric == max(p.accuracy for p in points)
    sample = experiment.export_top_models(1, formatter="dict")[0]
    instance = experiment.export_top_models(1, formatter="instance")[0]
    assert size_of(instance) == pytest.approx(models[0].metric)
    assert space.supernet.space.config(sample) == space.supernet.space.config(models[0].sample)


def test_flash_searches_where_the_strategy_says_so(make_space: Make, run: Run) -> None:
    strategy = TIPSSearch("flash", objective="mflops", constraints={"params_m": 0.2}, population=6)
    run(make_space(), FunctionalEvaluator(report_size), strategy, 12, engine="sequential", model_format="raw")
    assert max(point.costs["params_m"] for point in strategy.result.evaluated) <= 0.2
    assert strategy.result.diagnostics["samples"] == len(strategy.result.evaluated) == 12


def test_costs_that_trials_measure(make_space: Make, run: Run) -> None:
    strategy = TIPSSearch(objective="measured_ms", population=4)
    run(make_space(), FunctionalEvaluator(report_costs), strategy, 8, engine="sequential", model_format="raw")
    for point in strategy.result.evaluated:
        assert point.costs["measured_ms"] == pytest.approx(point.costs["params_m"] * 1000)


def test_the_policy_learns_from_what_was_measured(make_space: Make, run: Run) -> None:
    strategy = TIPSSearch(population=4)
    run(make_space(), FunctionalEvaluator(report_size), strategy, 12, engine="sequential", model_format="raw")
    policy = strategy.search.state_dict()["policy"]
    assert len(policy["recent"]) == 12
    assert policy["refreshes"] == 3


@pytest.mark.parametrize("model_format", ["simplified", "raw"])
def test_a_small_space_is_measured_whole_and_the_experiment_ends(make_space: Make, run: Run, tmp_path, model_format):
    path = tmp_path / "small.yaml"
    path.write_text('family: small\nwidth: {ratios: [0.5, 1.0]}\nfixed: ["conv1*", "layer1*", "layer4*"]\n')
    space = make_space(space=path)
    assert space.supernet.space.size == 4
    strategy = TIPSSearch("uniform", population=4)
    run(space, FunctionalEvaluator(report_size), strategy, 100, engine="sequential", model_format=model_format)
    assert len(strategy.result.evaluated) == 4


def fail_on_narrow(module: nn.Module) -> None:
    if module.conv1[0].out_channels == 8:
        raise RuntimeError("this trial fails")
    report_size(module)


def test_failed_trials_are_tried_once_more_and_left(make_space: Make, run: Run, tmp_path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text('family: small\nwidth: {ratios: [0.5, 1.0]}\nfixed: ["layer*"]\n')
    space = make_space(space=path)
    strategy = TIPSSearch("uniform", population=4)
    experiment = run(
        space, FunctionalEvaluator(fail_on_narrow), strategy, 100, engine="sequential", model_format="raw", failing=True
    )
    narrow = space.supernet.space.size // 2
    assert len(strategy.result.evaluated) == narrow
    assert experiment._engine.state_dict()["model_count"] == narrow + 2 * narrow


def report_nonsense(module: nn.Module) -> None:
    nni.report_final_result({"accuracy": 0.5})


def report_nan(module: nn.Module) -> None:
    nni.report_final_result(float("nan"))


@pytest.mark.parametrize(("function", "message"), [(report_nonsense, "'default'"), (report_nan, "finite")])
def test_a_wrong_report_ends_the_experiment_with_one_line(make_space: Make, run: Run, function, message) -> None:
    with pytest.raises(TipsError, match=message) as caught:
        run(make_space(), FunctionalEvaluator(function), TIPSSearch(population=4), 3, engine="sequential", failing=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"constraints": {"latency": 1.0}}, "latency_ms"),
        ({"constraints": {"mflops": 1e-9}}, "smallest"),
        ({"population": 2}, "population"),
        ({"strategy": "tip"}, "tips"),
    ],
)
def test_wrong_arguments_are_one_line(make_space: Make, run: Run, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TipsError, match=message) as caught:
        run(make_space(), FunctionalEvaluator(report_size), TIPSSearch(**arguments), 3, engine="sequential")
    assert "\n" not in str(caught.value)


def test_an_evaluator_with_choices_of_its_own_is_refused(make_space: Make, run: Run) -> None:
    evaluator = FunctionalEvaluator(report_size, lr=nni.choice("lr", [0.1, 0.2]))
    with pytest.raises(TipsError, match="lr"):
        run(make_space(), evaluator, TIPSSearch(), 3, engine="sequential")


class Written(ModelSpace):
    """A hand-written space."""

    def __init__(self) -> None:
        super().__init__()
        width = nni.choice("width", [4, 8, 12])
        self.first = MutableConv2d(in_channels=1, out_channels=width, kernel_size=3, padding=1)
        self.second = LayerChoice({"wide": nn.Identity(), "pooled": nn.AvgPool2d(3, 1, 1)}, label="second")
        self.blocks = Repeat(lambda _: nn.ReLU(), (1, 3), label="depth")
        self.head = MutableConv2d(in_channels=width, out_channels=10, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.second(self.first(images)))).mean(dim=(2, 3))


def test_a_hand_written_space_with_what_its_trials_report(run: Run) -> None:
    strategy = TIPSSearch(objective="measured_ms", population=4)
    experiment = run(Written(), FunctionalEvaluator(report_costs), strategy, 50, engine="sequential")
    assert len(strategy.result.evaluated) == 3 * 2 * 3
    sample = experiment.export_top_models(1, formatter="dict")[0]
    assert sample["width"] == 12
    assert experiment.export_top_models(1, formatter="instance")[0].head.in_channels == 12
    assert torch.is_tensor(experiment.export_top_models(1, formatter="instance")[0](torch.zeros(1, 1, 8, 8)))


@pytest.mark.parametrize("model_format", ["simplified", "raw"])
def test_with_the_shape_of_an_image_a_hand_written_space_has_costs_and_a_policy(run: Run, model_format: str) -> None:
    strategy = TIPSSearch(objective="mflops", constraints={"mflops": 0.01}, population=4, input_shape=(1, 8, 8))
    run(Written(), FunctionalEvaluator(report_size), strategy, 8, engine="sequential", model_format=model_format)
    policy = strategy.search.state_dict()["policy"]
    assert len(policy["recent"]) == len(strategy.result.evaluated) > 4
    for point in strategy.result.evaluated:
        assert point.costs["mflops"] == pytest.approx(64 * (1 * 9 + 10) * point.config["width"] * 1e-6)
        assert point.costs["mflops"] <= 0.01


def test_a_reported_objective_that_is_missing_is_named(run: Run) -> None:
    with pytest.raises(TipsError, match="latency_ms"):
        run(Written(), FunctionalEvaluator(report_size), TIPSSearch(), 3, engine="sequential", failing=True)


@pytest.mark.parametrize(
    "strategy", [Random(seed=0), RegularizedEvolution(population_size=3, sample_size=2, seed=0), TPE()]
)
def test_nnis_own_strategies_search_the_same_space(make_space: Make, run: Run, strategy: Any) -> None:
    space = make_space()
    experiment = run(space, FunctionalEvaluator(report_size), strategy, 5, engine="sequential")
    best = experiment.export_top_models(1)[0]
    assert best.metric == size_of(space.freeze({str(k): v for k, v in best.sample.items()}))
    assert isinstance(best.executable_model(), nn.Module)
