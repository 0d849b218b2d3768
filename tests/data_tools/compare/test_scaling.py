"""Fits of synthetic promotions: the form that made them is found, with its parameters."""

import numpy as np
import pytest

from data_tools.compare.scaling import FORMS, exponent, fit_forms

COSTS = np.geomspace(1.0, 3000.0, 16)
TRUE = {
    "power law": [1.5, 0.4],
    "saturating power": [40.0, 120.0, 0.8],
    "Weibull": [32.0, 400.0, 0.7],
    "logarithm": [3.0, 4.0],
}


@pytest.mark.parametrize("name", FORMS)
def test_the_form_that_made_the_points_is_found(name):
    lookaheads = FORMS[name].predict(np.array(TRUE[name]), COSTS)
    noisy = lookaheads * np.exp(np.random.default_rng(1).normal(0, 0.01, len(COSTS)))
    best = fit_forms(COSTS, noisy)[0]
    assert best.form == name and best.r_squared > 0.995
    assert [*best.parameters.values()] == pytest.approx(TRUE[name], rel=0.08)
    exact = next(fit for fit in fit_forms(COSTS, lookaheads) if fit.form == name)
    assert [*exact.parameters.values()] == pytest.approx(TRUE[name], rel=1e-4)


def test_forms_that_do_not_fit_are_fitted_as_well_as_they_can():
    """The line in log C that is best on average is negative at the first points, which have no logarithm."""
    fits = {fit.form: fit for fit in fit_forms(COSTS, 1.5 * COSTS**0.5)}
    assert 0 < fits["logarithm"].r_squared < 0.95 < fits["Weibull"].r_squared


def test_a_form_that_can_imitate_another_is_no_worse():
    """From a single guess, Weibull's function ended as a constant here."""
    costs = np.array([2.9, 4.07, 6.05, 8.17, 11.1, 14.4, 18.2]) * 1e-7
    fits = {fit.form: fit.r_squared for fit in fit_forms(costs, np.array([1.0, 2, 3, 4, 5, 6, 6]))}
    assert fits["Weibull"] > 0.95 and fits["saturating power"] > 0.95


def test_too_few_promotions():
    assert fit_forms(COSTS[:4], COSTS[:4] ** 0.5) == []
    assert fit_forms(COSTS[:6], np.full(6, 2.0)) == []
    five = {fit.form: fit.aicc for fit in fit_forms(COSTS[:5], COSTS[:5] ** 0.5)}
    assert np.isinf(five["Weibull"]) and np.isfinite(five["power law"])


def test_the_interval_of_the_exponent_covers_it():
    covered = []
    for seed in range(100):
        noise = np.random.default_rng(seed).normal(0, 0.1, len(COSTS))
        found = exponent(COSTS, COSTS**0.4 * np.exp(noise))
        covered.append(found.low <= 0.4 <= found.high)
    assert 0.85 <= np.mean(covered) <= 0.98
