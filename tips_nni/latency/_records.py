"""Measured networks, as JSON lines."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tips_nni.core import TipsError, write_text
from tips_nni.latency._kernels import KERNEL_TYPES, WEIGHTED, Kernel, Shapes

#: One kernel of a record: (type, side of the input, channels in, channels out, window, stride[, channels per group]);
#: of an addition or product, the channels of one input.
Entry = tuple[Any, ...]


@dataclass(frozen=True)
class Record:
    """A measured network.

    Attributes:
        name: ``family_number``.
        kernels: in order, see `Entry`; the channels of a group where there is a seventh.
        latency_ms: of one image, by device.
        kernel_ms: by device, the share of every kernel in it, in the order of `kernels`; where it was measured.
        again_ms: by device, the latency from a second measurement, interleaved with the first; where there was one.
    """

    name: str
    kernels: Sequence[Entry]
    latency_ms: Mapping[str, float]
    kernel_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    again_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The name up to its first underscore, without the digits behind: ``vgg`` of ``vgg11_7``."""
        first = self.name.split("_")[0]
        return first.rstrip("0123456789") if first.startswith("vgg") else first

    @property
    def image_size(self) -> int:
        """Side of the input of the first kernel."""
        return int(self.kernels[0][1])

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        data: dict[str, Any] = {
            "id": self.name,
            "kernels": [list(entry) for entry in self.kernels],
            "latency_ms": dict(self.latency_ms),
        }
        if self.kernel_ms:
            data["kernel_ms"] = {device: list(times) for device, times in self.kernel_ms.items()}
        if self.again_ms:
            data["again_ms"] = dict(self.again_ms)
        return data


def read_records(path: str | Path) -> list[Record]:
    """Read measured networks from JSON lines (``.gz`` or plain).

    Raises:
        TipsError: the file cannot be read as such, or a value is not allowed; names the line.
    """
    source = Path(path)
    try:
        raw = source.read_bytes()
        text = (gzip.decompress(raw) if source.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, ValueError) as error:
        raise TipsError(
            f"{source} cannot be read ({getattr(error, 'strerror', None) or error}); check the path"
        ) from None
    records = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            records.append(_record(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise TipsError(
                f"{source}:{number}: no latency record ({error}); each line is JSON with id, kernels and latency_ms"
            ) from None
    if not records:
        raise TipsError(f"{source} holds no latency records; write one JSON line for each network")
    return records


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write measured networks as JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(record.to_json()) + "\n" for record in records))


def parse_entry(entry: Sequence[Any]) -> tuple[Kernel, tuple[int, int, int, int, int]]:
    """Return the kernel of an entry and (channels read, channels out, side in, side out, channels per group)."""
    kind, side, cin, cout, window, stride = entry[:6]
    windowed = kind in ("conv", "dwconv", "groupconv", "maxpool", "avgpool")
    kernel = Kernel(str(kind), int(window), int(stride)) if windowed else Kernel(str(kind))
    per_group = int(entry[6]) if len(entry) > 6 else (1 if kind == "dwconv" else int(cin))
    read = int(cin) * (2 if kind in ("add", "mul") else 1)
    return kernel, (read, int(cout), int(side), -(-int(side) // kernel.stride), per_group)


def shapes_of(entries: Sequence[tuple[int, int, int, int, int]]) -> Shapes:
    """Return the shapes of entries of one kernel, see `parse_entry`."""
    cin, cout, side_in, side_out, per_group = np.array(entries, dtype=np.int64).reshape(-1, 5).T
    return Shapes(cin, cout, np.stack([side_in] * 2, axis=1), np.stack([side_out] * 2, axis=1), per_group)


def _record(row: Any) -> Record:
    kernels = [tuple(entry) for entry in row["kernels"]]
    if not kernels:
        raise ValueError("it has no kernels")
    for entry in kernels:
        if entry[0] not in KERNEL_TYPES:
            raise ValueError(f"unknown kernel {entry[0]!r}, known are {', '.join(KERNEL_TYPES)}")
        _, numbers = parse_entry(entry)
        if min(numbers) < 1 or (entry[0] in WEIGHTED and int(entry[4]) < 1):
            raise ValueError(f"the kernel {list(entry)} has a number below 1")
    latency = {str(device): float(value) for device, value in row["latency_ms"].items()}
    again = {str(device): float(value) for device, value in row.get("again_ms", {}).items()}
    parts = {str(device): [float(v) for v in values] for device, values in row.get("kernel_ms", {}).items()}
    for device, value in [*latency.items(), *again.items()]:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"latency_ms on {device} is {value}, it must be above 0")
    for device, values in parts.items():
        if device not in latency or len(values) != len(kernels) or not all(0 <= v < math.inf for v in values):
            raise ValueError(f"kernel_ms on {device} must give a time of 0 or more for each of {len(kernels)} kernels")
    return Record(str(row["id"]), kernels, latency, parts, again)
