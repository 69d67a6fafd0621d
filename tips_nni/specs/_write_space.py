"""A search space as a YAML file with comments, for a person to edit."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence

from tips_nni.specs._models import DepthSpec, HeadsSpec, RatioSpec, ResolutionSpec, SpaceSpec
from tips_nni.specs._yaml import dump

_WIDTH = 120
_MEANING = {
    "matches": "The timm models that it is for; * stands for any text.",
    "width": "Channels between blocks. Layers that are tied by residual additions are cut together.",
    "hidden": "Channels inside a block; blocks are independent of each other here.",
    "heads": "Heads of a block's attention, cut as a whole: queries, keys and values together.",
    "depth": "Blocks of a stage. The last ones leave first; blocks that change size or channels always stay.",
    "resolution": "Side of the input. It needs no weights: a smaller side is the cheapest way to fewer multiply-adds.",
    "fixed": 'Modules that stay as they are: patterns of the names above, for example - "layer4*".',
}
_RATIOS = "# shares of the backbone's channels; the last is the backbone itself"
_DIVISOR = "# channels are rounded to multiples of it: kernels on phones and GPUs run full only then"


def space_yaml(space: SpaceSpec, header: Sequence[str], notes: Mapping[str, Sequence[str]]) -> str:
    """Return the YAML of a search space; `load_space` reads it back as the same space.

    Args:
        space: what to write.
        header: lines for the head of the file, without the comment sign.
        notes: lines for a section: ``width``, ``hidden``, ``heads``, ``depth``, ``resolution`` or ``fixed``. Sections
            that the space does not declare are written as comments, with their notes.
    """
    parts = [_comment(header), dump(space.model_dump(include={"family", "description"})).rstrip()]
    if space.matches:
        parts.append(_comment([_MEANING["matches"]]) + "\nmatches:\n" + _items(space.matches))
    for name in ("width", "hidden", "heads", "depth", "resolution"):
        body = _section(name, getattr(space, name))
        if body is None and name not in notes:
            continue
        text = _comment([_MEANING[name], *notes.get(name, ())])
        parts.append(text if body is None else f"{text}\n{body}")
    fixed = "fixed:\n" + _items(space.fixed) if space.fixed else "fixed: []"
    parts.append(_comment([_MEANING["fixed"], *notes.get("fixed", ())]) + "\n" + fixed)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(name: str, value: RatioSpec | HeadsSpec | DepthSpec | ResolutionSpec | None) -> str | None:
    """Return a section without its comments, None where the space does not declare it."""
    if value is None:
        return None
    if isinstance(value, DepthSpec):
        return f"{name}:\n  min: {value.min}  # blocks that every stage keeps"
    if isinstance(value, HeadsSpec):
        return f"{name}:\n  ratios: [{', '.join(map(str, value.ratios))}]  # shares of the backbone's heads"
    numbers = value.ratios if isinstance(value, RatioSpec) or value.ratios is not None else value.choices
    key = "choices" if isinstance(value, ResolutionSpec) and value.ratios is None else "ratios"
    meaning = _RATIOS if isinstance(value, RatioSpec) else "# the last is the size of the data's images"
    lines = [f"{name}:", f"  {key}: [{', '.join(map(str, numbers or ()))}]  {meaning}"]
    lines.append(f"  divisor: {value.divisor}" + (f"  {_DIVISOR}" if isinstance(value, RatioSpec) else ""))
    return "\n".join(lines)


def _items(values: Sequence[str]) -> str:
    return "\n".join(f"  - {json.dumps(value, ensure_ascii=False)}" for value in values)  # JSON text is YAML text


def _comment(lines: Sequence[str]) -> str:
    """Return lines as comments, long ones wrapped; their indentation stays."""
    result = []
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()))
        wrapped = textwrap.wrap(line, _WIDTH - 2, subsequent_indent=indent + "    ", break_on_hyphens=False)
        result += [f"# {part}" for part in wrapped or [""]]
    return "\n".join(text.rstrip() for text in result)
