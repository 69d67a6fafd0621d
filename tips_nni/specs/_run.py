"""Loading a run spec: cross-checks and absolute paths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tips_nni.core import TipsError, check_algorithm
from tips_nni.specs._library import is_path, load_space, load_strategy, space_for
from tips_nni.specs._models import RunSpec, SearchSpec, StrategySpec, TrainingSpec
from tips_nni.specs._validate import dotted, located, shown, validate
from tips_nni.specs._yaml import Document, KeyPath, override, printable, read_document

#: The resolved spec in a run folder, and the description of its network.
RUN_SPEC = "run.yaml"
ARCHITECTURE = "architecture.json"


def load_run(path: str | Path, overrides: Sequence[str] = (), *, check_paths: bool = True) -> RunSpec:
    """Load a run spec, resolve it and check everything that can be checked without running.

    Resolved means: the search space is named, the search is the strategy's with the run's own keys on top, and the
    paths of data, checkpoint, space, strategy and latency target are absolute. They are relative to the folder of the
    spec, those of an override to the current folder. `output` stays as written, relative to the current folder.

    Args:
        path: the YAML file.
        overrides: ``training.epochs=3``; values are YAML and are checked like those of the file.
        check_paths: whether the data and the checkpoint must exist.

    Raises:
        TipsError: one line with file and line, the value, what is allowed and the remedy.
    """
    path = Path(os.path.expanduser(path))
    document = read_document(path)
    for text in overrides:
        document = override(document, text)
    run = validate(RunSpec, document)
    if run.space is None:
        space = located(document, ("backbone", "name"), lambda: space_for(run.backbone.name))
    else:
        space = _library_path(document, path, ("space",), run.space)
        located(document, ("space",), lambda: load_space(space))
    strategy_path = _library_path(document, path, ("strategy",), run.strategy)
    strategy = located(document, ("strategy",), lambda: load_strategy(strategy_path))
    located(document, ("data", "batch_size"), lambda: check_shares(run.training, run.data.batch_size))
    data = run.data.model_copy(update={"path": _file(document, path, ("data", "path"), run.data.path)})
    checkpoint = _file(document, path, ("backbone", "checkpoint_path"), run.backbone.checkpoint_path)
    backbone = run.backbone.model_copy(update={"checkpoint_path": checkpoint})
    target = _library_path(document, path, ("constraints", "target"), run.constraints.target)
    packs = _file(document, path, ("constraints", "packs"), run.constraints.packs)
    if check_paths:
        _must_exist(document, ("constraints", "target"), None if target == run.constraints.target else target)
        _must_exist(document, ("backbone", "checkpoint_path"), checkpoint)
        if not data.download:
            _must_exist(document, ("data", "path"), data.path)
    return run.model_copy(
        update={
            "space": space,
            "strategy": strategy_path,
            "search": located(document, ("search",), lambda: _search(run, strategy)),
            "data": data,
            "backbone": backbone,
            "constraints": run.constraints.model_copy(update={"target": target, "packs": packs}),
        }
    )


def check_shares(training: TrainingSpec, images: int) -> None:
    """Check that all devices get the same share of a batch of `images`, with mixup, which blends pairs, an even one.

    Raises:
        TipsError: they do not.
    """
    unit = training.processes * (2 if training.mixup and training.processes > 1 else 1)
    if images % unit:
        reason = (
            "mixup needs an even number of images on each" if unit > training.processes else "all take an equal part"
        )
        raise TipsError(
            f"a batch of {images} images is not for {training.processes} devices ({reason}); make data.batch_size a "
            f"multiple of {unit}, e.g. {max(unit, images - images % unit)}"
        )


def _search(run: RunSpec, strategy: StrategySpec) -> SearchSpec:
    """Return the strategy's search with the run's own keys on top; options of another algorithm are left out.

    Raises:
        TipsError: the strategy's algorithm does not take the run's options.
    """
    given = run.search.model_dump(exclude_unset=True) if run.search else {}
    declared = strategy.search.model_dump()
    if given.get("algorithm", declared["algorithm"]) != declared["algorithm"]:
        declared["options"] = {}
    options = {**declared["options"], **given.get("options", {})}
    check_algorithm(given.get("algorithm", declared["algorithm"]), options)
    return SearchSpec(**{**declared, **given, "options": options})


def _library_path(document: Document, spec: Path, key: KeyPath, value: str) -> str:
    """Return a built-in's name as it is, a path made absolute."""
    return str(_absolute(document, spec, key, value)) if is_path(value) else value


def _file(document: Document, spec: Path, key: KeyPath, value: str | None) -> str | None:
    return None if value is None else str(_absolute(document, spec, key, value))


def _absolute(document: Document, spec: Path, key: KeyPath, value: str) -> Path:
    base = Path.cwd() if document.is_overridden(key) else spec.parent
    return Path(os.path.abspath(base / os.path.expanduser(value)))


def _must_exist(document: Document, key: KeyPath, value: str | None) -> None:
    if value is not None and not Path(value).exists():
        given = f"{document.origin(key)}: {dotted(key)} = {shown(document.value(key))}"
        raise TipsError(f"{given}: there is no {printable(value)}; check the path")
