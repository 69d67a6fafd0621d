"""`tips-nni nni-config`: the files of an NNI experiment over the subnets of a run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import yaml

from tips_nni.adapters.tuner._task import nni_search_space
from tips_nni.core import TipsError, check_feasible, replacing, write_text
from tips_nni.pipeline import describe_network, prepare
from tips_nni.specs import RUN_SPEC, RunSpec, is_path
from tips_nni.training import CHECKPOINT

Platform = Literal["local", "remote"]
_HEADER = """\
# Written by tips-nni nni-config; edit it freely.
#
#     tips-nni register                      once: makes NNI know the tuner TIPS
#     tips-nni check {config}
#     nnictl create --config {config}
#     tips-nni nni-front latest --wait       the front, when it is done
#
# Further keys of classArgs: strategy, constraints, objective, population, mutation (by default the run's own).
# A strategy brings its own search with it: `strategy: flash` searches as FLASH does.
# Without registration, write instead of `name: TIPS`:
#     className: tips_nni.adapters.TIPSTuner
#     codeDirectory: .
"""


def write_experiment(
    spec: RunSpec,
    folder: Path,
    *,
    train: bool = False,
    platform: Platform = "local",
    trials: int = 32,
    concurrency: int = 2,
) -> Path:
    """Write ``config.yaml``, ``search_space.json``, ``architecture.json`` and ``run.yaml`` and return the config.

    The folder is the trials' code directory. A search space or strategy of one's own is copied into it, and for other
    machines than this one the trained supernet too: NNI uploads that folder and nothing else.

    Args:
        spec: the run.
        folder: to write to.
        train: trials train their subnet alone, instead of measuring it in the run's trained supernet.
        platform: NNI's training service.
        trials: subnets to measure.
        concurrency: trials at once.

    Raises:
        TipsError: the run is not right, no subnet keeps its constraints, or the supernet is needed and not trained.
    """
    parts = prepare(spec)
    check_feasible(parts.supernet.space, parts.costs, spec.constraints.bounds)
    run = Path(spec.output)
    arguments = ["--train"] if train else []
    if not train and platform == "local":
        arguments = ["--weights", os.path.relpath(run, folder)]
    if not train and platform != "local":
        source = run / CHECKPOINT
        if not source.is_file():
            raise TipsError(
                f"there is no trained supernet at {source}; train it first with `tips-nni run SPEC`, or add --train"
            )
        with replacing(folder / CHECKPOINT) as copy:
            shutil.copyfile(source, copy)
    python = sys.executable if platform == "local" else "python3"
    command = shlex.join([python, "-m", "tips_nni.cli", "nni-trial", ".", *arguments])
    write_text(folder / RUN_SPEC, _self_contained(spec, folder).to_yaml())
    describe_network(parts, folder)
    write_text(folder / "search_space.json", json.dumps(nni_search_space(parts.supernet.space), indent=2) + "\n")
    config = {
        "experimentName": f"{spec.backbone.name}, strategy {spec.strategy}",
        "searchSpaceFile": "search_space.json",
        "trialCommand": command,
        "trialCodeDirectory": ".",
        "trialConcurrency": concurrency,
        "maxTrialNumber": trials,
        "tuner": {"name": "TIPS", "classArgs": {"run": ".", "seed": spec.seed}},
        "trainingService": _service(platform),
    }
    path = folder / "config.yaml"
    write_text(path, _HEADER.format(config=path) + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return path


def machine_paths(spec: RunSpec) -> list[str]:
    """Return the paths in a run that must also be there on other machines."""
    named = {"data.path": spec.data.path, "backbone.checkpoint_path": spec.backbone.checkpoint_path}
    return [f"{key} = {path}" for key, path in named.items() if path is not None]


def _self_contained(spec: RunSpec, folder: Path) -> RunSpec:
    """Copy the run's own files (YAML, latency target) into the folder and return the run with their new names."""
    names = {}
    for key, value in (("space", spec.space), ("strategy", spec.strategy)):
        if value is not None and is_path(value):
            write_text(folder / f"{key}.yaml", Path(value).read_text(encoding="utf-8"))
            names[key] = f"./{key}.yaml"
    target = Path(spec.constraints.target)
    if target.is_file():
        name = f"./target{target.suffix}"
        write_text(folder / name, target.read_text(encoding="utf-8"))
        spec = spec.model_copy(update={"constraints": spec.constraints.model_copy(update={"target": name})})
    return spec.model_copy(update=names)


def _service(platform: Platform) -> dict[str, Any]:
    """Return NNI's training service; what only the user knows is marked."""
    if platform == "local":
        return {"platform": "local"}
    machine = {"host": "CHANGE-ME", "user": "CHANGE-ME", "sshKeyFile": "~/.ssh/id_rsa", "pythonPath": "CHANGE-ME/bin"}
    return {"platform": "remote", "reuseMode": False, "machineList": [machine]}
