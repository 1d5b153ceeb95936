from __future__ import annotations

import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from torch import Tensor

pytest.importorskip("arviz")

from pyro_resflow.interop.arviz import from_svi, pareto_k, psis

from .posteriors import RefusingKrylov, Y, conjugate, flow_guide, posterior_guide


@pytest.fixture(autouse=True)
def _fresh() -> None:
    pyro.clear_param_store()


@pytest.mark.parametrize("width", [0.5, 0.8])
def test_a_narrow_guide_has_the_tail_that_theory_says(width: float) -> None:
    """The ratio of N(0, 1) to N(0, s^2), s < 1, has a Pareto tail of shape 1 - s^2."""

    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, width))

    # the shape is fitted to the 3 sqrt(S) largest of S ratios
    expected, draws = 1 - width**2, 40_000
    error = (1 + expected) / math.sqrt(3 * math.sqrt(draws))
    assert abs(pareto_k(guide, model=model, num_samples=draws) - expected) < 3 * error


def test_autoguides_know_their_model() -> None:
    guide = flow_guide(conjugate, RefusingKrylov())
    assert -1 < pareto_k(guide, Y, num_samples=60) < 3


def test_it_is_what_from_svi_notes() -> None:
    guide = partial(posterior_guide, widening=0.7)
    stats = from_svi(conjugate, guide, Y, num_samples=200).sample_stats
    expected = psis(stats["log_weight"].values[0])
    assert stats.attrs["pareto_k"] == expected.k
    assert stats.attrs["effective_draws"] == expected.effective_draws
    assert "pareto_k_note" not in stats.attrs


def test_other_guides_need_the_model() -> None:
    with pytest.raises(ValueError, match="model: expected a model, because this guide has no"):
        pareto_k(posterior_guide, Y)


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_samples: expected at least 25 draws, .* got 24"):
        pareto_k(posterior_guide, Y, model=conjugate, num_samples=24)
    stats = from_svi(conjugate, posterior_guide, Y, num_samples=24).sample_stats
    assert math.isnan(stats.attrs["pareto_k"])
    assert stats.attrs["pareto_k_note"].startswith("too few draws")


def test_the_posterior_itself_fits() -> None:
    """Its weights are the evidence, but for rounding, to which no tail is to be fitted."""
    says = "the weights are all equal: k is not defined, the guide fits where it draws"
    with pytest.warns(UserWarning, match=says) as found:
        k = pareto_k(posterior_guide, Y, model=conjugate, num_samples=100)
    assert math.isnan(k)
    assert found[0].filename == __file__
    stats = from_svi(conjugate, posterior_guide, Y, num_samples=100).sample_stats
    assert stats.attrs["pareto_k_note"] == says
    assert stats.attrs["effective_draws"] == pytest.approx(100)


def test_a_point_does_not_fit() -> None:
    """Its weights are all equal too."""
    guide = AutoDelta(conjugate)
    guide(Y)
    with pytest.warns(UserWarning, match="the guide has a single value of mu: a point has no"):
        assert math.isnan(pareto_k(guide, Y, num_samples=50))


def test_a_point_among_others_is_named() -> None:
    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        mu = pyro.sample("mu", dist.Normal(0.0, scale))
        with pyro.plate("person", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["scale"])))
    guide.append(AutoNormal(poutine.block(model, expose=["mu"])))
    note = from_svi(model, guide, Y, num_samples=50).sample_stats.attrs["pareto_k_note"]
    assert note.startswith("the guide has a single value of scale: ")


def test_a_constant_of_the_model_is_no_point() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("constant", dist.Delta(torch.tensor(2.0)))
        conjugate(y)

    guide = AutoNormal(poutine.block(model, hide=["constant"]))

    def whole(y: Tensor) -> None:
        guide(y)
        pyro.sample("constant", dist.Delta(torch.tensor(2.0)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isfinite(pareto_k(whole, Y, model=model, num_samples=100))


def test_what_k_cannot_see() -> None:
    """A mode far from all draws leaves no trace in the weights; the page says so."""

    def model() -> None:
        modes = dist.Normal(torch.tensor([0.0, 40.0]), 1.0)
        pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), modes))

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.1))

    assert pareto_k(guide, model=model, num_samples=1000) < 0.5
