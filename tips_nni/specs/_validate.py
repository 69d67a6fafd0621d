"""From plain data to a model, with one line for what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tips_nni.core import TipsError, closest, unknown
from tips_nni.specs._yaml import Document, KeyPath, kind_of, printable

Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")

_TYPES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list, e.g. [0.5, 1.0]",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def validate(model: type[Model], document: Document) -> Model:
    """Check a document against a model; types are not converted, except that an integer is a number.

    Raises:
        TipsError: one line for the first wrong key, with the number of further errors.
    """
    try:
        return model.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        details = sorted(error.errors(include_url=False), key=lambda detail: _order(document, detail))
        more = len(details) - 1
        rest = f" (and {more} more error{'s' if more > 1 else ''})" if more else ""
        raise TipsError(_line(model, document, details[0]) + rest) from None


def located(document: Document, path: KeyPath, call: Callable[[], Result]) -> Result:
    """Return what `call` returns; put the place of the key `path` in the document before its error."""
    try:
        return call()
    except TipsError as error:
        raise TipsError(f"{document.origin(path)}: {dotted(path)}: {error}") from None


def dotted(path: KeyPath) -> str:
    """Return a path of keys as a user writes it: ``width.ratios[0]``."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


def shown(value: Any) -> str:
    """Return a value as YAML-like text on one line, abbreviated."""
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 60 else text[:57] + "..."


def _order(document: Document, detail: ErrorDetails) -> tuple[int, int]:
    """Sort by the place in the document; what is missing comes after what is wrong."""
    places = {path: i for i, path in enumerate(document.origins)}
    loc = detail["loc"]
    while loc and loc not in places:
        loc = loc[:-1]
    return (detail["type"] == "missing", places.get(loc, 0))


def _line(model: type[BaseModel], document: Document, detail: ErrorDetails) -> str:
    loc: KeyPath = detail["loc"]
    kind = detail["type"]
    where = f"{document.origin(loc)}: "
    field = _field(model, loc)
    meaning = f" ({field.description})" if field is not None and field.description else ""
    if kind == "missing":
        return f"{where}{dotted(loc)} is missing; add it{meaning}"
    if kind == "extra_forbidden":
        parent = _model(model, loc[:-1])
        prefix = f"{dotted(loc[:-1])}: " if loc[:-1] else ""
        return f"{where}{prefix}{unknown('key', str(loc[-1]), parent.model_fields if parent else ())}"
    if kind == "value_error":  # of a whole mapping: name the line of the last key that the message speaks of
        text = str(detail["ctx"]["error"])
        keys = [path for path in document.origins if path[:-1] == loc and path[len(loc) :] and path[-1] in _words(text)]
        prefix = f"{dotted(loc)}: " if loc else ""
        return f"{document.origin(keys[-1] if keys else loc)}: {prefix}{text}"
    value = document.value(loc)
    subject = f"{where}{dotted(loc)} = {shown(value)}: must be "
    context = detail.get("ctx", {})
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{subject}{words} {context[key]:g}{meaning}"
    if kind in _TYPES:
        return f"{subject}{_TYPES[kind]}, not {kind_of(value)}{meaning}"
    if kind == "literal_error":
        allowed = [str(choice) for choice in _choices(field)]
        return f"{subject}one of {', '.join(allowed)}{closest(str(value), allowed)}{meaning}"
    if kind == "finite_number":
        return f"{subject}a finite number{meaning}"
    if kind in ("too_short", "string_too_short"):
        return f"{where}{dotted(loc)} is empty; give at least one{meaning}"
    return f"{where}{dotted(loc)} = {shown(value)}: {' '.join(detail['msg'].split())}{meaning}"


def _field(model: type[BaseModel], path: KeyPath) -> FieldInfo | None:
    """Return the field that `path` leads to; the list's field for an item."""
    while path and isinstance(path[-1], int):
        path = path[:-1]
    parent = _model(model, path[:-1]) if path else None
    return parent.model_fields.get(str(path[-1])) if parent else None


def _model(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """Return the model that `path` leads to."""
    current: type[BaseModel] | None = model
    for key in path:
        field = current.model_fields.get(str(key)) if current else None
        current = next(_models(field.annotation), None) if field else None
    return current


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            yield option


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def _choices(field: FieldInfo | None) -> tuple[Any, ...]:
    return get_args(field.annotation) if field else ()
