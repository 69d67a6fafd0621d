"""Weights of a supernet in a file: from one search to the next, and to trial processes."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tips_nni.core import TipsError
from tips_nni.training import read_checkpoint

_CHECKPOINT_PREFIX = "supernet.backbone."


def save_weights(backbone: nn.Module, path: Path) -> None:
    """Write the state dict of a backbone as safetensors, in one piece.

    Raises:
        TipsError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise TipsError(f"cannot write {path}: {error}; free the place or choose another path") from error


@torch.no_grad()
def load_weights(backbone: nn.Module, path: Path) -> None:
    """Load the state dict of a backbone.

    Args:
        backbone: of the supernet.
        path: what `save_weights` wrote, or the folder of a run, whose last checkpoint is taken.

    Raises:
        TipsError: there is no such file, or it cannot be read, or it is of another backbone.
    """
    tensors = _read(path)
    own = backbone.state_dict()
    if differing := sorted(n for n in {*own, *tensors} if n not in own or n not in tensors or _unlike(own, tensors, n)):
        raise TipsError(
            f"{path} holds the weights of another network ({differing[0]} differs, {len(differing)} in all); give the "
            "backbone and arguments that it was trained with"
        )
    backbone.load_state_dict(tensors)


def _unlike(own: dict[str, Tensor], other: dict[str, Tensor], name: str) -> bool:
    return own[name].shape != other[name].shape


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        stored = read_checkpoint(path / "checkpoints" / "last.ckpt")["state_dict"]
        return {name.removeprefix(_CHECKPOINT_PREFIX): tensor for name, tensor in stored.items()}
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TipsError(
            f"cannot read the weights {path}: {error}; give a file of TimmSpace.save_weights or the folder of a run"
        ) from error
