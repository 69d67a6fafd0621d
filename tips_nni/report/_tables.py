"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

Row = Mapping[str, Any]


def front_table(front: Sequence[Row], target: str, limit: int = 20) -> Table:
    """Return the front as a table, cheapest first; more than `limit` rows are thinned out evenly.

    Test accuracies are a column where all rows have them.
    """
    tested = all("test_accuracy" in row for row in front)
    caption = "accuracy on test images; the subnets were chosen on validation images" if tested else None
    table = Table(title="the front", caption=caption)
    if tested:
        table.add_column("test", justify="right")
    table.add_column("validation", justify="right")
    table.add_column("MFLOPs", justify="right")
    table.add_column("parameters", justify="right")
    table.add_column(f"ms on {target}", justify="right")
    table.add_column("subnet")
    rows = sorted(front, key=lambda row: float(row["mflops"]))
    if len(rows) > limit:
        rows = [rows[round(i * (len(rows) - 1) / (limit - 1))] for i in range(limit)]
    for row in rows:
        latency = f"{row['latency_ms']:.3g}" if "latency_ms" in row else "–"
        table.add_row(
            *([f"{row['test_accuracy']:.1%}"] if tested else []),
            f"{row['validation_accuracy']:.1%}",
            f"{row['mflops']:.3g}",
            f"{row['params_m'] * 1e6:,.0f}",
            latency,
            describe_subnet(row["subnet"]),
        )
    return table


def describe_subnet(subnet: Mapping[str, int]) -> str:
    """Describe a subnet in a few words: the range of its widths, its depths, its resolution."""
    parts = []
    for kind in ("width", "hidden", "heads"):
        values = [value for name, value in subnet.items() if name.startswith(f"{kind}.")]
        if values:
            parts.append(f"{kind} {min(values)}–{max(values)}")
    depths = [str(value) for name, value in subnet.items() if name.startswith("depth.")]
    if depths:
        parts.append(f"depth {'-'.join(depths)}")
    if "resolution" in subnet:
        parts.append(f"{subnet['resolution']} px")
    return ", ".join(parts)


def describe_diagnostics(diagnostics: Mapping[str, float]) -> str:
    """Describe in one line what a search algorithm said of itself: its numbers by name, errors as percentages."""
    parts = []
    for name, value in diagnostics.items():
        text = f"{value:.2%}" if name.endswith("error") else f"{value:.3g}"
        parts.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join(parts)


def describe_coverage(coverage: Mapping[str, Any]) -> str:
    """Describe in one line how much of a predicted latency was measured, and what was not."""
    others = [f"{name} (neighbour)" for name in coverage["neighbours"]] + list(coverage["estimates"])
    others += [f"{name} (not counted)" for name in coverage.get("missing", ())]
    return (
        f"measured: {coverage['covered_kernels_share']:.0%} of the kernels, {coverage['covered_flops_share']:.0%} of "
        f"the multiply-adds; not measured: {', '.join(others) or 'none'}"
    )


def explain_tables(explanation: Mapping[str, Any], count: int = 15) -> list[Table]:
    """Return the most important operations, where the policy knows them, and the probability of every option."""
    tables = []
    if explanation["operations"]:
        operations = Table(title=f"operations by the best path through them (first {count})")
        operations.add_column("operation")
        operations.add_column("TPS", justify="right")
        for name, score in explanation["operations"][:count]:
            operations.add_row(name, f"{score:.4g}")
        tables.append(operations)
        names = [explanation["nodes"][i]["name"] for i in explanation["best_paths"][0][1]]
        best = Table(title=f"path with the highest TPS ({explanation['best_paths'][0][0]:.4g})", show_header=False)
        best.add_row(" → ".join(names))
        tables.append(best)
    options = Table(title=f"probability of every option, policy {explanation['policy']}")
    options.add_column("dimension")
    options.add_column("choice: probability")
    for dim in explanation["dims"]:
        cells = [f"{choice}: {p:.0%}" for choice, p in zip(dim["choices"], dim["probabilities"], strict=True)]
        options.add_row(dim["name"], "  ".join(cells))
    return [*tables, options]
