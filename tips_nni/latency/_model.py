"""The time of one kind of kernel as a function of its shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tips_nni.core import TipsError
from tips_nni.latency._kernels import Floats, Kernel, Shapes, check_feature, feature

Coefficients = Mapping[str, float]


@dataclass(frozen=True)
class KernelModel:
    """Time = Σ coefficients · features; some coefficients hold at any resolution, some at an output's side.

    Between two sides their times are interpolated by the number of positions, so that a larger image takes no less time
    where the two agree with that; outside of all, the coefficients of the nearest side count.

    Attributes:
        everywhere: ms per feature, see `tips_nni.latency.feature`.
        sides: side of the output in pixels -> ms per feature.
        cin: fewest and most input channels measured.
        cout: fewest and most output channels measured.
    """

    everywhere: Coefficients
    sides: Mapping[int, Coefficients]
    cin: tuple[int, int]
    cout: tuple[int, int]

    @property
    def costs(self) -> bool:
        """Whether anything costs time."""
        return any(self.everywhere.values()) or any(any(row.values()) for row in self.sides.values())

    @property
    def wide(self) -> bool:
        """Whether it was measured over enough widths to stand for other kernels."""
        return self.costs and self.cin[1] >= 4 * self.cin[0]

    def evaluate(self, kernel: Kernel, shapes: Shapes) -> Floats:
        """Return the time of kernels of one kind in ms, shape (M,)."""
        total = _dot(self.everywhere, kernel, shapes)
        sides = np.array(sorted(self.sides), dtype=np.float64)
        if not len(sides):
            return total
        inside = np.clip(shapes.side, sides[0], sides[-1])
        for number, side in enumerate(sorted(self.sides)):
            # A hat over the positions: 1 at the side itself, 0 at its neighbours. What has coefficients by side is
            # proportional to the positions.
            peak = np.zeros(len(sides))
            peak[number] = 1.0
            share = np.interp(inside**2, sides**2, peak) * (side / inside) ** 2
            used = share > 0
            if used.any():
                total[used] += share[used] * _dot(self.sides[side], kernel, shapes.pick(used))
        return total

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; `from_json` reads it back."""
        return {
            "cin": list(self.cin),
            "cout": list(self.cout),
            "ms": dict(self.everywhere),
            "ms_by_side": {str(side): dict(row) for side, row in self.sides.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> KernelModel:
        """Read what `to_json` wrote.

        Raises:
            TipsError: an unknown feature, or a coefficient that is negative or not finite.
            KeyError, TypeError, ValueError: another form.
        """
        everywhere = _checked(data["ms"])
        sides = {int(side): _checked(row) for side, row in data["ms_by_side"].items()}
        (low_in, high_in), (low_out, high_out) = data["cin"], data["cout"]
        if any(side < 1 for side in sides):
            raise ValueError("a side below 1 pixel")
        return cls(everywhere, sides, (int(low_in), int(high_in)), (int(low_out), int(high_out)))


def _dot(coefficients: Coefficients, kernel: Kernel, shapes: Shapes) -> Floats:
    total = np.zeros(len(shapes.cin))
    for name, value in coefficients.items():
        total += value * feature(name, kernel, shapes)
    return total


def _checked(row: Mapping[str, Any]) -> dict[str, float]:
    for name, value in row.items():
        check_feature(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{value!r} is no number")
        if not (math.isfinite(value) and value >= 0):
            raise TipsError(f"{name!r} has the coefficient {value}; coefficients are finite and not negative")
    return {name: float(value) for name, value in row.items()}
