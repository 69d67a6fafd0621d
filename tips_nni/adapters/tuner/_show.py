"""`tips-nni nni-front`: the front of an experiment as a table, a CSV file and an anytime model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from tips_nni.adapters.tuner._results import failure, read_results
from tips_nni.core import FrontPoint, TipsError, write_csv
from tips_nni.report import front_table


def show_front(folder: Path, *, csv: Path | None = None, model: Path | None = None, run: Path | None = None) -> None:
    """Print the front of the experiment in `folder`, and write what else is asked for.

    Args:
        folder: of the experiment.
        csv: file for the front, one row for each subnet.
        model: file for the anytime model; its subnets are then also measured on the test images.
        run: folder of the run with the trained supernet; needed for `model`.

    Raises:
        TipsError: there are no results, or the run is not the one whose subnets were searched.
    """
    results = read_results(folder)
    if not results.evaluated:
        reason = failure(folder)
        raise TipsError(
            f"experiment {folder.name} has no measured subnet: {reason or 'wait for its first trial to end'}"
        )
    rows: list[dict[str, Any]]
    if model is not None and run is not None:
        from tips_nni.pipeline import anytime_model, load_trained  # brings torch, which takes seconds

        parts = load_trained(run)
        if parts.supernet.space != results.space:
            raise TipsError(f"{run} has another search space than experiment {folder.name}; name the run it searched")
        built = anytime_model(parts, results.front)
        built.save(model)
        rows = [{"subnet": row.pop("subnet"), "validation_accuracy": row.pop("accuracy"), **row} for row in built.front]
    else:
        rows = [_row(point) for point in results.front]
    Console(highlight=False).print(front_table(rows, results.target))
    print(f"{len(rows)} of {len(results.evaluated)} measured subnets, in accuracy against {results.objective}")
    if csv is not None:
        write_csv(csv, [{**{k: v for k, v in row.items() if k != "subnet"}, **row["subnet"]} for row in rows])
        print(f"front          {csv}")
    if model is not None:
        print(f"anytime model  {model}")


def _row(point: FrontPoint) -> dict[str, Any]:
    return {"subnet": point.config.as_dict(), "validation_accuracy": point.accuracy, **point.costs}
