"""Weights of a supernet in a file: from one search to the next, and to trial processes."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tips_nni import training
from tips_nni.core import TipsError, replacing
from tips_nni.elastic import Supernet


def save_weights(supernet: Supernet, path: Path) -> None:
    """Write the state dict of the backbone as safetensors, in one piece.

    Raises:
        TipsError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in supernet.backbone.state_dict().items()}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary)
    except SafetensorError as error:
        raise TipsError(f"cannot write {path}: {error}; free the place or choose another path") from error


def load_weights(supernet: Supernet, path: Path) -> None:
    """Load the state dict of the backbone.

    Args:
        supernet: of the same backbone and search space.
        path: what `save_weights` wrote, or the folder of a run, whose last checkpoint is taken.

    Raises:
        TipsError: there is no such file, or it cannot be read, or it is of another backbone.
    """
    if path.is_dir():
        training.load_weights(supernet, path)
        return
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TipsError(
            f"cannot read the weights {path}: {error}; give a file of TimmSpace.save_weights or the folder of a run"
        ) from error
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    own = {name: tensor.shape for name, tensor in supernet.backbone.state_dict().items()}
    if differing := sorted(name for name in {*own, *shapes} if own.get(name) != shapes.get(name)):
        raise TipsError(
            f"{path} holds the weights of another network ({differing[0]} differs, {len(differing)} in all); give the "
            "backbone and arguments that it was trained with"
        )
    supernet.backbone.load_state_dict(stored)
