"""The comparison of policies: its statistics, its order of work, and one small training against a slow reference."""

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
from anytime.overall import mean_difference, overall_bars, overall_table, settings
from anytime.page import write_overall_page, write_page
from anytime.policies import CheapOptions, CheapPolicy
from anytime.runs import run_all
from anytime.study import RIVALS, SCALES
from anytime.summary import (
    bar_text,
    bars,
    compute_to_reach,
    curve,
    difference,
    flatness,
    inherited_correlation,
    ladder,
    longest,
    of_kind,
    points,
)
from anytime.tasks import Results, tasks
from anytime.training import Length, Trained, train
from scipy import stats

from tips_nni.core import CostTable

_RIVALS = {rival.name: rival for rival in RIVALS}


def row(
    rival: str, seed: int, accuracy: float, share: float = 1.0, compute: float = 8.0, **more: Any
) -> dict[str, Any]:
    fronts = {name: [accuracy / 100] * 10 for name in ("mflops", "latency_ms")}
    return {
        "key": f"compute/{rival}/{seed}/{share}/None",
        "kind": "compute",
        "rival": rival,
        "seed": seed,
        "share": share,
        "rate": 0.1,
        "compute": compute * share,
        "steps": 100,
        "train_seconds": 10.0,
        "refresh_seconds": 0.01,
        "test": fronts,
        "validation": fronts,
        "panel": [accuracy / 100 - 0.01] * 8,
        "hypervolume": 0.5,
        **more,
    }


def test_differences_are_paired_by_seed() -> None:
    ours = {0: 50.0, 1: 53.0, 2: 55.5, 7: 99.0}
    theirs = {2: 54.0, 1: 51.0, 0: 49.0, 9: 0.0}
    mean, half, number = difference(ours, theirs)
    reference = stats.ttest_rel([50.0, 53.0, 55.5], [49.0, 51.0, 54.0])
    low, high = reference.confidence_interval(0.95)
    assert (mean, number) == (1.5, 3)
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_one_seed_has_no_interval() -> None:
    assert difference({0: 2.0}, {0: 1.0}) == (1.0, np.inf, 1)
    assert difference({0: 2.0}, {1: 1.0})[2] == 0


def test_the_reference_is_the_same_at_equal_steps() -> None:
    rows = [row("us_nets", 0, 50.0), {**row("spos", 0, 40.0), "kind": "steps"}, row("us_nets", 0, 45.0, 0.5)]
    assert {name: points(found) for name, found in of_kind(rows, "steps").items()} == {
        "us_nets": {0: pytest.approx(50.0)},
        "spos": {0: pytest.approx(40.0)},
    }
    assert set(of_kind(rows, "compute")) == {"us_nets"}
    assert of_kind(rows[:1], "steps") == {}


def test_compute_to_reach_interpolates_in_the_logarithm() -> None:
    rows = [row("tips", 0, accuracy, share) for accuracy, share in ((40.0, 0.25), (60.0, 1.0))]
    assert curve(rows, "tips") == [(2.0, pytest.approx(40.0)), (8.0, pytest.approx(60.0))]
    assert compute_to_reach(rows, "tips", 50.0) == pytest.approx(4.0)
    assert compute_to_reach(rows, "tips", 40.0) == pytest.approx(2.0)
    assert np.isnan(compute_to_reach(rows, "tips", 60.1))
    assert flatness(rows, "tips") == pytest.approx(10.0)


def rows_of(ours: list[float], sandwich: list[float], other: list[float]) -> list[dict[str, Any]]:
    by_name = {"tips_budget": ours, "us_nets": sandwich, "two_random": other}
    return [
        row(name, seed, value + shift, share)
        for name, values in by_name.items()
        for seed, value in enumerate(values)
        for share, shift in ((1.0, 0.0), (0.5, -1.0))
    ]


def test_bars_hold_only_with_their_interval() -> None:
    clear = {b["name"].split(" (")[0]: b for b in bars(rows_of([55.0, 55.1, 54.9], [50.0] * 3, [54.0] * 3))}
    assert clear["tips_budget − us_nets, front, points"]["holds"]
    assert clear["tips_budget − us_nets, front, points"]["value"] == pytest.approx(5.0)
    assert clear["tips_budget − two_random, the best rival"]["holds"]
    assert clear["compute of tips_budget to reach us_nets's front / its compute"]["value"] == pytest.approx(0.5)
    assert not clear["last tenth of us_nets's compute, points"]["value"] > 0.3
    noisy = {b["name"].split(" (")[0]: b for b in bars(rows_of([60.0, 50.0, 55.0], [50.0] * 3, [54.0] * 3))}
    assert not noisy["tips_budget − us_nets, front, points"]["holds"]
    assert not noisy["tips_budget − two_random, the best rival"]["holds"]


def test_a_bar_never_reached_is_told_as_that() -> None:
    behind = rows_of([48.0, 48.1, 47.9], [50.0] * 3, [45.0] * 3)
    by_name = {item["name"].split(" (")[0]: item for item in bars(behind)}
    reach = by_name["compute of tips_budget to reach us_nets's front / its compute"]
    assert not reach["holds"]
    assert bar_text(reach).endswith("its compute: never reached (bar <= 0.7)")
    assert bar_text(by_name["tips_budget − us_nets, front, points"]).endswith("): -2 (bar >= 2)")


def test_the_reference_as_the_best_rival_has_one_bar_of_flatness() -> None:
    rows = rows_of([48.0, 48.1, 47.9], [50.0] * 3, [45.0] * 3)
    names = [item["name"] for item in bars(rows)]
    assert len(names) == len(set(names))
    assert names[2].startswith("tips_budget − us_nets, the best rival")


def test_shorter_trainings_have_their_own_best() -> None:
    rows = rows_of([55.0, 55.1, 54.9], [50.0] * 3, [54.0] * 3)
    rows += [row("spos", seed, 60.0, 0.5) for seed in range(3)]
    short = {b["name"].split(" (")[0]: b for b in bars(rows) if b["name"].startswith("at ")}
    assert short["at 0.5 of the compute: tips_budget − spos"]["value"] == pytest.approx(54.0 - 60.0)
    assert not any(b["holds"] for b in short.values())


def test_bars_choose_on_validation_images() -> None:
    rows = rows_of([52.0] * 3, [50.0] * 3, [51.0] * 3)
    rows += [
        {**row("tips_growth", seed, 70.0), "validation": {"mflops": [0.1], "latency_ms": [0.1]}} for seed in range(3)
    ]
    assert bars(rows)[0]["name"].startswith("tips_budget − us_nets")


def test_bars_choose_among_those_with_the_most_seeds() -> None:
    rows = [*rows_of([52.0] * 3, [50.0] * 3, [51.0] * 3), row("tips_growth", 0, 70.0), row("spos", 1, 70.0)]
    names = [item["name"] for item in bars(rows)]
    assert names[0].startswith("tips_budget − us_nets")
    assert names[2].startswith("tips_budget − two_random, the best rival")


def test_the_ladder_compares_each_with_the_one_before_and_every_form_with_its_schedule() -> None:
    front = {"us_nets": 50.0, "spos": 58.0, "one_budgets": 60.0, "tips_budget": 61.0}
    front |= {"one_growth": 60.0, "tips_growth": 59.5}
    rows = [row(name, seed, value + 0.1 * seed) for name, value in front.items() for seed in range(3)]
    table = ladder(rows)
    assert table is not None
    names, before, _, _, brings, _ = (list(column.cells) for column in table.columns)
    assert names == list(front)
    assert before == ["", "us_nets", "spos", "one_budgets", "spos", "one_growth"]
    assert [text.split(" ")[0] for text in brings] == ["–", "+8.00", "+2.00", "+1.00", "+2.00", "-0.50"]
    assert ladder(rows[:3]) is None


def test_a_study_without_its_longest_training_shows_the_longest_it_has() -> None:
    rows = [row(name, seed, 50.0 + seed, 0.25) for name in ("us_nets", "spos", "tips_budget") for seed in range(2)]
    assert longest(rows) == 0.25
    assert set(of_kind(rows, "compute")) == {"us_nets", "spos", "tips_budget"}
    # One length says nothing about how flat a curve is, nor about where it crosses another.
    assert [item["name"].split(" (")[0] for item in bars(rows)] == [
        "tips_budget − us_nets, front, points",
        "tips_budget − spos, the best rival",
        "path importance alone: tips_budget − spos",
    ]


def test_the_page_draws_a_curve_only_where_there_are_lengths(tmp_path: Path) -> None:
    rows = [
        row(name, seed, 50.0 + seed, share, versions={"torch": "1"}, device="cpu", scale="cpu")
        for share in (0.25, 1.0)
        for name in ("us_nets", "spos", "tips_budget")
        for seed in range(2)
    ]
    both = write_page(rows, tmp_path / "both.html").read_text()
    one = write_page(rows[:6], tmp_path / "one.html").read_text()
    assert (both.count("<img"), one.count("<img")) == (2, 1)
    assert "Front accuracy against training compute" not in one
    for text in ("tips_budget − us_nets, front, points", "equal training compute"):
        assert text in both
        assert text in one


def test_one_page_tells_of_all_settings_and_leads_to_theirs(tmp_path: Path) -> None:
    fronts = {"us_nets": 40.0, "spos": 50.0, "one_budgets": 52.0, "tips_budget": 53.0}
    rows = [row(name, seed, value + 0.1 * seed) for name, value in fronts.items() for seed in range(2)]
    page = write_overall_page({"cpu": rows, "cpu32": rows, "smoke": rows[:2]}, tmp_path / "all.html").read_text()
    assert "cpu, 8" in page
    assert page.count("path importance alone".capitalize()) == 2
    assert "<a href='cpu32.html'>" in page
    assert "smoke.html" not in page
    assert "<b>holds</b>: tips_budget − us_nets, mean of 2 settings" in page
    assert "of the draws of form budget" not in page
    measured = [{"worth": {"topology": 0.1}, "repeated": 0.3, "moved": {"budget": {"topology": 0.004}}}]
    page = write_overall_page({"cpu": rows, "cpu32": rows}, tmp_path / "all.html", {"cpu32": measured}).read_text()
    assert page.count("moves 0.4% of the draws of form budget") == 1


def test_the_mean_over_settings_has_welchs_interval() -> None:
    first, second = [1.0, 2.5, 2.0, 0.5], [4.0, 9.0, -3.0]
    mean, half = mean_difference([first])
    assert (mean, half) == pytest.approx(difference(dict(enumerate(first)), dict.fromkeys(range(4), 0.0))[:2])
    mean, half = mean_difference([first, second])
    welch = stats.ttest_ind(first, [-value for value in second], equal_var=False).confidence_interval(0.95)
    assert (2 * (mean - half), 2 * (mean + half)) == pytest.approx((welch.low, welch.high))


def test_all_settings_stand_in_one_table_and_count_the_same() -> None:
    fronts = {"us_nets": 40.0, "spos": 50.0, "one_budgets": 52.0, "tips_budget": 53.0}
    many = [row(n, seed, v + 0.1 * seed, s) for n, v in fronts.items() for seed in range(5) for s in (0.5, 1.0)]
    few = [row(n, seed, v + seed * (n == "tips_budget")) for n, v in fronts.items() for seed in range(2)]
    alone = [row("us_nets", seed, 30.0) for seed in range(2)]
    found = settings({"cifar": many, "imagenette": few, "other": alone, "single": few[::2]})
    assert list(found) == ["cifar, 4", "cifar, 8", "imagenette, 8"]
    table = overall_table(found)
    assert [list(column.cells)[2] for column in table.columns][:5] == [
        "imagenette, 8",
        "40.00",
        "50.00",
        "52.00",
        "53.50",
    ]
    assert [list(column.cells)[-1].split(" ")[0] for column in table.columns][-1] == "+1.17"
    by_name = {item["name"].split(",")[0]: item for item in overall_bars(found)}
    assert by_name["tips_budget − one_budgets"]["value"] == pytest.approx((1 + 1 + 1.5) / 3)
    assert not by_name["tips_budget − one_budgets"]["holds"]  # two settings are exact, the third is not
    assert by_name["tips_budget − spos"]["value"] == pytest.approx((3 + 3 + 3.5) / 3)
    assert all("3 of them with its sign" in item["name"] for item in by_name.values())


def test_inherited_correlation_is_spearmans() -> None:
    inherited = [0.1, 0.4, 0.2, 0.3, 0.5, 0.6, 0.8, 0.7]
    alone = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    rows = [row("tips", 0, 50.0, panel=inherited)]
    rows += [{"kind": "alone", "rival": f"#{i}", "share": 1.0, "seed": 0, "test": v} for i, v in enumerate(alone)]
    assert inherited_correlation(rows) == {"tips": pytest.approx(stats.spearmanr(inherited, alone).statistic)}


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


def test_the_learning_rate_is_the_best_on_validation_images(tmp_path: Path) -> None:
    scale, results = SCALES["cpu"], Results(tmp_path / "cpu.jsonl")
    for rate, accuracy in zip(scale.rates, (40.0, 60.0, 50.0), strict=True):
        assert results.rate(scale, "two_budgets") is None
        results.add({**row("two_budgets", 1000, accuracy), "kind": "tune", "rate": rate, "key": f"tune {rate}"})
    assert results.rate(scale, "two_budgets") == scale.rates[1]
    assert results.rate(scale, "us_nets") is None
    for rate, accuracy in zip(scale.rates, (40.0, 30.0, 20.0), strict=True):
        results.add({**row("us_nets", 1000, accuracy), "kind": "tune", "rate": rate, "key": f"tune us {rate}"})
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
    scale, rival = SCALES["smoke"], _RIVALS[name]
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
        return train(scale, data, replace(_RIVALS[name], **options), 0.1, 0, Length(steps=4))

    only_single = trained("us_nets", single_first=1.0)
    spos = trained("spos")
    for name, tensor in only_single.supernet.state_dict().items():
        assert torch.equal(tensor, spos.supernet.state_dict()[name]), name
    half = trained("us_nets", single_first=0.5)
    assert spos.compute < half.compute < trained("us_nets").compute
    assert replace(_RIVALS["us_nets"], single_first=0.5).step == "r, from 50% on M m r r"


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
