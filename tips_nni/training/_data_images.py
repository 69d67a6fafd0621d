"""Images by position, in memory or read when asked for; all of one size and number of channels."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tips_nni.core import TipsError

_MEMO_BYTES = 2**30


class ImageSource(ABC):
    """Images of `channels` × `size` × `size`.

    Attributes:
        channels: channels of an image.
        size: side in pixels.
    """

    channels: int
    size: int

    @abstractmethod
    def raw(self, indices: NDArray[np.int64]) -> Tensor:
        """Return images without augmentation or normalisation, shape (n, channels, size, size).

        uint8 from 0 to 255, or float32 where the data are floats.
        """

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """Return an image in RGB, as large as it was stored, for augmentation that works on pictures."""

    @abstractmethod
    def digest(self) -> bytes:
        """Return what tells these images from others."""


class StoredImages(ImageSource):
    """Images in memory.

    Args:
        images: uint8 or float32, shape (n, channels, height, width); resized here.
        size: side in pixels.
        channels: wanted number of channels; grey is repeated, colour is averaged.
    """

    def __init__(self, images: Tensor, size: int, channels: int) -> None:
        self.size = size
        self.channels = channels
        self._images = to_square(to_channels(images, channels), size)

    def raw(self, indices: NDArray[np.int64]) -> Tensor:
        """Return images, shape (n, channels, size, size)."""
        return self._images[torch.from_numpy(indices)]

    def picture(self, index: int) -> Image.Image:
        """Return an image in RGB.

        Raises:
            TipsError: the images are floats or have neither one nor three channels.
        """
        if self._images.dtype != torch.uint8 or self.channels not in (1, 3):
            raise TipsError(
                f"data.augment = standard: needs uint8 images with 1 or 3 channels, not {self._images.dtype} with "
                f"{self.channels}; use augment: light"
            )
        return Image.fromarray(to_channels(self._images[index : index + 1], 3)[0].permute(1, 2, 0).numpy())

    def digest(self) -> bytes:
        """Return a hash of the pixels."""
        return hashlib.sha256(self._images.contiguous().numpy().tobytes()).digest()


class OpenedImages(ImageSource):
    """Images opened when asked for, resized (the short side) and cut (the middle).

    Args:
        open_image: returns the picture at an index; raises TipsError where that fails.
        names: one for every image; they tell the images from others.
        size: side in pixels.
        channels: 1 or 3.
        keep: whether to keep the resized images in memory where they take less than 1 GiB.
    """

    def __init__(
        self, open_image: Callable[[int], Image.Image], names: Sequence[str], size: int, channels: int, keep: bool
    ) -> None:
        self.size = size
        self.channels = channels
        self._open = open_image
        self._names = tuple(names)
        self._keep = keep and len(names) * channels * size * size <= _MEMO_BYTES
        self._kept: dict[int, Tensor] = {}

    def raw(self, indices: NDArray[np.int64]) -> Tensor:
        """Return images, uint8, shape (n, channels, size, size)."""
        return torch.stack([self._one(int(index)) for index in indices])

    def picture(self, index: int) -> Image.Image:
        """Return an image in RGB."""
        return self._open(index).convert("RGB")

    def digest(self) -> bytes:
        """Return a hash of the names."""
        return hashlib.sha256("\n".join(self._names).encode()).digest()

    def _one(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        picture = self._open(index).convert("RGB" if self.channels == 3 else "L")
        image = picture_to_tensor(fit_square(picture, self.size))
        if self._keep:
            self._kept[index] = image
        return image


@dataclass(frozen=True)
class Split:
    """Some images of a source, with their labels.

    Attributes:
        source: where the images are.
        indices: which ones, int64, shape (n,).
        labels: their classes, int64, shape (n,).
    """

    source: ImageSource
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, positions: NDArray[np.int64]) -> Split:
        """Return the images at `positions` of this split."""
        return Split(self.source, self.indices[positions], self.labels[positions])


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Return images (n, c, h, w) with `channels` channels: grey repeated, or the mean over all of them.

    Raises:
        TipsError: neither c nor `channels` is 1, and they differ.
    """
    present = images.shape[1]
    if present == channels:
        return images
    if present == 1:
        return images.repeat(1, channels, 1, 1)
    if channels == 1:
        grey = images.float().mean(dim=1, keepdim=True)
        return grey.round().to(images.dtype) if images.dtype == torch.uint8 else grey
    raise TipsError(f"the images have {present} channels, the backbone wants {channels}; set in_chans to {present}")


def to_square(images: Tensor, size: int) -> Tensor:
    """Resize the short side of images (n, c, h, w) to `size` (bilinear, antialiased) and cut the middle."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    parts = [_resize(part, target) for part in images.split(1024)]
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return torch.cat([part[..., top : top + size, left : left + size] for part in parts])


def fit_square(picture: Image.Image, size: int) -> Image.Image:
    """Resize the short side of a picture to `size` (bicubic) and cut the middle."""
    if picture.size == (size, size):
        return picture
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def picture_to_tensor(picture: Image.Image) -> Tensor:
    """Return a grey or RGB picture as uint8, shape (channels, height, width)."""
    pixels = np.array(picture, dtype=np.uint8)
    return torch.from_numpy(np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)))


def _resize(images: Tensor, target: tuple[int, int]) -> Tensor:
    resized = F.interpolate(images.float(), target, mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else resized
