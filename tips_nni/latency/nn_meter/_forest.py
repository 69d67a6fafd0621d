"""Random forests as plain arrays, evaluated with numpy to the bit as scikit-learn does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from tips_nni.core import TipsError, replacing

#: Paths (row, tree) followed at once: the arrays of a step stay small.
_CHUNK = 1 << 18
_FIELDS = {
    "roots": np.int64,
    "left": np.int32,
    "right": np.int32,
    "feature": np.int32,
    "threshold": np.float64,
    "value": np.float64,
}


class Regressor(Protocol):
    """What nn-Meter asks of a kernel's predictor."""

    def predict(self, rows: Sequence[Sequence[float]] | NDArray[Any]) -> NDArray[np.float64]:
        """Return the time in ms of every row of features (M, F), shape (M,)."""
        ...


@dataclass(frozen=True, eq=False)
class Forest:
    """A random forest (or, with one tree, a decision tree) for regression.

    Attributes:
        features: how many features a row has.
        roots: the first node of every tree, shape (T,).
        left: the child taken where the feature is at most the threshold, -1 at a leaf, shape (nodes,).
        right: the other child, shape (nodes,).
        feature: the column that decides, shape (nodes,).
        threshold: shape (nodes,).
        value: what a leaf predicts in ms, shape (nodes,).
    """

    features: int
    roots: NDArray[np.int64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    value: NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.left)
        arrays = (self.right, self.feature, self.threshold, self.value)
        if not len(self.roots) or not count or any(array.shape != (count,) for array in arrays):
            raise TipsError("a forest needs at least one tree, and all of its nodes")
        inner = np.flatnonzero(self.left >= 0)
        for child in (self.left[inner], self.right[inner]):
            # A child comes after its parent, so that every walk ends.
            if (child <= inner).any() or (child >= count).any():
                raise TipsError("a tree's nodes are out of order")
        if (self.feature[inner] < 0).any() or (self.feature[inner] >= self.features).any():
            raise TipsError(f"a tree asks for a feature that a row of {self.features} does not have")
        if not (np.isfinite(self.threshold[inner]).all() and np.isfinite(self.value).all()):
            raise TipsError("a tree has a threshold or a value that is not finite")
        if (self.roots < 0).any() or (self.roots >= count).any():
            raise TipsError("a tree's root is not among its nodes")

    def predict(self, rows: Sequence[Sequence[float]] | NDArray[Any]) -> NDArray[np.float64]:
        """Return the prediction of every row of features (M, F), shape (M,).

        Features are rounded to single precision and compared with thresholds of double precision; the trees are
        summed in order, then divided by their number. That is scikit-learn's arithmetic with one thread.

        Raises:
            TipsError: rows of another length, or a feature that is not finite.
        """
        x = np.asarray(rows, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.features:
            raise TipsError(f"the predictor takes rows of {self.features} features; these have the shape {x.shape}")
        if not np.isfinite(x).all():
            raise TipsError("the predictor takes finite features only")
        total = np.zeros(len(x))
        step = max(1, _CHUNK // len(self.roots))
        for start in range(0, len(x), step):
            part = x[start : start + step]
            for values in self.value[self._leaves(part)]:
                total[start : start + step] += values
        return total / len(self.roots)

    def _leaves(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the leaf of every tree for every row, shape (T, M)."""
        node = np.repeat(self.roots, len(x))
        row = np.tile(np.arange(len(x)), len(self.roots))
        walking = np.flatnonzero(self.left[node] >= 0)
        while len(walking):
            at = node[walking]
            lower = x[row[walking], self.feature[at]] <= self.threshold[at]
            at = np.where(lower, self.left[at], self.right[at])
            node[walking] = at
            walking = walking[self.left[at] >= 0]
        return node.reshape(len(self.roots), len(x))

    @classmethod
    def of_trees(cls, features: int, trees: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Forest:
        """Put trees together.

        Args:
            features: how many features a row has.
            trees: for each one its nodes, a structured array as scikit-learn's with left_child, right_child, feature
                and threshold (children -1 at a leaf), and its values, shape (nodes, 1, 1).

        Raises:
            TipsError: an array lacks a field, or the nodes are not those of a tree.
        """
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in _FIELDS}
        offset = 0
        for nodes, values in trees:
            left, right = nodes["left_child"].astype(np.int64), nodes["right_child"].astype(np.int64)
            if values.shape != (len(nodes), 1, 1) or (np.maximum(left, right) >= len(nodes)).any():
                raise TipsError("a tree's nodes and values do not belong together, or it predicts several outputs")
            parts["roots"].append(np.array([offset]))
            parts["left"].append(np.where(left >= 0, left + offset, -1))
            parts["right"].append(np.where(left >= 0, right + offset, -1))
            parts["feature"].append(np.where(left >= 0, nodes["feature"], 0))
            parts["threshold"].append(np.where(left >= 0, nodes["threshold"], 0.0))
            parts["value"].append(values[:, 0, 0])
            offset += len(nodes)
        if not trees or offset >= 1 << 31:
            raise TipsError(f"a forest of {len(trees)} trees and {offset} nodes cannot be read")
        return cls(features, **{name: np.concatenate(parts[name]).astype(kind) for name, kind in _FIELDS.items()})

    def save(self, path: Path) -> None:
        """Write the arrays as npz, without pickle."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            arrays = {name: getattr(self, name) for name in _FIELDS}
            np.savez(file, features=np.int64(self.features), **arrays)

    @classmethod
    def load(cls, path: Path) -> Forest | None:
        """Read what `save` wrote; None where there is no such file or it is cut short."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                arrays = {name: data[name].astype(kind, copy=False) for name, kind in _FIELDS.items()}
                return cls(int(data["features"]), **arrays)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None
