"""One training: a rival, a seed, a learning rate, and a length in multiply-adds or in steps."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytime.data import Data
from anytime.gradients import SharedGradients
from anytime.rivals import Rival
from anytime.scales import Scale
from tips_nni.core import CostTable, SubnetConfig
from tips_nni.elastic import Supernet
from tips_nni.training import distillation_loss, gradient_norms

WARMUP = 0.05


@dataclass(frozen=True)
class Length:
    """When a training ends: multiply-adds in 1e12, or steps; the other is None."""

    compute: float | None = None
    steps: int | None = None

    def progress(self, spent: float, step: int) -> float:
        """Return the share that is done, 0 to 1."""
        return spent / (self.compute * 1e12) if self.compute is not None else step / (self.steps or 1)


@dataclass(frozen=True)
class Trained:
    """A trained supernet and what the training took.

    Attributes:
        supernet: in evaluation mode.
        steps: optimizer steps.
        compute: multiply-adds spent, in 1e12.
        seconds: of the training, without refreshes.
        refresh_seconds: of the policy's refreshes.
        loss: mean of the last tenth of the steps.
    """

    supernet: Supernet
    steps: int
    compute: float
    seconds: float
    refresh_seconds: float
    loss: float


def train(scale: Scale, data: Data, rival: Rival, rate: float, seed: int, length: Length) -> Trained:
    """Train a supernet from the seed's initial weights on the seed's order of images.

    Nesterov's momentum 0.9, weight decay 1e-4, a cosine schedule over the length, with a linear warm-up.
    """
    device = data.train.x.device
    torch.manual_seed(seed)
    supernet = scale.supernet(data.classes).to(device).train()
    space = supernet.space
    policy = rival.make_policy(supernet.architecture)
    table = CostTable(supernet.architecture)
    rng = np.random.default_rng([seed, 1])
    optimizer = _optimizer(supernet.backbone, rate)
    batches = data.train.epochs(seed, scale.batch)
    gradients = SharedGradients(supernet)
    fixed = [space.largest] * rival.largest + [space.smallest] * rival.smallest
    spent, step, seconds, refresh_seconds = 0.0, 0, 0.0, 0.0
    losses: list[Tensor] = []
    while (progress := length.progress(spent, step)) < 1:
        start = time.perf_counter()
        _set_rate(optimizer, rate, progress)
        single = progress < rival.single_first
        configs = policy.sample(rng, 1) if single else [*fixed, *policy.sample(rng, rival.random)]
        policy.observe(configs)
        images, labels = next(batches)
        gradients.zero()
        each = _accumulate(gradients, rival, configs, images, labels)
        losses.append(each.mean())
        if policy.wants_losses:
            alike = [0] if single else rival.sampling.alike(configs, space.largest)
            policy.observe_losses([configs[i] for i in alike], each[alike].tolist())
        if policy.wants_gradients:
            policy.observe_gradients(gradient_norms(supernet))
        optimizer.step()
        step += 1
        spent += 3.0 * scale.batch * float(table.flops(space.encode_many(configs)).sum())
        seconds += time.perf_counter() - start
        if policy.due(step):
            start = time.perf_counter()
            policy.refresh()
            refresh_seconds += time.perf_counter() - start
    last = torch.stack(losses[-max(1, len(losses) // 10) :]).mean().item()
    return Trained(supernet.eval(), step, spent / 1e12, seconds, refresh_seconds, last)


def train_alone(scale: Scale, data: Data, config: SubnetConfig, rate: float, seed: int, steps: int) -> nn.Module:
    """Train one subnet alone from new weights: what a supernet may hope for."""
    torch.manual_seed(seed)
    fresh = scale.supernet(data.classes).to(data.train.x.device)
    module = fresh.extract(config).train()
    optimizer = _optimizer(module, rate)
    batches = data.train.epochs(seed, scale.batch)
    for step in range(steps):
        _set_rate(optimizer, rate, step / steps)
        images, labels = next(batches)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(module(images), labels).backward()
        optimizer.step()
    return module.eval()


def _accumulate(
    gradients: SharedGradients, rival: Rival, configs: list[SubnetConfig], images: Tensor, labels: Tensor
) -> Tensor:
    """Add the gradients of every subnet and return their losses."""
    soft: Tensor | None = None
    losses = []
    for config in configs:
        subnet, pairs = gradients.subnet(config)
        logits = subnet(images)
        if soft is None or not pairs:
            loss = F.cross_entropy(logits, labels)
        else:
            loss = distillation_loss(logits, soft, "alpha" if rival.divergence == "alpha" else "kl")
        if rival.distill and soft is None:
            soft = logits.detach().softmax(dim=1)
        loss.backward()
        gradients.add(pairs)
        losses.append(loss.detach())
    return torch.stack(losses)


def _optimizer(module: nn.Module, rate: float) -> torch.optim.Optimizer:
    decayed = [p for p in module.parameters() if p.ndim > 1]
    free = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, foreach=True)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float, progress: float) -> None:
    value = rate * min(1.0, (progress + 1e-3) / WARMUP) * 0.5 * (1 + math.cos(math.pi * progress))
    for group in optimizer.param_groups:
        group["lr"] = value
