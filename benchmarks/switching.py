"""What elasticity costs at run time: a switch of the budget, a step of the largest subnet, an evaluation.

    python benchmarks/switching.py [--json] [--backbone resnet18] [--rounds 15] [--out FILE]

Single thread; each comparison is paired and interleaved (A B B A ...), the figure is the median of the ratios.
Bars: a switch takes at most 1 ms; a training step of the largest subnet at most 1.02 times the plain timm model's.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

from tips_nni.elastic import AnytimeModel, FrontEntry, calibrate, convert
from tips_nni.specs import load_space, space_for

SWITCH_MS = 1.0
STEP_RATIO = 1.02


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call in seconds: other processes do not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def paired(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Return (median seconds of `first`, of `second`, median of their ratio), interleaved."""
    for work in (first, second):
        work()
    one: list[float] = []
    two: list[float] = []
    for i in range(rounds):
        order = ((first, one), (second, two)) if i % 2 else ((second, two), (first, one))
        for work, times in order:
            times.append(seconds(work))
    ratio = statistics.median(a / b for a, b in zip(one, two, strict=True))
    return statistics.median(one), statistics.median(two), ratio


def measure(name: str, image_size: int, batch: int, rounds: int) -> dict[str, object]:
    """Measure one backbone.

    Returns:
        Times in ms and ratios, for JSON.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = convert(name, load_space(space_for(name)), image_size=image_size, num_classes=10)
    plain = timm.create_model(name, num_classes=10)
    plain.load_state_dict(net.backbone.state_dict())
    images, labels = torch.randn(batch, 3, image_size, image_size), torch.randint(0, 10, (batch,))

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (net, plain))
    net.train()
    plain.train()
    step_ours, step_plain, step_ratio = paired(lambda: step(net, ours), lambda: step(plain, theirs), rounds)

    net.eval()
    smallest = net.space.smallest
    found = calibrate(net.view(smallest), [images])
    rows = [
        FrontEntry(net.space.largest, 0.9, {"mflops": 2.0}, calibrate(net.view(net.space.largest), [images])),
        FrontEntry(smallest, 0.5, {"mflops": 1.0}, found),
    ]
    model = AnytimeModel.from_supernet(net, rows)
    one = images[:1]
    extracted = copy.deepcopy(net.extract(smallest, found))
    model.set_budget(mflops=1)
    with torch.inference_mode():
        same = float((model(one) - extracted(one)).abs().max())
        inner = 20
        eval_ours, eval_plain, eval_ratio = paired(
            lambda: [model(one) for _ in range(inner)], lambda: [extracted(one) for _ in range(inner)], rounds
        )
        fresh, _, _ = paired(lambda: net.view(smallest), lambda: None, rounds)

    def switch() -> None:
        for _ in range(500):
            model.set_budget(mflops=1)
            model.set_budget(mflops=2)

    switch_ms = statistics.median(seconds(switch) for _ in range(rounds))  # 1000 switches: s -> ms for one
    return {
        "backbone": name,
        "image_size": image_size,
        "batch": batch,
        "switch_ms": switch_ms,
        "new_view_ms": 1e3 * fresh,
        "step_largest_ms": 1e3 * step_ours,
        "step_plain_ms": 1e3 * step_plain,
        "step_ratio": step_ratio,
        "eval_smallest_ms": 1e3 * eval_ours / inner,
        "eval_extracted_ms": 1e3 * eval_plain / inner,
        "eval_ratio": eval_ratio,
        "eval_difference": same,
        "passed": switch_ms <= SWITCH_MS and step_ratio <= STEP_RATIO,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", action="append", help="default: resnet18 and mobilenetv2_100")
    parser.add_argument("--image-size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=16, help="images of a training step")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of measurements")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    names = arguments.backbone or ["resnet18", "mobilenetv2_100"]
    rows = [measure(name, arguments.image_size, arguments.batch, arguments.rounds) for name in names]
    text = json.dumps({"torch": torch.__version__, "timm": timm.__version__, "rows": rows}, indent=2)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    if arguments.json:
        print(text)
        return
    for row in rows:
        print(
            f"{row['backbone']}: switch {row['switch_ms']:.4f} ms (bar {SWITCH_MS}); step of the largest "
            f"{row['step_ratio']:.3f} x plain (bar {STEP_RATIO}); smallest evaluated at {row['eval_ratio']:.3f} x its "
            f"extraction; a new view {row['new_view_ms']:.2f} ms; {'passed' if row['passed'] else 'FAILED'}"
        )


if __name__ == "__main__":
    main()
