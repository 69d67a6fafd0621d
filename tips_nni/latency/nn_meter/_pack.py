"""nn-Meter's predictor packs: fusion rules and a regressor for every kernel, for one device and runtime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tips_nni.core import TipsError, unknown
from tips_nni.latency.nn_meter._forest import Forest, Regressor
from tips_nni.latency.nn_meter._official import download, official_packs
from tips_nni.latency.nn_meter._unpickle import read_regressor

RULES = "fusion_rules.json"


@dataclass(frozen=True, eq=False)
class NnMeterPack:
    """A pack of nn-Meter, read without running anything that its files name.

    Attributes:
        name: nn-Meter's, or that of the folder.
        kernels: a regressor for each of nn-Meter's kernels (``conv-bn-relu``): features -> ms.
        rules: the fusion rules, as JSON text.
        files: SHA-256 of every file that was read, by its name.
        digest: SHA-256 of the names and digests of the files.
    """

    name: str
    kernels: Mapping[str, Regressor]
    rules: str
    files: Mapping[str, str]
    digest: str


def load_nn_meter(name_or_folder: str | Path, *, folder: Path | None = None) -> NnMeterPack:
    """Load a pack.

    Args:
        name_or_folder: a folder with ``fusion_rules.json`` and a pickled regressor per kernel; or a name that nn-Meter
            knows (``cortexA76cpu_tflite21``, ``adreno640gpu_tflite21``, ``adreno630gpu_tflite21``,
            ``myriadvpu_openvino2019r2``), which nn-Meter downloads into `folder` the first time (1 to 3 GB).
        folder: where packs by name are, and where the forests that were read are kept as plain arrays, so that they
            load faster the next time. Nothing is written anywhere else.

    Raises:
        TipsError: no such pack; a file is missing, cut short or names a class that is not read; or nn-Meter is needed
            and not installed.
    """
    home = Path(name_or_folder)
    name = home.name
    wanted: tuple[str, ...] = ()
    if not home.is_dir():
        known = official_packs(folder)
        if str(name_or_folder) not in known:
            if len(home.parts) > 1:
                raise TipsError(f"{home} is no folder; give nn-Meter's name of a pack, or a folder with {RULES}")
            raise unknown("nn-Meter predictor", str(name_or_folder), known)
        official = known[name]
        if folder is None:
            raise TipsError(f"{name} has to be downloaded (1 to 3 GB); give a folder to keep it in")
        home, wanted = folder / name, official.kernels
        if not home.is_dir():
            download(official, folder)
    name, listed = _described(home, name)
    return _read(home, name, (*wanted, *listed), None if folder is None else folder / "cache")


def _described(home: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """Return the pack's name and the kernels that it must have, by nn-Meter's yaml if there is one in the folder."""
    for path in sorted(home.glob("*.yaml")):
        try:
            data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise TipsError(f"{path} is no yaml ({reason}); correct it or take it away") from error
        if isinstance(data, dict) and isinstance(data.get("kernel_predictors"), list):
            if data.get("unit", "ms") != "ms":
                raise TipsError(f"{path}: unit = {data['unit']!r}; the predictors must give ms")
            return str(data.get("name", name)), tuple(map(str, data["kernel_predictors"]))
    return name, ()


def _read(home: Path, name: str, wanted: Iterable[str], cache: Path | None) -> NnMeterPack:
    rules = _bytes(home / RULES)
    _check_rules(rules, home / RULES)
    digests = {RULES: _sha(rules)}
    kernels: dict[str, Regressor] = {}
    for path in sorted(home.glob("*.pkl")):
        data = _bytes(path)
        digests[path.name] = _sha(data)
        stored = None if cache is None else cache / f"{digests[path.name]}.npz"
        regressor: Regressor | None = None if stored is None else Forest.load(stored)
        if regressor is None:
            regressor = read_regressor(data, str(path))
            if stored is not None and isinstance(regressor, Forest):
                regressor.save(stored)
        kernels[path.stem] = regressor
    missing = [kernel for kernel in dict.fromkeys(wanted) if kernel not in kernels]
    if missing or not kernels:
        raise TipsError(
            f"{home} lacks {', '.join(f'{kernel}.pkl' for kernel in missing) or 'predictors (*.pkl)'}; "
            "get the whole pack again"
        )
    body = json.dumps(sorted(digests.items())).encode()
    return NnMeterPack(name, kernels, rules.decode(), digests, _sha(body))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TipsError(f"cannot read {path}: {error.strerror or error}; a pack needs this file") from error


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_rules(data: bytes, path: Path) -> None:
    """Check that nn-Meter can read the fusion rules: ``{"BF_conv_relu": {"obey": true}, "MON": {"obey": 0}}``."""
    try:
        rules: Any = json.loads(data)
        fit = isinstance(rules, dict) and all("obey" in rule for rule in rules.values())
    except (ValueError, TypeError) as error:
        raise TipsError(f"{path} is cut short or no JSON ({error}); get it again") from error
    if not fit:
        raise TipsError(f'{path} holds no fusion rules; each is {{"obey": ...}} under a name such as "BF_conv_relu"')
