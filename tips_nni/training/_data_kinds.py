"""Digits, an .npz file and an image folder: images and labels, checked."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tips_nni.core import TipsError, closest
from tips_nni.specs import DataSpec
from tips_nni.training._data_images import OpenedImages, Split, StoredImages

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
# What numpy and zipfile raise for a file whose bytes were changed.
_DAMAGE = (ValueError, EOFError, OSError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Pools:
    """A data set as it comes: images to learn from, images for the final test, and the names of the classes."""

    train: Split
    test: Split
    class_names: tuple[str, ...]


def read_digits(spec: DataSpec, in_chans: int | None) -> Pools:
    """Return scikit-learn's 1,797 digits (8×8, grey), resized to 32×32 unless the spec says otherwise.

    A fixed fifth of every class is the test set, whatever the seed.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    source = StoredImages(images, spec.image_size or 32, in_chans or 1)
    labels = digits.target.astype(np.int64)
    whole = Split(source, np.arange(len(labels)), labels)
    return hold_out(whole, tuple(str(digit) for digit in range(10)))


def hold_out(whole: Split, class_names: tuple[str, ...]) -> Pools:
    """Part the test set from a data set that comes in one piece: a fixed, stratified fifth, whatever the seed."""
    rest, test = stratified_split(whole.labels, TEST_SHARE, np.random.default_rng(0), class_names)
    return Pools(whole.take(np.sort(rest)), whole.take(np.sort(test)), class_names)


def stratified_split(
    labels: NDArray[np.int64], share: float, rng: np.random.Generator, class_names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positions (rest, part), each shuffled: `share` of every class, at least one image, is in `part`.

    Raises:
        TipsError: a class has a single image.
    """
    rest, part = [], []
    for label in np.unique(labels):
        positions = rng.permutation(np.flatnonzero(labels == label))
        if len(positions) < 2:
            raise TipsError(
                f"data: class {class_names[label]!r} has a single training image; it needs at least 2, one to learn "
                "from and one for the search: add images or remove the class"
            )
        count = min(max(1, round(share * len(positions))), len(positions) - 1)
        part.append(positions[:count])
        rest.append(positions[count:])
    return rng.permutation(np.concatenate(rest)), rng.permutation(np.concatenate(part))


def read_npz(spec: DataSpec, in_chans: int | None) -> Pools:
    """Return the arrays of an .npz file: x_train, y_train, x_test, y_test and, optionally, class_names.

    Images are uint8 or float of shape (N, H, W) or (N, H, W, C); labels are integers from 0, of shape (N,).

    Raises:
        TipsError: the file or an array is not so.
    """
    path = Path(spec.path or "")
    arrays = _load_arrays(path)
    images = {part: _check_images(path, f"x_{part}", arrays[f"x_{part}"]) for part in ("train", "test")}
    if images["train"].shape[1:] != images["test"].shape[1:] or images["train"].dtype != images["test"].dtype:
        raise TipsError(
            f"{path}: x_train holds {_look(images['train'])} and x_test {_look(images['test'])}; make them alike"
        )
    labels = {part: _check_labels(path, f"y_{part}", arrays[f"y_{part}"], images[part]) for part in ("train", "test")}
    classes = int(labels["train"].max()) + 1
    names = tuple(str(name) for name in arrays.get("class_names", np.arange(classes)))
    check_labels(f"{path}: y_train", labels["train"], len(names), complete=True)
    check_labels(f"{path}: y_test", labels["test"], len(names))
    _, height, width, channels = images["train"].shape
    if spec.image_size is None and height != width:
        raise TipsError(f"{path}: images are {height}x{width} pixels, not square; add data.image_size to resize them")
    size = spec.image_size or height
    sources = {
        part: StoredImages(torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous(), size, in_chans or channels)
        for part, x in images.items()
    }
    train, test = (Split(sources[part], np.arange(len(labels[part])), labels[part]) for part in ("train", "test"))
    return Pools(train, test, names)


def check_labels(where: str, labels: NDArray[np.int64], classes: int, complete: bool = False) -> None:
    """Check that labels are from 0 to below `classes` and, where `complete`, that every class occurs.

    Raises:
        TipsError: they are not, or there are fewer than two classes.
    """
    if classes < 2:
        raise TipsError(f"{where}: there is one class only; a classifier needs two or more")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise TipsError(f"{where} holds the label {wrong[0]}; the {classes} classes are 0 to {classes - 1}")
    absent = np.setdiff1d(np.arange(classes), labels)
    if complete and len(absent):
        raise TipsError(f"{where}: class {absent[0]} has no images; number the classes from 0 without gaps")


def read_folder(spec: DataSpec, in_chans: int | None) -> Pools:
    """Return the images under train/ and val/, a folder per class; val/ is the test set. Every file is looked at.

    Raises:
        TipsError: a folder is missing or empty, the classes differ, or a file is not an image.
    """
    root = Path(spec.path or "")
    size = spec.image_size or 224
    classes = {part: _class_folders(root, part) for part in ("train", "val")}
    for one, other in (("train", "val"), ("val", "train")):
        for name in classes[one]:
            if name not in classes[other]:
                hint = closest(name, classes[other])
                raise TipsError(
                    f"{root / one / name}: the class {name!r} is not in {other}/{hint}; both need the same classes"
                )
    names = tuple(classes["train"])
    splits = []
    for part in ("train", "val"):
        files = [(path, label) for label, name in enumerate(names) for path in _image_files(root / part / name)]
        paths = [path for path, _ in files]
        for path in paths:
            _check_header(path)
        source = OpenedImages(
            _FileOpener(paths),
            [f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in paths],
            size,
            in_chans or 3,
            keep=spec.workers == 0,
        )
        splits.append(Split(source, np.arange(len(files)), np.array([label for _, label in files], dtype=np.int64)))
    return Pools(splits[0], splits[1], names)


class _FileOpener:
    """Opens the file at an index (a class, so that worker processes can have it)."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __call__(self, index: int) -> Image.Image:
        path = self._paths[index]
        try:
            with Image.open(path) as picture:
                picture.load()
                return picture
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise _unreadable(path, error) from None


def _check_header(path: Path) -> None:
    try:
        with Image.open(path):
            pass
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> TipsError:
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
    return TipsError(f"{path}: cannot be read as an image ({reason}); replace or remove it")


def _class_folders(root: Path, part: str) -> list[str]:
    folder = root / part
    if not folder.is_dir():
        raise TipsError(f"{root}: has no folder {part}/; it needs train/ and val/, each with a folder per class")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        found = "no folder" if not names else "one folder only"
        raise TipsError(f"{folder}: holds {found}; it needs one for each of two or more classes")
    return names


def _image_files(folder: Path) -> list[Path]:
    files = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".") and p.is_file()
    )
    if not files:
        kinds = ", ".join(sorted(suffix[1:] for suffix in _SUFFIXES))
        raise TipsError(f"{folder}: the class has no images; add some ({kinds}) or remove the folder")
    return files


def _load_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with path.open("rb") as file:
            return _read_arrays(path, file)
    except FileNotFoundError:
        raise TipsError(f"{path}: no such file; write it with numpy.savez") from None
    except OSError as error:
        raise TipsError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _read_arrays(path: Path, file: BinaryIO) -> dict[str, NDArray[np.generic]]:
    try:
        archive = np.load(file, allow_pickle=False)
    except _DAMAGE:
        raise TipsError(f"{path}: not an .npz file, or a damaged one; write it with numpy.savez") from None
    if isinstance(archive, np.ndarray):
        raise TipsError(f"{path}: holds one bare array; it needs {', '.join(_ARRAYS)}, written with numpy.savez")
    for name in _ARRAYS:
        if name not in archive.files:
            found = ", ".join(archive.files) or "nothing"
            raise TipsError(f"{path}: has no array {name} (found: {found}); it needs {', '.join(_ARRAYS)}")
    arrays = {}
    for name in (*_ARRAYS, *({"class_names"} & set(archive.files))):
        try:
            arrays[name] = archive[name]
        except _DAMAGE as error:
            pickled = "Object arrays" in str(error)
            reason = "holds Python objects, which are not read" if pickled else "is damaged"
            raise TipsError(f"{path}: {name} {reason}; save it again as a plain array of numbers") from None
    return arrays


def _check_images(path: Path, name: str, images: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return images as uint8 or float32, shape (N, H, W, C)."""
    form = f"{path}: {name} has shape {images.shape}"
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise TipsError(f"{form}; it must be (N, height, width) or (N, height, width, channels)")
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[3] > 32 or (images.shape[1] in (1, 3) and images.shape[3] not in (1, 3)):
        raise TipsError(f"{form}; channels come last: (N, height, width, channels), so transpose it")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise TipsError(f"{path}: {name} is of type {images.dtype}; it must be uint8 (0 to 255) or float")
    images = images.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
    if len(bad):
        raise TipsError(f"{path}: {name}[{bad[0]}] holds NaN or infinite values; clean or remove the image")
    return images


def _check_labels(path: Path, name: str, labels: NDArray[np.generic], images: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return labels as int64, shape (N,)."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu":
        raise TipsError(f"{path}: {name} is of type {labels.dtype}; labels must be integers, 0 for the first class")
    if labels.shape != (len(images),):
        raise TipsError(f"{path}: {name} has shape {labels.shape}; it must be ({len(images)},), one for every image")
    return labels.astype(np.int64)


def _look(images: NDArray[np.generic]) -> str:
    return f"{images.dtype} images of {images.shape[1]}x{images.shape[2]} pixels with {images.shape[3]} channels"
