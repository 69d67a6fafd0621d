"""Timing many networks on this machine, interleaved, so that its moods hit all of them alike."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import Codes, TipsError, unknown
from tips_nni.elastic import Supernet
from tips_nni.latency._records import Entry, Record, read_records, write_records
from tips_nni.latency.measure._networks import entries_of
from tips_nni.latency.measure._runtime import RUNTIMES, Timed, one_image

_FEWEST_ROUNDS = 2
_MOST_ROUNDS = 40
#: Runs under the profiler in every round.
_PROFILED = 3


@dataclass(frozen=True)
class Measurement:
    """What to measure and how.

    Attributes:
        device: name of this machine with its runtime, the key in the records.
        family: of the networks; their names begin with it.
        runtime: one of `RUNTIMES`.
        threads: of the runtime.
        seconds: how long rounds go on; there are at least two.
    """

    device: str
    family: str
    runtime: str = "onnxruntime"
    threads: int = 1
    seconds: float = 120.0


@dataclass
class _Best:
    """The smallest times in ms of one network so far: in even rounds, in odd ones, and of its kernels."""

    first: float
    second: float
    kernels: NDArray[np.float64]


def measure_device(
    supernet: Supernet,
    codes: Codes,
    plan: Measurement,
    path: Path,
    progress: Callable[[str, float], None] = lambda stage, share: None,
) -> list[Record]:
    """Time subnets on this machine and return their records.

    All networks run in turn, round after round. A latency is the smallest time of every second round, and the rounds in
    between are a second measurement of the same; the smallest times of the kernels, from profiled runs, are scaled to
    add up to the latency. Where the file has a network already, the smaller times stay: the same call goes on.

    Args:
        supernet: whose subnets are measured; their weights do not matter.
        codes: subnets, shape (N, D).
        plan: see `Measurement`.
        path: records are kept there after every second round (JSON lines).
        progress: told what is done and which share of it, 0 to 1.

    Raises:
        TipsError: unknown runtime, or the file is damaged or of other networks.
    """
    if plan.runtime not in RUNTIMES:
        raise unknown("runtime", plan.runtime, RUNTIMES)
    names = [f"{plan.family}_{'-'.join(map(str, code))}" for code in codes.tolist()]
    before = read_records(path) if path.is_file() else []
    with tempfile.TemporaryDirectory() as scratch:
        networks, entries = [], []
        for number, code in enumerate(codes):
            progress("prepare", number / len(codes))
            network, kernels = _prepare(supernet, code, plan, Path(scratch) / str(number))
            networks.append(network)
            entries.append(kernels)
        best = [_known(before, name, kernels, plan.device) for name, kernels in zip(names, entries, strict=True)]
        records: list[Record] = []
        started = time.monotonic()
        for turn in range(_MOST_ROUNDS):
            share = (time.monotonic() - started) / plan.seconds
            progress("measure", min(share, 1.0))
            if turn >= _FEWEST_ROUNDS and share >= 1.0:
                break
            for network, times in zip(networks, best, strict=True):
                value = _smallest(network)
                times.first, times.second = (
                    (times.first, min(times.second, value)) if turn % 2 else (min(times.first, value), times.second)
                )
                times.kernels = np.minimum(times.kernels, network.kernel_times(_PROFILED))
            if turn % 2:
                records = [_record(*item, plan.device) for item in zip(names, entries, best, strict=True)]
                write_records(path, [*(record for record in before if record.name not in names), *records])
    progress("measure", 1.0)
    return records


def repeatability(records: Sequence[Record], device: str) -> NDArray[np.float64]:
    """Return by how much two measurements of the same network differ, relative, shape (N,)."""
    pairs = [(r.latency_ms[device], r.again_ms[device]) for r in records if device in r.again_ms]
    first, second = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return np.asarray(np.abs(second / first - 1))


def _prepare(supernet: Supernet, code: Codes, plan: Measurement, folder: Path) -> tuple[Timed, list[Entry]]:
    kernels = entries_of(supernet.architecture, code)
    module = supernet.extract(supernet.space.decode(code))
    side = int(supernet.architecture.spatial(supernet.architecture.input.name, code[None])[0, 0])
    images = one_image(supernet.plan.in_chans, side)
    parts = [(operation, kernel) for operation, kernel, _ in kernels]
    return RUNTIMES[plan.runtime](module, images, parts, plan.threads, folder), [entry for _, _, entry in kernels]


def _known(before: Sequence[Record], name: str, entries: Sequence[Entry], device: str) -> _Best:
    """Return what the file has of a network."""
    record = next((r for r in before if r.name == name), None)
    if record is None or device not in record.latency_ms:
        return _Best(np.inf, np.inf, np.full(len(entries), np.inf))
    if [tuple(entry) for entry in record.kernels] != [tuple(entry) for entry in entries]:
        raise TipsError(f"{name} in the records has other kernels than now; measure into another file")
    times = record.kernel_ms.get(device)
    kernels = np.full(len(entries), np.inf) if times is None else np.array(times, dtype=np.float64)
    return _Best(record.latency_ms[device], record.again_ms.get(device, np.inf), kernels)


def _record(name: str, entries: list[Entry], best: _Best, device: str) -> Record:
    shares = best.kernels / max(float(best.kernels.sum()), 1e-12)
    parts = [float(f"{best.first * share:.6g}") for share in shares]
    return Record(name, entries, {device: best.first}, {device: parts}, {device: best.second})


def _smallest(network: Timed) -> float:
    """Return the smallest time in ms of some runs in a row, after one that warms the caches."""
    network.run()
    best, total = np.inf, 0.0
    for _ in range(10):
        start = time.perf_counter()
        network.run()
        took = 1e3 * (time.perf_counter() - start)
        best, total = min(best, took), total + took
        if total > 100:
            break
    return float(best)
