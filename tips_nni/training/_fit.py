"""Training of a supernet with Lightning: progress, history, and a checkpoint after every epoch."""

from __future__ import annotations

import csv
import io
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tips_nni.core import Policy, TipsError
from tips_nni.elastic import Supernet
from tips_nni.specs import SamplingSpec, TrainingSpec, check_shares
from tips_nni.training._checkpoint import CHECKPOINT, check_resumable, describe_training
from tips_nni.training._data import ImageData
from tips_nni.training._measure import load_batches, measure_subnets
from tips_nni.training._module import Flops, SupernetModule
from tips_nni.training._trainer import ending_together, make_trainer, quiet_lightning

_CALIBRATION_IMAGES = 256
_VALIDATION_IMAGES = 1024


@dataclass(frozen=True)
class TrainingSummary:
    """What a training did.

    Attributes:
        epochs: finished epochs.
        steps: optimizer steps.
        train_flops: multiply-adds spent.
        device: where the weights are.
        history: one row for every epoch, as in training.csv.
    """

    epochs: int
    steps: int
    train_flops: float
    device: torch.device
    history: tuple[dict[str, float], ...]


def train(
    supernet: Supernet,
    data: ImageData,
    training: TrainingSpec,
    sampling: SamplingSpec,
    policy: Policy,
    folder: Path,
    *,
    seed: int,
    resume: bool = False,
    quiet: bool = False,
    flops: Flops | None = None,
) -> TrainingSummary:
    """Train `supernet` in place, with several devices in as many processes.

    After every epoch ``training.csv`` and ``checkpoints/last.ckpt`` are replaced in one piece each; with `resume` the
    training goes on after the last finished epoch, and on a CPU ends with the same weights, bit for bit, as one that
    was never interrupted.

    Several processes end with the weights of one, up to rounding. They are those that torchrun started, or Lightning
    starts them: each runs the calling program from its beginning to its end, with ``LOCAL_RANK`` in its environment.
    The first one alone writes files; all must see them to resume.

    Args:
        supernet: to train.
        data: its images.
        training: length, optimizer, schedule, device.
        sampling: the subnets of a step.
        policy: draws subnets.
        folder: the run folder.
        seed: of sampling, mixup and dropout (the data have theirs).
        resume: go on from the checkpoint, where there is one.
        quiet: no progress bar.
        flops: multiply-adds of coded subnets, for the account of training compute.

    Raises:
        TipsError: the loss is not finite, a device or precision is not there, the devices cannot share a batch, or the
            checkpoint cannot be read or is of another training.
        KeyboardInterrupt: after Ctrl-C.
        SystemExit: in a process that is not the first one, where that one or another raises an error.
    """
    loader = data.train_loader()
    module = SupernetModule(
        supernet,
        policy,
        sampling,
        training,
        seed=seed,
        steps_per_epoch=len(loader),
        flops=flops,
        settings=describe_training(supernet, data, training, sampling, policy, seed),
    )
    check_shares(training, min(data.spec.batch_size, len(data.train)))
    checkpoint = folder / CHECKPOINT
    resumed = resume and checkpoint.is_file()
    if resumed:
        check_resumable(checkpoint, module)
    module.configure_optimizers()  # says now what is wrong with them, before other processes start
    recorder = _Recorder(data, folder, checkpoint)
    with quiet_lightning():
        trainer = make_trainer(training, folder, [recorder] if quiet else [_Bar(), recorder])
        with ending_together(trainer):
            trainer.fit(module, loader, ckpt_path=checkpoint if resumed else None, weights_only=True)
    if resumed and trainer.is_global_zero:
        _write_history(folder, module.history)  # the process may have ended after its checkpoint, before this
    supernet.eval().float()  # the "-true" precisions leave weights of another type
    device = next(supernet.parameters()).device
    return TrainingSummary(
        trainer.current_epoch, trainer.global_step, module.train_flops, device, tuple(module.history)
    )


class _Recorder(pl.Callback):
    """After every epoch: measure the ends of the space, write the history and the checkpoint."""

    def __init__(self, data: ImageData, folder: Path, checkpoint: Path) -> None:
        self._data = data
        self._folder = folder
        self._checkpoint = checkpoint
        self._start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        first = next(pl_module.parameters())
        device, dtype = first.device, first.dtype
        loader = self._data.calibration_loader(_CALIBRATION_IMAGES)
        self._calibration = [images for images, _ in load_batches(loader, device, dtype)]
        self._validation = load_batches(self._data.validation_loader(_VALIDATION_IMAGES), device, dtype)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.check_finite()
        space = pl_module.supernet.space
        ends = [space.largest, space.smallest]
        largest, smallest = measure_subnets(pl_module.supernet, ends, self._calibration, self._validation)
        loss = torch.stack(pl_module.losses).mean().item() if pl_module.losses else float("nan")
        pl_module.losses.clear()
        pl_module.history.append(
            {
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                "train_loss": loss,
                "accuracy_largest": float(largest),
                "accuracy_smallest": float(smallest),
                "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
                "train_gflops": pl_module.train_flops / 1e9,
                "seconds": round(time.perf_counter() - self._start, 3),
            }
        )
        self._write_checkpoint(trainer)
        if trainer.is_global_zero:
            _write_history(self._folder, pl_module.history)

    def _write_checkpoint(self, trainer: pl.Trainer) -> None:
        temporary = self._checkpoint.with_name(f".{self._checkpoint.name}.new")
        try:
            self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                os.replace(temporary, self._checkpoint)
        except OSError as error:
            raise TipsError(
                f"cannot write {self._checkpoint}: {error.strerror or error}; the checkpoint before is kept, free the "
                "place and resume"
            ) from error


def _write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Write training.csv in one piece."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    temporary = folder / ".training.csv.new"
    try:
        temporary.write_text(buffer.getvalue(), encoding="utf-8")
        os.replace(temporary, folder / "training.csv")
    except OSError as error:
        raise TipsError(
            f"cannot write {folder / 'training.csv'}: {error.strerror or error}; free the place and resume"
        ) from error


class _Bar(pl.Callback):
    """A progress bar on the terminal."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=Console(),
            disable=not trainer.is_global_zero,
        )
        self._task = self._progress.add_task("train", total=pl_module.total_epochs, state="")
        self._progress.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = trainer.global_step / pl_module.steps_per_epoch
        self._progress.update(self._task, completed=round(done, 1), state=_state(pl_module.history))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._progress.update(self._task, completed=trainer.current_epoch + 1, state=_state(pl_module.history))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if hasattr(self, "_progress"):
            self._progress.stop()


def _state(history: list[dict[str, float]]) -> str:
    """Describe the last finished epoch."""
    if not history:
        return ""
    last = history[-1]
    return (
        f"loss {last['train_loss']:.3f}  largest {last['accuracy_largest']:.1%}  "
        f"smallest {last['accuracy_smallest']:.1%}"
    )
