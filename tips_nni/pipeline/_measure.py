"""`tips-nni latency measure`: the device that this runs on."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from tips_nni.core import TipsError
from tips_nni.latency import Quality, fit_pack, held_out, write_table
from tips_nni.latency.measure import RUNTIMES, Measurement, measure_device, repeatability, sample_subnets, table_rows
from tips_nni.pipeline._latency import supernet_of


@dataclass(frozen=True)
class MeasureOptions:
    """What `measure_latency` does.

    Attributes:
        subject: run spec, run folder or timm backbone.
        output: pack file to write (.json); the records stand beside it (.jsonl).
        space: search space of a backbone; by default that of its family.
        image_size: of a backbone.
        networks: how many subnets are measured.
        seconds: how long.
        runtime: `tips_nni.latency.measure.RUNTIMES`.
        threads: of the runtime.
        table: look-up table to write (.csv), or None.
        seed: of the sampled subnets.
    """

    subject: str
    output: Path
    space: str | None = None
    image_size: int = 224
    networks: int = 24
    seconds: float = 120.0
    runtime: str = "onnxruntime"
    threads: int = 1
    table: Path | None = None
    seed: int = 0


def measure_latency(options: MeasureOptions, *, quiet: bool = False) -> Path:
    """Time subnets on this machine, fit a pack, print its error on subnets it did not see, and return its file.

    Raises:
        TipsError: an option is not allowed, or the network cannot be measured.
    """
    _check(options)
    supernet, backbone = supernet_of(options.subject, options.space, options.image_size)
    codes = sample_subnets(supernet.space, options.networks, options.seed)
    if len(codes) < 8:
        raise TipsError(f"the space has only {len(codes)} different subnets to measure; it needs at least 8")
    name = options.output.stem
    plan = Measurement(name, backbone.split("_")[0], options.runtime, options.threads, options.seconds)
    raw = options.output.with_suffix(".jsonl")
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), disable=quiet, transient=True
    ) as bar:
        tasks = {stage: bar.add_task(stage, total=1.0) for stage in ("prepare", "measure")}

        def report(stage: str, share: float) -> None:
            if stage == "measure":
                bar.update(tasks["prepare"], completed=1.0)
            bar.update(tasks[stage], completed=share)

        records = measure_device(supernet, codes, plan, raw, report)
    quality = next(held_out(records, name, name, folds=4, seed=options.seed, every=True))
    machine = f"{platform.processor() or platform.machine()}, {options.runtime}, {options.threads} thread(s)"
    pack = fit_pack(records, name, name, machine)
    pack.save(options.output)
    latency = [record.latency_ms[name] for record in records]
    Console(highlight=False).print(_summary(quality, repeatability(records, name), latency))
    print(f"pack           {options.output}")
    print(f"records        {raw}  (the same command again adds rounds; `tips-nni latency fit {raw}` fits them)")
    if options.table is not None:
        write_table(options.table, table_rows(records, name))
        print(f"table          {options.table}")
    print(f"next           constraints: {{target: {options.output}, latency_ms: {np.median(latency):.3g}}}")
    return options.output


def _summary(quality: Quality, repeated: np.ndarray, latency: list[float]) -> Table:
    table = Table(title=f"{quality.networks} subnets on this machine", show_header=False)
    table.add_row("measured latency", f"{min(latency):.3g} to {max(latency):.3g} ms")
    worst = float(np.quantile(repeated, 0.9))
    table.add_row("measured twice: difference", f"median {np.median(repeated):.1%}, 90% of the subnets {worst:.1%}")
    table.add_row("predicted unseen: error", f"median {quality.median_error:.1%}, within ±10% {quality.within_10:.0%}")
    table.add_row("predicted unseen: rank correlation", f"{quality.rank_correlation:.4f}")
    return table


def _check(options: MeasureOptions) -> None:
    if options.output.suffix != ".json":
        raise TipsError(f"--output {options.output} must end with .json; write for example --output mydevice.json")
    if options.table is not None and options.table.suffix != ".csv":
        raise TipsError(f"--table {options.table} must end with .csv")
    if options.runtime not in RUNTIMES:
        raise TipsError(f"--runtime {options.runtime}; choose from {', '.join(RUNTIMES)}")
    for key, least in (("networks", 8), ("threads", 1), ("image_size", 8)):
        if getattr(options, key) < least:
            raise TipsError(f"--{key.replace('_', '-')} {getattr(options, key)}; it must be at least {least}")
    if not options.seconds > 0:
        raise TipsError(f"--seconds {options.seconds}; it must be above 0")
