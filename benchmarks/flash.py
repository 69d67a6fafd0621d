"""FLASH: speed of NN-Degree and of the search, exactness beside enumeration, and what predicts a supernet's accuracy.

    python benchmarks/flash.py --data FOLDER [--json] [--steps 3600] [--out runs/flash]

FOLDER holds CIFAR-100 as ``cifar100_q95.train.npz`` and ``.test.npz`` with the ``pack.py`` that reads them; without
``--data`` only what needs no images is measured. The supernet is trained here on one core (about a quarter of an hour)
and kept in OUT with all measurements, so that a second run takes minutes; `--steps` shortens the training. Searches
have one budget of measurements. Of the peers pymoo's NSGA-II takes part where pymoo is installed (``pip install
tips-nni[peers]``); our `evolution` without a policy is NSGA-II as well.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flash_supernet import Measured, read_pack, scale_of, trained
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tips_nni.core import (
    PREDICTORS,
    Architecture,
    Codes,
    CostModel,
    CostTable,
    FlashSolver,
    NNDegree,
    PathImportancePolicy,
    SearchProblem,
    SearchSettings,
    SubnetConfig,
    make_policy,
    make_predictor,
    make_search,
    rank_correlation,
    training_free_front,
)
from tips_nni.elastic import Supernet, convert
from tips_nni.latency import latency_model
from tips_nni.specs import DepthSpec, RatioSpec, SpaceSpec

TARGET = "pixel4_cpu"
SAMPLES, HELD_OUT, BUDGETS = 25, 100, 10
Vector = NDArray[np.float64]
Measure = Callable[[Sequence[SubnetConfig]], Vector]
Bars = list[dict[str, Any]]


def costs_of(architecture: Architecture) -> Mapping[str, CostModel]:
    latency = latency_model(TARGET, architecture)
    return {**CostTable(architecture).models(), latency.name: latency}


def enumerable_space() -> SpaceSpec:
    """The same ResNet with two choices for each dimension, all of them of the large space too."""
    two = RatioSpec(ratios=(0.5, 1.0), divisor=2)
    return SpaceSpec(family="resnet", width=two, hidden=two, depth=DepthSpec(min=2))


def random_limits(values: Mapping[str, Vector], rng: np.random.Generator) -> dict[str, float]:
    """Return upper bounds of one to three costs, each at a random quantile, that some subnet keeps together."""
    while True:
        names = rng.choice(sorted(values), size=rng.integers(1, 4), replace=False)
        limits = {str(name): float(np.quantile(values[name], rng.uniform(0.02, 0.9))) for name in names}
        if np.logical_and.reduce([values[name] <= limit for name, limit in limits.items()]).any():
            return limits


def speed(bars: Bars, console: Console, architecture: Architecture) -> None:
    space, costs = architecture.space, costs_of(architecture)
    start = time.process_time()
    degree = NNDegree(architecture)
    FlashSolver(degree, costs, {}, degree.evaluate).solve({"mflops": 1.0}, np.random.default_rng(0))
    whole = time.process_time() - start
    codes = space.sample(np.random.default_rng(0), 1_000_000)
    seconds = min(timed(lambda: degree.evaluate(codes))[0] for _ in range(3))
    front, points = timed(
        lambda: training_free_front(architecture, costs, "mflops", {}, BUDGETS, np.random.default_rng(0))
    )
    console.print(
        f"space of {space.size:.2e} subnets in {len(space.dims)} dimensions; NN-Degree of {1e-6 / seconds * 1e6:.2f} "
        f"million subnets/s; training-free: one limit {whole:.2f} s, a front of {len(points)} subnets {front:.2f} s"
    )
    bar(bars, "subnets in the space", space.size, 6e10, at_least=True)
    bar(bars, "NN-Degree, subnets per second", 1e6 / seconds, 1e6, at_least=True)
    bar(bars, "training-free search with building its tables, seconds", whole, 1.0)
    predictor = make_predictor("ridge", degree, costs)
    few = space.sample(np.random.default_rng(1), SAMPLES)
    predictor.fit(few, np.log(degree.evaluate(few)) / 10)
    rng = np.random.default_rng(2)
    values = {name: cost.evaluate(codes[:10_000]) for name, cost in costs.items()}
    for name, score in (("NN-Degree", degree.evaluate), ("ridge", predictor.predict)):
        solver = FlashSolver(degree, costs, {}, score)
        taken = []
        for _ in range(20):
            limits = random_limits(values, rng)
            repeats = [_seconds_of_search(solver, limits) for _ in range(3)]
            taken.append(min(repeats))
        console.print(f"search per constraint by {name}: median {np.median(taken):.3f} s, slowest {max(taken):.3f} s")
        bar(bars, f"search per constraint by {name}, slowest of 20, seconds", max(taken), 0.2)


def exactness(bars: Bars, console: Console, architecture: Architecture, measure: Measure) -> None:
    """Compare with exhaustive search over every subnet, for each predictor fitted to measured subnets."""
    space, costs, degree = architecture.space, costs_of(architecture), NNDegree(architecture)
    few = space.sample(np.random.default_rng(3), SAMPLES)
    accuracies = measure([space.decode(code) for code in few])
    shape = tuple(space.sizes.tolist())

    def over_all(evaluate: Callable[[Codes], Vector]) -> Vector:
        parts = []
        for start in range(0, space.size, 1 << 18):
            numbers = np.arange(start, min(start + (1 << 18), space.size))
            parts.append(evaluate(np.stack(np.unravel_index(numbers, shape), axis=1)))
        return np.concatenate(parts)

    values = {name: over_all(cost.evaluate) for name, cost in costs.items()}
    bar(bars, "subnets of the enumerated space", space.size, 1e6, at_least=True)
    for name in PREDICTORS:
        predictor = make_predictor(name, degree, costs)
        predictor.fit(few, accuracies)
        predicted = over_all(predictor.predict)
        solver = FlashSolver(degree, costs, {}, predictor.predict)
        rng = np.random.default_rng(4)
        gaps = []
        for _ in range(20):
            limits = random_limits(values, rng)
            kept = np.logical_and.reduce([values[cost] <= limit for cost, limit in limits.items()])
            best = float(predicted[kept].max())
            _, found = solver.solve(limits, rng)
            gaps.append((best - found) / best)
        exact = sum(gap < 1e-12 for gap in gaps)
        console.print(
            f"exhaustive search over {space.size:,} subnets, predictor {name}: the best one in {exact} of 20, "
            f"largest gap {max(gaps):.3%} of its predicted accuracy"
        )
        bar(bars, f"gap to exhaustive search, {name}, largest of 20", max(gaps), 0.001)


def subnet_tps(policy: PathImportancePolicy, codes: Codes) -> Vector:
    """Return the summed best-path TPS of the edges that subnets keep, shape (N,): TIPS's score of a subnet (ours)."""
    mask = policy.graph.node_mask(codes)
    kept = mask[:, policy.graph.source] & mask[:, policy.graph.target]
    return np.asarray(kept @ policy.through, dtype=np.float64)


def correlations(
    figures: dict[str, Any], console: Console, supernet: Supernet, validation: Measured, test: Measured
) -> None:
    """Rank 100 held-out subnets by every predictor."""
    architecture, space = supernet.architecture, supernet.space
    costs, degree = costs_of(architecture), NNDegree(architecture)
    problem = SearchProblem(space, costs, "mflops", {}, architecture)
    search = make_search("flash", problem, SearchSettings(population=SAMPLES), np.random.default_rng(5))
    samples = [config for config in (search.ask() for _ in range(SAMPLES)) if config is not None]
    accuracies, few = validation(samples), space.encode_many(samples)
    held_out = space.sample(np.random.default_rng(2024), HELD_OUT)
    truth = test([space.decode(code) for code in held_out])
    policy = make_policy("path_importance", architecture)
    assert isinstance(policy, PathImportancePolicy)
    policy.observe([space.decode(code) for code in space.sample(np.random.default_rng(6), 64)])
    policy.refresh()
    rows: dict[str, tuple[float, float | None]] = {
        "NN-Degree": (rank_correlation(degree.evaluate(held_out), truth), None)
    }
    for name in PREDICTORS:
        predictor = make_predictor(name, degree, costs)
        quality = predictor.fit(few, accuracies)
        label = f"predictor {name}, {SAMPLES} samples"
        rows[label] = rank_correlation(predictor.predict(held_out), truth), quality.leave_one_out_error
    for label, values in (
        ("multiply-adds", costs["mflops"].evaluate(held_out)),
        ("parameters", costs["params_m"].evaluate(held_out)),
        ("TPS of the edges kept", subnet_tps(policy, held_out)),
    ):
        rows[label] = rank_correlation(values, truth), None
    table = Table(title=f"{HELD_OUT} held-out subnets, test accuracy {truth.min():.1%} to {truth.max():.1%}")
    for column in ("ranked by", "Spearman", "leave-one-out error"):
        table.add_column(column, justify="left" if column == "ranked by" else "right")
    for label, (value, error) in rows.items():
        table.add_row(label, f"{value:.3f}", "" if error is None else f"{error:.2%}")
    console.print(table)
    figures["rank_correlation"] = {label: value for label, (value, _) in rows.items()}


def searches(
    figures: dict[str, Any],
    console: Console,
    supernet: Supernet,
    validation: Measured,
    test: Measured,
    generations: int,
) -> None:
    """Give every search the same number of measurements."""
    architecture, space = supernet.architecture, supernet.space
    table, costs = CostTable(architecture), costs_of(architecture)
    count = SAMPLES * (generations + 1)
    least, most = table.flops(space.encode_many([space.smallest, space.largest])) / 1e6
    budgets = np.geomspace(least, most, BUDGETS + 1)[1:]

    def ours(name: str, policy: str | None = None, **options: Any) -> list[SubnetConfig]:
        drawn = make_policy(policy, architecture) if policy else None
        problem = SearchProblem(space, costs, "mflops", {}, architecture, drawn)
        search = make_search(name, problem, SearchSettings(population=SAMPLES), np.random.default_rng(7), options)
        while search.measured < count:
            asked = [config for config in (search.ask() for _ in range(SAMPLES)) if config is not None]
            for config, value in zip(asked, validation(asked).tolist(), strict=True):
                search.tell(config, value)
        return [point.config for point in search.result.evaluated]

    rivals: dict[str, Callable[[], list[SubnetConfig]]] = {
        "FLASH, ridge": lambda: ours("flash"),
        "FLASH, published predictor": lambda: ours("flash", predictor="nn_degree"),
        "NN-Degree alone": lambda: ours("flash", training_free=True),
        "evolution, genes of TIPS": lambda: ours("evolution", "path_importance"),
        "evolution (our NSGA-II)": lambda: ours("evolution"),
        "random search": lambda: [space.decode(c) for c in space.sample(np.random.default_rng(8), count)],
    }
    if (peer := pymoo_search(space, table, validation, count)) is not None:
        rivals["NSGA-II of pymoo"] = peer
    shown = Table(title=f"{count} measurements each: mean accuracy of the best subnets within {BUDGETS} budgets")
    for column in ("search", "validation", "test"):
        shown.add_column(column, justify="left" if column == "search" else "right")
    figures["front_accuracy"] = {}
    for label, run in rivals.items():
        configs = run()
        accuracies, flops = validation(configs), table.flops(space.encode_many(configs)) / 1e6
        chosen = [int(np.where(flops <= limit * (1 + 1e-9), accuracies, -1.0).argmax()) for limit in budgets]
        tested = test([configs[i] for i in chosen])
        shown.add_row(label, f"{accuracies[chosen].mean():.2%}", f"{tested.mean():.2%}")
        figures["front_accuracy"][label] = {
            "validation": float(accuracies[chosen].mean()),
            "test": float(tested.mean()),
        }
    console.print(shown)


def pymoo_search(
    space: Any, table: CostTable, validation: Measured, count: int
) -> Callable[[], list[SubnetConfig]] | None:
    """Return pymoo's NSGA-II with its operators for integers, or None where pymoo is not installed."""
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.sampling.rnd import IntegerRandomSampling
        from pymoo.optimize import minimize
    except ImportError:
        return None

    def run() -> list[SubnetConfig]:
        seen: dict[SubnetConfig, None] = {}

        class Subnets(Problem):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__(n_var=len(space.dims), n_obj=2, xl=0, xu=space.sizes - 1, vtype=int)

            def _evaluate(self, x: Codes, out: dict[str, Any], *_: Any, **__: Any) -> None:
                configs = [space.decode(code) for code in x]
                seen.update(dict.fromkeys(configs))
                out["F"] = np.stack([-validation(configs), np.log(table.flops(x.astype(np.int64)))], axis=1)

        algorithm = NSGA2(
            pop_size=SAMPLES,
            sampling=IntegerRandomSampling(),
            crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
            mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
            eliminate_duplicates=True,
        )
        minimize(Subnets(), algorithm, ("n_eval", count), seed=9)
        return list(seen)[:count]

    return run


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor seconds of a call, which a busy machine leaves alone, and its result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def _seconds_of_search(solver: FlashSolver, limits: Mapping[str, float]) -> float:
    return timed(lambda: solver.solve(limits, np.random.default_rng(0)))[0]


def bar(bars: Bars, name: str, value: float, limit: float, *, at_least: bool = False) -> None:
    """Note a bar: `value` must be at most (or at least) `limit`."""
    holds = value >= limit if at_least else value <= limit
    bars.append({"name": name, "value": value, "bar": limit, "holds": bool(holds)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="CIFAR-100 and its pack.py")
    parser.add_argument("--steps", type=int, default=3600, help="steps of the supernet's training (%(default)s)")
    parser.add_argument("--generations", type=int, default=2, help="rounds of a search after the first (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/flash"), help="supernet and measurements (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the bars as one JSON object, last")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120, highlight=False)
    bars: Bars = []
    figures: dict[str, Any] = {}
    scale = scale_of()
    torch.manual_seed(0)
    small = convert(scale.build(100), enumerable_space(), image_size=scale.image_size).architecture
    large = scale.supernet(100).architecture
    speed(bars, console, large)
    if arguments.data is None:

        def formula(configs: Sequence[SubnetConfig]) -> Vector:
            codes = small.space.encode_many(configs)
            noise = np.random.default_rng(9).normal(0, 0.005, len(codes))
            return 0.1 + 0.02 * np.log(CostTable(small).flops(codes)) + 0.002 * codes.sum(axis=1) + noise

        console.print("no --data: the exhaustive search is on made-up accuracies, and nothing is trained")
        exactness(bars, console, small, formula)
    else:
        data = read_pack(arguments.data, scale)
        supernet, seconds = trained(scale, data, arguments.steps, arguments.out / "supernet.safetensors")
        validation = Measured(supernet, data, scale, "validation", arguments.out / "validation.json", 2000)
        test = Measured(supernet, data, scale, "test", arguments.out / "test.json", 5000)
        ends = test([supernet.space.smallest, supernet.space.largest])
        console.print(
            f"supernet: {arguments.steps} steps in {seconds:.0f} s on one core; test accuracy of the smallest "
            f"{ends[0]:.1%}, of the largest {ends[1]:.1%}"
        )

        def within(configs: Sequence[SubnetConfig]) -> Vector:
            return validation([supernet.space.config(config.as_dict()) for config in configs])

        exactness(bars, console, small, within)
        correlations(figures, console, supernet, validation, test)
        searches(figures, console, supernet, validation, test, arguments.generations)
    for item in bars:
        sign = ">=" if item["bar"] >= 1e6 else "<="
        verdict = "holds" if item["holds"] else "FAILS"
        console.print(f"{verdict}  {item['name']}: {item['value']:.3g} ({sign} {item['bar']:g})")
    if arguments.json:
        print(json.dumps({"bars": bars, "figures": figures}))


if __name__ == "__main__":
    main()
