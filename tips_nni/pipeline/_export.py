"""`tips-nni export`: one subnet as a file that needs nothing of this package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from tips_nni.core import TipsError
from tips_nni.elastic import AnytimeModel, example_images, export_onnx
from tips_nni.pipeline._files import ANYTIME_MODEL


def export(source: Path, output: Path, *, row: int | None, limits: Mapping[str, float]) -> None:
    """Export a subnet of an anytime model.

    Args:
        source: run folder or anytime model file.
        output: file to write; ``.onnx`` or ``.pt2`` (torch.export).
        row: row of the front, 0 being the most accurate; None to choose by `limits`.
        limits: cost name -> upper bound.

    Raises:
        TipsError: no such model, row, cost or format, or no subnet within the limits.
    """
    if output.suffix not in (".onnx", ".pt2"):
        raise TipsError(f"--output {output} ends with {output.suffix!r}; choose .onnx or .pt2")
    model = AnytimeModel.load(source / ANYTIME_MODEL if source.is_dir() else source)
    chosen = model.find(**limits) if row is None else row
    module = model.extract(chosen)
    images = example_images(model, chosen, 2)
    entry = model.front[chosen]
    if output.suffix == ".onnx":
        difference = export_onnx(module, images, output)
        check = f"onnxruntime − torch: {difference:.1e}"
    else:
        check = f"reloaded − module: {_export_program(module, images, output):.1e}"
    costs = ", ".join(f"{name} {value:.4g}" for name, value in entry.items() if isinstance(value, float))
    print(f"{output}  row {chosen}: {costs}  ({check})")


def _export_program(module: torch.nn.Module, images: torch.Tensor, output: Path) -> float:
    """Write a torch.export program with a free batch size, read it back and return the largest difference."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (images,), dynamic_shapes=({0: batch},))
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.stem}.{os.getpid()}.pt2")
    try:
        torch.export.save(program, temporary)
        with torch.no_grad():
            difference = (torch.export.load(temporary).module()(images) - module(images)).abs().max().item()
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return float(difference)
