"""Regressors of our own packs behind nn-Meter's features, so that nn-Meter can use the packs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import Operation, TipsError, unknown
from tips_nni.core._architecture import OpKind
from tips_nni.latency._kernels import Kernel, Shapes, kernel_of
from tips_nni.latency._pack import FORMAT, PredictorPack

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
#: Time in ms by a pack of rows of nn-Meter's features, shape (M, F); returns shape (M,).
Reading = Callable[[PredictorPack, Ints], Floats]


class PackRegressor:
    """One kernel of nn-Meter's, predicted by a pack; pickled as plain text, so that nn-Meter's reader takes it.

    Attributes:
        kernel: nn-Meter's name of the kernel, a key of `KERNELS`.
        pack: the pack.
    """

    def __init__(self, kernel: str, pack: PredictorPack) -> None:
        if kernel not in KERNELS:
            raise unknown("kernel of nn-Meter", kernel, KERNELS)
        self.kernel = kernel
        self.pack = pack

    def predict(self, rows: Sequence[Sequence[float]] | NDArray[Any]) -> Floats:
        """Return the time in ms of every row of nn-Meter's features for this kernel, shape (M,)."""
        return KERNELS[self.kernel](self.pack, np.asarray(rows, dtype=np.float64).astype(np.int64))

    def __getstate__(self) -> dict[str, str]:
        return {"kernel": self.kernel, "pack": json.dumps(self.pack.to_json())}

    def __setstate__(self, state: Mapping[str, str]) -> None:
        other = self.of_state(state)
        self.kernel, self.pack = other.kernel, other.pack

    @classmethod
    def of_state(cls, state: Any) -> PackRegressor:
        """Make a regressor of what `__getstate__` returned.

        Raises:
            TipsError: the state holds no pack of this version.
        """
        try:
            kernel, data = str(state["kernel"]), json.loads(state["pack"])
            if data.pop("format") != FORMAT or data.pop("unit") != "ms":
                raise TipsError(f"the regressor holds no pack of this version ({FORMAT!r}); export the pack again")
            digest = data.pop("digest")
            pack = PredictorPack.create(**data)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, TipsError):
                raise
            raise TipsError(f"the regressor holds no pack ({error!r}); export the pack again") from error
        if pack.digest != digest:
            raise TipsError("the regressor's pack was altered; export the pack again")
        return cls(kernel, pack)


def _time(
    pack: PredictorPack, operation: Operation, side: Ints, cin: Ints, cout: Ints, *, whole: bool = False
) -> Floats:
    """Return the time of kernels of one kind; `whole`: the window covers the whole map."""
    kernel = kernel_of(operation)
    if kernel is None:
        return np.zeros(len(side))
    out = np.ones_like(side) if whole else -(-side // operation.stride[0])
    group = np.ones_like(cin) if operation.group_width == 1 else cin
    square = np.stack([side, side], axis=1)
    return pack.kernel_ms(kernel, Shapes(cin, cout, square, np.stack([out, out], axis=1), group))


def _operation(kind: Any, type_: str, window: int = 1, stride: int = 1, group_width: int | None = None) -> Operation:
    pair, step = (int(window), int(window)), (int(stride), int(stride))
    return Operation("kernel", kind, ("in",), "out", pair, step, group_width, type=type_)


def _windowed(kind: OpKind, type_: str, group_width: int | None = None) -> Reading:
    """Read rows of side, channels in, channels out, window and stride."""

    def read(pack: PredictorPack, rows: Ints) -> Floats:
        result = np.zeros(len(rows))
        for window, stride in {(int(window), int(stride)) for window, stride in rows[:, 3:5]}:
            mine = (rows[:, 3] == window) & (rows[:, 4] == stride)
            operation = _operation(kind, type_, window, stride, group_width)
            result[mine] = _time(pack, operation, *rows[mine, :3].T)
        return result

    return read


def _plain(kind: OpKind, type_: str, *, whole: bool = False) -> Reading:
    """Read rows of side and channels."""

    def read(pack: PredictorPack, rows: Ints) -> Floats:
        side, channels = rows[:, 0], rows[:, 1]
        return _time(pack, _operation(kind, type_), side, channels, channels, whole=whole)

    return read


def _fc(pack: PredictorPack, rows: Ints) -> Floats:
    cin, cout = rows[:, 0], rows[:, 1]
    return _time(pack, _operation("linear", "Linear"), np.ones_like(cin), cin, cout)


def _add(pack: PredictorPack, rows: Ints) -> Floats:
    side, first, second = rows[:, :3].T
    return _time(pack, _operation("add", "Add"), side, first + second, first)


def _concat(pack: PredictorPack, rows: Ints) -> Floats:
    channels = rows[:, 2:6].sum(axis=1)
    return _time(pack, _operation("concat", "Concat"), rows[:, 0], channels, channels)


def _shuffle(pack: PredictorPack, rows: Ints) -> Floats:
    """Count a shuffle of channels as a concatenation: everything is read and written once."""
    return _time(pack, _operation("concat", "Concat"), rows[:, 0], rows[:, 1], rows[:, 1])


def _squeeze_excite(pack: PredictorPack, rows: Ints) -> Floats:
    """Sum a pooling, two pointwise convolutions with a quarter of the channels between, a gate and a product."""
    side, channels = rows[:, 0], rows[:, 1]
    one = np.ones_like(side)
    reduced = np.maximum(8, (channels + 16) // 32 * 8)
    square, point = np.stack([side, side], axis=1), np.ones((len(side), 2), dtype=np.int64)
    product = pack.kernel_ms(Kernel("mul"), Shapes(2 * channels, channels, square, square, channels))
    pooled = kernel_of(_operation("pool", "AdaptiveAvgPool2d"))
    maps = Shapes(channels, channels, square, point, channels)
    pooling = 0.0 if pooled is None else pack.kernel_ms(pooled, maps)
    pointwise = _operation("conv", "Conv2d")
    convolutions = _time(pack, pointwise, one, channels, reduced) + _time(pack, pointwise, one, reduced, channels)
    return pooling + convolutions + _time(pack, _operation("act", "Hardsigmoid"), one, channels, channels) + product


#: How a pack predicts each kernel of nn-Meter's builder. Views, batch normalisation and ReLU cost nothing of their own
#: on a pack's device. nn-Meter tells a global pooling nothing of the side of its map: it counts as 1.
KERNELS: Mapping[str, Reading] = {
    "conv-bn-relu": _windowed("conv", "Conv2d"),
    "dwconv-bn-relu": _windowed("conv", "Conv2d", 1),
    "fc": _fc,
    "add": _add,
    "addrelu": _add,
    "maxpool": _windowed("pool", "MaxPool2d"),
    "avgpool": _windowed("pool", "AvgPool2d"),
    "global-avgpool": _plain("pool", "AdaptiveAvgPool2d", whole=True),
    "se": _squeeze_excite,
    "hswish": _plain("act", "Hardswish"),
    "relu": _plain("act", "ReLU"),
    "bn": _plain("norm", "BatchNorm2d"),
    "bnrelu": _plain("norm", "BatchNorm2d"),
    "concat": _concat,
    "split": _plain("view", "Split"),
    "channelshuffle": _shuffle,
}
