"""What a run folder holds, read and checked for the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    NotRequired,  # pydantic takes that of typing from Python 3.12 on
)

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from tips_nni.core import TipsError


class FrontRow(TypedDict):
    """A subnet of the front; accuracies are shares, costs in the units that their names say."""

    subnet: dict[str, int]
    validation_accuracy: float
    test_accuracy: float
    mflops: float
    params_m: float
    memory_mb: float
    latency_ms: float


class EvaluatedRow(TypedDict):
    """A subnet that the search measured."""

    validation_accuracy: float
    mflops: float
    latency_ms: float


class EpochRow(TypedDict):
    """An epoch of the training."""

    epoch: float
    train_loss: float
    accuracy_largest: float
    accuracy_smallest: float


class _Latency(TypedDict):
    target: str
    covered_flops_share: float
    estimates: list[str]
    neighbours: NotRequired[list[str]]
    warnings: list[str]


class _Data(TypedDict):
    kind: str
    classes: int
    image_size: int
    digest: str


class _Onnx(TypedDict):
    file: str
    difference: float


class _Search(TypedDict):
    algorithm: str
    measured: int
    diagnostics: dict[str, float]


class Facts(TypedDict):
    """What is known of the run as a whole."""

    backbone: str
    space: str
    strategy: str
    space_size: int
    fixed: dict[str, str]
    data: _Data
    versions: dict[str, str]
    latency: _Latency
    seconds: dict[str, float]
    hypervolume: float
    search: NotRequired[_Search]
    next: list[str]
    onnx: list[_Onnx]


class _Dimension(TypedDict):
    name: str
    choices: list[int]
    probabilities: list[float]


class _Node(TypedDict):
    name: str
    feature_map: str
    chunk: int
    tas: float


class ExplanationRow(TypedDict):
    """What a policy said of itself, before the training or after it."""

    dims: list[_Dimension]
    nodes: list[_Node]
    best_paths: list[tuple[float, list[int]]]


@dataclass(frozen=True)
class RunRecord:
    """The files of a finished run.

    Attributes:
        facts: run.json.
        front: front.json, cheapest first, at least one row.
        evaluated: evaluated.csv.
        history: training.csv, at least one row.
        explanations: explain.json; none where it is missing.
        settings: text of run.yaml.
    """

    facts: Facts
    front: list[FrontRow]
    evaluated: list[EvaluatedRow]
    history: list[EpochRow]
    explanations: list[ExplanationRow]
    settings: str

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read a run folder.

        Raises:
            TipsError: the run is not finished, or a file is damaged.
        """
        front = _read(folder / "front.json", json.loads, Annotated[list[FrontRow], Field(min_length=1)])
        explain = folder / "explain.json"
        return cls(
            facts=_read(folder / "run.json", json.loads, Facts),
            front=sorted(front, key=lambda row: float(row["mflops"])),
            evaluated=_read(folder / "evaluated.csv", _rows, list[EvaluatedRow]),
            history=_read(folder / "training.csv", _rows, Annotated[list[EpochRow], Field(min_length=1)]),
            explanations=_read(explain, json.loads, list[ExplanationRow]) if explain.is_file() else [],
            settings=_read(folder / "run.yaml", str, str),
        )


def _rows(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(text.splitlines()))


def _read(path: Path, parse: Callable[[str], Any], kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(parse(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise TipsError(
            f"{path.parent} holds no finished run ({path.name} is missing); finish it with `tips-nni run`"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "content"
        raise TipsError(f"{path} is damaged ({place}: {first['msg']}); run again") from error
    except ValueError as error:
        raise TipsError(f"{path} is damaged ({error}); run again") from error
