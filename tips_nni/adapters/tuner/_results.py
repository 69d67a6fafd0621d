"""What an experiment with the tuner TIPS found: from the tuner's own record, which pairs results by their code."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nni.experiment import rest
from nni.tools.nnictl.config_utils import Experiments
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tips_nni.adapters.tuner._tuner import STATE
from tips_nni.core import FrontPoint, SearchSpace, TipsError, front_of

_FINISHED = ("DONE", "ERROR", "STOPPED", "VIEWED")


@dataclass(frozen=True)
class Results:
    """What has been measured so far.

    Attributes:
        space: the search space.
        objective: the cost that is traded against accuracy.
        target: the device of predicted latencies.
        evaluated: every measured subnet, in order of measurement.
    """

    space: SearchSpace
    objective: str
    target: str
    evaluated: tuple[FrontPoint, ...]

    @property
    def front(self) -> tuple[FrontPoint, ...]:
        """The subnets that no other one dominates, the cheapest first."""
        return front_of(self.evaluated, self.objective)


def find_experiment(name: str) -> Path:
    """Return the folder of an experiment.

    Args:
        name: its id, ``latest``, or the folder itself.

    Raises:
        TipsError: NNI knows no such experiment.
    """
    if Path(name).is_dir():
        return Path(name)
    known = Experiments().get_all_experiments()
    if name == "latest" and known:
        name = max(known, key=lambda key: float(known[key]["startTime"]))
    if name not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise TipsError(f"NNI has no experiment {name!r} here (known: {listed}); see `nnictl experiment list --all`")
    return Path(known[name]["logDir"]).expanduser() / name


def read_results(folder: Path) -> Results:
    """Read the tuner's record of an experiment, running or stopped.

    Raises:
        TipsError: there is none yet, or it is damaged.
    """
    path = folder / "checkpoint" / STATE
    if not path.is_file():
        reason = failure(folder)
        raise TipsError(
            f"{folder} has no results of the tuner TIPS yet: {reason or 'it has no ' + path.name}; see its log folder"
        )
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        space = SearchSpace.from_json(state["space"])
        evaluated = tuple(
            FrontPoint(space.decode(code), float(accuracy), {str(k): float(v) for k, v in costs.items()})
            for code, accuracy, costs in state["search"]["known"]
        )
        return Results(space, str(state["objective"]), str(state["target"]), evaluated)
    except (ValueError, KeyError, TypeError) as error:
        raise TipsError(f"{path} is damaged ({error}); resume the experiment to make it again") from error


def failure(folder: Path) -> str | None:
    """Return what went wrong in an experiment, in our own words: of its tuner, else of the last trial that failed."""
    manager = folder / "log" / "nnictl_stderr.log"
    trials = sorted(folder.glob("environments/*/trials/*/trial.stderr"), key=lambda path: path.stat().st_mtime)
    for log in (manager, *trials[::-1]):
        if log.is_file():
            # NNI goes on writing to the manager's log after a resume; what is above the last start is past.
            text = log.read_text(encoding="utf-8", errors="replace").rpartition(f"Experiment {folder.name} start:")[2]
            for line in text.splitlines()[::-1]:
                if line.startswith("tips-nni: "):
                    return line.removeprefix("tips-nni: ")
    return None


def wait(folder: Path, *, quiet: bool, poll: float = 2.0) -> str:
    """Wait until an experiment has ended and return its status: ``DONE``, ``STOPPED``, ….

    Raises:
        TipsError: it ended with an error, which is named.
    """
    entry = Experiments().get_all_experiments().get(folder.name)
    if entry is None:
        raise TipsError(f"NNI has no experiment {folder.name!r} here; see `nnictl experiment list --all`")
    best = TextColumn("{task.fields[best]}")
    columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), best)
    with Progress(*columns, disable=quiet) as progress:
        task = progress.add_task("trials", total=None, best="")
        while True:
            answer = _status(entry)
            if answer is None:
                return "STOPPED"
            status, profile = answer
            measured = _measured(folder)
            total = profile["params"].get("maxTrialNumber")
            note = f"best {max(measured):.1%}" if measured else ""
            progress.update(task, completed=len(measured), total=total, best=note)
            if status["status"] in _FINISHED:
                if status["errors"]:
                    reason = failure(folder) or " ".join(str(status["errors"][0]).split())
                    raise TipsError(f"experiment {folder.name} ended with an error: {reason}")
                return str(status["status"])
            time.sleep(poll)


def _status(entry: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return status and profile of a running experiment, None where its server is not there."""
    import requests

    try:
        prefix = entry.get("prefixUrl")
        return rest.get(entry["port"], "/check-status", prefix), rest.get(entry["port"], "/experiment", prefix)
    except requests.ConnectionError:
        return None


def _measured(folder: Path) -> list[float]:
    """Return the accuracies so far; none before the first result."""
    if not (folder / "checkpoint" / STATE).is_file():
        return []
    return [point.accuracy for point in read_results(folder).evaluated]
