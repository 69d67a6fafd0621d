"""A run folder as parts to go on with, by somebody else than the run itself."""

from __future__ import annotations

from pathlib import Path

from tips_nni.core import TipsError
from tips_nni.pipeline._prepare import Parts, prepare
from tips_nni.specs import RUN_SPEC, load_run
from tips_nni.training import load_weights, root_device


def load_parts(folder: Path) -> Parts:
    """Prepare the run whose resolved spec is in `folder`; the supernet has its initial weights.

    Raises:
        TipsError: the folder holds no run, or its data cannot be had.
    """
    if not (folder / RUN_SPEC).is_file():
        raise TipsError(f"{folder} holds no run (no {RUN_SPEC}); name the output folder of `tips-nni run`")
    return prepare(load_run(folder / RUN_SPEC))


def load_trained(folder: Path, weights: Path | None = None) -> Parts:
    """Prepare a trained run, the supernet with its trained weights, in evaluation mode and on the run's device.

    Args:
        folder: with the resolved spec.
        weights: the run folder with the checkpoint, where it is another one.

    Raises:
        TipsError: there is no run or no trained supernet, or the two do not belong together.
    """
    parts = load_parts(folder)
    load_weights(parts.supernet, weights or folder)
    parts.supernet.to(root_device(parts.spec.training)).eval()
    return parts
