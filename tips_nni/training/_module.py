"""One training step of a supernet: the sandwich rule with in-place distillation (US-Nets, Yu & Huang 2019)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tips_nni.core import Codes, Policy, SubnetConfig
from tips_nni.elastic import Supernet
from tips_nni.specs import SamplingSpec, TrainingSpec
from tips_nni.training._distill import distillation_loss
from tips_nni.training._optimizer import make_optimizer
from tips_nni.training._trainer import DivergedError, average, one_batch

Flops = Callable[[Codes], NDArray[np.int64]]


def gradient_norms(supernet: Supernet, scale: float = 1.0) -> dict[str, float]:
    """Return the norm of the weight gradient of every convolution and linear layer that has one, by operation name.

    Args:
        supernet: after its backward passes, before the optimizer's step.
        scale: what the loss was multiplied by.
    """
    grads = {
        op.name: grad
        for op in supernet.architecture.operations
        if op.kind in ("conv", "linear")
        and (grad := supernet.backbone.get_parameter(f"{op.name}.weight").grad) is not None
    }
    norms = (torch.stack(torch._foreach_norm(list(grads.values()))) / scale).tolist()
    return dict(zip(grads, norms, strict=True))


class SupernetModule(pl.LightningModule):
    """Trains a supernet.

    One step trains several subnets on one batch: the largest and the smallest (where the strategy says so) and those
    that the policy draws. The largest learns from the labels; the others from its output (in-place distillation), or
    from the labels too. The gradients add up, then the optimizer steps once.

    A checkpoint holds everything that decides the next epoch: weights, optimizer, the policy's state, the generator of
    sampling and mixup, the history, and the settings. PyTorch's own generator, which dropout uses, is set by
    (seed, epoch) when an epoch begins: other users of it in the process, data loaders among them, change nothing.

    Several processes take a step together, each on its part of the batch: they draw the same subnets, blend the same
    images and step with the mean of their gradients, which is the gradient of the whole batch. So they end where one
    process does, but for rounding; dropout alone, whose masks every process draws itself, agrees only on average.

    Attributes:
        history: one row for every finished epoch.
        train_flops: multiply-adds spent so far; a backward pass counts as two forward passes.
        settings: plain data kept in checkpoints, with which a resumed training is compared.
    """

    def __init__(
        self,
        supernet: Supernet,
        policy: Policy,
        sampling: SamplingSpec,
        training: TrainingSpec,
        *,
        seed: int,
        steps_per_epoch: int,
        flops: Flops | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.supernet = supernet
        self.policy = policy
        self.sampling = sampling
        self.training_spec = training
        self.steps_per_epoch = steps_per_epoch
        self.history: list[dict[str, float]] = []
        self.losses: list[Tensor] = []
        self.train_flops = 0.0
        self._flops = flops
        self.settings = dict(settings or {})
        self._seed = seed
        self._rng = np.random.default_rng([seed, 1])

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        spec = self.training_spec
        return spec.steps if spec.steps is not None else (spec.epochs or 1) * self.steps_per_epoch

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole training, the last one perhaps not complete."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Create timm's optimizer and schedule.

        Raises:
            TipsError: timm has no such optimizer or schedule, or the warm-up is longer than the training.
        """
        optimizer, self._schedule = make_optimizer(
            self.supernet.backbone, self.training_spec, steps=self.total_steps, steps_per_epoch=self.steps_per_epoch
        )
        return optimizer

    def draw(self) -> list[SubnetConfig]:
        """Return the subnets of the next step: largest, smallest, then the policy's, as the strategy says."""
        space, sampling = self.supernet.space, self.sampling
        configs = [space.largest] if sampling.largest else []
        configs += [space.smallest] if sampling.smallest else []
        return configs + self.policy.sample(self._rng, sampling.random)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Train the subnets of one step.

        Raises:
            DivergedError: the loss is not finite, in this process or another one.
        """
        images, labels = batch
        if batch_idx == 0:
            key = np.random.SeedSequence((self._seed, 2, self.current_epoch, self.global_rank))
            torch.manual_seed(int(key.generate_state(1)[0]))
        optimizer: Any = self.optimizers()
        step = self.global_step
        if self._schedule is not None:
            self._schedule.step_update(step)
        targets = F.one_hot(labels, self._classes(images)).to(images.dtype)
        if self.training_spec.mixup > 0:
            images, targets = self._mix(images, targets)
        configs = self.draw()
        optimizer.zero_grad()
        with one_batch(self.trainer, self.training_spec.sync_batchnorm):
            losses = self._accumulate(configs, images, targets)
        average(self.trainer, [losses, *(p.grad for p in self.supernet.parameters() if p.grad is not None)])
        total = losses.mean()
        if not torch.isfinite(total):
            raise self._diverged(f"the loss is {total.item()}", step)
        if self.policy.wants_gradients:
            self.policy.observe_gradients(gradient_norms(self.supernet, self._loss_scale()))
        if self.policy.wants_losses:
            alike = self.sampling.alike(configs, self.supernet.space.largest)
            self.policy.observe_losses([configs[i] for i in alike], losses[alike].tolist())
        if self.training_spec.clip_grad is not None:
            self.clip_gradients(optimizer, self.training_spec.clip_grad * self._loss_scale(), "norm")
        optimizer.step()
        self.losses.append(total)
        self._count(configs, len(images) * self.trainer.world_size)
        self.policy.observe(configs)
        if self.policy.due(step + 1):
            self.policy.refresh()

    def check_finite(self) -> None:
        """Check the weights that an epoch ended with.

        Raises:
            DivergedError: one of them is not finite, in this process or another one.
        """
        state = self.supernet.backbone.state_dict().items()
        bad = [name for name, tensor in state if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
        if not self.trainer.strategy.reduce_boolean_decision(not bad):
            raise self._diverged(f"{bad[0] if bad else 'a weight'} is not finite", self.global_step)

    def _diverged(self, what: str, step: int) -> DivergedError:
        optimizer: Any = self.optimizers()
        rate = optimizer.param_groups[0]["lr"]
        return DivergedError(
            f"{what} at step {step} with learning rate {rate:.3g}; lower training.lr, or set training.clip_grad: 1. "
            "The checkpoint of the last good epoch is kept"
        )

    def _classes(self, images: Tensor) -> int:
        if not hasattr(self, "_num_classes"):
            fm = self.supernet.architecture.output
            self._num_classes = fm.axes[0].sizes[-1]
        return self._num_classes

    def _accumulate(self, configs: list[SubnetConfig], images: Tensor, targets: Tensor) -> Tensor:
        """Add the gradients of every subnet, of this process's images, and return their losses, shape (K,)."""
        smoothing = self.training_spec.label_smoothing
        largest = self.supernet.space.largest
        soft: Tensor | None = None
        losses = []
        for config in configs:
            logits = self.supernet(images, config)
            if config == largest or soft is None:
                loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
            else:
                loss = distillation_loss(logits, soft, self.sampling.divergence)
            if config == largest and self.sampling.distill:
                soft = logits.detach().softmax(dim=1)
            self.manual_backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses)

    def _mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Blend every image, and its target, with another one (mixup, Zhang et al. 2018).

        It is the neighbour, 0 with 1, 2 with 3 and so on, as the order is random already: several processes then blend
        the same pairs as one. The last of an odd number stays as it is.
        """
        share = float(self._rng.beta(self.training_spec.mixup, self.training_spec.mixup))
        positions = torch.arange(len(images), device=images.device)
        other = (positions ^ 1).clamp(max=len(images) - 1)
        return images.lerp(images[other], 1 - share), targets.lerp(targets[other], 1 - share)

    def _loss_scale(self) -> float:
        """Return what the gradients are multiplied by until the optimizer steps: 1, but for "16-mixed"."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _count(self, configs: list[SubnetConfig], images: int) -> None:
        """Add the step to the multiply-adds spent."""
        if self._flops is not None:
            forward = float(self._flops(self.supernet.space.encode_many(configs)).sum())
            self.train_flops += 3 * images * forward

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know, as plain data."""
        checkpoint["tips_nni"] = {
            "policy": json.dumps(self.policy.state_dict()),
            "rng": json.dumps(self._rng.bit_generator.state),
            "history": json.dumps(self.history),
            "train_flops": self.train_flops,
            "settings": json.dumps(self.settings),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what `on_save_checkpoint` added."""
        own = checkpoint["tips_nni"]
        self.policy.load_state_dict(json.loads(own["policy"]))
        self._rng.bit_generator.state = json.loads(own["rng"])
        self.history = json.loads(own["history"])
        self.train_flops = float(own["train_flops"])
