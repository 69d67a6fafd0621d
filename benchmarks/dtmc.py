"""The Markov chain: exactness, scale, and the share of training that a refresh and the gradient norms take.

    python benchmarks/dtmc.py [--json] [--quick]

Everything is measured in this run on one thread. Peers: scipy's ARPACK (`eigs`) and power iteration, both on the
materialised transition matrix, which alone takes O(T²·V) memory.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from scipy.sparse.linalg import ArpackError, eigs

from tips_nni.core import Chain, ElasticDim, PathGraph, PathImportancePolicy, Requirement, SearchSpace, make_policy
from tips_nni.elastic import convert
from tips_nni.specs import load_space
from tips_nni.training import gradient_norms

LAMBDAS = (1e-3, 1e-1, 1.0, 1e1, 1e3)


def network(layers: int, chunks: int = 4) -> PathGraph:
    """A network of dense layers whose width has `chunks` choices, with an identity around every second layer."""
    space = SearchSpace(tuple(ElasticDim(f"width.{i}", "width", tuple(range(1, chunks + 1))) for i in range(layers)))
    edges: list[tuple[str, str]] = []
    requires: dict[str, list[Requirement]] = {}
    previous, before = ["r"], ["r"]
    for i in range(layers):
        layer = [f"{i}.{c}" for c in range(chunks)]
        requires.update({name: [Requirement(i, c)] for c, name in enumerate(layer)})
        edges += [(u, v) for u in previous for v in layer]
        if i % 2 and len(before) == chunks:
            edges += list(zip(before, layer, strict=True))
        previous, before = layer, previous
    edges += [(u, "d") for u in previous]
    return PathGraph.from_edges(edges, r="r", d="d", requires=requires, space=space)


def chain_of(graph: PathGraph, subnets: int, lam: float, directed: bool = True) -> Chain:
    assert graph.space is not None
    rng = np.random.default_rng(0)
    mask = graph.node_mask(graph.space.sample(rng, subnets))
    return Chain(graph, mask, rng.uniform(0.2, 2.0, len(graph.source)), lam, directed)


def timed(call: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Return the fastest of some runs in seconds, and the result."""
    best, result = np.inf, None
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return best, result


def residual(chain: Chain, pi: np.ndarray) -> float:
    """‖πP − π‖₁ on the materialised matrix, an implementation of its own."""
    transition, states = chain.transition_matrix()
    values = pi[states[:, 0], states[:, 1]]
    return float(np.abs(values @ transition - values).sum())


def power_iteration(transition: sp.csr_array, limit: float) -> tuple[float, float, int]:
    """Return (seconds, residual, sweeps) of power iteration on the lazy chain until 1e-12 or the time limit."""
    transposed = sp.csr_array(transition.T)
    pi = np.full(transition.shape[0], 1 / transition.shape[0])
    start, sweeps, error = time.perf_counter(), 0, np.inf
    while error > 1e-12 and time.perf_counter() - start < limit:
        after = transposed @ pi
        error = float(np.abs(after - pi).sum())
        pi = (pi + after) / 2
        sweeps += 1
    return time.perf_counter() - start, error, sweeps


def exactness(bars: list[dict[str, Any]], console: Console) -> None:
    rng = np.random.default_rng(1)
    worst_residual = worst_difference = 0.0
    cases = 0
    for layers in (1, 2, 4, 8):
        graph = network(layers)
        for subnets in (1, 2, 7):
            for directed in (False, True):
                chain = chain_of(graph, subnets, float(10 ** rng.uniform(-3, 3)), directed)
                pi = chain.stationary()
                transition, states = chain.transition_matrix()
                dense = np.vstack([transition.toarray().T - np.eye(len(states)), np.ones(len(states))])
                reference = np.linalg.lstsq(dense, np.append(np.zeros(len(states)), 1.0), rcond=None)[0]
                values = pi[states[:, 0], states[:, 1]]
                worst_residual = max(worst_residual, residual(chain, pi))
                worst_difference = max(worst_difference, float(np.abs(values - reference).max()))
                cases += 1
    console.print(f"exactness, {cases} chains: residual {worst_residual:.1e}, from dense {worst_difference:.1e}")
    bar(bars, "largest residual, small chains", worst_residual, 1e-12)
    bar(bars, "largest difference from a dense solver", worst_difference, 1e-9)


def scale(bars: list[dict[str, Any]], console: Console, quick: bool) -> None:
    graph = network(100)
    table = Table(title="directed chain, one thread")
    for column in ("subnets", "states", "λ", "seconds", "peak MB", "residual", "µs per state"):
        table.add_column(column, justify="right")
    slowest, largest_memory, rates = 0.0, 0.0, []
    for subnets in (400, 4000)[: 1 if quick else 2]:
        for lam in LAMBDAS if subnets == 400 else (1.0,):
            chain = chain_of(graph, subnets, lam)
            states = int(chain.mask.sum())
            seconds, pi = timed(chain.stationary)
            tracemalloc.start()
            chain.stationary()
            memory = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
            error = residual(chain, pi) if subnets <= 400 else chain_residual(chain, pi)
            table.add_row(
                str(subnets),
                f"{states:,}",
                f"{lam:g}",
                f"{seconds:.3f}",
                f"{memory:.0f}",
                f"{error:.1e}",
                f"{1e6 * seconds / states:.2f}",
            )
            if subnets == 400:
                slowest, largest_memory = max(slowest, seconds), max(largest_memory, memory)
                bar(bars, f"residual at {states} states, lambda {lam:g}", error, 1e-12)
            if lam == 1.0:
                rates.append(seconds / states)
    console.print(table)
    bar(bars, "slowest seconds at 1e5 states, lambda 1e-3 to 1e3", slowest, 0.5)
    bar(bars, "largest MB at 1e5 states", largest_memory, 200.0)
    if len(rates) == 2:
        bar(bars, "seconds per state at 1e6 states / at 1e5", rates[1] / rates[0], 1.5)


def chain_residual(chain: Chain, pi: np.ndarray) -> float:
    """The residual without the materialised matrix, for chains too large for it: flow by flow."""
    graph, mask = chain.graph, chain.mask
    holders = mask.sum(axis=0)
    both = mask[:, graph.source] & mask[:, graph.target]
    out = np.zeros(mask.shape)
    np.add.at(out.T, graph.source, (both * chain.weights).T)
    out[:, graph.d] += 1.0
    per_weight = np.where(mask, pi / (out + chain.lam * np.maximum(holders - 1, 0)), 0.0)
    after = np.zeros(mask.shape)
    np.add.at(after.T, graph.target, (per_weight[:, graph.source] * both * chain.weights).T)
    after[:, graph.r] += per_weight[:, graph.d]
    after += chain.lam * (per_weight.sum(axis=0) - per_weight) * mask
    return float(np.abs(after - pi).sum())


def peers(console: Console, quick: bool) -> None:
    graph = network(40)
    table = Table(title="beside the peers, directed: seconds (residual)")
    for column in ("states", "λ", "ours", "scipy eigs", "power iteration"):
        table.add_column(column, justify="right")
    for lam in (1e-3, 1.0, 1e3):
        chain = chain_of(graph, 32 if quick else 100, lam)
        own, pi = timed(chain.stationary)
        transition, states = chain.transition_matrix()
        start = time.perf_counter()
        try:
            _, vectors = eigs(sp.csr_array(transition.T), k=1, which="LR", v0=np.ones(len(states)), maxiter=3000)
            vector = np.abs(vectors[:, 0].real)
            vector /= vector.sum()
            error = float(np.abs(vector @ transition - vector).sum())
            arpack = f"{time.perf_counter() - start:.2f} ({error:.0e})"
        except ArpackError as problem:
            arpack = f"{time.perf_counter() - start:.2f} ({type(problem).__name__})"
        seconds, error, sweeps = power_iteration(transition, 10.0)
        power = f"{seconds:.2f} ({error:.0e}, {sweeps:,} sweeps)"
        table.add_row(f"{len(states):,}", f"{lam:g}", f"{own:.3f} ({residual(chain, pi):.0e})", arpack, power)
    console.print(table)


def refresh_share(bars: list[dict[str, Any]], console: Console) -> None:
    """Measure a refresh, and the reading of gradient norms, against real training steps."""
    table = Table(title="beside training steps with the sandwich rule (batch 64, 32×32, one thread)")
    columns = ("backbone", "nodes", "step, ms", "refresh, ms", "share of 100 steps", "gradients, ms", "share of a step")
    for column in columns:
        table.add_column(column, justify="right")
    rng = np.random.default_rng(0)
    for backbone, family in (("resnet18", "resnet"), ("mobilenetv2_100", "mobilenetv2")):
        supernet = convert(backbone, load_space(family), image_size=32, num_classes=10).train()
        policy = make_policy("path_importance", supernet.architecture)
        assert isinstance(policy, PathImportancePolicy)
        policy.observe(policy.sample(rng, 64))
        images, labels = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))

        def step(net: Any = supernet, drawn: Any = policy, x: Any = images, y: Any = labels) -> None:
            net.zero_grad()
            for config in [net.space.largest, net.space.smallest, *drawn.sample(rng, 2)]:
                F.cross_entropy(net(x, config), y).backward()

        refresh, _ = timed(policy.refresh, 5)
        seconds, _ = timed(step, 5)
        share = refresh / (100 * seconds)
        weighted = make_policy("path_importance", supernet.architecture, {"edge_weight": "gradient"})

        def feed(net: Any = supernet, learner: Any = weighted) -> None:
            learner.observe_gradients(gradient_norms(net))

        feeding, _ = timed(feed, 20)
        table.add_row(
            backbone,
            str(len(policy.graph.nodes)),
            f"{1e3 * seconds:.0f}",
            f"{1e3 * refresh:.1f}",
            f"{share:.3%}",
            f"{1e3 * feeding:.2f}",
            f"{feeding / seconds:.3%}",
        )
        bar(bars, f"refresh share of training, {backbone}", share, 0.01)
        bar(bars, f"gradient norms share of a step, {backbone}", feeding / seconds, 0.02)
    console.print(table)


def bar(bars: list[dict[str, Any]], name: str, value: float, limit: float) -> None:
    """Note a bar: `value` must be at most `limit`."""
    bars.append({"name": name, "value": value, "bar": limit, "holds": bool(value <= limit)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the bars as one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="leave the largest chain out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=110, highlight=False)
    bars: list[dict[str, Any]] = []
    exactness(bars, console)
    scale(bars, console, arguments.quick)
    peers(console, arguments.quick)
    refresh_share(bars, console)
    for item in bars:
        console.print(
            f"{'holds' if item['holds'] else 'FAILS'}  {item['name']}: {item['value']:.3g} (<= {item['bar']:g})"
        )
    if arguments.json:
        print(json.dumps({"bars": bars}))


if __name__ == "__main__":
    main()
