"""What a policy knows, as plain data for tables and pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class OptionTable:
    """The options of one elastic dimension.

    Attributes:
        name: of the dimension.
        kind: of the dimension.
        choices: its values.
        probabilities: how likely each is drawn; they sum to 1.
        importances: see `option_importance`; empty where the policy has none.
    """

    name: str
    kind: str
    choices: tuple[int, ...]
    probabilities: tuple[float, ...]
    importances: tuple[float, ...]


@dataclass(frozen=True)
class NodeScore:
    """A node of the path graph: its name, feature map, chunk and TAS."""

    name: str
    feature_map: str
    chunk: int
    tas: float


@dataclass(frozen=True)
class Explanation:
    """What a policy knows.

    Attributes:
        policy: its name.
        refreshes: how often it was estimated anew.
        dims: options and probabilities of every elastic dimension.
        nodes: in topological order; empty where the policy has no path graph.
        best_paths: each as (TPS, indices of its nodes), best first.
        operations: (name, best-path TPS), most important first.
        subnets: how many subnets the chain was built from.
        settings: the policy's options.
    """

    policy: str
    refreshes: int
    dims: tuple[OptionTable, ...]
    nodes: tuple[NodeScore, ...] = ()
    best_paths: tuple[tuple[float, tuple[int, ...]], ...] = ()
    operations: tuple[tuple[str, float], ...] = ()
    subnets: int = 0
    settings: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain JSON data."""
        return asdict(self)
