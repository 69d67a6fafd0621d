"""What an experiment searches, read from a folder, without torch: the tuner has ten seconds to start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from tips_nni.core import (
    Architecture,
    CostModel,
    CostTable,
    SearchAlgorithm,
    SearchProblem,
    SearchSettings,
    SearchSpace,
    SubnetConfig,
    TipsError,
    make_policy,
    make_search,
    unknown,
)
from tips_nni.latency import latency_model
from tips_nni.specs import ARCHITECTURE, RUN_SPEC, ConstraintsSpec, RunSpec, SearchSpec, load_run, load_strategy


@dataclass(frozen=True)
class SearchTask:
    """A search space with its costs, and how it is to be searched.

    Attributes:
        architecture: the network whose subnets are searched.
        spec: the run that the folder holds.
        strategy: name or path of the strategy.
        constraints: upper bounds and the device.
        objective: the cost that is traded against accuracy.
        settings: of the search.
        algorithm: of the search.
        options: of the algorithm.
        folder: where the task was read.
    """

    architecture: Architecture
    spec: RunSpec
    strategy: str
    constraints: ConstraintsSpec
    objective: str
    settings: SearchSettings
    algorithm: str
    options: Mapping[str, Any]
    folder: Path

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.architecture.space

    @property
    def costs(self) -> Mapping[str, CostModel]:
        """Every cost by its name: mflops, params_m, memory_mb, latency_ms."""
        latency = latency_model(
            self.constraints.target,
            self.architecture,
            backbone=self.spec.backbone.name,
            run=self.folder,
            coverage=self.constraints.coverage,
        )
        return {**CostTable(self.architecture).models(), latency.name: latency}

    def search(self, seed: int) -> SearchAlgorithm:
        """Return a new search; where it draws genes, they come from the strategy's policy.

        Raises:
            TipsError: unknown objective or target.
            InfeasibleError: no subnet keeps the constraints.
        """
        costs = self.costs
        if self.objective not in costs:
            raise unknown("objective", self.objective, costs)
        declared = load_strategy(self.strategy).policy
        policy = make_policy(declared.name, self.architecture, declared.options)
        rng = np.random.default_rng(seed)
        problem = SearchProblem(self.space, costs, self.objective, self.constraints.bounds, self.architecture, policy)
        return make_search(self.algorithm, problem, self.settings, rng, self.options)


def load_task(
    folder: Path,
    *,
    strategy: str | None = None,
    constraints: Mapping[str, Any] | None = None,
    objective: str | None = None,
    population: int | None = None,
    mutation: float | None = None,
) -> SearchTask:
    """Read the task in a folder; what is not given is the run's own.

    Args:
        folder: a run folder, or what `tips-nni nni-config` wrote.
        strategy: name or path; it brings its own search with it.
        constraints: as in a run spec.
        objective: the cost to trade against accuracy; by default latency where it is bounded, else multiply-adds.
        population: subnets of one generation.
        mutation: probability that a dimension of a child changes.

    Raises:
        TipsError: the folder holds no task, or a value is not allowed.
    """
    for name in (RUN_SPEC, ARCHITECTURE):
        if not (folder / name).is_file():
            raise TipsError(
                f"run = {folder} has no {name}; make it with `tips-nni run SPEC` or `tips-nni nni-config SPEC`"
            )
    spec = load_run(folder / RUN_SPEC, check_paths=False)
    bounds = spec.constraints if constraints is None else read_constraints(constraints)
    declared = load_strategy(strategy).search if strategy is not None else spec.search or SearchSpec()
    return SearchTask(
        architecture=read_architecture(folder / ARCHITECTURE),
        spec=spec,
        strategy=strategy or spec.strategy,
        constraints=bounds,
        objective=objective or ("latency_ms" if bounds.latency_ms is not None else "mflops"),
        settings=SearchSettings(
            population=declared.population if population is None else population,
            mutation=declared.mutation if mutation is None else mutation,
        ),
        algorithm=declared.algorithm,
        options=declared.options,
        folder=folder,
    )


def read_architecture(path: Path) -> Architecture:
    """Read an architecture from its JSON file.

    Raises:
        TipsError: it is damaged.
    """
    try:
        return Architecture.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TipsError(f"{path} is damaged ({error}); write it again with `tips-nni nni-config SPEC`") from error


def read_constraints(constraints: Any) -> ConstraintsSpec:
    """Check constraints as a run spec has them.

    Raises:
        TipsError: an unknown key, or a value that is not allowed.
    """
    allowed = ConstraintsSpec.model_fields
    if not isinstance(constraints, Mapping):
        raise TipsError(f"constraints = {constraints!r}; write a mapping with keys of {', '.join(allowed)}")
    for key in constraints:
        if key not in allowed:
            raise unknown("key of constraints", str(key), allowed)
    try:
        return ConstraintsSpec(**constraints)
    except ValidationError as error:
        first = error.errors()[0]
        raise TipsError(f"constraints: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def nni_search_space(space: SearchSpace) -> dict[str, Any]:
    """Return the space as NNI's ``search_space.json`` has it: every dimension a choice of its values."""
    return {dim.name: {"_type": "choice", "_value": list(dim.choices)} for dim in space.dims}


def check_search_space(given: Any, space: SearchSpace) -> None:
    """Check that NNI's search space is the one of the network.

    Raises:
        TipsError: a dimension is missing or unknown, or its choices differ.
    """
    wanted = nni_search_space(space)
    found = dict(given) if isinstance(given, Mapping) else {}
    remedy = "write the file again with `tips-nni nni-config SPEC`"
    for name in found:
        if name not in wanted:
            raise TipsError(f"the search space file has {name!r}, which the network has not; {remedy}")
    for name, entry in wanted.items():
        if name not in found:
            raise TipsError(f"the search space file lacks {name!r}; {remedy}")
        item = found[name]
        values = item.get("_value") if isinstance(item, Mapping) and item.get("_type") == "choice" else None
        if values != entry["_value"]:
            raise TipsError(f"the search space file gives {name!r} as {item}; it must be {entry}: {remedy}")


def code_of(space: SearchSpace, config: SubnetConfig) -> str:
    """Return the code of a subnet as text, e.g. ``0-3-1``: what a trial reports with its result."""
    return "-".join(map(str, space.encode(config).tolist()))


def config_of(space: SearchSpace, code: object) -> SubnetConfig:
    """Return the subnet of a code from `code_of`.

    Raises:
        TipsError: it is no code of this space.
    """
    try:
        return space.decode([int(part) for part in str(code).split("-")])
    except ValueError as error:
        raise TipsError(f"code {code!r} is not of this search space ({error})") from None
