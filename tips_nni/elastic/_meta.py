"""Forwards on the meta device: shapes without arithmetic."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

#: what a network raises when shapes, sizes or arguments do not fit it
UNFIT = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, ArithmeticError)


def first_line(error: BaseException) -> str:
    """Return the class and the first line of the message of an error."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


class QuickNorms(TorchFunctionMode):
    """Makes batch normalisation say its shape only: on the meta device it costs more than all other layers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            images, sizes = args[0], {len(t) for t in args[1:5] if t is not None}
            if sizes - {images.shape[1]}:
                raise RuntimeError(f"batch normalisation of {images.shape[1]} channels with those of {sorted(sizes)}")
            return torch.empty_like(images)
        return func(*args, **(kwargs or {}))
