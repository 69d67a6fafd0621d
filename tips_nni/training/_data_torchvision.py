"""Any classification data set of torchvision by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torchvision.datasets
from numpy.typing import NDArray
from PIL import Image

from tips_nni.core import TipsError, closest
from tips_nni.specs import DataSpec
from tips_nni.training._data_images import OpenedImages, Split
from tips_nni.training._data_kinds import Pools, check_labels, hold_out

# The names that data sets give to their parts, the preferred one first.
_TRAIN_SPLITS = ("trainval", "train", "train-standard")
_TEST_SPLITS = ("test", "val", "valid")
# What torchvision's data sets raise for files that are missing, damaged or cannot be downloaded, or wrong arguments.
_FAILURES = (RuntimeError, OSError, ValueError, TypeError, KeyError, EOFError, ModuleNotFoundError)


def read_torchvision(spec: DataSpec, in_chans: int | None) -> Pools:
    """Return a data set of torchvision.

    Its own test part is the test set (val where there is none); of a data set in one piece it is a fixed fifth.

    Raises:
        TipsError: there is no such data set, it cannot be read, or it is not for classification.
    """
    make = _find(spec.name or "")
    accepted = _accepted(make)
    options: dict[str, Any] = dict(spec.args)
    if "root" in accepted:
        if spec.path is None:
            raise TipsError(f"data.name = {spec.name}: needs data.path, the folder that holds the data or will")
        options["root"] = spec.path
    if "download" in accepted:
        options["download"] = spec.download
    elif spec.download:
        raise TipsError(f"data.download: torchvision cannot download {spec.name}; get it yourself, set download: false")
    unknown = [key for key in spec.args if key not in accepted or key in ("root", "download", "train")]
    if unknown:
        raise TipsError(f"data.args.{unknown[0]}: not an argument of torchvision's {spec.name}; remove it")
    if "train" in accepted:
        parts = [_make(spec, make, {**options, "train": train}) for train in (True, False)]
    elif "split" in accepted:
        parts = [_make_split(spec, make, options, names) for names in (_TRAIN_SPLITS, _TEST_SPLITS)]
    else:
        parts = [_make(spec, make, options)]
    size, channels = _form(spec, parts[0])
    splits = [_split(spec, part, number, size, in_chans or channels) for number, part in enumerate(parts)]
    names = _class_names(parts[0], splits[0].labels)
    for split in splits:
        check_labels(f"torchvision's {spec.name}", split.labels, len(names))
    return hold_out(splits[0], names) if len(splits) == 1 else Pools(splits[0], splits[1], names)


def _find(name: str) -> type[Any]:
    generic = {"VisionDataset", "DatasetFolder", "ImageFolder"}
    base = torchvision.datasets.VisionDataset
    found = {
        key: value
        for key, value in vars(torchvision.datasets).items()
        if isinstance(value, type) and issubclass(value, base) and key not in generic
    }
    if name not in found:
        hint = closest(name, found) or "; torchvision.datasets lists them, your own images are kind: folder"
        raise TipsError(f"data.name = {name}: torchvision has no such data set{hint}")
    return found[name]


def _accepted(make: type[Any]) -> set[str]:
    """Return the arguments of a class, those that it hands on to its base as well."""
    accepted: set[str] = set()
    for cls in make.__mro__:
        if cls is torchvision.datasets.VisionDataset:
            break
        parameters = inspect.signature(cls).parameters
        accepted |= set(parameters)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            break
    return accepted


def _make(spec: DataSpec, make: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        return make(**options)
    except _FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "" if spec.download else "; is data.path right? data.download: true gets the data where possible"
        raise TipsError(f"data.name = {spec.name}: torchvision cannot read it: {reason[:200]}{remedy}") from None


def _make_split(spec: DataSpec, make: Callable[..., Any], options: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Return the part with the first of `names` that the data set knows."""
    for name in names[:-1]:
        try:
            return make(**{**options, "split": name})
        except _FAILURES as error:
            if "argument split" not in str(error):  # what torchvision says of a split that does not exist
                break
    else:
        name = names[-1]
    return _make(spec, make, {**options, "split": name})


def _form(spec: DataSpec, part: Any) -> tuple[int, int]:
    """Return (size, channels) by the first image."""
    if len(part) == 0:
        raise TipsError(f"data.name = {spec.name}: torchvision finds no images; check data.path")
    picture = _Opener(part, spec.name or "")(0)
    if spec.image_size is None and picture.width != picture.height:
        raise TipsError(
            f"data.name = {spec.name}: images are {picture.height}x{picture.width} pixels, not square; "
            "add data.image_size to resize them"
        )
    return spec.image_size or picture.width, 1 if picture.mode in ("L", "1") else 3


def _split(spec: DataSpec, part: Any, number: int, size: int, channels: int) -> Split:
    names = [f"{spec.name} {sorted(spec.args.items())} {number} {len(part)}"] * len(part)
    source = OpenedImages(_Opener(part, spec.name or ""), names, size, channels, keep=spec.workers == 0)
    return Split(source, np.arange(len(part)), _labels(spec, part))


def _labels(spec: DataSpec, part: Any) -> NDArray[np.int64]:
    values = _stored_labels(part)
    if values is None:
        values = [part[i][1] for i in range(len(part))]
    try:
        labels = np.asarray(values)
    except ValueError:
        labels = np.empty(0)
    if labels.dtype.kind not in "iu" or labels.shape != (len(part),):
        raise TipsError(f"data.name = {spec.name}: has no single integer class per image; it is not for classification")
    return labels.astype(np.int64)


def _stored_labels(part: Any) -> Any:
    """Return the labels where torchvision keeps them apart from the images, None where it does not."""
    for attribute in ("targets", "labels", "_labels", "y"):
        values = getattr(part, attribute, None)
        if values is not None and len(values) == len(part):
            return values
    for attribute in ("samples", "_samples"):
        pairs = getattr(part, attribute, None)
        if pairs is not None and len(pairs) == len(part) and isinstance(pairs[0], tuple) and len(pairs[0]) == 2:
            return [label for _, label in pairs]
    return None


def _class_names(part: Any, labels: NDArray[np.int64]) -> tuple[str, ...]:
    count = int(labels.max()) + 1
    names = getattr(part, "classes", None)
    if names is None or len(names) < count:
        names = range(count)
    return tuple(name if isinstance(name, str) else ", ".join(map(str, np.atleast_1d(name))) for name in names)


class _Opener:
    """Opens the image at an index (a class, so that worker processes can have it)."""

    def __init__(self, part: Any, name: str) -> None:
        self._part = part
        self._name = name

    def __call__(self, index: int) -> Image.Image:
        try:
            picture = self._part[index][0]
        except _FAILURES as error:
            reason = " ".join(str(error).split())
            raise TipsError(f"data.name = {self._name}: image {index} cannot be read ({reason[:200]})") from None
        if not isinstance(picture, Image.Image):
            raise TipsError(f"data.name = {self._name}: gives {type(picture).__name__}, not images; choose another")
        return picture
