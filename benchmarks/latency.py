"""Fit the latency packs on part of measured networks and compare with the rest.

    python benchmarks/latency.py --data device_latency.jsonl.gz [--every] [--json]

The data: one JSON object per line with id, kernels and latency_ms by device (nn-Meter's published benchmark,
O-UDA-1.0). With --every, also by 5-fold cross-validation. `tips-nni latency fit DATA --write FOLDER` writes the packs.
"""

from __future__ import annotations

import argparse
import json

from rich.console import Console

from tips_nni.latency import DEVICES, Quality, held_out, read_records
from tips_nni.pipeline import quality_table

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
    parser.add_argument("--every", action="store_true", help="also cross-validation")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    records = read_records(arguments.data)
    rows: list[Quality] = []
    for every in (False, True) if arguments.every else (False,):
        part: list[Quality] = []
        for name, (device, _) in DEVICES.items():
            part += held_out(records, name, device, folds=arguments.folds, seed=arguments.seed, every=every)
        how = f"each of {arguments.folds} parts in turn" if every else f"a random part, 1 of {arguments.folds}"
        Console(width=110).print(quality_table(part, f"networks not seen in the fit ({how})"))
        rows += part
    if arguments.json:
        print(json.dumps({"bars": [bar for row in rows if row.fitted_on == "all" for bar in _bars(row)]}))


def _bars(row: Quality) -> list[dict[str, object]]:
    """Return the bars that a row must reach."""
    name = f"{row.device} {row.family}{f', {row.folds}-fold' if row.folds > 1 else ''}"
    wanted = [(f"{name} within 10%", row.within_10, FLOORS[row.family, row.device])]
    if row.device != "myriad_vpu":
        wanted.append((f"{name} rank", row.rank_correlation, 0.99))
    return [{"name": what, "value": value, "bar": bar, "holds": value >= bar} for what, value, bar in wanted]


if __name__ == "__main__":
    main()
