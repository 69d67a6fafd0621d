"""Does importance pay? Sampling policies compared at equal training compute and at equal steps.

    python benchmarks/anytime_accuracy.py --data cifar100.npz [--scale cpu] [--seeds 3] [--workers 2] [--json]

The same supernet, initial weights, order of images and schedule for every rival; learning rates are tuned on validation
images, one for each kind of step. Measured is what a user deploys: at ten budgets the subnet that one search with one
number of evaluations finds best on validation images, its accuracy on test images averaged over the budgets; beside it
the mean over a fixed panel of random subnets.

Every finished training is a line in OUT/SCALE.jsonl. Run the command again to go on after a stop; --page only makes the
page from what is there, and --overall one table and one page of all the scales in OUT. With a GPU all workers share it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anytime.evaluation import front_accuracy
from anytime.overall import overall_bars, overall_table, settings
from anytime.page import write_overall_page, write_page
from anytime.rivals import RIVALS_BY_NAME
from anytime.runs import Row, run_all
from anytime.scales import SCALES
from anytime.summary import bar_text, bars, tables
from anytime.tasks import Results, tasks
from anytime.verdict import verdict
from rich.console import Console

_GROUPS = ("main", "control", "ablation", "alone")


def main() -> None:
    arguments = _parse()
    console = Console(width=160, highlight=False)
    found = _overall(arguments.out, console) if arguments.overall else _one_scale(arguments, console)
    for item in found:
        console.print(f"{'holds' if item['holds'] else 'FAILS'}  {bar_text(item)}")
    if arguments.json:
        # JSON has no NaN, which stands for "never reached".
        print(json.dumps({"bars": [{**b, "value": b["value"] if math.isfinite(b["value"]) else None} for b in found]}))


def _overall(out: Path, console: Console) -> list[dict[str, Any]]:
    """Show the table of all scales and return its bars."""
    studies = {path.stem: Results(path).rows() for path in sorted(out.glob("*.jsonl")) if path.stem in SCALES}
    found = settings(studies)
    if not found:
        console.print(f"no scale in {out} has two seeds of all that are compared; train some first")
        return []
    console.print(overall_table(found))
    importance = {scale: Results(out / f"importance_{scale}.jsonl").rows() for scale in studies}
    console.print(f"page: {write_overall_page(studies, out / 'overall.html', importance)}")
    return overall_bars(found)


def _one_scale(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Train what is not trained yet, make the page and return the bars."""
    scale = SCALES[arguments.scale]
    results = Results(arguments.out / f"{scale.name}.jsonl")
    if not arguments.page:
        planned = tasks(
            scale, arguments.groups, arguments.rivals, arguments.seeds, arguments.protocols, arguments.shares
        )
        done = results.done()
        left = [task for task in planned if task.key not in done]
        compute = scale.compute * sum(task.share for task in left)
        console.print(
            f"{len(left)} of {len(planned)} trainings to do, at most {compute:,.0f}·10¹² multiply-adds in all"
        )
        all_done = run_all(
            scale, arguments.data, planned, results, arguments.workers, 60 * arguments.minutes, _say(console)
        )
        if not all_done:
            console.print("the time is up; run the command again to go on")
    rows = results.rows()
    for table in tables(rows):
        console.print(table)
    importance = Results(arguments.out / f"importance_{scale.name}.jsonl").rows()
    for text in verdict(rows, importance):
        console.print(f"- {text}")
    console.print(f"page: {write_page(rows, arguments.out / f'{scale.name}.html', importance)}")
    return bars(rows)


def _say(console: Console) -> Callable[[Row, int], None]:
    def say(row: Row, left: int) -> None:
        console.print(f"{row['key']}: {_said(row)}  ({row['wall_seconds']:.0f} s, {left} left)")

    return say


def _said(row: Row) -> str:
    if row["kind"] == "alone":
        return f"test {row['test']:.1%}"
    part = "validation" if row["kind"] == "tune" else "test"
    return f"front ({part}) {front_accuracy(row, part=part):.1%} after {row['steps']:,} steps"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="npz with x_train, y_train, x_test, y_test (uint8 images)")
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="size of the study (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (%(default)s)")
    parser.add_argument("--groups", nargs="+", default=["main", "control"], choices=_GROUPS)
    parser.add_argument("--rivals", nargs="+", choices=sorted(RIVALS_BY_NAME), help="only these")
    parser.add_argument("--protocols", nargs="+", default=["compute", "steps"], choices=["compute", "steps"])
    parser.add_argument("--shares", nargs="+", type=float, help="lengths at equal compute (all of the scale's)")
    parser.add_argument("--out", type=Path, default=Path("runs/anytime"), help="folder of the results (%(default)s)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no training after so many")
    parser.add_argument("--workers", type=int, default=1, help="trainings side by side (%(default)s)")
    parser.add_argument("--page", action="store_true", help="train nothing; make the page")
    parser.add_argument("--overall", action="store_true", help="train nothing; a table and a page of all scales in OUT")
    parser.add_argument("--json", action="store_true", help="print the bars as one JSON object, last")
    arguments = parser.parse_args()
    if not (arguments.page or arguments.overall) and (arguments.data is None or not arguments.data.is_file()):
        parser.error("--data FILE is needed to train: an .npz with x_train, y_train, x_test, y_test")
    return arguments


if __name__ == "__main__":
    main()
