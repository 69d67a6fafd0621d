"""What Torch-Pruning alone does with a backbone: trace it, and prune half of every group."""

from __future__ import annotations

import contextlib
import copy
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

#: seconds of one core for one backbone, what a conversion may take
LIMIT = 5.0


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Stop the block after so many seconds of this process: some graphs are walked without an end."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no end within {seconds:.0f} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def prune_alone(model: nn.Module, images: Tensor, classes: int) -> str:
    """Prune half of the channels of every group with Torch-Pruning's own magnitude pruner.

    Args:
        model: the backbone; it stays as it is.
        images: example input (N, C, H, W).
        classes: outputs of the classifier, which keeps them.

    Returns:
        "" where the pruned network is smaller and runs with an output of the same shape, else what went wrong.
    """
    model = copy.deepcopy(model).float().eval().requires_grad_(True)
    images = images.float()
    before = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        shape = model(images).shape
    classifiers: list[nn.Module] = [
        m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes
    ]
    classifiers += [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == classes]
    try:
        with warnings.catch_warnings(), _limited(LIMIT):
            warnings.simplefilter("ignore")
            importance = tp.importance.GroupMagnitudeImportance(p=1)
            pruner = tp.pruner.BasePruner(
                model, images, importance, pruning_ratio=0.5, ignored_layers=classifiers[-1:], round_to=8
            )
            pruner.step()
            with torch.no_grad():
                after = model(images).shape
    except Exception as error:  # noqa: BLE001 - whatever it raises is the result
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if after != shape:
        return f"the output gets the shape {tuple(after)}"
    share = sum(p.numel() for p in model.parameters()) / before
    return "" if share < 0.9 else f"{share:.0%} of the parameters are left"
