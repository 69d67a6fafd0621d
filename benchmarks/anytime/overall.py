"""All studies together: the differences in every setting, which is a scale and a length, and their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from scipy import stats

from anytime.rivals import BASELINE, DEFAULT, REFERENCE, SCHEDULE
from anytime.summary import Row, difference, lengths, of_kind, points, said, shown

#: What the default strategy is compared with, and the least that is asked of the difference.
AGAINST = {REFERENCE: 2.0, BASELINE: 0.0, SCHEDULE: 0.0}
Setting = dict[str, dict[int, float]]


def settings(studies: Mapping[str, Sequence[Row]]) -> dict[str, Setting]:
    """Return front accuracy by setting, rival and seed, of every setting in which all were trained with two seeds.

    Args:
        studies: name of a scale -> its rows.
    """
    found: dict[str, Setting] = {}
    for scale, rows in studies.items():
        for share in reversed(lengths(rows)):
            trained = of_kind(rows, "compute", share)
            fronts = {name: points(trained.get(name, {})) for name in (*AGAINST, DEFAULT)}
            if all(difference(fronts[DEFAULT], fronts[name])[2] >= 2 for name in AGAINST):
                compute = float(np.mean([row["compute"] for row in trained[DEFAULT].values()]))
                found[f"{scale}, {compute:.3g}"] = fronts
    return found


def mean_difference(differences: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return (mean, half width of its 95% interval) of the means of independent samples, which may differ in spread.

    Every sample counts the same, whatever its size; degrees of freedom by Welch and Satterthwaite.

    Args:
        differences: samples of two values or more.
    """
    parts = np.array([np.var(values, ddof=1) / len(values) for values in differences])
    freedom = np.array([len(values) - 1 for values in differences])
    mean = float(np.mean([np.mean(values) for values in differences]))
    if not parts.any():
        return mean, 0.0
    quantile = stats.t.ppf(0.975, parts.sum() ** 2 / (parts**2 / freedom).sum())
    return mean, float(quantile * np.sqrt(parts.sum()) / len(parts))


def _paired(setting: Setting, name: str) -> list[float]:
    ours, theirs = setting[DEFAULT], setting[name]
    return [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]


def overall_table(found: Mapping[str, Setting]) -> Table:
    """Return fronts and differences by setting, and the mean over the settings."""
    table = Table(title="all settings: front accuracy in %; ± is a 95% interval of the paired difference")
    names = (*AGAINST, DEFAULT)
    table.add_column("scale, 10¹² multiply-adds")
    for name in (*names, *(f"{DEFAULT} − {name}" for name in AGAINST)):
        table.add_column(name, justify="right")
    for title, setting in found.items():
        fronts = [f"{np.mean(list(setting[name].values())):.2f}" for name in names]
        pairs = [difference(setting[DEFAULT], setting[name]) for name in AGAINST]
        table.add_row(title, *fronts, *(f"{said(mean, half)} ({number})" for mean, half, number in pairs))
    means = [mean_difference([_paired(setting, name) for setting in found.values()]) for name in AGAINST]
    table.add_row("mean of the settings", *("" for _ in names), *(said(*pair) for pair in means))
    return table


def overall_bars(found: Mapping[str, Setting]) -> list[dict[str, Any]]:
    """Return the bars of the mean over the settings, and how many of them have its sign."""
    result: list[dict[str, Any]] = []
    for name, least in AGAINST.items():
        samples = [_paired(setting, name) for setting in found.values()]
        mean, half = mean_difference(samples)
        alike = sum(np.mean(values) * mean > 0 for values in samples)
        made_of = f"mean of {len(samples)} settings (± {half:.2f}; {alike} of them with its sign)"
        result.append(
            {
                "name": f"{DEFAULT} − {name}, {made_of}",
                "value": mean,
                "bar": f">= {least:g}" if least else "> 0",
                "holds": shown(mean, half, least),
            }
        )
    return result
