"""Predictors: known laws are recovered, and the quality they report is that of samples left out."""

import numpy as np
import pytest

from tips_nni.core import PREDICTORS, CostTable, NNDegree, TipsError, make_predictor, rank_correlation


@pytest.fixture
def make(residual):
    return lambda name: make_predictor(name, NNDegree(residual), CostTable(residual).models())


@pytest.fixture
def codes(residual):
    return residual.space.sample(np.random.default_rng(0), 25)


def law(residual, codes, name):
    """Accuracies that follow each predictor's own formula."""
    g = NNDegree(residual).evaluate(codes)
    table = CostTable(residual)
    if name == "nn_degree":
        return 1 / (30.0 / g + 1.2)
    logs = 0.3 + 0.02 * np.log(table.flops(codes)) - 0.01 * np.log(table.params(codes)) + 0.05 * np.log(g)
    if name == "log_linear":
        return logs
    values = np.stack([np.array(d.choices)[codes[:, i]] for i, d in enumerate(residual.space.dims)], axis=1)
    return logs + 0.01 * np.log(values) @ np.arange(values.shape[1])


@pytest.mark.parametrize("name", PREDICTORS)
def test_25_samples_give_a_law_of_its_own_kind(residual, make, codes, every_residual_code, name):
    predictor = make(name)
    quality = predictor.fit(codes, law(residual, codes, name))
    truth = law(residual, every_residual_code, name)
    error = np.abs(predictor.predict(every_residual_code) - truth)
    assert error.max() < 0.05 * np.ptp(truth)
    assert quality.samples == 25
    assert quality.leave_one_out_error < 0.05 * np.ptp(truth)
    assert quality.rank_correlation > 0.99


def test_the_published_formula_is_fitted_to_its_constants(residual, make, codes):
    predictor = make("nn_degree")
    predictor.fit(codes, law(residual, codes, "nn_degree"))
    np.testing.assert_allclose(predictor._model, [30.0, 1.2], rtol=1e-9)


def test_accuracies_that_fall_with_the_degree_give_a_constant(residual, make, codes):
    """a and b are not negative, so that no prediction is infinite or below zero."""
    predictor = make("nn_degree")
    g = NNDegree(residual).evaluate(codes)
    predictor.fit(codes, 0.9 - g / g.max() / 2)
    predictions = predictor.predict(codes)
    assert np.ptp(predictions) < 1e-12
    assert 0.4 < predictions[0] < 0.9


@pytest.mark.parametrize("name", PREDICTORS)
def test_the_error_is_that_of_predictors_fitted_without_the_sample(residual, make, codes, name):
    noise = np.random.default_rng(1).normal(0, 0.02, len(codes))
    accuracies = law(residual, codes, name) + noise
    quality = make(name).fit(codes, accuracies)
    predicted = []
    for i in range(len(codes)):
        other = make(name)
        other.fit(np.delete(codes, i, axis=0), np.delete(accuracies, i))
        predicted.append(other.predict(codes[i : i + 1])[0])
    assert quality.leave_one_out_error == pytest.approx(np.abs(predicted - accuracies).mean(), abs=1e-12)
    assert quality.rank_correlation == pytest.approx(rank_correlation(np.array(predicted), accuracies), abs=1e-12)


def test_ridge_shrinks_to_the_mean_on_noise(make, codes):
    rng = np.random.default_rng(2)
    accuracies = 0.5 + rng.normal(0, 0.01, len(codes))
    predictor = make("ridge")
    predictor.fit(codes, accuracies)
    assert np.abs(predictor.predict(codes) - accuracies.mean()).max() < 0.01


def test_rank_correlation():
    first = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(first, first**3) == 1.0
    assert rank_correlation(first, -first) == -1.0
    assert rank_correlation(first, np.ones(4)) == 0.0
    # 1 − 6 Σ d² / (n (n² − 1)) with d = (0, 1, −1, 0)
    assert rank_correlation(first, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)


def test_wrong_use_is_one_line(make, codes):
    with pytest.raises(TipsError, match="has not been fitted"):
        make("ridge").predict(codes)
    with pytest.raises(TipsError, match="2 measured subnets are too few"):
        make("nn_degree").fit(codes[:2], np.array([0.1, 0.2]))
    with pytest.raises(TipsError, match="unknown accuracy predictor 'rigde'; did you mean 'ridge'"):
        make("rigde")
