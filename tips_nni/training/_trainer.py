"""Lightning's Trainer: its devices and processes, its noise, and how several processes end."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from tips_nni.core import TipsError
from tips_nni.specs import TrainingSpec
from tips_nni.training._batchnorm import GlobalBatchNorm

_log = logging.getLogger(__name__)


class DivergedError(TipsError):
    """The numbers of a training are not finite. Every process raises it, at the same step."""


def make_trainer(
    training: TrainingSpec, folder: Path, callbacks: Sequence[pl.Callback] = (), *, clip_grad: float | None = None
) -> pl.Trainer:
    """Create the Trainer of a training; with several devices its strategy is ``ddp``.

    Args:
        training: its length, devices and precision.
        folder: the run folder.
        callbacks: of Lightning.
        clip_grad: largest norm of the gradient, for modules that leave optimisation to Lightning.

    Raises:
        TipsError: a device or precision is not there, or the processes that were started are not those of the spec.
    """
    started = int(os.environ.get("WORLD_SIZE", training.processes))  # by torchrun, or by Lightning itself
    if started != training.processes:
        raise TipsError(
            f"{started} processes were started, the spec is for {training.processes} (training.devices × "
            "training.nodes); make training.devices the number of processes on each machine"
        )
    try:
        return pl.Trainer(
            accelerator=training.accelerator,
            devices=training.devices,
            num_nodes=training.nodes,
            strategy="ddp" if training.processes > 1 else "auto",
            precision=training.precision,
            max_epochs=training.epochs if training.epochs is not None else -1,
            max_steps=training.steps if training.steps is not None else -1,
            callbacks=list(callbacks),
            gradient_clip_val=clip_grad,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
            num_sanity_val_steps=0,
        )
    except (pl.utilities.exceptions.MisconfigurationException, ValueError, RuntimeError) as error:
        raise TipsError(
            f"training cannot start with accelerator {training.accelerator!r}, devices {training.devices}, "
            f"precision {training.precision!r}: {str(error).splitlines()[0]}"
        ) from error


def process_rank(training: TrainingSpec) -> int:
    """Return the number of this process among those of a training that is to begin; 0 where there is no other.

    Raises:
        TipsError: as `make_trainer`.
    """
    with quiet_lightning():
        return int(make_trainer(training, Path()).global_rank)


def root_device(training: TrainingSpec) -> torch.device:
    """Return the device that one process of a training works on: what its accelerator stands for on this machine.

    Raises:
        TipsError: the accelerator is not there.
    """
    with quiet_lightning():
        return make_trainer(on_one_device(training), Path()).strategy.root_device


def on_one_device(training: TrainingSpec) -> TrainingSpec:
    """Return the same training with one device of one machine."""
    return training.model_copy(update={"devices": 1, "nodes": 1})


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advertisements away; its warnings about real trouble stay."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def one_batch(trainer: pl.Trainer, sync_batchnorm: bool) -> Iterator[None]:
    """For the forward and backward passes of one step: the batches of all processes are the parts of one.

    A step has a backward pass for every subnet. DDP would send gradients in each, and miss those of parameters that
    the last subnet lacks; so it sends none here, and `average` follows once.
    """
    with ExitStack() as stack:
        if trainer.world_size > 1:
            strategy = trainer.strategy
            assert isinstance(strategy, pl.strategies.ParallelStrategy)
            stack.enter_context(strategy.block_backward_sync())
            if sync_batchnorm:
                stack.enter_context(GlobalBatchNorm())
        yield


def average(trainer: pl.Trainer, tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its mean over the processes, in one message."""
    if trainer.world_size > 1:
        message = torch.cat([tensor.flatten() for tensor in tensors]) / trainer.world_size
        dist.all_reduce(message)
        for tensor, mean in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


@contextmanager
def ending_together(trainer: pl.Trainer) -> Iterator[None]:
    """For the whole training: where one process ends, the others do, and one of them says why.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        SystemExit: another process says why.
        TipsError: another process was lost.
    """
    threads = torch.get_num_threads()
    try:
        yield
        _leave(trainer)
    except SystemExit:
        # Lightning turns Ctrl-C into an exit with code 1.
        raise KeyboardInterrupt from None
    except DivergedError:
        _leave(trainer)
        if trainer.is_global_zero:
            raise
        raise SystemExit(0) from None
    except TipsError as error:
        if not trainer.is_global_zero:
            _log.error("process %d of the training: %s", trainer.global_rank, error)
        raise
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        if not trainer.is_global_zero:
            raise SystemExit(1) from error
        raise TipsError(
            "another process of the training ended, its own message says why; put that right and add --resume to go on "
            "from the last checkpoint"
        ) from error
    finally:
        torch.set_num_threads(threads)  # Lightning shares the cores among the processes; now this one goes on alone
        if trainer.state.status == pl.trainer.states.TrainerStatus.INTERRUPTED:
            _end_children(trainer)


def _leave(trainer: pl.Trainer) -> None:
    """Take leave of the other processes, which do it too."""
    if trainer.world_size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def _end_children(trainer: pl.Trainer) -> None:
    """End the processes that Lightning started for this one."""
    children = getattr(trainer.strategy.launcher, "procs", [])
    ending = list(children)
    children.clear()  # Lightning watches them in a thread, which would kill this process too
    for child in ending:
        child.kill()
        child.wait()
