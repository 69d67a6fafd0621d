"""nn-Meter's packs: is the reader exact, does the table give nn-Meter's numbers, how fast is it?

    python benchmarks/nn_meter_packs.py [--json] [--families resnet18] [--subnets 4] [--pack FOLDER_OR_NAME]

Without --pack, scikit-learn random forests are fitted on kernel times of a pack of ours with noise, in nn-Meter's
features and folder; our own packs are exported as well. Each family under its built-in search space, at 224 pixels, one
thread, CPU seconds. Subnets are random, and those of 2000 in which most layers have as many channels in as out.
Bars: the reader predicts to the bit what scikit-learn does; the table differs from nn-Meter's `predict` on the exported
subnet by at most 1e-9; it is built in at most 60 s and gives at least 5 million subnets per second for mobilenetv2_100.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import RandomForestRegressor

from tips_nni.elastic import Supernet, convert
from tips_nni.latency import load_pack
from tips_nni.latency.nn_meter import NnMeterPack, NnMeterTable, export_pack, load_nn_meter, predict
from tips_nni.specs import load_space, space_for

FAMILIES = ("mobilenetv2_100", "resnet18", "mobilenetv3_small_050", "regnetx_002", "efficientnet_b0", "vgg11_bn")
#: VGG's classifier has 120 million weights; a narrow one has the same structure.
ARGUMENTS: dict[str, dict[str, float]] = {"vgg11_bn": {"mlp_ratio": 1 / 64}}
IMAGE_SIZE = 224
AGREEMENT = 1e-9
BUILD_SECONDS = 60.0
SUBNETS_PER_SECOND = 5e6


def features(kernel: str, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw rows of the features that nn-Meter gives to a kernel's predictor, shape (count, F)."""
    side = rng.choice([1, 7, 14, 28, 56, 112, 224], count)
    cin, cout = (np.exp(rng.uniform(np.log(3), np.log(1500), count)).round() for _ in range(2))
    window, stride = rng.choice([1, 3, 5, 7], count), rng.choice([1, 2], count)
    match kernel:
        case "conv-bn-relu" | "dwconv-bn-relu":
            weights = window**2 * (cin if kernel.startswith("conv") else 1) + 1
            params = (cout if kernel.startswith("conv") else cin) * weights
            cout = cout if kernel.startswith("conv") else cin
            flops = 2 * (side / stride) ** 2 * params
            columns = [side, cin, cout, window, stride, flops / 2e6, params / 1e6]
        case "fc":
            flops = (2 * cin + 1) * cout
            columns = [cin, cout, flops / 2e6, flops / 1e6]
        case "add" | "addrelu":
            columns = [side, cin, cin]
        case "maxpool" | "avgpool":
            columns = [side, cin, cin, rng.choice([2, 3], count), stride]
        case "concat":
            columns = [side, np.full(count, 2), cin, cout, np.zeros(count), np.zeros(count)]
        case _:
            columns = [side, cin]
    return np.stack(columns, axis=1).astype(np.float64)


def train_pack(folder: Path, source: Path, trees: int = 100, rows: int = 1500) -> dict[str, RandomForestRegressor]:
    """Fit forests to the predictors of an exported pack with 5% noise, and write them as nn-Meter's folder."""
    folder.mkdir()
    (folder / "fusion_rules.json").write_bytes((source / "fusion_rules.json").read_bytes())
    models = {}
    for i, (kernel, regressor) in enumerate(load_nn_meter(source).kernels.items()):
        rng = np.random.default_rng(i)
        x = features(kernel, rows, rng)
        y = (regressor.predict(x) + 1e-3) * rng.normal(1, 0.05, rows)
        model = RandomForestRegressor(n_estimators=trees, max_features=min(6, x.shape[1]), random_state=10, n_jobs=1)
        models[kernel] = model.fit(x, y)
        (folder / f"{kernel}.pkl").write_bytes(pickle.dumps(models[kernel]))
    return models


def reader_difference(pack: NnMeterPack, models: dict[str, RandomForestRegressor]) -> float:
    """Return the largest difference between the reader's forests and scikit-learn's, in ms."""
    rng = np.random.default_rng(99)
    worst = 0.0
    for kernel, model in models.items():
        x = features(kernel, 1000, rng) * rng.uniform(0.9, 1.1, (1000, 1))
        worst = max(worst, float(np.abs(pack.kernels[kernel].predict(x) - model.predict(x)).max()))
    return worst


def colliding(net: Supernet, count: int) -> NDArray[np.int64]:
    """Return the subnet, of `count` random ones, with the most layers that have as many channels in as out."""
    codes = net.space.sample(np.random.default_rng(1), count)
    equal = np.zeros(count, dtype=np.int64)
    for operation in net.architecture.operations:
        if operation.kind == "conv" and operation.group_width is None:
            channels = [net.architecture.channels(name, codes) for name in (operation.inputs[0], operation.output)]
            equal += channels[0] == channels[1]
    return codes[equal.argmax()]


def measure(name: str, pack: NnMeterPack, subnets: int) -> dict[str, Any]:
    """Build one family's table and compare it with nn-Meter."""
    net = convert(
        name, load_space(space_for(name)), image_size=IMAGE_SIZE, num_classes=1000, arguments=ARGUMENTS.get(name)
    )
    net.eval()
    start = time.process_time()
    table = NnMeterTable(net, pack)
    build = time.process_time() - start
    codes = np.stack([*net.space.sample(np.random.default_rng(0), subnets), colliding(net, 2000)])
    worst = 0.0
    for code, value in zip(codes, table.evaluate(codes), strict=True):
        config = net.space.decode(code)
        actual = predict(net.extract(config), pack, net.plan.resolution(config)).latency_ms
        worst = max(worst, abs(float(value) / actual - 1))
    many = net.space.sample(np.random.default_rng(2), 1 << 20)
    seconds = []
    for _ in range(7):
        start = time.process_time()
        table.evaluate(many)
        seconds.append(time.process_time() - start)
    return {
        "family": name,
        "pack": pack.name,
        "difference": worst,
        "build_s": build,
        "subnets_per_s": len(many) / min(seconds),
        "coverage": table.coverage(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--subnets", type=int, default=4, help="random subnets of each family, beside a colliding one")
    parser.add_argument("--pack", help="a pack of nn-Meter's instead, by folder or name")
    parser.add_argument("--folder", type=Path, help="where packs by name are downloaded to")
    parser.add_argument("--device", default="pixel4_cpu", help="our pack that the forests are fitted on")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bars = []
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.pack:
            packs = [load_nn_meter(arguments.pack, folder=arguments.folder)]
        else:
            exported, fitted = Path(temporary) / "exported", Path(temporary) / "forests"
            export_pack(load_pack(arguments.device), exported)
            models = train_pack(fitted, exported)
            packs = [load_nn_meter(fitted), load_nn_meter(exported)]
            worst = reader_difference(packs[0], models)
            bars.append({"name": "reader against scikit-learn, ms", "value": worst, "bar": 0.0, "holds": worst == 0.0})
        rows = [measure(name, pack, arguments.subnets) for name in arguments.families for pack in packs]
    shown = Table(title="nn-Meter's number for every subnet, by table look-up")
    for column in ("family", "pack", "largest difference", "built in s", "million subnets/s", "FLOPs covered"):
        shown.add_column(column)
    for row in rows:
        shown.add_row(
            row["family"],
            row["pack"],
            f"{row['difference']:.1e}",
            f"{row['build_s']:.1f}",
            f"{row['subnets_per_s'] / 1e6:.1f}",
            f"{row['coverage']['covered_flops_share']:.0%}",
        )
        label = f"{row['family']} {row['pack']}"
        value = row["difference"]
        bars.append({"name": f"{label} difference", "value": value, "bar": AGREEMENT, "holds": value <= AGREEMENT})
        if row["family"] == "mobilenetv2_100":
            build, speed = row["build_s"], row["subnets_per_s"]
            bars.append(
                {"name": f"{label} build, s", "value": build, "bar": BUILD_SECONDS, "holds": build <= BUILD_SECONDS}
            )
            fast = speed >= SUBNETS_PER_SECOND
            bars.append({"name": f"{label} subnets/s", "value": speed, "bar": SUBNETS_PER_SECOND, "holds": fast})
    Console(width=110).print(shown)
    if arguments.json:
        print(json.dumps({"bars": bars}))


if __name__ == "__main__":
    main()
