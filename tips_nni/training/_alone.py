"""Training of one subnet by itself, without a supernet."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tips_nni.core import TipsError
from tips_nni.elastic import resize
from tips_nni.specs import TrainingSpec
from tips_nni.training._data import ImageData
from tips_nni.training._optimizer import make_optimizer
from tips_nni.training._trainer import make_trainer, on_one_device, quiet_lightning


def train_alone(
    module: nn.Module,
    data: ImageData,
    training: TrainingSpec,
    *,
    side: int,
    seed: int,
    after_epoch: Callable[[int], None] | None = None,
) -> None:
    """Train a plain module in place, from the labels, with the optimizer and schedule of a run.

    Mixup is left out: a small network alone has no teacher and gains little from it.

    Args:
        module: maps images (N, C, side, side) to logits.
        data: its images; training images are resized to `side`.
        training: length, optimizer, schedule, precision.
        side: side in pixels of the module's input.
        seed: of dropout; the data have their own.
        after_epoch: called with the number of finished epochs, the module in evaluation mode on its device.

    Raises:
        TipsError: the loss is not finite, a device or precision is not there, or optimizer and schedule are refused.
    """
    loader = data.train_loader()
    lightning = _Alone(module, training, side, steps_per_epoch=len(loader))
    torch.manual_seed(seed)
    with quiet_lightning():
        callbacks = [_AfterEpoch(after_epoch)] if after_epoch else []
        trainer = make_trainer(on_one_device(training), Path(), callbacks, clip_grad=training.clip_grad)
        try:
            trainer.fit(lightning, loader)
        except SystemExit:
            # Lightning turns Ctrl-C into an exit with code 1.
            raise KeyboardInterrupt from None
    module.eval().float()


class _Alone(pl.LightningModule):
    """Cross entropy of one module."""

    def __init__(self, module: nn.Module, training: TrainingSpec, side: int, *, steps_per_epoch: int) -> None:
        super().__init__()
        self.module = module
        self._spec = training
        self._side = side
        self._steps_per_epoch = steps_per_epoch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        spec = self._spec
        steps = spec.steps if spec.steps is not None else (spec.epochs or 1) * self._steps_per_epoch
        optimizer, self._schedule = make_optimizer(
            self.module, spec, steps=steps, steps_per_epoch=self._steps_per_epoch
        )
        return optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if self._schedule is not None:
            self._schedule.step_update(self.global_step)
        images, labels = batch
        logits = self.module(resize(images, self._side))
        loss = F.cross_entropy(logits, labels, label_smoothing=self._spec.label_smoothing)
        if not math.isfinite(loss.item()):
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise TipsError(
                f"the loss is {loss.item()} at step {self.global_step} with learning rate {rate:.3g}; lower "
                "training.lr, or set training.clip_grad: 1"
            )
        return loss


class _AfterEpoch(pl.Callback):
    """Calls a function with the number of finished epochs."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self._call = call

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.module.eval()
        try:
            self._call(trainer.current_epoch + 1)
        finally:
            pl_module.module.train()
