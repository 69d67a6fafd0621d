"""Fit the latency packs on part of measured networks and compare with the rest.

    python benchmarks/latency.py --data device_latency.jsonl.gz [--write tips_nni/latency/packs] [--json]

The data: one JSON object per line with id, kernels and latency_ms by device (nn-Meter's published benchmark,
O-UDA-1.0). With --write, packs fitted on all networks are written.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tips_nni.latency import DEVICES, evaluate, fit_pack, read_records

FLOORS = {
    ("mobilenetv2", "pixel4_cpu"): 0.99,
    ("mobilenetv2", "adreno640"): 0.99,
    ("mobilenetv2", "adreno630"): 0.99,
    ("mobilenetv2", "myriad_vpu"): 0.94,
    ("vgg", "pixel4_cpu"): 0.97,
    ("vgg", "adreno640"): 0.99,
    ("vgg", "adreno630"): 0.99,
    ("vgg", "myriad_vpu"): 0.60,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="measured networks, JSON lines")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", metavar="FOLDER")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    records = read_records(arguments.data)
    order = np.random.default_rng(arguments.seed).permutation(len(records))
    held = [records[i] for i in order[: len(records) // arguments.folds]]
    kept = [records[i] for i in order[len(records) // arguments.folds :]]
    table = Table(title=f"networks not seen in the fit ({len(held)} of {len(records)}, random split)")
    for column in ("fitted on", "device", "family", "networks", "within ±10%", "median error", "rank correlation"):
        table.add_column(column)
    bars = []
    for name, (device, description) in DEVICES.items():
        pack = fit_pack(kept, name, device, description)
        for family in ("mobilenetv2", "vgg"):
            part = [record for record in held if record.family == family]
            result = evaluate(pack, part)
            _row(table, "both", name, family, result)
            floor = FLOORS[family, name]
            value = result["within_10"]
            bars.append({"name": f"{name} {family} within 10%", "value": value, "bar": floor, "holds": value >= floor})
            if name != "myriad_vpu":
                value = result["rank_correlation"]
                bars.append({"name": f"{name} {family} rank", "value": value, "bar": 0.99, "holds": value >= 0.99})
        for family, other in (("mobilenetv2", "vgg"), ("vgg", "mobilenetv2")):
            alone = fit_pack(
                [record for record in kept if record.family == family], name, device, description, strict=False
            )
            _row(table, family, name, other, evaluate(alone, [record for record in held if record.family == other]))
        if arguments.write:
            whole = fit_pack(records, name, device, description)
            target = Path(arguments.write) / f"{name}.json"
            temporary = target.with_suffix(".new")
            temporary.write_text(json.dumps(whole.to_json(), indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, target)
    Console(width=110).print(table)
    if arguments.json:
        print(json.dumps({"bars": bars}))


def _row(table: Table, source: str, device: str, family: str, result: dict[str, float]) -> None:
    table.add_row(
        source,
        device,
        family,
        f"{result['networks']:.0f}",
        f"{result['within_10']:.1%}",
        f"{result['median_error']:.1%}",
        f"{result['rank_correlation']:.4f}",
    )


if __name__ == "__main__":
    main()
