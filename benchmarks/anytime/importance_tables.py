"""What `benchmarks/importance.py` measured, as tables: importance beside benefits, and the draws that it moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from anytime.overall import mean_difference
from anytime.summary import Row

_KINDS = {"importance": "importance", "worth": "worth", "per_cost": "both per multiply-add"}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return (mean, half width of its 95% interval); an infinite one for a single value."""
    return mean_difference([values]) if len(values) > 1 else (values[0], np.inf)


def ranks_table(rows: Sequence[Row]) -> Table:
    """Return rank correlations by estimator, their mean over supernets and its interval."""
    table = Table(title=f"rank correlation with the benefit of an option, {len(rows)} supernets")
    table.add_column("estimator")
    for title in _KINDS.values():
        table.add_column(title, justify="right")
    for name in dict.fromkeys(name for kind in _KINDS for name in rows[0][kind]):
        cells = []
        for kind in _KINDS:
            values = [row[kind][name] for row in rows if name in row[kind]]
            mean, half = interval(values) if values else (np.nan, np.inf)
            cells.append("–" if not values else f"{mean:+.2f}" + (f" ± {half:.2f}" if np.isfinite(half) else ""))
        table.add_row(name, *cells)
    table.add_row("measured twice, halves", "", f"{np.mean([row['repeated'] for row in rows]):+.2f}", "")
    return table


def moves_table(rows: Sequence[Row]) -> Table:
    """Return how much of the draws importance moves, by form and edge weight, the mean over supernets."""
    table = Table(title="share of the draws that importance moves to other options")
    table.add_column("form")
    forms = rows[0]["moved"]
    weights = list(next(iter(forms.values())))
    for weight in weights:
        table.add_column(weight, justify="right")
    for form in forms:
        table.add_row(form, *(f"{moved(rows, form, weight):.1%}" for weight in weights))
    return table


def moved(rows: Sequence[Row], form: str, weight: str) -> float:
    """Return which share of the draws importance moves, the mean over supernets."""
    return float(np.mean([row["moved"][form][weight] for row in rows]))
