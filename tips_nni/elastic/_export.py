"""Export of a plain module to ONNX, checked in onnxruntime against torch."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from tips_nni.core import TipsError


def export_onnx(module: nn.Module, images: Tensor, path: str | Path, *, tolerance: float = 1e-4) -> float:
    """Write `module` as an ONNX file with a free batch size and check it in onnxruntime.

    Args:
        module: a plain module in evaluation mode, e.g. from `Supernet.extract`.
        images: example input (N, C, H, W); the file keeps C, H and W.
        path: the file to write; it appears only after the check has passed.
        tolerance: largest difference of the logits allowed, relative to their largest magnitude (at least 1).

    Returns:
        The largest absolute difference seen between onnxruntime and torch.

    Raises:
        TipsError: the exported file computes something else.
    """
    module = _for_one_size(module, images)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.onnx")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The tracing exporter is the one that makes plain operators in seconds; torch announces its retirement.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            # Models that check their input's size read it from the trace: the file keeps that size, as promised.
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            torch.onnx.export(
                module,
                (images,),
                temporary,
                dynamo=False,
                opset_version=17,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            )
        difference, scale = compare_onnx(module, images, temporary)
        if not difference <= tolerance * scale:
            raise TipsError(
                f"{target.name}: onnxruntime differs from torch by {difference:.2g} (allowed {tolerance * scale:.2g}); "
                "the export was not kept"
            )
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def _for_one_size(module: nn.Module, images: Tensor) -> nn.Module:
    """Return a module for images of one size: ONNX has no operator that resamples position embeddings as timm does."""
    if not getattr(module, "dynamic_img_size", False) or not isinstance(
        getattr(module, "pos_embed", None), nn.Parameter
    ):
        return module
    fixed: Any = copy.deepcopy(module)
    fixed.set_input_size(img_size=tuple(images.shape[-2:]))
    return fixed  # type: ignore[no-any-return]


def compare_onnx(module: nn.Module, images: Tensor, path: Path) -> tuple[float, float]:
    """Return (largest absolute difference of the logits, their largest magnitude, at least 1)."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {session.get_inputs()[0].name: images.cpu().numpy()})
    with torch.no_grad():
        expected = module(images).cpu().numpy()
    return float(np.abs(actual - expected).max()), max(1.0, float(np.abs(expected).max()))
