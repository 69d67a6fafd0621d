"""What a study says, in sentences made of its figures: whose gain it is, and why path importance shows or does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from anytime.importance_tables import moved
from anytime.rivals import REFERENCE, RIVALS_BY_NAME
from anytime.summary import PAIRS, Row, best_two, difference, last_tenth, of_kind, points, said, shown


def verdict(rows: Sequence[Row], importance: Sequence[Row] = ()) -> list[str]:
    """Return sentences about the longest trainings at equal compute; none without TIPS, a rival and the reference.

    Args:
        rows: of one scale.
        importance: rows of `benchmarks/importance.py` on the same scale; may be none.
    """
    found = of_kind(rows, "compute")
    chosen = best_two(found)
    if chosen is None or REFERENCE not in found:
        return []
    best, strongest = chosen
    fronts = {name: points(by_seed) for name, by_seed in found.items()}
    ahead = difference(fronts[best], fronts[REFERENCE])
    told = [f"{best} is the best form of TIPS on validation images. {_compared(best, REFERENCE, ahead)}"]
    if strongest != REFERENCE:
        told.append(_compared(best, strongest, difference(fronts[best], fronts[strongest]), "the best rival"))
    control = _control_of(best, fronts)
    if control is not None:
        told += _whose_gain(fronts, best, control, ahead[0])
    cheapest, dearest = (100 * _mean_at(found[best], budget) for budget in (0, -1))
    told.append(
        f"From the cheapest budget to the dearest the front of {best} goes from {cheapest:.1f}% to {dearest:.1f}%: "
        f"{dearest - cheapest:+.1f} points are what all its larger options together bring."
    )
    told += _why(RIVALS_BY_NAME[best].options, importance)
    last = {name: last_tenth(rows, name) for name in dict.fromkeys((REFERENCE, strongest, best))}
    known = {name: value for name, value in last.items() if math.isfinite(value)}
    if known:
        flat = all(value < 0.3 for value in known.values())
        values = ", ".join(f"{name} {value:+.2f}" for name, value in known.items())
        told.append(
            f"The last tenth of the compute brought, in points: {values}. "
            + (
                "All are flat (under 0.3)."
                if flat
                else "Not all are flat (under 0.3): longer training may change this."
            )
        )
    return told


def _compared(first: str, second: str, found: tuple[float, float, int], what: str = "") -> str:
    mean, half, number = found
    side = "ahead of" if shown(mean, half) else "behind" if shown(-mean, half) else "not shown to differ from"
    return f"It is {side} {second}{f', {what}' if what else ''}: {said(mean, half)} points ({number} seeds)."


def _control_of(best: str, fronts: dict[str, dict[int, float]]) -> str | None:
    """Return what has the same subnets a step without path importance: its own schedule before uniform draws."""
    same = [second for first, second in PAIRS if first == best and second in fronts]
    return min(same, key=lambda name: RIVALS_BY_NAME[name].group != "control", default=None)


def _whose_gain(fronts: dict[str, dict[int, float]], best: str, control: str, gain: float) -> list[str]:
    effect, half, number = difference(fronts[best], fronts[control])
    if not number:
        return []
    share = f", {effect / gain:.0%} of the difference from {REFERENCE}; the rest is the schedule's" if gain > 0 else ""
    sign = "above" if shown(effect, half) else "below" if shown(-effect, half) else "not shown to be above"
    told = [
        f"Path importance alone, {best} − {control}, brings {said(effect, half)} points{share}. This is {sign} zero."
    ]
    seeds = sorted(set(fronts[best]) & set(fronts[control]))
    if number > 2:
        spread = float(np.std([fronts[best][seed] - fronts[control][seed] for seed in seeds], ddof=1))
        told.append(
            f"Between two seeds this difference varies with a standard deviation of {spread:.1f} points: to show one "
            f"point about {_seeds_to_show(spread)} seeds are needed, and {number} are here."
        )
    return told


def _seeds_to_show(spread: float) -> int:
    """Return how many seeds bring the half width of a mean's 95% interval to one point."""
    number = 2
    while stats.t.ppf(0.975, number - 1) * spread > math.sqrt(number):
        number += 1
    return number


def _mean_at(by_seed: dict[int, Row], budget: int) -> float:
    return float(np.mean([row["test"]["mflops"][budget] for row in by_seed.values()]))


def _why(options: Any, importance: Sequence[Row]) -> list[str]:
    """Say how much the form listens to importance, and whether importance says what matters."""
    form, weight = options.get("form", "marginal"), options.get("edge_weight", "topology")
    if not importance or weight not in importance[0]["moved"].get(form, {}):
        return []
    agreed, repeated = (
        float(np.mean(values))
        for values in ([row["worth"][weight] for row in importance], [row["repeated"] for row in importance])
    )
    return [
        f"Importance by {weight} moves {moved(importance, form, weight):.1%} of the draws of form {form} to other "
        f"options; a form that moves few cannot gain much by it. What it holds an option to be worth agrees with what "
        f"the option was measured to bring by a rank correlation of {agreed:+.2f}; the measurement agrees with its own "
        f"repetition by {repeated:+.2f} ({len(importance)} supernets)."
    ]
