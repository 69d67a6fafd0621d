"""Pareto tools: non-dominated sets, crowding distance, hypervolume. Every objective is minimised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def non_dominated(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which points no other point dominates (is at least as good in all objectives and better in one).

    Args:
        values: shape (N, M), finite; equal points do not dominate each other.

    Returns:
        Shape (N,), bool.
    """
    values = np.asarray(values, dtype=np.float64)
    result = np.zeros(len(values), dtype=np.bool_)
    if not len(values):
        return result
    order = np.lexsort(values.T[::-1])
    if values.shape[1] == 2:
        ranked = values[order]
        best_before = np.minimum.accumulate(np.concatenate([[np.inf], ranked[:-1, 1]]))
        same = np.concatenate([[False], (ranked[1:] == ranked[:-1]).all(axis=1)])
        kept = ranked[:, 1] < best_before
        # A run of equal points shares the verdict of its first member.
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(ranked))))
        result[order] = kept[first]
        return result
    front: list[int] = []
    for i in order:
        rivals = values[front]
        worse = (rivals <= values[i]).all(axis=1) & (rivals < values[i]).any(axis=1)
        if not worse.any():
            front.append(int(i))
    result[front] = True
    return result


def rank(values: NDArray[np.float64], enough: int | None = None) -> NDArray[np.int64]:
    """Return for every point the number of the front it lies on, 0 being the non-dominated one, shape (N,).

    Args:
        values: shape (N, M).
        enough: stop after the front with which so many points are ranked; all others share the next number.
    """
    values = np.asarray(values, dtype=np.float64)
    result = np.full(len(values), -1, dtype=np.int64)
    level = 0
    left = np.arange(len(values))
    while len(left):
        if enough is not None and len(values) - len(left) >= enough:
            result[left] = level
            break
        best = non_dominated(values[left])
        result[left[best]] = level
        left = left[~best]
        level += 1
    return result


def crowding(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the crowding distance of the points of one front (Deb et al. 2002): infinite at the ends, shape (N,)."""
    values = np.asarray(values, dtype=np.float64)
    result = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]] if len(order) else 0.0
        if len(order) > 2 and span > 0:
            result[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
        if len(order):
            result[order[[0, -1]]] = np.inf
    return result


def hypervolume(values: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Return the volume that the points dominate below the reference point, exactly.

    Args:
        values: shape (N, M); points that are not below the reference in every objective add nothing.
        reference: shape (M,).
    """
    reference = np.asarray(reference, dtype=np.float64)
    values = np.asarray(values, dtype=np.float64).reshape(-1, len(reference))
    values = values[(values < reference).all(axis=1)]
    if not len(values):
        return 0.0
    values = np.unique(values[non_dominated(values)], axis=0)
    if len(reference) == 1:
        return float(reference[0] - values[0, 0])
    # Slices along the first objective: between two neighbours, the points so far dominate an (M−1)-volume.
    ends = np.append(values[1:, 0], reference[0])
    return float(
        sum(
            (end - values[i, 0]) * hypervolume(values[: i + 1, 1:], reference[1:])
            for i, end in enumerate(ends)
            if end > values[i, 0]
        )
    )
