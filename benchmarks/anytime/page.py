"""The page of a study: tables and plots in one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from anytime.importance_tables import moves_table, ranks_table
from anytime.overall import overall_bars, overall_table, settings
from anytime.rivals import REFERENCE
from anytime.summary import OURS, Row, bar_text, bars, curve, inherited_correlation, label, mean_points, of_kind, tables
from anytime.verdict import verdict

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1.5rem;color:#1b1f24}"
    "table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}caption{text-align:left;"
    "font-weight:600;padding:.6rem 0}td,th{padding:.25rem .6rem;border-bottom:1px solid #dfe3e8;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}.scroll{overflow-x:auto}"
)
_HEAD = (
    f"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>Anytime accuracy</title><style>{_STYLE}</style>"
    "<h1>Anytime accuracy of sampling policies</h1>"
)
_COLOURS = matplotlib.color_sequences["tab20"]
_METHOD = (
    "Every rival trains the same supernet from the same initial weights on the same order of images. A step's subnets "
    "are part of the rival: M the largest, m the smallest, r a drawn one. Multiply-adds are counted for every subnet "
    "of every step, a backward pass as two forward passes; what refreshing the Markov chain takes is given as a share "
    "of the time. Learning rates are chosen on validation images, one for each kind of step.",
    "Front accuracy: at ten budgets, even in the logarithm of multiply-adds, the subnet that one search with one "
    "number of evaluations finds best on validation images, calibrated and measured on test images; the mean over the "
    "budgets. Panel: the mean over forty random subnets, the same for all. Which form of TIPS and which rival stand in "
    "the bars is decided on validation images. Intervals are 95%, of paired differences over seeds, by Student's t.",
)


def write_page(rows: Sequence[Row], path: Path, importance: Sequence[Row] = ()) -> Path:
    """Write the page and return its path.

    Args:
        rows: of one scale.
        path: of the page.
        importance: rows of `benchmarks/importance.py` on the same scale.
    """
    parts = [_HEAD]
    if rows:
        first = rows[-1]
        versions = ", ".join(f"{name} {value}" for name, value in first["versions"].items())
        devices = " and ".join(sorted({row["device"] for row in rows}))
        parts.append(f"<p>Scale {escape(first['scale'])}, on {escape(devices)}; {escape(versions)}.</p>")
    parts += [f"<p>{text}</p>" for text in _METHOD]
    compared = of_kind(rows, "compute")
    if any(len(curve(rows, name)) > 1 for name in compared):
        parts.append(_image(_curves(rows), "Front accuracy against training compute"))
    if compared:
        parts.append(_image(_fronts(compared), "Test accuracy at every budget"))
    parts += _bars(bars(rows))
    told = verdict(rows, importance)
    if told:
        parts.append("<h2>What this says</h2>")
        parts += [f"<p>{escape(text)}</p>" for text in told]
    shown = [*tables(rows), *([ranks_table(importance), moves_table(importance)] if importance else [])]
    parts += [_table(table) for table in shown]
    if inherited_correlation(rows):
        parts.append(f"<p>Stand-alone subnets train as many steps as the {REFERENCE} sandwich.</p>")
    return _write(parts, path)


def write_overall_page(
    studies: Mapping[str, Sequence[Row]], path: Path, importance: Mapping[str, Sequence[Row]] = MappingProxyType({})
) -> Path:
    """Write one page about all scales, with what each says, and return its path.

    Args:
        studies: name of a scale -> its rows.
        path: of the page; those of the scales are taken to lie beside it.
        importance: name of a scale -> its rows of `benchmarks/importance.py`; scales may be missing.
    """
    found = settings(studies)
    parts = [_HEAD, *(f"<p>{text}</p>" for text in _METHOD), _table(overall_table(found)), *_bars(overall_bars(found))]
    for scale, rows in studies.items():
        told = verdict(rows, importance.get(scale, ()))
        if told:
            parts.append(f"<h2><a href='{escape(scale)}.html'>{escape(scale)}</a></h2>")
            parts += [f"<p>{escape(text)}</p>" for text in told]
    return _write(parts, path)


def _bars(found: Sequence[Row]) -> list[str]:
    return [
        f"<p><b>{'holds' if item['holds'] else 'does not hold'}</b>: {escape(bar_text(item))}</p>" for item in found
    ]


def _write(parts: Sequence[str], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text("\n".join(parts), encoding="utf-8")
    temporary.replace(path)
    return path


def _curves(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.add_subplot()
    names = sorted(of_kind(rows, "compute"), key=lambda name: -curve(rows, name)[-1][1])
    for i, name in enumerate(names):
        x, y = zip(*curve(rows, name), strict=True)
        ours = name in OURS
        axes.plot(x, y, "o-" if ours else "s--", color=_COLOURS[i % 20], lw=2 if ours else 1.2, ms=5, label=label(name))
    axes.set_xscale("log")
    ticks = sorted({float(f"{compute:.2g}") for name in names for compute, _ in curve(rows, name)})
    axes.set_xticks(ticks, [f"{compute:g}" for compute in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training compute, 10¹² multiply-adds")
    axes.set_ylabel("front accuracy on test images, %")
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _fronts(compared: dict[str, dict[int, Row]]) -> Figure:
    """Accuracy less the reference's at every budget: where on the front a rival gains."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.add_subplot()
    base = (
        np.mean([row["test"]["mflops"] for row in compared[REFERENCE].values()], axis=0) if REFERENCE in compared else 0
    )
    for i, name in enumerate(sorted(compared, key=lambda n: -mean_points(compared[n]))):
        values = np.mean([row["test"]["mflops"] for row in compared[name].values()], axis=0) - base
        axes.plot(
            range(1, len(values) + 1), 100 * values, "o-", color=_COLOURS[i % 20], ms=4, lw=1.2, label=label(name)
        )
    axes.set_xlabel("budget, from the cheapest (evenly in log multiply-adds)")
    axes.set_ylabel(f"test accuracy − {REFERENCE}'s, points")
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _image(figure: Figure, text: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<p><img alt="{text}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"></p>'


def _table(table: Table) -> str:
    """Turn a terminal table into an HTML one."""
    sides = [f" style='text-align:{column.justify}'" for column in table.columns]
    heads = "".join(
        f"<th{side}>{escape(str(column.header))}</th>" for side, column in zip(sides, table.columns, strict=True)
    )
    rows = zip(*(column.cells for column in table.columns), strict=True)
    body = "".join(
        "<tr>" + "".join(f"<td{side}>{escape(str(c))}</td>" for side, c in zip(sides, row, strict=True)) + "</tr>"
        for row in rows
    )
    caption = escape(str(table.title))
    return f"<div class=scroll><table><caption>{caption}</caption><tr>{heads}</tr>{body}</table></div>"
