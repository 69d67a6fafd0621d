"""Accuracy of subnets: calibrate, then count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tips_nni.core import SubnetConfig, TipsError
from tips_nni.elastic import Supernet, calibrate


@torch.no_grad()
def accuracy(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the top-1 accuracy, 0 to 1, of a module in evaluation mode.

    Args:
        module: maps images (N, C, H, W) to logits (N, classes).
        batches: (images, labels) on the module's device.

    Raises:
        TipsError: there are no images.
    """
    right, seen = torch.zeros((), dtype=torch.int64), 0
    for images, labels in batches:
        right = right.to(labels.device) + (module(images).argmax(dim=1) == labels).sum()
        seen += len(labels)
    if not seen:
        raise TipsError("accuracy of no images; give at least one batch")
    return int(right) / seen


def measure_subnets(
    supernet: Supernet,
    configs: Sequence[SubnetConfig],
    calibration: Sequence[Tensor],
    validation: Sequence[tuple[Tensor, Tensor]],
) -> NDArray[np.float64]:
    """Return the accuracy of every subnet after calibration, shape (N,).

    Args:
        supernet: trained; left in the mode it was in.
        configs: the subnets.
        calibration: training images without augmentation, in batches, on the supernet's device.
        validation: (images, labels), in batches, on the supernet's device.
    """
    mode = supernet.training
    supernet.eval()
    try:
        values = []
        for config in configs:
            statistics = calibrate(supernet.view(config), calibration)
            values.append(accuracy(supernet.view(config, statistics or None), validation))
    finally:
        supernet.train(mode)
    return np.array(values, dtype=np.float64)


def load_batches(
    loader: Iterable[tuple[Tensor, Tensor]], device: torch.device, dtype: torch.dtype = torch.float32
) -> list[tuple[Tensor, Tensor]]:
    """Return all batches of a loader on `device`, images as `dtype`, so that they are made once for many subnets."""
    return [(images.to(device, dtype), labels.to(device)) for images, labels in loader]
