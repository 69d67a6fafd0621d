"""Augmentation whose randomness is a function of given numbers only."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.data import create_transform
from torch import Tensor

from tips_nni.training._data_images import ImageSource, to_channels


def crop_and_flip(
    images: Tensor, rng: np.random.Generator, flip: bool, whole: int | None = None, part: slice = slice(None)
) -> Tensor:
    """Shift every image by up to an eighth of its side (zeros move in) and mirror half of them.

    Args:
        images: shape (n, c, s, s), any dtype.
        rng: decides; the same state gives the same result.
        flip: whether to mirror at all.
        whole: images of the batch that `images` are a part of; None: they are all of it.
        part: which of them; every image is then treated as it is in the whole batch.
    """
    n, channels, side, _ = images.shape
    drawn = n if whole is None else whole
    reach = max(1, side // 8)
    padded = F.pad(images, (reach, reach, reach, reach))
    shifts = torch.from_numpy(rng.integers(0, 2 * reach + 1, size=(drawn, 2))[part])
    mirrored = torch.from_numpy(rng.random(drawn)[part] < 0.5) & flip
    places = torch.arange(side)
    rows = shifts[:, :1] + places
    columns = shifts[:, 1:] + torch.where(mirrored[:, None], places.flip(0), places)
    every = torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return padded[every[0], every[1], rows[:, None, :, None], columns[:, None, None, :]]


class StandardAugmentation:
    """timm's training transform: a random crop of random size, a flip and RandAugment.

    Args:
        source: uint8 images with one or three channels.
        flip: whether to mirror half of the images.
        mean: fills what RandAugment moves in; three values, or one that stands for all.
    """

    def __init__(self, source: ImageSource, flip: bool, mean: tuple[float, ...]) -> None:
        self._source = source
        self._transform: Any = create_transform(
            source.size,
            is_training=True,
            scale=(0.25, 1.0),
            hflip=0.5 if flip else 0.0,
            auto_augment="rand-m7-mstd0.5-inc1",
            interpolation="bicubic",
            mean=mean if len(mean) == 3 else mean[:1] * 3,
            normalize=False,
        )

    def __call__(self, indices: NDArray[np.int64], seeds: NDArray[np.uint32]) -> Tensor:
        """Return augmented images, uint8, shape (n, c, s, s); `seeds` has one number for every image."""
        images = []
        for index, seed in zip(indices.tolist(), seeds.tolist(), strict=True):
            picture = self._source.picture(index)
            with seeded_globals(seed):
                images.append(self._transform(picture))
        return to_channels(torch.stack(images), self._source.channels)


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch (CPU), which timm's transforms use, and restore them."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch_state = torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
