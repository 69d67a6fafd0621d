"""Accuracy of subnets predicted from a few measured ones: FLASH's formula, and richer models beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr

from tips_nni.core._cost import CostModel, TabulatedCost, Term
from tips_nni.core._errors import TipsError, unknown
from tips_nni.core._nn_degree import NNDegree
from tips_nni.core._space import Codes

Vector = NDArray[np.float64]
_PENALTIES = np.geomspace(1e-3, 1e3, 13)


@dataclass(frozen=True)
class PredictorQuality:
    """How well a predictor does on samples that it has not seen: each is predicted from all others.

    Attributes:
        samples: measured subnets.
        leave_one_out_error: mean absolute error, in units of the accuracy.
        rank_correlation: Spearman's, of the predictions with the accuracies; 0 where one of the two is constant.
    """

    samples: int
    leave_one_out_error: float
    rank_correlation: float


class AccuracyPredictor(ABC):
    """Predicts the accuracy of subnets.

    Args:
        degree: NN-Degree of the network.
        costs: further tables that the model may use.
    """

    #: samples that a fit needs
    least = 3

    def __init__(self, degree: NNDegree, costs: Mapping[str, CostModel]) -> None:
        self.degree = degree
        self.costs = costs
        self._model: Vector | None = None

    @abstractmethod
    def _features(self, codes: Codes) -> Vector:
        """Return what the model sees of subnets, shape (N, F)."""

    @abstractmethod
    def _fitted(self, features: Vector, accuracies: Vector) -> Vector:
        """Return the parameters of the model."""

    @abstractmethod
    def _predicted(self, features: Vector, model: Vector) -> Vector:
        """Return the model's predictions, shape (N,)."""

    def fit(self, codes: Codes, accuracies: Vector) -> PredictorQuality:
        """Fit the model to measured subnets and return how well it predicts those left out.

        Args:
            codes: shape (N, D), N at least `least`.
            accuracies: shape (N,), finite.

        Raises:
            TipsError: too few samples.
        """
        accuracies = np.asarray(accuracies, dtype=np.float64)
        if len(codes) < self.least:
            raise TipsError(f"{len(codes)} measured subnets are too few to fit a predictor; give at least {self.least}")
        features = self._features(codes)
        self._model = self._fitted(features, accuracies)
        left_out = np.empty(len(codes))
        for i in range(len(codes)):
            rest = np.arange(len(codes)) != i
            left_out[i] = self._predicted(features[i : i + 1], self._fitted(features[rest], accuracies[rest]))[0]
        error = float(np.abs(left_out - accuracies).mean())
        return PredictorQuality(len(codes), error, rank_correlation(left_out, accuracies))

    def predict(self, codes: Codes) -> Vector:
        """Return the predicted accuracy of every subnet, shape (N,), in the units of the fit.

        Raises:
            TipsError: nothing was fitted.
        """
        if self._model is None:
            raise TipsError("the predictor has not been fitted; call fit with measured subnets first")
        return self._predicted(self._features(codes), self._model)


class DegreePredictor(AccuracyPredictor):
    """θ = 1 / (a / g + b) of NN-Degree g (published, FLASH 2021).

    Our reading of the fit: least squares of a / g + b against 1 / θ, each sample weighted by θ² (to first order, least
    squares in θ itself), with a and b not negative, so that the accuracy grows with g and stays finite and positive.
    """

    def _features(self, codes: Codes) -> Vector:
        return self.degree.evaluate(codes)[:, None]

    def _fitted(self, features: Vector, accuracies: Vector) -> Vector:
        theta = np.maximum(accuracies, 1e-6)
        design = np.stack([1 / features[:, 0], np.ones(len(features))], axis=1)
        weight = theta**2
        solution, _ = nnls(design * weight[:, None], weight / theta)
        return np.asarray(solution, dtype=np.float64)

    def _predicted(self, features: Vector, model: Vector) -> Vector:
        return np.asarray(1 / np.maximum(model[0] / features[:, 0] + model[1], 1e-12))


class LogLinearPredictor(AccuracyPredictor):
    """Accuracy linear in log g, log FLOPs and log parameters (ours): least squares with a slight ridge."""

    least = 5

    def _features(self, codes: Codes) -> Vector:
        values = [self.degree.evaluate(codes)]
        values += [self.costs[name].evaluate(codes) for name in ("mflops", "params_m") if name in self.costs]
        return np.log(np.maximum(np.stack(values, axis=1), 1e-12))

    def _fitted(self, features: Vector, accuracies: Vector) -> Vector:
        return _ridge(features, accuracies, np.array([1e-2]))

    def _predicted(self, features: Vector, model: Vector) -> Vector:
        return np.asarray(features @ model[:-1] + model[-1])


class RidgePredictor(LogLinearPredictor):
    """Accuracy linear in the logarithms of `LogLinearPredictor` and of the values of every dimension (ours).

    Ridge regression on standardised features; its penalty is the one of the smallest leave-one-out error, in closed
    form. It knows which layers pay, where the others know only how large a subnet is as a whole.
    """

    def _features(self, codes: Codes) -> Vector:
        space = self.degree.space
        own = [np.log(np.array(dim.choices, dtype=np.float64))[codes[:, i]] for i, dim in enumerate(space.dims)]
        return np.concatenate([super()._features(codes), np.stack(own, axis=1)], axis=1)

    def _fitted(self, features: Vector, accuracies: Vector) -> Vector:
        return _ridge(features, accuracies, _PENALTIES)

    def fit(self, codes: Codes, accuracies: Vector) -> PredictorQuality:
        """See `AccuracyPredictor.fit`."""
        quality = super().fit(codes, accuracies)
        assert self._model is not None
        space = self.degree.space
        weights = self._model[-1 - len(space.dims) : -1]
        terms = [
            Term((i,), weight * np.log(np.array(dim.choices, dtype=np.float64)))
            for i, (dim, weight) in enumerate(zip(space.dims, weights, strict=True))
        ]
        # What each dimension adds is a table: thousands of subnets are asked about in every search.
        self._own = TabulatedCost("own", "", space, terms)
        return quality

    def predict(self, codes: Codes) -> Vector:
        """See `AccuracyPredictor.predict`."""
        if self._model is None:
            return super().predict(codes)
        shared = super()._features(codes)
        return np.asarray(shared @ self._model[: shared.shape[1]] + self._own.evaluate(codes) + self._model[-1])


def _ridge(features: Vector, targets: Vector, penalties: Vector) -> Vector:
    """Return (weights, intercept), shape (F + 1,), with the penalty of the smallest leave-one-out squared error."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale < 1e-12, 1.0, scale)
    u, s, vt = np.linalg.svd((features - mean) / scale, full_matrices=False)
    centred = targets - targets.mean()
    projected = u.T @ centred
    best, chosen = np.inf, np.zeros(len(s))
    for penalty in penalties:
        shrink = s**2 / (s**2 + penalty)
        residual = centred - u @ (shrink * projected)
        # The intercept has a leverage of 1/N of its own.
        leverage = (u**2) @ shrink + 1 / len(targets)
        error = float((residual**2 / np.maximum(1 - leverage, 1e-9) ** 2).sum())
        if error < best:
            best, chosen = error, s / (s**2 + penalty)
    weights = vt.T @ (chosen * projected) / scale
    return np.append(weights, targets.mean() - mean @ weights)


def rank_correlation(first: Vector, second: Vector) -> float:
    """Return Spearman's rank correlation; 0 where one of the two is constant."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first, second).statistic)


#: The predictors, by name.
PREDICTORS: dict[str, type[AccuracyPredictor]] = {
    "nn_degree": DegreePredictor,
    "log_linear": LogLinearPredictor,
    "ridge": RidgePredictor,
}


def make_predictor(name: str, degree: NNDegree, costs: Mapping[str, CostModel]) -> AccuracyPredictor:
    """Create a predictor.

    Args:
        name: ``nn_degree`` (published), ``log_linear`` or ``ridge`` (ours).
        degree: NN-Degree of the network.
        costs: tables; ``mflops`` and ``params_m`` are used where they are there.

    Raises:
        TipsError: unknown name.
    """
    if name not in PREDICTORS:
        raise unknown("accuracy predictor", name, PREDICTORS)
    return PREDICTORS[name](degree, costs)
