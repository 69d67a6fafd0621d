"""The comparison of policies: its order of work, its data, and small trainings against slow references."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from anytime.data import Images, load
from anytime.evaluation import Evaluator, front_accuracy
from anytime.gradients import SharedGradients
from anytime.policies import CheapOptions, CheapPolicy
from anytime.rivals import RIVALS_BY_NAME
from anytime.runs import run_all
from anytime.scales import SCALES
from anytime.tasks import Results, tasks
from anytime.training import Length, Trained, train

from tips_nni.core import CostTable


def test_a_study_plans_rates_first_and_each_training_once() -> None:
    scale = SCALES["cpu"]
    planned = tasks(scale, ["main", "alone"], ["us_nets", "tips_budget_two"], seeds=2)
    assert len({task.key for task in planned}) == len(planned) == 2 * 3 + 2 * (2 * 3 + 1) + 8
    assert [task.kind for task in planned[:4]] == ["tune"] * 4
    assert {task.seed for task in planned if task.kind == "tune"}.isdisjoint({0, 1})


def test_a_line_cut_off_by_a_crash_costs_one_training(tmp_path: Path) -> None:
    results = Results(tmp_path / "cpu.jsonl")
    results.add({"key": "a"})
    with results.path.open("a") as file:
        file.write(json.dumps({"key": "b"})[:-5])
    assert results.done() == {"a"}
    results.add({"key": "c"})
    assert results.done() == {"a", "c"}


def tuned(rival: str, rate: float, accuracy: float) -> dict[str, Any]:
    validation = {"mflops": [accuracy / 100] * 10}
    return {"key": f"{rival} {rate}", "kind": "tune", "rival": rival, "rate": rate, "validation": validation}


def test_the_learning_rate_is_the_best_on_validation_images(tmp_path: Path) -> None:
    scale, results = SCALES["cpu"], Results(tmp_path / "cpu.jsonl")
    for rate, accuracy in zip(scale.rates, (40.0, 60.0, 50.0), strict=True):
        assert results.rate(scale, "two_budgets") is None
        results.add(tuned("two_budgets", rate, accuracy))
    assert results.rate(scale, "two_budgets") == scale.rates[1]
    assert results.rate(scale, "us_nets") is None
    for rate, accuracy in zip(scale.rates, (40.0, 30.0, 20.0), strict=True):
        results.add(tuned("us_nets", rate, accuracy))
    # A sandwich takes the sandwich's rate, and so does what is an option of it; trained alone: as the reference.
    assert {results.rate(scale, name) for name in ("us_nets", "tips_sandwich", "sandwich_sum", "#3")} == {
        scale.rates[0]
    }


@pytest.mark.parametrize("first", [0, 2])
def test_data_are_split_and_normalised(npz: Path, first: int) -> None:
    data = load(npz, replace(SCALES["smoke"], first_class=first), torch.device("cpu"))
    with np.load(npz) as file:
        kept = int(np.isin(file["y_train"], range(first, first + 4)).sum())
        wanted = file["y_test"][np.isin(file["y_test"], range(first, first + 4))] - first
    assert data.test.y.tolist() == wanted.tolist()
    assert (len(data.train.x), len(data.validation.x)) == (kept - 100, 100)
    assert data.train.x.shape[1:] == (3, 16, 16)
    torch.testing.assert_close(data.train.x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(data.train.x.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    assert int(data.test.y.max()) == 3
    flat = {tuple(image.flatten()[:12].tolist()) for image in data.validation.x}
    assert not flat & {tuple(image.flatten()[:12].tolist()) for image in data.train.x}


def test_classes_that_the_data_lack_are_refused(npz: Path) -> None:
    with pytest.raises(ValueError, match="classes 4 to 7 are wanted, and the data have 0 to 5; choose another scale"):
        load(npz, replace(SCALES["smoke"], first_class=4), torch.device("cpu"))


def test_training_images_may_be_fewer_and_the_others_stay(npz: Path) -> None:
    scale, device = SCALES["smoke"], torch.device("cpu")
    whole, part = load(npz, scale, device), load(npz, replace(scale, images=40), device)
    assert part.train.y.tolist() == whole.train.y[:40].tolist()
    assert part.validation.y.tolist() == whole.validation.y.tolist()
    assert part.test.y.tolist() == whole.test.y.tolist()
    torch.testing.assert_close(part.train.x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="100 validation and 9999 training images are wanted, and the data have"):
        load(npz, replace(scale, images=9999), device)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_channels_lie_last_only_where_onednn_bears_it(
    npz: Path, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    data = load(npz, SCALES["smoke"], torch.device("cpu"))
    for images in (data.train.x, data.test.x, next(data.train.epochs(0, 4))[0]):
        assert images.is_contiguous(memory_format=torch.channels_last) == (capability == "AVX512")
        assert images.is_contiguous() == (capability == "AVX2")


def test_augmentation_shifts_and_mirrors_and_follows_the_seed() -> None:
    ramp = torch.arange(16.0).expand(8, 3, 16, 16) + 100 * torch.arange(16.0)[:, None]
    images = Images(ramp.contiguous(), torch.arange(8))
    batches = images.epochs(3, 4)
    first = [next(batches) for _ in range(4)]
    again = images.epochs(3, 4)
    for x, y in first:
        other, labels = next(again)
        torch.testing.assert_close(x, other, rtol=0, atol=0)
        torch.testing.assert_close(y, labels, rtol=0, atol=0)
    assert torch.equal(torch.cat([y for _, y in first[:2]]).sort().values, torch.arange(8))  # an epoch has each once
    inner = torch.cat([x for x, _ in first])[:, :, 2:-2, 2:-2]  # beyond the reflected border
    steps = inner.diff(dim=3)
    assert {float(v) for v in steps.flatten()} == {1.0, -1.0}
    assert set(inner.diff(dim=2).flatten().tolist()) == {100.0}


@pytest.mark.parametrize("name", ["us_nets", "tips_two"])
def test_a_training_spends_what_it_was_given(npz: Path, name: str) -> None:
    scale, rival = SCALES["smoke"], RIVALS_BY_NAME[name]
    data = load(npz, scale, torch.device("cpu"))
    trained = train(scale, data, rival, 0.05, 0, Length(compute=0.003))
    space, table = trained.supernet.space, CostTable(trained.supernet.architecture)
    largest_step = 3 * scale.batch * 4 * float(table.flops(space.encode(space.largest)[None])[0]) / 1e12
    assert 0.003 <= trained.compute < 0.003 + largest_step
    by_steps = train(scale, data, rival, 0.05, 0, Length(steps=3))
    assert by_steps.steps == 3
    found = Evaluator(scale, data, trained.supernet).measure(trained.supernet, 0)
    assert len(found["test"]["mflops"]) == len(found["test"]["latency_ms"]) == 10
    assert len(found["panel"]) == 8
    # Budgets grow, and a subnet within one is within the next: validation accuracy cannot fall.
    assert found["validation"]["mflops"] == sorted(found["validation"]["mflops"])
    assert 0 <= front_accuracy(found) <= 1
    assert "test" not in Evaluator(scale, data, trained.supernet).measure(trained.supernet, 0, test=False)


def test_drawn_subnets_first_then_the_sandwich(npz: Path) -> None:
    scale = SCALES["smoke"]
    data = load(npz, scale, torch.device("cpu"))

    def trained(name: str, **options: Any) -> Trained:
        return train(scale, data, replace(RIVALS_BY_NAME[name], **options), 0.1, 0, Length(steps=4))

    only_single = trained("us_nets", single_first=1.0)
    spos = trained("spos")
    for name, tensor in only_single.supernet.state_dict().items():
        assert torch.equal(tensor, spos.supernet.state_dict()[name]), name
    half = trained("us_nets", single_first=0.5)
    assert spos.compute < half.compute < trained("us_nets").compute
    assert replace(RIVALS_BY_NAME["us_nets"], single_first=0.5).step == "r, from 50% on M m r r"


@pytest.mark.parametrize("whole", [False, True])
def test_shared_gradients_are_autograds(whole: bool) -> None:
    supernet = SCALES["smoke"].supernet(10).double().train()
    space, rng = supernet.space, np.random.default_rng(4)
    images, labels = torch.randn(8, 3, 16, 16, dtype=torch.double), torch.arange(8)
    shared = SharedGradients(supernet)
    for _ in range(4):
        configs = [space.decode(code) for code in space.sample(rng, 2)] + [space.largest] * whole
        supernet.zero_grad(set_to_none=True)
        for config in configs:
            F.cross_entropy(supernet(images, config), labels).backward()
        expected = {name: p.grad for name, p in supernet.named_parameters()}
        shared.zero()
        for config in configs:
            subnet, pairs = shared.subnet(config)
            F.cross_entropy(subnet(images), labels).backward()
            shared.add(pairs)
        for name, parameter in supernet.named_parameters():
            if expected[name] is None:  # a block that no subnet of this step has
                assert parameter.grad is None
            else:
                torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-12, atol=1e-14)


def test_trainings_run_side_by_side_and_go_on_after_a_stop(npz: Path, tmp_path: Path) -> None:
    scale, results, heard = SCALES["smoke"], Results(tmp_path / "smoke.jsonl"), []
    planned = tasks(scale, ["main"], ["two_random", "spos"], seeds=1, protocols=["compute"])
    assert not run_all(scale, npz, planned, results, 2, 0.0, lambda row, left: None)
    assert run_all(scale, npz, planned[:1], results, 1, 600.0, lambda row, left: None)
    first = results.rows()
    assert run_all(scale, npz, planned, results, 2, 600.0, lambda row, left: heard.append((row["rival"], left)))
    assert heard == [("two_random", 0)]
    assert results.rows()[:1] == first
    assert results.done() == {task.key for task in planned}


def test_the_control_is_uniform_but_for_its_price() -> None:
    supernet = SCALES["smoke"].supernet(4)
    space, table = supernet.space, CostTable(supernet.architecture)
    uniform = float(table.flops(space.sample(np.random.default_rng(1), 20000)).mean())
    for share in (0.4, 1.0):
        policy = CheapPolicy(supernet.architecture, CheapOptions(share=share))
        codes = space.encode_many(policy.sample(np.random.default_rng(0), 4000))
        assert float(table.flops(codes).mean()) == pytest.approx(share * uniform, rel=0.03)
        assert {tuple(np.unique(column)) for column in codes.T} == {tuple(range(n)) for n in space.sizes}
