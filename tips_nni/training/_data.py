"""The data of a run: training, validation (for the search) and test images, in batches.

The order of an epoch and its augmentation are functions of (seed, epoch) and nothing else: a run that goes on after an
interruption sees the same batches, with any number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tips_nni.core import TipsError
from tips_nni.specs import DataSpec
from tips_nni.training._data_augment import StandardAugmentation, crop_and_flip
from tips_nni.training._data_images import Split
from tips_nni.training._data_kinds import read_digits, read_folder, read_npz, stratified_split
from tips_nni.training._data_torchvision import read_torchvision

_READERS = {"digits": read_digits, "npz": read_npz, "folder": read_folder, "torchvision": read_torchvision}
# One stream of random numbers for every use.
_SPLIT, _LIMIT, _ORDER, _AUGMENT, _CALIBRATION = range(5)
_STATISTICS_IMAGES = 2000

Batch = tuple[Tensor, Tensor]


class BatchKey(NamedTuple):
    """Names one batch, or a part of it: its epoch, its number in the epoch, the positions of its images in the split.

    Augmentation belongs to the whole batch, so a part has the same images as there.
    """

    epoch: int
    number: int
    positions: NDArray[np.int64]
    part: slice = slice(None)


class EpochSampler(Sampler[BatchKey]):
    """The batches of an epoch in an order that is a function of (seed, epoch).

    Lightning calls `set_epoch`. Of several processes each one takes its part of every batch, the r-th one the r-th, so
    that they share the steps of one process. The last, incomplete batch is left out.

    Args:
        images: number of images.
        batch_size: images of one batch, of all processes together; a multiple of their number.
        seed: of the run.
    """

    def __init__(self, images: int, batch_size: int, seed: int) -> None:
        self._images = images
        self._batch_size = min(batch_size, images)
        self._seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._images // self._batch_size

    def __iter__(self) -> Iterator[BatchKey]:
        order = np.random.default_rng((self._seed, _ORDER, self.epoch)).permutation(self._images)
        rank, world = _rank_and_world()
        share = self._batch_size // world
        for number in range(len(self)):
            first = number * self._batch_size
            positions = order[first : first + self._batch_size]
            yield BatchKey(self.epoch, number, positions, slice(rank * share, (rank + 1) * share))


@dataclass(frozen=True)
class ImageData:
    """Images for training, search (validation) and the final test.

    Normalised as (x / 255 - mean) / std, float images as (x - mean) / std. Every batch is (images, labels): float32 of
    shape (n, in_chans, image_size, image_size) and int64 of shape (n,).

    Attributes:
        train: images to learn from.
        validation: images on which the search measures subnets, parted from the training images.
        test: images for the final figures only.
        class_names: one for every class, by its number.
        in_chans: channels of an image.
        image_size: side in pixels.
        mean: one value for every channel.
        std: one value for every channel.
        digest: SHA-256 (hexadecimal) of images (for files: names and sizes), labels and their parting.
        spec: what it was made from.
        seed: of the run.
    """

    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    in_chans: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    spec: DataSpec
    seed: int

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def train_loader(self) -> DataLoader[Batch]:
        """Return augmented training batches; Lightning calls `loader.sampler.set_epoch(epoch)`."""
        sampler = EpochSampler(len(self.train), self.spec.batch_size, self.seed)
        return self._loader(_Batches(self, self.train, self.spec.augment), sampler)

    def validation_loader(self, images: int | None = None) -> DataLoader[Batch]:
        """Return validation batches, of the first `images` only where given (they are shuffled once, by the seed)."""
        split = (
            self.validation if images is None else self.validation.take(np.arange(min(images, len(self.validation))))
        )
        return self._in_order(split)

    def test_loader(self) -> DataLoader[Batch]:
        """Return the test batches. For the final figures only."""
        return self._in_order(self.test)

    def calibration_loader(self, images: int) -> DataLoader[Batch]:
        """Return `images` training images (at most all) without augmentation, the same ones at every call."""
        order = np.random.default_rng((self.seed, _CALIBRATION)).permutation(len(self.train))
        return self._in_order(self.train.take(order[:images]))

    def _in_order(self, split: Split) -> DataLoader[Batch]:
        size = self.spec.batch_size
        starts = range(0, len(split), size)
        keys = [BatchKey(0, i, np.arange(first, min(first + size, len(split)))) for i, first in enumerate(starts)]
        return self._loader(_Batches(self, split, "none"), keys)

    def _loader(self, batches: _Batches, keys: Any) -> DataLoader[Batch]:
        workers = self.spec.workers
        return _Loader(batches, batch_size=None, sampler=keys, num_workers=workers, persistent_workers=workers > 0)


def load_data(
    spec: DataSpec,
    *,
    seed: int,
    in_chans: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageData:
    """Load the data of a run.

    Args:
        spec: which data, its paths absolute or relative to the current folder.
        seed: parts validation from training images (stratified) and orders the batches.
        in_chans: channels that the images shall have (grey is repeated, colour averaged); None: as they come.
        mean: for the normalisation, on the scale 0 to 1 for uint8 images; pretrained weights want their own. None:
            measured on at most 2,000 training images.
        std: as `mean`.

    Raises:
        TipsError: something about the data is wrong; one line names it.
    """
    pools = _READERS[spec.kind](spec, in_chans)
    order = np.random.default_rng((seed, _SPLIT))
    rest, part = stratified_split(pools.train.labels, spec.validation, order, pools.class_names)
    train, validation = pools.train.take(rest), pools.train.take(part)
    if spec.limit is not None:
        chosen = np.random.default_rng((seed, _LIMIT)).permutation(len(train))[: spec.limit]
        train = train.take(chosen)
    source = train.source
    if spec.augment == "standard":
        source.picture(int(train.indices[0]))  # says now what does not work
    channels = source.channels
    measured = _statistics(train)
    given = [tuple(map(float, values)) if values is not None else None for values in (mean, std)]
    for name, values in zip(("mean", "std"), given, strict=True):
        if values is not None and len(values) != channels:
            raise TipsError(f"{name} has {len(values)} values; the images have {channels} channels, give one for each")
    return ImageData(
        train=train,
        validation=validation,
        test=pools.test,
        class_names=pools.class_names,
        in_chans=channels,
        image_size=source.size,
        mean=given[0] or measured[0],
        std=given[1] or measured[1],
        digest=_digest(pools.class_names, train, validation, pools.test),
        spec=spec,
        seed=seed,
    )


class _Batches(Dataset[Batch]):
    """Makes the batch that a key names, in whatever process."""

    def __init__(self, data: ImageData, split: Split, augment: str) -> None:
        self._split = split
        self._augment = augment
        self._seed = data.seed
        self._mean = torch.tensor(data.mean)[:, None, None]
        self._std = torch.tensor(data.std)[:, None, None]
        characters = data.spec.kind == "digits" or data.in_chans == 1
        self._flip = data.spec.flip if data.spec.flip is not None else not characters
        self._standard = StandardAugmentation(split.source, self._flip, data.mean) if augment == "standard" else None

    def __getitem__(self, key: BatchKey) -> Any:
        try:
            images = self._images(key)
        except TipsError as error:
            return error  # raised by `_Loader`: torch would wrap it in a traceback of the worker
        labels = torch.from_numpy(self._split.labels[key.positions[key.part]])
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        return (images.float() / scale - self._mean) / self._std, labels

    def _images(self, key: BatchKey) -> Tensor:
        indices = self._split.indices[key.positions[key.part]]
        rng = np.random.default_rng((self._seed, _AUGMENT, key.epoch, key.number))
        whole = len(key.positions)
        if self._standard is not None:
            return self._standard(indices, rng.integers(0, 2**32, size=whole, dtype=np.uint32)[key.part])
        images = self._split.source.raw(indices)
        return crop_and_flip(images, rng, self._flip, whole, key.part) if self._augment == "light" else images


class _Loader(DataLoader[Batch]):
    """Raises the errors that a dataset returns."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, TipsError):
                # End the workers now: the traceback would keep them until the garbage collector waits for them. For
                # the same reason a new error, which no variable of this frame refers to.
                self._iterator = None
                raise TipsError(str(batch))
            yield batch


def _rank_and_world() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel over the first images; 1 for a constant channel."""
    indices = split.indices[:_STATISTICS_IMAGES]
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for first in range(0, len(indices), 256):
        images = split.source.raw(indices[first : first + 256])
        x = (images.double() / 255 if images.dtype == torch.uint8 else images.double()).transpose(0, 1).flatten(1)
        count += x.shape[1]
        total = total + x.sum(dim=1)
        squares = squares + (x * x).sum(dim=1)
    mean = total / count
    std = (squares / count - mean * mean).clamp(min=0).sqrt()
    std = torch.where(std < 1e-6, torch.ones_like(std), std)
    return tuple(mean.tolist()), tuple(std.tolist())


def _digest(class_names: Sequence[str], *splits: Split) -> str:
    digest = hashlib.sha256("\0".join(class_names).encode())
    for split in splits:
        for part in (split.source.digest(), split.indices.tobytes(), split.labels.tobytes()):
            digest.update(part)
    return digest.hexdigest()
