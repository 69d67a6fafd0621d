"""How much the options of a search space lower the training loss, from the subnets that were trained side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from tips_nni.core._errors import TipsError
from tips_nni.core._space import Codes
from tips_nni.core._unlocks import Unlocks

Floats = NDArray[np.float64]

#: The pull of every benefit to the common mean, as a share of the weight of what was observed.
_PULL = 0.02
#: No benefit is smaller than this share of the mean: an option without one would never be tried again.
_FLOOR = 0.02
#: Fewer differences than this say nothing.
_FEWEST = 20.0
#: Where a step trains one subnet, so many neighbouring steps are compared: the weights hardly change meanwhile.
_NEIGHBOURS = 32


class OptionBenefits:
    """Running estimate of β, the fall of the loss that the presence of every option brings. Our reconstruction.

    The subnets of a training step see the same images, so the images cancel in the differences of their losses. Where
    a step trains one subnet, it is compared with those of neighbouring steps, 32 together: the images are then noise,
    and more steps are needed. The differences are explained by Σ β_u (presence of option u), β ≥ 0, by least squares
    with a pull to the common mean; older steps count less, by `decay` for each step.

    Args:
        unlocks: the options.
        decay: 0 to 1; the estimate remembers about 1 / (1 − decay) steps.
    """

    def __init__(self, unlocks: Unlocks, decay: float) -> None:
        self._unlocks = unlocks
        self._decay = decay
        count = len(unlocks.options)
        self._gram = np.zeros((count, count))
        self._product = np.zeros(count)
        self._weight = 0.0
        # What is compared together, since the last estimate; and steps of one subnet that wait for their neighbours.
        self._codes: list[list[list[int]]] = []
        self._losses: list[list[float]] = []
        self._steps: list[int] = []
        self._waiting: list[tuple[list[int], float]] = []

    def observe(self, codes: Codes, losses: Floats) -> None:
        """Take note of one step.

        Args:
            codes: of subnets that learnt from the same images and the same targets, shape (K, D).
            losses: their losses, shape (K,).

        Raises:
            TipsError: a loss is not finite.
        """
        if not np.isfinite(losses).all():
            raise TipsError(f"the losses of a step are {losses.tolist()}; they must be finite; lower the learning rate")
        if len(losses) > 1:
            self._compare(codes.tolist(), losses.tolist(), 1)
        elif len(losses):
            self._waiting.append((codes[0].tolist(), float(losses[0])))
            if len(self._waiting) == _NEIGHBOURS:
                waiting, self._waiting = self._waiting, []
                self._compare([code for code, _ in waiting], [loss for _, loss in waiting], _NEIGHBOURS)

    def _compare(self, codes: list[list[int]], losses: list[float], steps: int) -> None:
        """Take note of losses that say something about the differences of their subnets."""
        self._codes.append(codes)
        self._losses.append(losses)
        self._steps.append(steps)

    def estimate(self) -> Floats:
        """Return β divided by its mean, shape (U,), positive; ones before there is something to learn from."""
        self._absorb()
        count = len(self._product)
        if self._weight < _FEWEST or not count:
            return np.ones(count)
        ones = np.ones(count)
        mean = max(float(self._product.sum()) / max(float(ones @ self._gram @ ones), 1e-12), 1e-9)
        # Ridge regression towards the mean as one non-negative least squares problem, by its Cholesky factor.
        pull = _PULL * self._weight
        factor = np.linalg.cholesky(self._gram + pull * np.eye(count))
        benefits, _ = nnls(factor.T, np.linalg.solve(factor, self._product + pull * mean))
        scale = max(float(benefits.mean()), 1e-12)
        return np.maximum(benefits / scale, _FLOOR)

    def _absorb(self) -> None:
        """Add the steps noted since the last estimate to the normal equations."""
        if not self._codes:
            return
        every = self._unlocks.presence(np.array([code for codes in self._codes for code in codes], dtype=np.int64))
        ends = np.cumsum([len(losses) for losses in self._losses])
        for presence, losses, steps in zip(np.split(every, ends[:-1]), self._losses, self._steps, strict=True):
            decay = self._decay**steps
            features = presence - presence.mean(axis=0)
            falls = np.mean(losses) - np.array(losses)
            self._gram = decay * self._gram + features.T @ features
            self._product = decay * self._product + features.T @ falls
            self._weight = decay * self._weight + len(losses) - 1
        self._codes.clear()
        self._losses.clear()
        self._steps.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides further estimates, as plain JSON data."""
        return {
            "gram": self._gram.tolist(),
            "product": self._product.tolist(),
            "weight": self._weight,
            "codes": list(self._codes),
            "losses": list(self._losses),
            "steps": list(self._steps),
            "waiting": [[list(code), loss] for code, loss in self._waiting],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        count = len(self._product)
        self._gram = np.array(state["gram"], dtype=np.float64).reshape(count, count)
        self._product = np.array(state["product"], dtype=np.float64).reshape(count)
        self._weight = float(state["weight"])
        self._codes = [[[int(v) for v in code] for code in codes] for codes in state["codes"]]
        self._losses = [[float(v) for v in losses] for losses in state["losses"]]
        self._steps = [int(v) for v in state["steps"]]
        self._waiting = [([int(v) for v in code], float(loss)) for code, loss in state["waiting"]]
