"""nn-Meter's own packs: their names, and their download by nn-Meter."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import yaml

from tips_nni.core import TipsError
from tips_nni.latency.nn_meter._library import load_library, missing_extra

#: nn-Meter's list of predictors, in its configuration and in a folder of packs.
LIST = "predictors.yaml"


@dataclass(frozen=True)
class Official:
    """A pack that nn-Meter knows.

    Attributes:
        name: nn-Meter's.
        kernels: the kernels that it has predictors of.
        url: of its archive.
    """

    name: str
    kernels: tuple[str, ...]
    url: str


def official_packs(folder: Path | None = None) -> Mapping[str, Official]:
    """Return nn-Meter's packs by name.

    Args:
        folder: of packs; a ``predictors.yaml`` there, in nn-Meter's form, adds packs or names another place to get
            them from.

    Raises:
        TipsError: nn-Meter is not installed, or the list cannot be read.
    """
    try:
        packaged = [Path(str(item.locate())) for item in files("nn-meter") or () if item.match(f"configs/{LIST}")]
    except PackageNotFoundError as error:
        raise missing_extra(error) from error
    own = [] if folder is None or not (folder / LIST).is_file() else [folder / LIST]
    return {pack.name: pack for path in (*packaged, *own) for pack in _read(path)}


def _read(path: Path) -> list[Official]:
    try:
        items: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [
            Official(str(item["name"]), tuple(map(str, item["kernel_predictors"])), str(item["download"]))
            for item in items
            if "download" in item
        ]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise TipsError(f"{path} is no list of predictors in nn-Meter's form ({reason}); correct it") from error


def download(pack: Official, folder: Path) -> Path:
    """Let nn-Meter download and unpack a pack into `folder`; return the pack's own folder.

    Raises:
        TipsError: the archive cannot be had, is damaged, or holds another pack.
    """
    library = load_library()
    target = folder / pack.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            library.download_from_url(pack.url, temporary)
            unpacked = Path(temporary) / pack.name
            if not unpacked.is_dir():
                raise TipsError(f"the archive of {pack.url} has no folder {pack.name!r}; get the pack elsewhere")
            unpacked.rename(target)
    except (OSError, BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise TipsError(
            f"{pack.name} could not be downloaded from {pack.url} ({reason}); try again, or unpack it into {folder}"
        ) from error
    return target
