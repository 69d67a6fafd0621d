"""A plain look-up table of measured kernels (CSV) as a predictor."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import TipsError, write_csv
from tips_nni.latency._kernels import KERNEL_TYPES, WEIGHTED, Kernel, Shapes
from tips_nni.latency._pack import Source

COLUMNS = ("kernel", "size", "stride", "cin", "cout", "height", "width", "ms")


@dataclass(frozen=True)
class KernelRow:
    """A measured kernel.

    Attributes:
        kernel: its kind.
        cin: input channels; of an addition or product, those of one input.
        cout: output channels.
        height: of the input.
        width: of the input.
        ms: measured time of one image; 0 where the device runs it as a part of another kernel.
    """

    kernel: Kernel
    cin: int
    cout: int
    height: int
    width: int
    ms: float

    @property
    def key(self) -> tuple[int, int, int, int]:
        """The shape."""
        return self.cin, self.cout, self.height, self.width


@dataclass(frozen=True)
class LookupTable:
    """Measured kernels; what is missing is the nearest row of the type, scaled by the work.

    Attributes:
        name: of the table.
        rows: the measurements.
        families: network families measured; empty, a table does not say.
        image_size: None, a table does not say.
    """

    name: str
    rows: tuple[KernelRow, ...]
    families: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = field(default=None)

    @cached_property
    def _by_kernel(self) -> dict[Kernel, dict[tuple[int, int, int, int], float]]:
        tables: dict[Kernel, dict[tuple[int, int, int, int], float]] = {}
        for row in self.rows:
            tables.setdefault(row.kernel, {})[row.key] = row.ms
        return tables

    @property
    def widest(self) -> tuple[int, int]:
        """Most input and output channels of a measured convolution."""
        dense = [(row.cin, row.cout) for row in self.rows if row.kernel.type == "conv"]
        return max((cin for cin, _ in dense), default=0), max((cout for _, cout in dense), default=0)

    def kernel_ms(self, kernel: Kernel, shapes: Shapes) -> NDArray[np.float64]:
        """Return the time in ms of kernels of one kind, shape (M,).

        Raises:
            TipsError: the table has no row of the kernel's type.
        """
        return np.array([self._time(kernel, key)[0] for key in _keys(kernel, shapes)])

    def source_of(self, kernel: Kernel, shapes: Shapes) -> Source:
        """Return ``fitted`` where the table has a row for every shape, else ``neighbour``."""
        exact = all(self._time(kernel, key)[1] for key in _keys(kernel, shapes))
        return "fitted" if exact else "neighbour"

    def _time(self, kernel: Kernel, key: tuple[int, int, int, int]) -> tuple[float, bool]:
        """Return the time of one shape and whether the table has it."""
        own = self._by_kernel.get(kernel, {})
        if key in own:
            return own[key], True
        near = [row for row in self.rows if row.kernel.type == kernel.type]
        if not near:
            known = ", ".join(sorted({row.kernel.type for row in self.rows}))
            raise TipsError(
                f"look-up table {self.name} has no row for the kernel {kernel.type!r} (it has {known}); measure one, "
                "e.g. with `tips-nni latency measure --table`"
            )

        def distance(row: KernelRow) -> tuple[float, int, float]:
            window = abs(math.log(row.kernel.window / kernel.window))
            shape = sum(abs(math.log(a / b)) for a, b in zip(row.key, key, strict=True))
            return window, abs(row.kernel.stride - kernel.stride), shape

        best = min(near, key=distance)
        return best.ms * _work(kernel, key) / _work(best.kernel, best.key), False


def read_table(path: Path) -> LookupTable:
    """Read a look-up table.

    Raises:
        TipsError: the file cannot be read, lacks a column or has a value that is not allowed; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TipsError(f"look-up table {path}: {getattr(error, 'strerror', None) or error}; check the path") from None
    reader = csv.DictReader(io.StringIO(text))
    absent = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if absent:
        raise TipsError(
            f"look-up table {path} lacks the column {absent[0]!r}; the first line must be {','.join(COLUMNS)}"
        )
    rows = []
    for number, row in enumerate(reader, 2):
        try:
            if row["kernel"] not in KERNEL_TYPES:
                raise ValueError(f"unknown kernel {row['kernel']!r}, known are {', '.join(KERNEL_TYPES)}")
            values = [int(row[name]) for name in COLUMNS[1:-1]]
            ms = float(row["ms"])
            if min(values) < 1 or not 0 <= ms < math.inf:
                raise ValueError("sizes must be at least 1 and ms 0 or more")
        except (TypeError, ValueError) as error:
            raise TipsError(f"look-up table {path}:{number}: {error}; correct the line") from None
        size, stride, cin, cout, height, width = values
        rows.append(KernelRow(Kernel(row["kernel"], size, stride), cin, cout, height, width, ms))
    if not rows:
        raise TipsError(f"look-up table {path} has no rows; add one for each measured kernel")
    return LookupTable(path.stem, tuple(rows))


def write_table(path: Path, rows: Iterable[KernelRow]) -> None:
    """Write a look-up table."""
    write_csv(
        path,
        [
            dict(zip(COLUMNS, (r.kernel.type, r.kernel.size, r.kernel.stride, *r.key, f"{r.ms:.6g}"), strict=True))
            for r in rows
        ],
    )


def _keys(kernel: Kernel, shapes: Shapes) -> list[tuple[int, int, int, int]]:
    inputs = 2 if kernel.type in ("add", "mul") else 1
    return [
        (max(int(cin) // inputs, 1), int(cout), int(height), int(width))
        for cin, cout, (height, width) in zip(shapes.cin, shapes.cout, shapes.size_in, strict=True)
    ]


def _work(kernel: Kernel, key: tuple[int, int, int, int]) -> float:
    """Return multiply-adds, or elements moved where there are none: what a missing row is scaled by."""
    cin, cout, height, width = key
    positions = height * width / kernel.stride**2
    if kernel.type in WEIGHTED:
        return (1 if kernel.type == "dwconv" else cin) * cout * kernel.window * positions
    return cin * height * width + cout * positions
