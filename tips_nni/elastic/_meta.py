"""Forwards on the meta device: shapes without arithmetic."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

#: what a network raises when shapes, sizes or arguments do not fit it
UNFIT = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, ArithmeticError)


def first_line(error: BaseException) -> str:
    """Return the class and the first line of the message of an error."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def copied(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a deep copy of a module whose tensors `change` makes from the originals, which are not copied.

    Args:
        model: stays as it is.
        change: called with every parameter and buffer; a parameter's result becomes a parameter.
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        made = change(tensor.detach())
        memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    return copy.deepcopy(model, memo)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the collector of cycles: of a conversion's many objects it frees few, and takes a quarter of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def ghost_of(model: nn.Module) -> nn.Module:
    """Return the same module on the meta device, in evaluation mode."""
    return copied(model, lambda tensor: torch.empty_like(tensor, device="meta")).eval()


class QuickNorms(TorchFunctionMode):
    """Makes batch normalisation say its shape only: on the meta device it costs more than all other layers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            images, sizes = args[0], {len(t) for t in args[1:5] if t is not None}
            if sizes - {images.shape[1]}:
                raise RuntimeError(f"batch normalisation of {images.shape[1]} channels with those of {sorted(sizes)}")
            return torch.empty_like(images)
        return func(*args, **(kwargs or {}))


class QuickShapes(QuickNorms):
    """Makes ReLU say its shape only, too; for forwards of which nothing but shapes is wanted."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.relu:
            inplace = args[1] if len(args) > 1 else (kwargs or {}).get("inplace", False)
            return args[0] if inplace else torch.empty_like(args[0])
        return super().__torch_function__(func, types, args, kwargs)


class MultiplyAdds(TorchDispatchMode):
    """Counts the multiply-adds of all that runs, with PyTorch's formula for each operator.

    Attributes:
        count: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=output) // 2
        return output
