"""Images as tensors on the device: augmentation costs next to nothing, and the order is the seed's alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anytime.scales import Scale

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Images:
    """Normalised images (N, 3, S, S), float32, and labels (N,)."""

    x: Tensor
    y: Tensor

    def batches(self, size: int, limit: int | None = None) -> list[Batch]:
        """Return the first `limit` images in batches."""
        count = len(self.x) if limit is None else min(limit, len(self.x))
        return [(self.x[i : min(i + size, count)], self.y[i : min(i + size, count)]) for i in range(0, count, size)]

    def epochs(self, seed: int, batch: int) -> Iterator[Batch]:
        """Yield shuffled, augmented batches for ever: mirrored or not, shifted by up to an eighth.

        What the seed decides is drawn on the CPU, the same for every device, and brought to the device once an epoch.
        """
        generator = torch.Generator().manual_seed(seed)
        count, side, device = len(self.x), self.x.shape[-1], self.x.device
        pad = side // 8
        padded = F.pad(self.x, (pad, pad, pad, pad), mode="reflect")
        inside = torch.arange(side, device=device)
        while True:
            order = torch.randperm(count, generator=generator).to(device)
            shifts = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).to(device)
            mirrored = (torch.rand(count, generator=generator) < 0.5).to(device)
            for i in range(0, count - batch + 1, batch):
                part = slice(i, i + batch)
                rows, columns = shifts[:, part, None] + inside
                columns = torch.where(mirrored[part, None], columns.flip(1), columns)
                # Indexing puts the channels last.
                images = padded[order[part, None, None], :, rows[:, :, None], columns[:, None, :]]
                yield images.permute(0, 3, 1, 2).contiguous(memory_format=memory_format(device)), self.y[order[part]]


@dataclass(frozen=True)
class Data:
    """The three parts of a data set. The search and all choices see `validation`, only figures see `test`."""

    train: Images
    validation: Images
    test: Images
    classes: int


def memory_format(device: torch.device) -> torch.memory_format:
    """Return how images lie in memory: channels last, with which narrow convolutions are a fifth to a half faster.

    Not on a CPU without AVX-512: there oneDNN writes past its buffer in the backward pass of a 1×1 convolution of
    stride 2 with fewer than 8 input channels last in memory (uxlfoundation/oneDNN issue 6035; torch 2.15 dies of it).
    """
    capable = device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.channels_last if capable else torch.contiguous_format


def load(path: Path, scale: Scale, device: torch.device) -> Data:
    """Read an ``.npz`` with x_train, y_train, x_test, y_test; x are uint8 (N, H, W, 3)."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    return prepare(arrays, scale, device)


def prepare(arrays: Mapping[str, np.ndarray], scale: Scale, device: torch.device) -> Data:
    """Split, resize and normalise arrays as `load` reads them.

    Args:
        arrays: uint8 images (N, H, W, 3) and labels.
        scale: which classes are kept, the first becomes label 0; how many training images are held out for validation
            and how many stay, drawn at random once for all; the pixels.
        device: for the tensors.

    Raises:
        ValueError: the data have not so many classes, or images.
    """
    first, validation = scale.first_class, scale.validation
    labels = {part: arrays[f"y_{part}"].astype(np.int64) - first for part in ("train", "test")}
    count = int(labels["train"].max()) + 1 if scale.classes is None else scale.classes
    if not 0 < count <= int(labels["train"].max()) + 1:
        raise ValueError(
            f"classes {first} to {first + count - 1} are wanted, and the data have 0 to "
            f"{arrays['y_train'].max()}; choose another scale or other data"
        )
    kept = {part: (label >= 0) & (label < count) for part, label in labels.items()}
    x = {part: _resized(arrays[f"x_{part}"][kept[part]], scale.image_size) for part in kept}
    y = {part: torch.from_numpy(labels[part][kept[part]]).to(device) for part in kept}
    order = np.random.default_rng(0).permutation(len(x["train"]))
    last = len(order) if scale.images is None else validation + scale.images
    if last > len(order):
        raise ValueError(
            f"{validation} validation and {scale.images} training images are wanted, and the data have {len(order)}; "
            "choose another scale or other data"
        )
    held, rest = (torch.from_numpy(part) for part in (order[:validation], order[validation:last]))
    mean, std = (f(x["train"][rest]) for f in (lambda t: t.mean((0, 2, 3)), lambda t: t.std((0, 2, 3))))
    x = {
        part: ((t - mean[:, None, None]) / std[:, None, None]).to(device, memory_format=memory_format(device))
        for part, t in x.items()
    }
    return Data(
        Images(x["train"][rest], y["train"][rest]),
        Images(x["train"][held], y["train"][held]),
        Images(x["test"], y["test"]),
        count,
    )


def _resized(images: np.ndarray, size: int) -> Tensor:
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    parts = [
        F.interpolate(part.float() / 255, size=(size, size), mode="area")
        if part.shape[-1] != size
        else part.float() / 255
        for part in tensor.split(4096)
    ]
    return torch.cat(parts)
