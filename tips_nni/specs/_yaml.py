"""Reading YAML into plain data that remembers where every key was written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tips_nni.core import TipsError, closest

KeyPath = tuple[str | int, ...]

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core types: ``1e-3`` is a number, ``no`` and ``2024-01-01`` are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own name)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 could take for something else than text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


@dataclass(frozen=True)
class Document:
    """A YAML document.

    Attributes:
        data: a mapping of plain values (dict, list, str, int, float, bool, None).
        origins: for every key and list item, the path of keys to it -> ``file:line``; ``()`` is the file itself.
        overridden: the paths of keys that did not come from the file.
    """

    data: dict[str, Any]
    origins: dict[KeyPath, str]
    overridden: frozenset[KeyPath] = frozenset()

    def origin(self, path: KeyPath) -> str:
        """Return ``file:line`` of `path`, or of the closest mapping or list that encloses it."""
        while path not in self.origins:
            path = path[:-1]
        return self.origins[path]

    def is_overridden(self, path: KeyPath) -> bool:
        """Return whether `path`, or a mapping around it, was overridden."""
        return any(path[: len(key)] == key for key in self.overridden)

    def value(self, path: KeyPath) -> Any:
        """Return the value at `path`, None where there is none."""
        value: Any = self.data
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def read_document(path: str | Path) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises:
        TipsError: the file cannot be read, is not YAML, is empty, holds no mapping, a key twice, or a tag.
    """
    path = Path(path)
    return parse_document(_read_text(path, printable(str(path))), printable(str(path)))


def parse_document(text: str, source: str) -> Document:
    """Read YAML text whose top level is a mapping; `source` names it in messages.

    Raises:
        TipsError: as `read_document`.
    """
    data, origins = _parse(text, source, lambda line: f"{source}:{line}")
    if data is None:
        raise TipsError(f"{source}: the file is empty; write its keys, the examples show them")
    if not isinstance(data, dict):
        raise TipsError(f"{source}: the file holds {kind_of(data)}; its top level must be a mapping of keys to values")
    return Document(data, {**origins, (): source})


def override(document: Document, text: str) -> Document:
    """Return `document` with one value replaced.

    Args:
        document: is left as it was.
        text: ``a.b.c=value``; the value is YAML, and mappings on the way are made where they are missing.

    Raises:
        TipsError: `text` has another form, the value is not YAML, or something on the way is not a mapping.
    """
    dotted, equals, value_text = text.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        raise TipsError(f"override {text!r}: must have the form key.key=value, e.g. training.epochs=3")
    source = f"override {text!r}"  # repr: one line
    value, origins = _parse(value_text, source, lambda _: source)
    data = dict(document.data)
    inner = data
    for i, key in enumerate(keys[:-1]):
        child = inner.get(key)
        if not isinstance(child, dict | None):
            raise TipsError(
                f"{source}: {'.'.join(keys[: i + 1])} is {kind_of(child)} and has no keys; override it whole"
            )
        inner[key] = dict(child or {})
        inner = inner[key]
    inner[keys[-1]] = value
    kept = {path: origin for path, origin in document.origins.items() if path[: len(keys)] != keys}
    placed = {(*keys, *path): origin for path, origin in origins.items()}
    return Document(data, {**kept, **placed, keys: source}, document.overridden | {keys})


def read_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Return the mapping that ``key=value`` texts describe; the values are YAML, a later key replaces an earlier one.

    Raises:
        TipsError: as `override`.
    """
    document = Document({}, {})
    for text in texts:
        document = override(document, text)
    return document.data


def dump(data: Any) -> str:
    """Return plain data as YAML that `parse_document` and any YAML 1.1 reader read back the same."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def printable(text: str) -> str:
    """Return text with line breaks and other characters that do not print as escapes, so that it stays one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def kind_of(value: Any) -> str:
    """Return what a value is, in a user's words."""
    if value is None:
        return "null (nothing)"
    if isinstance(value, bool):
        return "true or false"
    names: dict[type, str] = {dict: "a mapping", list: "a list", str: "text", int: "an integer", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _read_text(path: Path, shown: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        folder = path.parent
        if not folder.is_dir():
            raise TipsError(f"{shown}: there is no folder {printable(str(folder))!r}; check the path") from None
        names = [p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml")]
        hint = closest(path.name, names) or (f"; the folder has {', '.join(sorted(names)[:5])}" if names else "")
        raise TipsError(f"{shown}: there is no such file{hint or '; check the path'}") from None
    except IsADirectoryError:
        raise TipsError(f"{shown}: is a folder; name the YAML file in it") from None
    except UnicodeDecodeError as error:
        raise TipsError(f"{shown}: is not text (byte {error.start} is not UTF-8); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise TipsError(f"{shown}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _parse(text: str, source: str, at: Any) -> tuple[Any, dict[KeyPath, str]]:
    """Return the value of YAML text and the origins of its keys; `at` makes an origin from a line."""
    loader: Any = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return _Builder(loader, at).build(node) if node else (None, {})
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = at(mark.line + 1) if mark else source
        problem = " ".join(str(error.problem or error.context).split())
        raise TipsError(f"{where}: is not YAML: {problem}; check the indentation, quotes and colons here") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise TipsError(
            f"{at(line)}: holds the character U+{ord(text[error.position]):04X}, not allowed in YAML; remove it"
        ) from None
    except RecursionError:
        raise TipsError(f"{source}: is nested too deeply; a spec needs no more than a few levels") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Builder:
    """Makes plain values from nodes and notes the origin of every key and item."""

    def __init__(self, loader: Any, at: Any) -> None:
        self._loader = loader
        self._at = at
        self._open: list[yaml.Node] = []
        self._origins: dict[KeyPath, str] = {}

    def build(self, node: yaml.Node) -> tuple[Any, dict[KeyPath, str]]:
        value = self._value(node, ())
        return value, self._origins

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        if node in self._open:
            raise self._error(node, "an anchor refers to itself; write the value out")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                self._check_tag(node, "map")
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                self._check_tag(node, "seq")
                return [self._item(child, (*path, i)) for i, child in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self._open.pop()

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        self._origins[path] = self._at(node.start_mark.line + 1)
        return self._value(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            key = self._key(key_node)
            if key in first:
                raise self._error(key_node, f"the key {key!r} stands here and in line {first[key]}; remove one")
            first[key] = key_node.start_mark.line + 1
        self._loader.flatten_mapping(node)  # `<<: *anchor`: merged pairs come first, a mapping's own ones win
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            self._origins[(*path, key)] = self._at(key_node.start_mark.line + 1)
            result[key] = self._value(value_node, (*path, key))
        return result

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, "a key must be plain text, not a list or a mapping")
        return str(node.value)

    def _scalar(self, node: yaml.Node) -> Any:
        text = str(node.value)
        match node.tag.removeprefix("tag:yaml.org,2002:"):
            case "str":
                return text
            case "null" if _NULL.match(text):
                return None
            case "bool" if _BOOL.match(text):
                return text.lower() == "true"
            case "int" if _INT.match(text):
                if len(text) > 19:
                    raise self._error(node, f"the number {text[:19]}... is too large; use at most 18 digits")
                return int(text)
            case "float" if _FLOAT.match(text):
                return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        self._check_tag(node, "str")
        return text

    def _check_tag(self, node: yaml.Node, expected: str) -> None:
        if node.tag != f"tag:yaml.org,2002:{expected}":
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise self._error(node, f"the tag {tag} is not allowed; write the plain value")

    def _error(self, node: yaml.Node, message: str) -> TipsError:
        return TipsError(f"{self._at(node.start_mark.line + 1)}: {message}")
