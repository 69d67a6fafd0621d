"""What a subnet loses by differing from its teacher, the largest subnet."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Divergence = Literal["kl", "alpha"]

# Of AlphaNet: β of its section on ImageNet, for α₋ = −1; α₊ is 1.
_LARGEST_RATIO = 5.0


def distillation_loss(logits: Tensor, teacher: Tensor, divergence: Divergence = "kl") -> Tensor:
    """Return the mean loss of a batch, a scalar whose gradient flows to `logits` only.

    Args:
        logits: of the subnet, shape (N, classes).
        teacher: probabilities p of the largest subnet, shape (N, classes), without gradient.
        divergence: ``kl`` is the cross entropy with p, which is KL(p ‖ q) but for a constant (in-place distillation,
            US-Nets 2019); ``alpha`` the adaptive α-divergence.
    """
    if divergence == "kl":
        return F.cross_entropy(logits, teacher)
    return _adaptive_alpha(logits, teacher)


def _adaptive_alpha(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the adaptive α-divergence of AlphaNet (Wang et al. 2021).

    With q the subnet's softmax, D_α(p ‖ q) = (Σ q (p/q)^α − 1) / (α (α − 1)), and its gradient is −1/α of the mean
    under q of (p/q)^α ∇log q. Every image takes the larger of D₋₁, which punishes what the subnet overestimates, and
    D₁ = KL(p ‖ q), which punishes what it underestimates. As in the authors' code the ratios (p/q)⁻¹ are at most
    β = 5, in D₋₁ itself, at most (β − 1) / 2 so, and in its gradient; those of D₁ have no limit.
    """
    log_q = F.log_softmax(logits, dim=1)
    log_ratio = teacher.clamp_min(1e-12).log() - log_q.detach()
    weights = log_q.detach().exp() * (-log_ratio).exp().clamp_max(_LARGEST_RATIO)
    overestimates = (weights.sum(dim=1) - 1) / 2
    underestimates = (teacher * log_ratio).sum(dim=1)
    over, under = (weights * log_q).sum(dim=1), -(teacher * log_q).sum(dim=1)
    return over.where(overestimates > underestimates, under).mean()
