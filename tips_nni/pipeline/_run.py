"""One run: train, search, measure, export, report."""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytorch_lightning
import scipy
import timm
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tips_nni import __version__
from tips_nni.core import SearchResult, check_feasible, write_csv, write_json
from tips_nni.elastic import AnytimeModel, Supernet, example_images, export_onnx
from tips_nni.pipeline._files import ANYTIME_MODEL, claim
from tips_nni.pipeline._front import (
    MeasuredPoint,
    Measurements,
    information,
    measure_front,
    objectives,
    point_row,
    search,
)
from tips_nni.pipeline._prepare import Parts, describe_network, prepare
from tips_nni.report import describe_coverage, describe_diagnostics, front_table, write_report
from tips_nni.specs import RunSpec
from tips_nni.training import process_rank, train


def run(
    spec: RunSpec,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    source: str | None = None,
) -> Path:
    """Carry out a run spec and return its folder.

    With several devices every process trains (see `tips_nni.training.train`). The first one alone writes, prints and
    goes on; the others return after the training, when the folder is not complete yet.

    The folder ends with ``anytime.safetensors``, ``onnx/``, ``front.csv``, ``front.json``, ``evaluated.csv``,
    ``training.csv``, ``architecture.json``, ``explain.json``, ``run.json`` and ``report.html``.

    Args:
        spec: from `tips_nni.specs.load_run`.
        resume: go on with the run in the output folder: finished epochs and measured subnets are kept.
        overwrite: delete the run in the output folder first.
        quiet: no progress bars.
        source: path of the spec, for the hint at the end.

    Raises:
        TipsError: wrong input; see the message.
    """
    rank = process_rank(spec.training)
    console = Console(quiet=quiet or rank > 0, highlight=False)
    seconds: dict[str, float] = {}
    with _timed("prepare", seconds):
        parts = prepare(spec)
        check_feasible(parts.supernet.space, parts.costs, spec.constraints.bounds)
        before = parts.policy.explain().to_json()
    folder = Path(spec.output)
    if rank == 0:
        claim(spec, resume=resume, overwrite=overwrite)
        _introduce(console, parts)
        describe_network(parts, folder)
    with _timed("train", seconds):
        summary = train(
            parts.supernet,
            parts.data,
            spec.training,
            parts.strategy.sampling,
            parts.policy,
            folder,
            seed=spec.seed,
            resume=resume,
            quiet=quiet,
            flops=parts.table.flops,
        )
    if rank > 0:
        return folder
    write_json(folder / "explain.json", [before, parts.policy.explain().to_json()])
    device = summary.device
    parts.supernet.to(device).eval()
    with _timed("search", seconds):
        measure = Measurements(parts, folder / "measurements.json", device, _digest(parts.supernet))
        with _progress(console, "search") as report_progress:
            result = search(parts, measure, report_progress)
    with _timed("measure", seconds):
        front = measure_front(parts, result.points, measure.calibration, device)
    with _timed("export", seconds):
        facts = _facts(parts, front, result, seconds, source)
        model = AnytimeModel.from_supernet(parts.supernet.cpu(), [point.entry for point in front], information(parts))
        model.save(folder / ANYTIME_MODEL)
        exports = _export(model, spec.export.onnx, folder / "onnx")
    facts["onnx"] = exports
    rows = [point.row() for point in front]
    write_json(folder / "front.json", rows)
    write_csv(folder / "front.csv", [_flat(row) for row in rows])
    write_csv(folder / "evaluated.csv", [_flat(point_row(point)) for point in result.evaluated])
    write_json(folder / "run.json", facts)
    page = write_report(folder)
    Console(highlight=False).print(front_table(rows, parts.latency.target))
    if result.diagnostics:
        print(f"search         {describe_diagnostics(result.diagnostics)}")
    print(f"anytime model  {folder / ANYTIME_MODEL}")
    for item in exports:
        print(f"ONNX           {folder / 'onnx' / item['file']}  (onnxruntime − torch: {item['difference']:.1e})")
    print(f"report         {page}")
    print(f"latency        predicted for {parts.latency.target}; {describe_coverage(facts['latency'])}")
    for warning in facts["latency"]["warnings"]:
        print(f"note           {warning}")
    print(f"next           {facts['next'][0]}")
    return folder


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Record the wall-clock seconds of a stage."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = round(time.perf_counter() - start, 2)


@contextmanager
def _progress(console: Console, label: str) -> Iterator[Any]:
    """Show a progress bar; yields ``update(done, planned, best)``."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("best {task.fields[best]:.1%}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=None, best=0.0)
        yield lambda done, planned, best: progress.update(task, completed=done, total=planned, best=best)


def _introduce(console: Console, parts: Parts) -> None:
    """Say what is about to happen."""
    spec, space, data = parts.spec, parts.supernet.space, parts.data
    console.print(
        f"[bold]{spec.backbone.name}[/]  space {spec.space}: {len(space.dims)} elastic dimensions, "
        f"{_magnitude(space.size)} subnets; strategy {spec.strategy}"
    )
    largest = space.encode(space.largest)[None]
    smallest = space.encode(space.smallest)[None]
    costs = parts.costs
    span = ", ".join(
        f"{costs[name].evaluate(smallest)[0]:.3g}–{costs[name].evaluate(largest)[0]:.3g} {label}"
        for name, label in (("mflops", "MFLOPs"), ("params_m", "M parameters"), ("latency_ms", "ms predicted"))
    )
    console.print(f"subnets from {span} ({parts.latency.target})")
    console.print(
        f"{data.num_classes} classes, images {data.in_chans}×{data.image_size}×{data.image_size}; "
        f"{len(parts.supernet.fixed)} channel groups or stages stay fixed (reasons in the report)"
    )


def _magnitude(size: int) -> str:
    """Return a count of subnets for people."""
    return f"{size:,}" if size < 10**6 else f"{10 ** (math.log10(size) % 1):.1f}·10^{int(math.log10(size))}"


def _digest(supernet: Supernet) -> str:
    """Return a hash of the weights, which measurements belong to."""
    digest = hashlib.sha256()
    for name, tensor in supernet.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with one column per elastic dimension."""
    rest = {key: value for key, value in row.items() if key != "subnet"}
    return {**rest, **row["subnet"]}


def _export(model: AnytimeModel, count: int, folder: Path) -> list[dict[str, Any]]:
    """Export `count` subnets, spread over the front from the most accurate to the cheapest."""
    rows = sorted({round(i) for i in np.linspace(0, len(model.front) - 1, count)}) if count else []
    exports = []
    for row in rows:
        cost = model.front[row]["mflops"]
        name = f"subnet_{row}_{cost:.3g}mflops.onnx"
        difference = export_onnx(model.extract(row), example_images(model, row, 2), folder / name)
        exports.append({"file": name, "row": row, "difference": difference})
    return exports


def _facts(
    parts: Parts, front: list[MeasuredPoint], result: SearchResult, seconds: dict[str, float], source: str | None
) -> dict[str, Any]:
    """Return what the report and a later reader need to know about the run."""
    spec, supernet = parts.spec, parts.supernet
    coverage = parts.latency.coverage()
    cheapest = min(front, key=lambda point: point.point.costs[objectives(parts)])
    limit = f"{objectives(parts)}={cheapest.point.costs[objectives(parts)] * 1.5:.3g}"
    return {
        "backbone": spec.backbone.name,
        "space": spec.space,
        "strategy": spec.strategy,
        "num_params": sum(p.numel() for p in supernet.backbone.parameters()),
        "space_size": supernet.space.size,
        "log10_size": math.log10(supernet.space.size),
        "fixed": supernet.fixed,
        "data": {
            "kind": spec.data.kind,
            "classes": parts.data.num_classes,
            "image_size": parts.data.image_size,
            "in_chans": parts.data.in_chans,
            "digest": parts.data.digest,
        },
        "versions": {
            "tips-nni": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "lightning": pytorch_lightning.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "latency": {"target": parts.latency.target, "unit": "ms", **coverage},
        "seconds": seconds,
        "hypervolume": result.hypervolume,
        "search": {
            "algorithm": (spec.search or parts.strategy.search).algorithm,
            "measured": len(result.evaluated),
            "diagnostics": dict(result.diagnostics),
        },
        "next": [
            f"tips-nni export {spec.output} --max {limit} --output subnet.onnx",
            f"tips-nni explain {spec.output}",
            f"tips-nni run {source or 'SPEC'} --set training.epochs=100 --set output=runs/longer",
        ],
    }
