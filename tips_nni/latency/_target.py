"""From the name of a target to a latency model: the one place that tells the kinds of targets apart."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tips_nni.core import Architecture, TipsError, unknown
from tips_nni.latency._lookup import read_table
from tips_nni.latency._pack import load_pack, pack_names, read_pack
from tips_nni.latency._table import KernelPredictor, LatencyModel, LatencyTable, check_coverage

#: Predictors that nn-Meter publishes.
NN_METER = ("cortexA76cpu_tflite21", "adreno640gpu_tflite21", "adreno630gpu_tflite21", "myriadvpu_openvino2019r2")


def load_predictor(target: str) -> KernelPredictor:
    """Load what predicts kernels on a target: a pack by name, a pack's file (.json) or a look-up table (.csv).

    Raises:
        TipsError: unknown name, or a file that is not what its name says.
    """
    if target.endswith(".json"):
        return read_pack(Path(target).expanduser())
    if target.endswith(".csv"):
        return read_table(Path(target).expanduser())
    if is_nn_meter(target):
        raise TipsError(f"target {target!r} is nn-Meter's; it predicts whole networks only, not single kernels")
    if target not in pack_names():
        raise TipsError(
            f"{unknown('latency target', target, pack_names())}; your own device is a path: ./pack.json or ./table.csv"
        )
    return load_pack(target)


def latency_model(
    target: str,
    architecture: Architecture,
    *,
    backbone: str | None = None,
    coverage: Literal["warn", "refuse"] = "warn",
) -> LatencyModel:
    """Return the latency of all subnets on a target.

    Args:
        target: name of an embedded pack, or a path of a pack (.json) or look-up table (.csv).
        architecture: the network.
        backbone: its timm name, which tells its family.
        coverage: ``refuse`` a model of which less than 95% of the multiply-adds were measured.

    Raises:
        TipsError: there is no such target, or it does not cover the network and that is refused.
    """
    if is_nn_meter(target):
        # nn-Meter's own predictors need the supernet, and a file beside the run for readers without torch.
        raise TipsError(f"target {target!r} is a predictor of nn-Meter's; choose one of {', '.join(pack_names())}")
    model = LatencyTable(architecture, load_predictor(target), backbone)
    if coverage == "refuse":
        check_coverage(model)
    return model


def is_nn_meter(target: str) -> bool:
    """Tell whether a target is nn-Meter's: by its name, or a folder in its format."""
    return target in NN_METER or (not target.endswith((".json", ".csv")) and Path(target).expanduser().is_dir())
