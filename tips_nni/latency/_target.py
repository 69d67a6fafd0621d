"""From the name of a target to a latency model: the one place that tells the kinds of targets apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tips_nni.core import Architecture, TipsError, unknown
from tips_nni.latency._lookup import read_table
from tips_nni.latency._pack import load_pack, pack_names, read_pack
from tips_nni.latency._table import KernelPredictor, LatencyModel, LatencyTable, check_coverage
from tips_nni.specs import is_path

if TYPE_CHECKING:
    from tips_nni.elastic import Supernet

#: Predictors that nn-Meter publishes.
NN_METER = ("cortexA76cpu_tflite21", "adreno640gpu_tflite21", "adreno630gpu_tflite21", "myriadvpu_openvino2019r2")
#: In the folder of a run: its latency table by nn-Meter, for readers without torch.
LATENCY_TABLE = "latency.npz"


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
            f"{unknown('latency target', target, (*pack_names(), *NN_METER))}; your own device is a path: ./pack.json, "
            "./table.csv or a folder of nn-Meter's"
        )
    return load_pack(target)


def latency_model(
    target: str,
    architecture: Architecture,
    *,
    supernet: Supernet | None = None,
    backbone: str | None = None,
    packs: str | None = None,
    run: Path | None = None,
    coverage: Literal["warn", "refuse"] = "warn",
) -> LatencyModel:
    """Return the latency of all subnets on a target.

    Args:
        target: name of an embedded pack; path of a pack (.json) or look-up table (.csv); one of `NN_METER`, or the path
            of a folder in nn-Meter's format.
        architecture: the network.
        supernet: the same with its modules, which nn-Meter has to see.
        backbone: its timm name, which tells its family.
        packs: folder for nn-Meter's predictors, which are downloaded at the first use, and for finished tables.
        run: folder with the `LATENCY_TABLE` that stands for the supernet where that is None.
        coverage: ``refuse`` a model of which less than 95% of the multiply-adds were measured.

    Raises:
        TipsError: there is no such target, it needs the supernet, or it does not cover the network and that is refused.
    """
    model: LatencyModel
    if is_nn_meter(target):
        model = _nn_meter_model(target, architecture, supernet, packs, run)
    else:
        model = LatencyTable(architecture, load_predictor(target), backbone)
    if coverage == "refuse":
        check_coverage(model)
    return model


def is_nn_meter(target: str) -> bool:
    """Tell whether a target is nn-Meter's: by its name, or the path of a folder."""
    path = is_path(target) or Path(target).expanduser().is_dir()
    return target in NN_METER or (path and not target.endswith((".json", ".csv")))


def require_target(target: str) -> None:
    """Check that there is such a target, as far as that can be told before a network is known.

    Raises:
        TipsError: there is none.
    """
    if not is_nn_meter(target):
        load_predictor(target)


def _nn_meter_model(
    target: str, architecture: Architecture, supernet: Supernet | None, packs: str | None, run: Path | None
) -> LatencyModel:
    # Late: whoever does not use nn-Meter need not wait for it.
    from tips_nni.latency.nn_meter import NnMeterTable, load_nn_meter

    folder = None if packs is None else Path(packs).expanduser()
    table = None if run is None else run / LATENCY_TABLE
    if supernet is not None:
        pack = load_nn_meter(target, folder=folder)
        return NnMeterTable(supernet, pack, cache=None if folder is None else folder / "tables")
    if table is None or not table.is_file():
        place = "" if run is None else f", and {run} has no {LATENCY_TABLE}"
        raise TipsError(
            f"target {target!r} is nn-Meter's, which has to see the network itself{place}; write that with "
            "`tips-nni run SPEC` or `tips-nni nni-config SPEC` with this target"
        )
    model = NnMeterTable.load(table, architecture.space)
    if target in NN_METER:
        same = model.target == target
    else:
        same = not Path(target).is_dir() or load_nn_meter(target).digest == model.pack_digest
    if not same:
        raise TipsError(f"{table} is for {model.target!r}, not for {target!r}; write it again with this target")
    return model
