"""Look-up tables: exact rows, nearest rows, bad files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tips_nni.cli import main
from tips_nni.core import TipsError
from tips_nni.latency import Kernel, KernelRow, LookupTable, Shapes, read_table, write_table

HEADER = "kernel,size,stride,cin,cout,height,width,ms\n"
ROWS = (
    KernelRow(Kernel("conv", 3, 1), 16, 32, 8, 8, 0.5),
    KernelRow(Kernel("conv", 1, 1), 16, 32, 8, 8, 0.125),
    KernelRow(Kernel("dwconv", 3, 2), 32, 32, 8, 8, 0.25),
    KernelRow(Kernel("add"), 32, 32, 4, 4, 0.0625),
)


def shapes(cin: int, cout: int, side: int, out: int) -> Shapes:
    return Shapes(*(np.array([value]) for value in (cin, cout, [side, side], [out, out], cin)))


def time_of(table: LookupTable, kernel: Kernel, s: Shapes) -> float:
    return float(table.kernel_ms(kernel, s)[0])


def test_rows_are_returned_as_they_are(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", ROWS)
    table = read_table(tmp_path / "t.csv")
    assert table.rows == ROWS
    assert time_of(table, Kernel("conv", 3), shapes(16, 32, 8, 8)) == 0.5
    assert table.source_of(Kernel("conv", 3), shapes(16, 32, 8, 8)) == "fitted"
    assert time_of(table, Kernel("add"), shapes(2 * 32, 32, 4, 4)) == 0.0625  # an addition reads two inputs of 32


def test_a_missing_shape_is_the_nearest_row_scaled_by_the_work() -> None:
    table = LookupTable("t", ROWS)
    double = shapes(32, 32, 8, 8)
    assert time_of(table, Kernel("conv", 3), double) == pytest.approx(1.0)
    assert table.source_of(Kernel("conv", 3), double) == "neighbour"
    wider = time_of(table, Kernel("conv", 5), shapes(16, 32, 8, 8))
    assert wider == pytest.approx(0.5 * 25 / 9)


def test_a_missing_type_is_refused() -> None:
    with pytest.raises(TipsError, match=r"no row for the kernel 'fc' \(it has add, conv, dwconv\)"):
        time_of(LookupTable("t", ROWS), Kernel("fc"), shapes(8, 8, 1, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the column 'kernel'"),
        ("kernel,size,stride,cin,cout,height,width\n", "lacks the column 'ms'"),
        (HEADER, "has no rows"),
        (HEADER + "conv,3,1,16,32,8,8,fast\n", "t.csv:2"),
        (HEADER + "conv,3,1,16,32,8,8,-1\n", "ms 0 or more"),
        (HEADER + "conv,3,1,16,32,8,8\n", "t.csv:2"),
        (HEADER + "convolution,3,1,16,32,8,8,1\n", "unknown kernel 'convolution'"),
    ],
)
def test_bad_tables_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert main(["latency", "check", str(tmp_path / "t.csv")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
