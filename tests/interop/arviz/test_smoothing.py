from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("arviz")

import arviz as az

from pyro_resflow.interop.arviz import psis

RNG = np.random.default_rng(0)


def theirs(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Smoothed weights and k of the installed ArviZ, in whose version 1 both have other names."""
    if hasattr(az, "psislw"):
        smoothed, k = az.psislw(log_weights.copy())
    else:
        from arviz_stats.base import array_stats

        smoothed, k = array_stats.psislw(-log_weights)
    return smoothed, float(k)


# ArviZ 1 rounds the length of the tail down and ArviZ 0.x up: of these numbers both have one tail
@pytest.mark.parametrize("draws", [30, 100, 225, 900, 10_000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_it_is_arvizs(draws: int, spread: float) -> None:
    log_weights = RNG.normal(scale=spread, size=draws)
    ours = psis(log_weights + 700.0)  # a constant that overflows is none of their business
    smoothed, k = theirs(log_weights)
    assert abs(ours.k - k) < 1e-11
    np.testing.assert_allclose(ours.log_weights, smoothed, atol=1e-10)


def test_the_tail_of_a_pareto_distribution() -> None:
    """Logarithms of Pareto weights of shape k are exponential of mean k."""
    draws, shape = 40_000, 0.6
    found = psis(np.random.default_rng(1).exponential(shape, size=draws)).k
    error = (1 + shape) / math.sqrt(3 * math.sqrt(draws))
    assert abs(found - shape) < 3 * error


@pytest.mark.parametrize("draws", [1, 5, 24])
def test_too_few_draws(draws: int) -> None:
    log_weights = RNG.normal(size=draws)
    found = psis(log_weights)
    assert math.isnan(found.k)
    assert found.note.startswith("too few draws: the shape of a tail takes at least 25")
    np.testing.assert_allclose(found.log_weights, log_weights - np.logaddexp.reduce(log_weights))


def test_a_tail_of_five_is_the_shortest() -> None:
    assert math.isfinite(psis(RNG.normal(size=25)).k)


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_equal_weights(noise: float) -> None:
    found = psis(-3.0 + noise * RNG.uniform(size=1000))
    assert math.isnan(found.k)
    assert found.note.startswith("the weights are all equal: k is not defined, the guide fits")
    assert abs(found.effective_draws - 1000) < 1e-3


def test_one_weight_above_equal_ones() -> None:
    log_weights = np.zeros(1000)
    log_weights[7] = 3.0
    found = psis(log_weights)
    assert math.isnan(found.k)
    assert found.note.startswith("fewer than 5 weights are larger than the rest")
    weights = np.exp(log_weights)
    assert found.effective_draws == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def test_a_few_weights_that_are_everything() -> None:
    """No tail holds ten weights beside which the others are less than the smallest number."""
    log_weights = RNG.normal(size=1000)
    log_weights[:10] += 2000
    found = psis(log_weights)
    assert found.k == math.inf
    assert found.note == ""
    assert found.effective_draws <= 10


def test_weights_of_zero_are_fine() -> None:
    log_weights = RNG.normal(size=1000)
    expected = psis(log_weights)
    log_weights[log_weights < np.quantile(log_weights, 0.3)] = -math.inf
    found = psis(log_weights)
    assert abs(found.k - expected.k) < 1e-12
    assert np.isneginf(found.log_weights).sum() == 300


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number(value: float) -> None:
    found = psis(np.array([value, *RNG.normal(size=100)]))
    assert math.isnan(found.k)
    assert found.note == "some weights are nan or infinite: k is not defined"
    assert np.isnan(found.log_weights).all()


@pytest.mark.parametrize("shape", [(0,), (2, 50)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"log_weights: expected the shape \(draws,\), got"):
        psis(np.zeros(shape))


def test_the_argument_stays_as_it_is() -> None:
    log_weights = RNG.normal(size=100)
    copy = log_weights.copy()
    psis(log_weights)
    np.testing.assert_array_equal(log_weights, copy)
