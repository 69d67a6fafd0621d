"""Options of plug-ins: from plain data to a frozen dataclass that checks itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from tips_nni.core._errors import TipsError, unknown

Options = TypeVar("Options")


def read_options(kind: type[Options], options: Mapping[str, Any], owner: str) -> Options:
    """Return options as an instance of their dataclass; what is left out has its default.

    A name that Python reserves has an underscore behind it in the class only: ``lambda`` is the attribute ``lambda_``.

    Args:
        kind: a dataclass; every field has a default, whose type the value must have.
        options: by name.
        owner: whose they are, for the message, e.g. ``policy 'uniform'``.

    Raises:
        TipsError: an unknown option, a wrong type, or a value that the class refuses.
    """
    allowed: dict[str, Any] = {field.name.rstrip("_"): field for field in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in options.items():
        if key not in allowed:
            raise unknown(f"option of {owner}", str(key), allowed)
        default = allowed[key].default
        if isinstance(default, bool) != isinstance(value, bool) or isinstance(default, str) != isinstance(value, str):
            raise TipsError(f"{key} = {value!r} of {owner} must be of type {type(default).__name__}")
        if isinstance(default, int) and not isinstance(value, int):
            raise TipsError(f"{key} = {value!r} of {owner} must be a whole number")
        if isinstance(default, float) and not isinstance(value, int | float):
            raise TipsError(f"{key} = {value!r} of {owner} must be a number")
        values[allowed[key].name] = float(value) if isinstance(default, float) else value
    return kind(**values)
