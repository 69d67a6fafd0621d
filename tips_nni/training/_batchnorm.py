"""BatchNorm over the batch of all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class GlobalBatchNorm(TorchFunctionMode):
    """While it is active, BatchNorm layers in training mode take their statistics over the batches of all processes.

    It stands in for `torch.nn.functional.batch_norm`, which every BatchNorm layer ends in: timm's layers with an
    activation and the narrowed layers of a subnet among them. The modules stay as they are. (`torch.nn.SyncBatchNorm`
    would replace them by modules of another class, and does not run on a CPU.) Every process must run the same layers
    in the same order, on inputs of the same shape.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, or what stands in for it."""
        return (batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def batch_norm(
    input: Tensor,  # named as in the function that it stands in for
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Do what `torch.nn.functional.batch_norm` does, in training over the batches of all processes.

    Every process has n values of a channel, with mean μ and variance σ². As n is the same everywhere, the mean of all
    values is the mean of the μ, and that of their squares the mean of the σ² + μ²; so one message of 2·C numbers gives
    mean m and variance E[x²] − m². It is made of float64, in which that difference loses nothing. Gradients flow
    through m and the variance to the inputs of all processes.
    """
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    world = dist.get_world_size()
    x = input if input.dtype == torch.float64 else input.float()
    own_var, own_mean = (
        moment.double() for moment in torch.var_mean(x, dim=[d for d in range(x.ndim) if d != 1], correction=0)
    )
    mean, square = (_SumOverProcesses.apply(torch.stack([own_mean, own_var + own_mean**2])) / world).unbind()
    var = square - mean**2
    if running_mean is not None and running_var is not None:
        values = x.numel() // x.shape[1] * world
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (values / (values - 1))).to(running_var.dtype), momentum)
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    channels = [1, -1] + [1] * (x.ndim - 2)
    return torch.addcmul(shift.to(x.dtype).view(channels), x, scale.to(x.dtype).view(channels)).to(input.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
