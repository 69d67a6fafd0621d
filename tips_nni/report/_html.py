"""The HTML report of a run folder: one file, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from tips_nni.report._plots import front_figure, probability_figure, sweep_figure, tas_figure, training_figure
from tips_nni.report._record import RunRecord
from tips_nni.report._tables import describe_diagnostics, describe_subnet


def write_report(folder: Path) -> Path:
    """Write ``report.html`` and ``front.png`` from the files of a run folder and return the page's path.

    Raises:
        TipsError: the folder holds no finished run, or a file of it is damaged.
    """
    record = RunRecord.read(folder)
    front, search = record.front, record.facts.get("search")
    picture = front_figure(front, record.evaluated, record.facts["latency"]["target"])
    figures = {"front": _embed(picture), "training": _embed(training_figure(record.history))}
    if record.explanations:
        figures["probabilities"] = _embed(probability_figure(record.explanations))
        if record.explanations[-1]["nodes"]:
            figures["tas"] = _embed(tas_figure(record.explanations[-1]))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tips_nni.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.globals["figures"] = {"tas": None, "probabilities": None, **figures}
    page = environment.get_template("report.html.j2").render(
        run=record.facts,
        front=[{**row, "description": describe_subnet(row["subnet"])} for row in front],
        best=max(front, key=lambda row: row["validation_accuracy"]),
        cheapest=front[0],
        size=_magnitude(record.facts["space_size"]),
        settings=record.settings,
        search=search,
        diagnostics=describe_diagnostics(search["diagnostics"]) if search is not None else "",
    )
    write_figure(picture, folder / "front.png")
    target = folder / "report.html"
    _replace(target, page.encode())
    return target


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return the path."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, buffer.getvalue())
    return path


def write_explain_pictures(
    explanations: Sequence[Mapping[str, Any]], sweep: Sequence[Mapping[str, Any]] | None, path: Path
) -> list[Path]:
    """Write the pictures of an explanation and return their paths: `path`, ``…_options.png``, ``…_lambda.png``.

    Args:
        explanations: before and after, as JSON data; the last one is drawn.
        sweep: from `tips_nni.core.lambda_sweep`, or None.
        path: of the network's picture.
    """
    written = [write_figure(tas_figure(explanations[-1]), path)] if explanations[-1]["nodes"] else []
    written.append(write_figure(probability_figure(explanations), path.with_name(f"{path.stem}_options.png")))
    if sweep is not None:
        written.append(write_figure(sweep_figure(sweep), path.with_name(f"{path.stem}_lambda.png")))
    return written


def _embed(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _magnitude(size: int) -> str:
    text = str(size)
    return f"{size:,}" if len(text) < 7 else f"{text[0]}.{text[1]}·10^{len(text) - 1}"


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
