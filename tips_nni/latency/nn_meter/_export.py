"""Writing one of our packs as nn-Meter's own folder."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import yaml

from tips_nni.core import replacing, write_text
from tips_nni.latency._pack import PredictorPack
from tips_nni.latency.nn_meter._pack import RULES
from tips_nni.latency.nn_meter._regressor import KERNELS, PackRegressor

#: What runs as one kernel by our packs: batch normalisation and ReLU with what they follow.
_FUSED = (("conv", "bn"), ("conv", "relu"), ("dwconv", "bn"), ("dwconv", "relu"), ("bn", "relu"), ("add", "relu"))
_VERSION = 1.0


def export_pack(pack: PredictorPack, folder: Path) -> None:
    """Write a pack as nn-Meter's folder: ``fusion_rules.json``, a regressor for each kernel, ``predictor.yaml``.

    After ``nn-meter register --predictor FOLDER/predictor.yaml``, nn-Meter predicts with it by the pack's name; the
    process needs this package installed. `load_nn_meter(folder)` reads it as well.

    nn-Meter's numbers are those of the pack but for kernels that it does not have, which it leaves out (products,
    sigmoid), and for those that it tells too little about: a global pooling counts as of a 1×1 map, squeeze-excite
    as one with a quarter of the channels inside, and a grouped convolution, by nn-Meter itself, as a dense one.

    Args:
        pack: the pack.
        folder: made if it does not exist; files of the same names are replaced.

    Raises:
        TipsError: a file cannot be written.
    """
    home = folder.resolve()
    rules = {f"BF_{first}_{second}": {"obey": True} for first, second in (*_FUSED, ("fc", "relu"))}
    write_text(home / RULES, json.dumps({**rules, "MON": {"obey": 0}, "FN": {"obey": True}}, indent=1) + "\n")
    for kernel in KERNELS:
        with replacing(home / f"{kernel}.pkl") as temporary:
            temporary.write_bytes(pickle.dumps(PackRegressor(kernel, pack), protocol=4))
    description = {
        "name": pack.name,
        "version": _VERSION,
        "category": "tips_nni",
        "unit": "ms",
        "package_location": str(home),
        "kernel_predictors": list(KERNELS),
    }
    write_text(home / "predictor.yaml", yaml.safe_dump(description, sort_keys=False))
