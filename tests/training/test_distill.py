"""Distillation losses against their definitions, by automatic differentiation in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tips_nni.training._distill import distillation_loss


def softened(seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(16, 5, generator=generator, dtype=torch.float64)
    teacher = (scale * torch.randn(16, 5, generator=generator, dtype=torch.float64)).softmax(dim=1)
    return logits.requires_grad_(), teacher


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


def test_kl_has_the_gradient_of_the_divergence() -> None:
    logits, p = softened(0)
    q = logits.softmax(dim=1)
    expected = gradient((p * (p / q).log()).sum(dim=1).mean(), logits)
    torch.testing.assert_close(gradient(distillation_loss(logits, p), logits), expected)


def test_alpha_takes_the_larger_divergence_of_each_image() -> None:
    logits, p = softened(1, scale=0.3)  # so alike that no ratio reaches the limit
    q = logits.softmax(dim=1)
    assert float((q.detach() / p).max()) < 5
    over = ((q * q / p).sum(dim=1) - 1) / 2  # D of alpha = -1
    under = (p * (p / q).log()).sum(dim=1)  # D of alpha = 1, KL
    larger = torch.maximum(over, under)
    assert 0 < int((over > under).sum()) < len(p), "both occur"
    expected = gradient(larger.mean(), logits)
    torch.testing.assert_close(gradient(distillation_loss(logits, p, "alpha"), logits), expected)


def test_alpha_stays_finite_and_bounded_for_a_certain_teacher() -> None:
    logits = torch.tensor([[40.0, -40.0], [-40.0, 40.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    found = gradient(distillation_loss(logits, teacher, "alpha"), logits)
    assert torch.isfinite(found).all()
    assert float(found.abs().max()) <= 5.0


def test_alpha_limits_what_an_overestimate_weighs() -> None:
    logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)  # q = 1/2, 1/2
    teacher = torch.tensor([[1 - 1e-6, 1e-6]], dtype=torch.float64)
    # Ratios q/p are 1/2 and, instead of half a million, 5: D = (1/4 + 5/2 - 1) / 2, more than the KL of log 2.
    found = gradient(distillation_loss(logits, teacher, "alpha"), logits)
    expected = torch.tensor([[0.25 - 2.75 / 2, 2.5 - 2.75 / 2]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_alpha_learns_from_a_certain_teacher_as_kl_does() -> None:
    logits = torch.tensor([[40.0, -40.0], [3.0, -3.0], [-40.0, 40.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    found = gradient(distillation_loss(logits, teacher, "alpha"), logits)
    torch.testing.assert_close(found, gradient(distillation_loss(logits, teacher), logits))
    assert float(found[1, 1]) == pytest.approx(-1 / 3, abs=0.01)


@pytest.mark.parametrize("divergence", ["kl", "alpha"])
def test_no_gradient_where_subnet_and_teacher_agree(divergence: str) -> None:
    logits, _ = softened(2)
    teacher = logits.detach().softmax(dim=1)
    found = gradient(distillation_loss(logits, teacher, divergence), logits)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-12, rtol=0)
