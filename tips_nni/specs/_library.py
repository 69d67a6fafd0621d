"""Search spaces and strategies by name or path."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tips_nni.core import TipsError, check_policy, unknown
from tips_nni.specs._models import SpaceSpec, StrategySpec
from tips_nni.specs._validate import located, validate
from tips_nni.specs._yaml import Document, printable, read_document

_PACKAGE = Path(__file__).resolve().parents[1]


def is_path(text: str) -> bool:
    """Return whether `text` is a path of the user's own file rather than the name of a built-in."""
    return text.endswith((".yaml", ".yml", ".json", ".csv")) or "/" in text or "\\" in text


def space_names() -> list[str]:
    """Return the names of the built-in search spaces, sorted."""
    return _names("search_spaces")


def strategy_names() -> list[str]:
    """Return the names of the built-in strategies, sorted."""
    return _names("strategies")


def load_space(name_or_path: str | Path) -> SpaceSpec:
    """Load a search space.

    Args:
        name_or_path: a built-in's name (``mobilenetv2``) or the path of a YAML file (``./mine.yaml``).

    Raises:
        TipsError: no such name or file, or something in the file is wrong.
    """
    return validate(SpaceSpec, _document("search space", "search_spaces", str(name_or_path)))


def load_strategy(name_or_path: str | Path) -> StrategySpec:
    """Load a strategy.

    Args:
        name_or_path: a built-in's name (``tips``) or the path of a YAML file (``./mine.yaml``).

    Raises:
        TipsError: no such name or file, or something in the file is wrong.
    """
    document = _document("strategy", "strategies", str(name_or_path))
    strategy = validate(StrategySpec, document)
    name, options = strategy.policy.name, strategy.policy.options
    wrong = next((key for key, value in options.items() if _fails(name, {key: value})), "name")
    located(document, ("policy", wrong), lambda: check_policy(name, options))
    return strategy


def matching_space(backbone_name: str) -> str | None:
    """Return the built-in search space whose `matches` fit a timm model, the longest pattern's; None where none does.

    Args:
        backbone_name: a timm model, with or without the tag of its weights (``resnet50.a1_in1k``).
    """
    architecture = backbone_name.partition(".")[0]
    fitting = [
        (len(pattern.replace("*", "")), name)
        for name in space_names()
        for pattern in load_space(name).matches
        if fnmatchcase(architecture, pattern)
    ]
    return max(fitting, key=lambda found: found[0])[1] if fitting else None


def space_for(backbone_name: str) -> str:
    """Return the name of `matching_space`.

    Raises:
        TipsError: no family fits.
    """
    found = matching_space(backbone_name)
    if found is None:
        raise TipsError(
            f"no built-in search space fits the backbone {backbone_name!r} (families: {', '.join(space_names())}); "
            f"write one with `tips-nni convert {printable(backbone_name)} --output mine.yaml` and name it with "
            "space: ./mine.yaml"
        )
    return found


def _folder(kind: str) -> Path:
    """Return the folder of the built-ins: inside an installed package, or at the root of a checkout."""
    for folder in (_PACKAGE / "_specs" / kind, _PACKAGE.parent / kind):
        if folder.is_dir():
            return folder
    raise TipsError(f"the installation of tips-nni lacks its {kind} folder; install it again")


def _fails(policy: str, options: dict[str, Any]) -> bool:
    try:
        check_policy(policy, options)
    except TipsError:
        return True
    return False


def _names(kind: str) -> list[str]:
    return sorted(path.stem for path in _folder(kind).glob("*.yaml"))


def _document(what: str, kind: str, name_or_path: str) -> Document:
    if is_path(name_or_path):
        return read_document(os.path.expanduser(name_or_path))
    if name_or_path not in _names(kind):
        raise TipsError(f"{unknown(what, name_or_path, _names(kind))}; your own file is a path, e.g. ./mine.yaml")
    return read_document(_folder(kind) / f"{name_or_path}.yaml")
