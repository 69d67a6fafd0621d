"""What a study says of itself, on figures whose story is known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from anytime.summary import difference
from anytime.verdict import _seeds_to_show, verdict


def rows_of(**accuracies: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "kind": "compute",
            "rival": name,
            "seed": seed,
            "share": share,
            "compute": 4 * share,
            "test": {"mflops": [(value - 1) / 100, *[value / 100] * 8, (value + 1) / 100]},
            "validation": {"mflops": [value / 100]},
        }
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
        for share in (0.5, 1.0)
    ]


MEASURED = [
    {"worth": {"topology": r}, "repeated": 0.3, "moved": {"budget": {"topology": 0.004}, "marginal": {"loss": 0.5}}}
    for r in (0.1, 0.2)
]


def test_the_schedules_gain_is_not_taken_for_importances() -> None:
    rows = rows_of(us_nets=[40, 41, 40], spos=[48, 48, 47], one_budgets=[50, 52, 51], tips_budget=[51, 51, 52])
    told = verdict(rows, MEASURED)
    assert told[0].startswith(
        "tips_budget is the best form of TIPS on validation images. It is ahead of us_nets: +11.00"
    )
    assert told[1].startswith("It is ahead of spos, the best rival: +3.67 ±")
    assert "tips_budget − one_budgets, brings +0.33 ±" in told[2]
    assert (
        "3% of the difference from us_nets; the rest is the schedule's. This is not shown to be above zero" in told[2]
    )
    assert "standard deviation of 1.2 points" in told[3]
    assert "from 50.3% to 52.3%: +2.0 points" in told[4]
    assert "moves 0.4% of the draws of form budget" in told[5]
    assert "correlation of +0.15" in told[5]
    assert "All are flat (under 0.3)" in told[6]
    assert len(told) == 7


def test_a_defeat_is_called_one() -> None:
    rows = rows_of(us_nets=[50.0, 50.5, 50.0], tips_sandwich=[48.0, 48.4, 47.9], spos=[45, 44, 45])
    told = verdict(rows, MEASURED)
    assert "It is behind us_nets: -2.07 ±" in told[0]
    # The same subnets a step with uniform draws are the reference itself; nothing was measured of this form.
    assert "tips_sandwich − us_nets, brings -2.07 ±" in told[1]
    assert told[1].endswith("This is below zero.")
    assert "the schedule" not in told[1]
    assert not any("of the draws" in text or "best rival" in text for text in told)


def test_a_rising_curve_is_not_called_flat() -> None:
    rows = rows_of(us_nets=[50.0, 50.0], spos=[51.0, 52.0], tips_budget=[53.0, 53.5])
    for row in rows:
        if row["share"] == 0.5 and row["rival"] == "us_nets":
            row["test"] = {"mflops": [0.45] * 10}
    assert "us_nets +0.76" in verdict(rows)[-1]
    assert "Not all are flat" in verdict(rows)[-1]


def test_without_tips_nothing_is_said() -> None:
    assert verdict(rows_of(us_nets=[50.0, 50.0], spos=[51.0, 52.0])) == []
    assert verdict([]) == []


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.2, 4.4])
def test_as_many_seeds_show_a_point_and_one_fewer_does_not(spread: float) -> None:
    def half_width(number: int) -> float:
        values = np.fromiter(itertools.islice(itertools.cycle([1.0, -1.0]), number), float)
        values -= values.mean()
        values *= spread / values.std(ddof=1)
        return difference(dict(enumerate(values)), dict.fromkeys(range(number), 0.0))[1]

    number = _seeds_to_show(spread)
    assert half_width(number) <= 1.0 + 1e-9
    assert number == 2 or half_width(number - 1) > 1.0
