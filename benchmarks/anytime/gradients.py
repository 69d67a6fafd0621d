"""Gradients of subnets without autograd through the slices: a quarter fewer kernels a step, the same numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tips_nni.core import SubnetConfig
from tips_nni.elastic import Supernet


class SharedGradients:
    """Adds the gradients of subnets to those of the supernet.

    A subnet's weights are leaves that share the supernet's memory; their gradients are added to the same slices of the
    supernet's.

    Args:
        supernet: whose weights are trained.
    """

    def __init__(self, supernet: Supernet) -> None:
        self._supernet = supernet
        self._parameters = dict(supernet.backbone.named_parameters())
        self._sums = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}

    def zero(self) -> None:
        """Forget the gradients. A weight that no subnet of a step has keeps None: the optimizer leaves it alone."""
        torch._foreach_zero_(list(self._sums.values()))
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def subnet(self, config: SubnetConfig) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
        """Return a subnet in training mode, and (slice of the supernet's gradient, leaf) for each of its weights.

        Raises:
            ValueError: a weight of the subnet is a copy, not a slice of the supernet's.
        """
        view = self._supernet.view(config)
        whole = view is self._supernet.backbone  # the largest subnet: its gradients need no way back
        pairs = []
        for path, module in view.named_modules():
            weights: dict[str, Any] = module._parameters
            for name, tensor in weights.items():
                if tensor is None:
                    continue
                name_of = f"{path}.{name}" if path else name
                shared = self._parameters[name_of]
                shared.grad = self._sums[name_of]
                if whole:
                    continue
                if tensor.untyped_storage().data_ptr() != shared.untyped_storage().data_ptr():
                    raise ValueError(f"{name_of} of a subnet is a copy of the supernet's weights, not a slice")
                leaf = tensor.detach().requires_grad_()
                weights[name] = leaf
                pairs.append((shared.grad.as_strided(leaf.size(), leaf.stride(), leaf.storage_offset()), leaf))
        return view, pairs

    @torch.no_grad()
    def add(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Add what a subnet's backward pass left in its leaves; the largest subnet's is there already."""
        used = [(slot, leaf.grad) for slot, leaf in pairs if leaf.grad is not None]
        if used:
            torch._foreach_add_([slot for slot, _ in used], [gradient for _, gradient in used])
