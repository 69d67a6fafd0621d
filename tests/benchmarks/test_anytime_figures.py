"""The comparison of policies: its statistics, tables, bars and pages, on figures that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anytime.overall import mean_difference, overall_bars, overall_table, settings
from anytime.page import write_overall_page, write_page
from anytime.summary import (
    ablations,
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
    tables,
)
from scipy import stats


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


def test_options_are_compared_with_the_form_that_they_change() -> None:
    values = {"us_nets": (50.0, 51.0), "tips_sandwich": (48.0, 50.0), "sandwich_sum": (49.0, 51.5)}
    rows = [row(name, seed, v, share) for name, vs in values.items() for seed, v in enumerate(vs) for share in (1, 0.5)]
    rows += [row("sandwich_neutral", 0, 51.0, 0.5, steps=50), row("budget_calm", 0, 40.0)]  # the second lacks its form
    table = ablations(rows)
    assert table is not None
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["length"] == ["1", "0.5", "0.5"]
    assert cells["of"] == ["tips_sandwich"] * 3
    assert cells["option"][1] == "marginal, sandwich, compute-neutral"
    assert cells["the option brings"][0].startswith("+1.25 ± ")
    assert cells["the option brings"][1] == "+3.00 (one seed)"
    assert cells["steps, of the form's"] == ["1.00", "0.50", "1.00"]
    assert ablations(rows[:8]) is None


def test_every_length_has_its_table() -> None:
    rows = rows_of([55.0, 54.0], [50.0] * 2, [53.0] * 2)
    titles = [str(table.title).split(":")[0] for table in tables([*rows, row("spos", 0, 48.0, 0.25)])]
    assert titles[:2] == ["equal training compute, the longest trainings", "equal training compute, 0.5 of it"]
    assert not any("0.25 of it" in title for title in titles)  # one rival alone compares with nothing


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
