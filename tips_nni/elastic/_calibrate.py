"""Calibration: re-estimating BatchNorm statistics for one subnet (US-Nets, Yu & Huang 2019)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tips_nni.core import TipsError
from tips_nni.elastic._narrow import rebuild


@torch.no_grad()
def calibrate(subnet: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Estimate the BatchNorm statistics of `subnet` from scratch.

    Each layer normalises with the batch's own statistics; the estimate is their average over the batches (the
    cumulative average of PyTorch's ``momentum=None``), so batches should be of one size and not small.

    Args:
        subnet: from `Supernet.view`, or any module, in either mode; it is left unchanged.
        batches: images (N, C, H, W) on the subnet's device; training images, without augmentation.

    Returns:
        ``{"<path>.running_mean" | "<path>.running_var": float tensor (channels,)}``; empty without BatchNorm layers.

    Raises:
        TipsError: there are BatchNorm layers but no batches.
    """
    layers: dict[str, Any] = {}

    def change(path: str, module: Any) -> nn.Module:
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
        module.training = norm
        if norm:
            module.track_running_stats = True
            module.momentum = None
            buffers: dict[str, Any] = module._buffers
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                buffers[name] = torch.zeros_like(buffers[name])
            layers[path] = module
        return module

    fresh = rebuild(subnet, change)
    if not layers:
        return {}
    seen = 0
    for batch in batches:
        fresh(batch)
        seen += 1
    if not seen:
        raise TipsError("calibration got no images; give at least one batch")
    return {
        f"{path}.{name}": module._buffers[name]
        for path, module in layers.items()
        for name in ("running_mean", "running_var")
    }
