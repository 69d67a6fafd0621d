"""Does importance say what matters? What options bring to a trained supernet, beside what TIPS thinks of them.

    python benchmarks/importance.py --data cifar100.npz [--scale cpu] [--share 0.5] [--seeds 3] [--json]

A supernet is trained on one uniformly drawn subnet a step, so that no estimate had a say in it. The losses of many
subnets on test images then tell what every option (a wider layer, one more block) brings: least squares over the
options that each subnet has. Every estimator sees uniformly drawn subnets too, and is compared by rank correlation of
options. Beside them stand two that need no chain, an option's multiply-adds and how early it comes in its layer, and
the benefits measured twice, on halves of the subnets and of the images: no estimator can agree with them better.

A second table says how much of the draws importance moves: a form that hardly moves any cannot gain by it.

Every seed is a line in OUT/importance_SCALE.jsonl; run the command again to go on after a stop.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from anytime.data import Batch, Data, load
from anytime.importance_tables import interval, moves_table, ranks_table
from anytime.rivals import BASELINE, RIVALS_BY_NAME
from anytime.scales import SCALES, Scale
from anytime.summary import shown
from anytime.tasks import Results
from anytime.training import Length, train
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from tips_nni.core import CostTable, PathGraph, PathImportancePolicy, SubnetConfig, make_policy, rank_correlation
from tips_nni.core._unlocks import Unlocks
from tips_nni.elastic import Supernet, calibrate
from tips_nni.training import gradient_norms

Floats = NDArray[np.float64]

ESTIMATORS: dict[str, dict[str, Any]] = {
    "topology": {},
    "topology, directed": {"directed": True},
    "topology, λ = 0.01": {"lambda": 0.01},
    "topology, λ = 100": {"lambda": 100.0},
    "topology, constant coupling": {"coupling": "constant"},
    "topology, score sum": {"score": "sum"},
    "width": {"edge_weight": "width"},
    "gradient": {"edge_weight": "gradient"},
    "loss": {"edge_weight": "loss"},
}
#: Forms of the policy, with what they need beside importance.
FORMS: dict[str, dict[str, Any]] = {
    "marginal": {},
    "path": {"form": "path"},
    "budget": {"form": "budget", "thrift": 1.0},
    "growth": {"form": "growth", "thrift": 1.0},
}
_EDGE_WEIGHTS = ("topology", "gradient", "loss")
#: With it all importances are as good as equal.
_EQUAL = 1e6
#: Subnets whose losses are measured, and subnets in an estimator's chain.
_MEASURED, _SEEN = 400, 200
#: Training steps of two drawn subnets, without an update, whose gradients and losses an estimator sees.
_STEPS = 400
#: Subnets that tell a policy's probabilities.
_DRAWN = 8192
#: The pull of benefits to zero, in subnets: options that nearly always come together share what they bring.
_RIDGE = 1.0


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(1)
    console = Console(width=120, highlight=False)
    scale = SCALES[arguments.scale]
    results = Results(arguments.out / f"importance_{scale.name}.jsonl")
    done = {row["seed"] for row in _of_length(results, arguments.share)}
    left = [seed for seed in range(max(1, arguments.seeds)) if seed not in done]
    if left and not (arguments.data and arguments.data.is_file()):
        raise SystemExit(
            f"seeds {left} are not measured yet: --data FILE is needed, an .npz as for anytime_accuracy.py"
        )
    for seed in left:
        results.add(_measured(scale, arguments.data, arguments.share, arguments.rate, seed))
    rows = _of_length(results, arguments.share)
    console.print(ranks_table(rows))
    console.print(moves_table(rows))
    bar: dict[str, Any] = {"name": "rank correlation of topological worth with measured benefit", "bar": "> 0"}
    mean, half = interval([row["worth"]["topology"] for row in rows])
    bar |= {"value": mean, "holds": shown(mean, half)}
    if arguments.json:
        print(json.dumps({"bars": [bar]}))


def _of_length(results: Results, share: float) -> list[dict[str, Any]]:
    """Return the rows of supernets that were trained so long."""
    return [row for row in results.rows() if row["share"] == share]


def benefits_of(presence: Floats, losses: Floats) -> Floats:
    """Return by how much the presence of every option lowers the loss, shape (U,).

    Args:
        presence: share of each option's nodes that each subnet has, shape (N, U).
        losses: shape (N,).
    """
    x = presence - presence.mean(axis=0)
    y = losses.mean() - losses
    return np.asarray(np.linalg.solve(x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T @ y))


def _measured(scale: Scale, path: Path, share: float, rate: float, seed: int) -> dict[str, Any]:
    """Train a supernet, measure the benefits of its options, and return the estimators' rank correlations."""
    data = load(path, scale, torch.device("cpu"))
    supernet = train(scale, data, RIVALS_BY_NAME[BASELINE], rate, seed, Length(scale.compute * share)).supernet
    space, rng = supernet.space, np.random.default_rng([seed, 3])
    unlocks = Unlocks(PathGraph.from_architecture(supernet.architecture))
    codes = space.sample(rng, _MEASURED)
    losses = _losses(scale, data, supernet, [space.decode(code) for code in codes])
    presence = unlocks.presence(codes)
    benefits = benefits_of(presence, losses.mean(axis=1))
    halves = [benefits_of(presence[i::2], losses[i::2, i::2].mean(axis=1)) for i in (0, 1)]
    early = np.array([-float(level) for _, level in unlocks.options])
    costs = np.array([_added(CostTable(supernet.architecture), codes, option) for option in unlocks.options])
    row: dict[str, Any] = {
        "seed": seed,
        "share": share,
        "rate": rate,
        "options": [f"{space.dims[d].name} {space.dims[d].choices[level]}" for d, level in unlocks.options],
        "benefits": benefits.tolist(),
        "repeated": rank_correlation(*halves),
        "worth": {"multiply-adds": rank_correlation(costs, benefits), "early": rank_correlation(early, benefits)},
        "importance": {},
        "per_cost": {"multiply-adds": rank_correlation(1 / costs, benefits / costs)},
    }
    steps = _steps(scale, data, supernet, seed)
    for name, options in ESTIMATORS.items():
        policy = _estimate(supernet, options, steps)
        worth = unlocks.per_option(policy.worth)
        importance = [policy.importances[dim][level] for dim, level in unlocks.options]
        row["worth"][name] = rank_correlation(worth, benefits)
        row["importance"][name] = rank_correlation(np.array(importance), benefits)
        row["per_cost"][name] = rank_correlation(worth / costs, benefits / costs)
    row["moved"] = {
        form: {weight: _moved(supernet, {**options, "edge_weight": weight}, steps) for weight in _EDGE_WEIGHTS}
        for form, options in FORMS.items()
    }
    return row


def _moved(supernet: Supernet, options: dict[str, Any], steps: Sequence[Step]) -> float:
    """Return which part of a dimension's draws importance moves to other options, the mean over dimensions.

    This is the total variation distance of the options' probabilities from those with all importances equal.
    """
    space, shares = supernet.space, []
    for temperature in (1.0, _EQUAL):
        policy = _estimate(supernet, {**options, "temperature": temperature}, steps)
        codes = space.encode_many(policy.sample(np.random.default_rng(0), _DRAWN))
        shares.append(
            [np.bincount(column, minlength=size) / _DRAWN for column, size in zip(codes.T, space.sizes, strict=True)]
        )
    return float(np.mean([0.5 * np.abs(own - equal).sum() for own, equal in zip(*shares, strict=True)]))


@torch.no_grad()
def _losses(scale: Scale, data: Data, supernet: Supernet, configs: list[SubnetConfig]) -> Floats:
    """Return the loss of every subnet on every test image, shape (N, images)."""
    calibration = [x for x, _ in data.train.batches(scale.measured_batch, scale.calibration)]
    batches: list[Batch] = data.test.batches(scale.measured_batch, 1000)
    found = []
    for config in track(configs, "subnets", transient=True):
        subnet = supernet.view(config, calibrate(supernet.view(config), calibration) or None)
        found.append(torch.cat([F.cross_entropy(subnet(x), y, reduction="none") for x, y in batches]))
    return torch.stack(found).double().numpy()


def _added(table: CostTable, codes: NDArray[np.int64], option: tuple[int, int]) -> float:
    """Return the mean multiply-adds, in 1e6, that an option adds to subnets that have what comes before it."""
    dim, level = option
    with_it, without = codes.copy(), codes.copy()
    with_it[:, dim], without[:, dim] = level, level - 1
    return float((table.flops(with_it) - table.flops(without)).mean()) / 1e6


@dataclass(frozen=True)
class Step:
    """What a policy may see of a training step."""

    norms: dict[str, float]
    configs: list[SubnetConfig]
    losses: list[float]


def _steps(scale: Scale, data: Data, supernet: Supernet, seed: int) -> list[Step]:
    """Return training steps with uniformly drawn subnets; the weights stay as they are."""
    rng, batches = np.random.default_rng([seed, 4]), data.train.epochs(seed, scale.batch)
    supernet.train()
    found: list[Step] = []
    for _ in track(range(_STEPS), "steps", transient=True):
        images, labels = next(batches)
        supernet.backbone.zero_grad(set_to_none=True)
        configs = [supernet.space.decode(code) for code in supernet.space.sample(rng, 2)]
        losses = []
        for config in configs:
            loss = F.cross_entropy(supernet.view(config)(images), labels)
            loss.backward()
            losses.append(loss.item())
        found.append(Step(gradient_norms(supernet), configs, losses))
    supernet.eval()
    return found


def _estimate(supernet: Supernet, options: dict[str, Any], steps: Sequence[Step]) -> PathImportancePolicy:
    """Return a policy that has seen the steps."""
    every = {"coupling": "shared", "window": _SEEN, **options}
    policy = make_policy("path_importance", supernet.architecture, every)
    assert isinstance(policy, PathImportancePolicy)
    for step in steps:
        policy.observe(step.configs)
        policy.observe_gradients(step.norms)
        policy.observe_losses(step.configs, step.losses)
    policy.refresh()
    return policy


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="size of the study (%(default)s)")
    parser.add_argument("--share", type=float, default=0.5, help="length of the training (%(default)s)")
    parser.add_argument(
        "--rate", type=float, default=0.2, help="learning rate; 0.2 is tuned at scale cpu (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="supernets (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/anytime"), help="folder of the results (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the bar as a JSON object, last")
    return parser.parse_args()


if __name__ == "__main__":
    main()
