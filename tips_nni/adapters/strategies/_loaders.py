"""The images of an evaluator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from tips_nni.core import TipsError


def train_batches(evaluator: Any, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the (images, labels) that a Lightning evaluator trains on, in an order that depends on `seed` only.

    Raises:
        TipsError: there are no training images, or batches are not (images, labels).
    """
    loader = evaluator.train_dataloaders if evaluator.datamodule is None else evaluator.datamodule.train_dataloader()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield from _batches(loader, "training")


def validation_batches(evaluator: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the (images, labels) that a Lightning evaluator validates on.

    Raises:
        TipsError: there are no validation images, or batches are not (images, labels).
    """
    loader = evaluator.val_dataloaders if evaluator.datamodule is None else evaluator.datamodule.val_dataloader()
    yield from _batches(loader, "validation")


def first(batches: Iterable[tuple[Tensor, Tensor]], count: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches until `count` images have come, cutting the last one; all where None."""
    left = count
    for images, labels in batches:
        if left is not None:
            images, labels = images[:left], labels[:left]
            left -= len(images)
        yield images, labels
        if left == 0:
            return


def _batches(loader: Any, what: str) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(loader, list | tuple):
        if len(loader) != 1:
            raise TipsError(f"the evaluator has {len(loader)} {what} loaders; give it one")
        loader = loader[0]
    if loader is None:
        raise TipsError(f"the evaluator has no {what} images; give it a loader of them")
    for batch in loader:
        if not isinstance(batch, list | tuple) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
            raise TipsError(f"a {what} batch of the evaluator is not (images, labels); measuring needs such batches")
        yield batch[0], batch[1]
