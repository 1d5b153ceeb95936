from __future__ import annotations

import inspect
import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

pytest.importorskip("arviz")
pytest.importorskip("matplotlib")

import arviz as az
import matplotlib
import matplotlib.pyplot as plt
import xarray

from pyro_resflow.interop.arviz import from_svi, loo, psis
from pyro_resflow.interop.arviz.library import LIBRARY

from .posteriors import Y, conjugate, elpd, exact_loo, posterior_guide


@pytest.fixture(autouse=True)
def _fresh() -> None:
    pyro.clear_param_store()


def weighted(widening: float = 2.0, draws: int = 4000) -> Any:
    return from_svi(conjugate, partial(posterior_guide, widening=widening), Y, num_samples=draws)


def without_weights(data: Any) -> Any:
    """The same draws, as if they were the posterior's."""
    names = ("posterior", "log_likelihood")
    return LIBRARY.container({n: xarray.Dataset(data[n].data_vars) for n in names})


def test_a_guide_that_is_off_is_corrected() -> None:
    """Weights of a guide of twice the width bring what is exact; ArviZ's own does not."""
    data, exact = weighted(), exact_loo(Y)
    total, _, _, pointwise, k = elpd(loo(data))
    np.testing.assert_allclose(pointwise, exact, atol=0.1)
    assert abs(total - exact.sum()) < 0.1
    assert abs(elpd(az.loo(data, pointwise=True))[0] - exact.sum()) > 0.5
    assert k.shape == (5,)
    assert k.max() < 0.7


def test_it_is_what_the_formula_says() -> None:
    data = weighted(draws=300)
    likelihood = data.log_likelihood["y"].values[0].T
    weight = data.sample_stats["log_weight"].values[0]
    smooth = [psis(weight - each) for each in likelihood]
    smoothed = np.array([w.log_weights for w in smooth])
    terms = np.log(np.exp(smoothed + likelihood).sum(axis=1))
    density = np.log(np.exp(psis(weight).log_weights + likelihood).sum(axis=1))
    total, error, parameters, pointwise, k = elpd(loo(data))
    np.testing.assert_allclose(pointwise, terms, rtol=1e-10)
    np.testing.assert_allclose(k, [w.k for w in smooth], rtol=1e-10)
    assert total == pytest.approx(terms.sum())
    assert error == pytest.approx(math.sqrt(5 * np.var(terms, ddof=1)))
    assert parameters == pytest.approx(density.sum() - terms.sum())


def test_effective_number_of_parameters() -> None:
    data = weighted(widening=1.0)
    n = len(Y)
    in_sample = dist.Normal(Y.sum() / (n + 1), math.sqrt(1 + 1 / (n + 1))).log_prob(Y).sum()
    assert abs(elpd(loo(data))[2] - (in_sample.item() - exact_loo(Y).sum())) < 0.1


def test_without_weights_it_is_arvizs() -> None:
    """Of 900 draws the tail has the same length in both versions of ArviZ."""
    data = without_weights(weighted(widening=1.0, draws=900))
    theirs = az.loo(data, pointwise=True, reff=1.0)
    ours = loo(data)
    assert type(ours) is type(theirs)
    (_, error, _, pointwise, _), expected = elpd(ours), elpd(theirs)
    assert error == pytest.approx(math.sqrt(5 * pointwise.var(ddof=1)))
    for i in (0, 2, 3, 4):  # ArviZ 0.x has another standard error
        np.testing.assert_allclose(elpd(ours)[i], expected[i], rtol=1e-6)
    assert ours.n_samples == theirs.n_samples
    assert ours.n_data_points == theirs.n_data_points
    assert ours.good_k == pytest.approx(getattr(theirs, "good_k", 1 - 1 / math.log10(900)))
    assert ours.warning == theirs.warning
    assert ours.scale == theirs.scale


def test_arviz_compares_and_plots_it() -> None:
    matplotlib.use("agg")
    near, wide = loo(weighted(1.2)), loo(weighted(2.0))
    rounding = "round_to" in inspect.signature(az.compare).parameters
    options = {"round_to": "none"} if rounding else {}
    table = az.compare({"near": near, "wide": wide}, **options)
    column = "elpd_loo" if "elpd_loo" in table else "elpd"
    for name, result in (("near", near), ("wide", wide)):
        assert table.loc[name, column] == pytest.approx(elpd(result)[0])
    az.plot_compare(table)
    az.plot_khat(near)
    plt.close("all")
    assert "100.0%" in str(near)  # of the observations have a good k


def test_labels_stay() -> None:
    guide = partial(posterior_guide, widening=1.5)
    coords = {"person": [*"ABCDE"]}
    result = loo(from_svi(conjugate, guide, Y, num_samples=100, coords=coords))
    assert result.pareto_k.dims == ("person",)
    assert result.pareto_k["person"].values.tolist() == [*"ABCDE"]


def test_a_bad_guide_is_told() -> None:
    """A narrow one far from the posterior: few draws count, and no tail can be trusted."""

    def guide(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(-1.0, 0.2))

    data = from_svi(conjugate, guide, Y, num_samples=1000)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = loo(data)
    tails, weights = (str(each.message) for each in found)
    k = elpd(result)[4]
    assert f"k is above 0.67 for {(k > 2 / 3).sum()} of 5 observations" in tails
    assert f"the largest is {k.max():.2f}" in tails
    effective = data.sample_stats.attrs["effective_draws"]
    assert f"leave {effective:.0f} effective draws of 1000" in weights
    assert {each.filename for each in found} == {__file__}
    assert result.warning


def test_a_good_guide_is_silent(recwarn: pytest.WarningsRecorder) -> None:
    assert not loo(weighted(1.3)).warning
    assert not recwarn


def test_few_draws_are_told() -> None:
    with pytest.warns(UserWarning, match="expected at least 25 draws to compute k, got 10"):
        result = loo(weighted(draws=10))
    assert np.isnan(elpd(result)[4]).all()
    assert math.isfinite(elpd(result)[0])
    assert "5" in str(result)  # it can still be printed


def test_observations_of_any_shape_and_name() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 2, dim=-2), pyro.plate("column", 3, dim=-1):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
            pyro.sample("other", dist.Normal(mu, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(y.mean(), 0.4))

    data = from_svi(model, guide, torch.randn(2, 3), num_samples=400)
    assert elpd(loo(data, "y"))[3].shape == (2, 3)
    with pytest.raises(ValueError, match=r"var_name: expected one of .*'other'"):
        loo(data)
