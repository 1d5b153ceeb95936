"""Many draws in one run give the numbers of single draws, or fall back with a warning."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    AutoNormalMessenger,
    AutoStructured,
)
from torch import Tensor
from tqdm import tqdm

pytest.importorskip("arviz")

from pyro_resflow.guides import AutoResidualFlow
from pyro_resflow.interop.arviz import evaluation as module
from pyro_resflow.interop.arviz import from_svi, pareto_k

from .posteriors import Counted, Y, conjugate, posterior_guide

GROUPS = torch.arange(20) % 4
DATA = torch.linspace(-1, 1, 20)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    pyro.clear_param_store()


def hierarchical(y: Tensor) -> None:
    """Plates, an event, a mask, a scale, a factor, and deterministic sites."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
    pyro.factor("bonus", -spread)
    with pyro.plate("group", 4):
        effect = pyro.sample("effect", dist.Normal(0.0, spread))
    with pyro.plate("observation", len(y)), poutine.scale(scale=0.5):
        slope = (weights * torch.stack([y, y.square()], -1)).sum(-1)
        mean = pyro.deterministic("mean", slope + effect[..., GROUPS])
        with poutine.mask(mask=y > -0.5):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def listed(model: Callable[..., Any]) -> AutoGuideList:
    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["spread"])))
    guide.append(AutoDiagonalNormal(poutine.block(model, expose=["weights", "effect"])))
    return guide


@pytest.mark.parametrize(
    "make",
    [
        AutoDelta,
        AutoNormal,
        AutoMultivariateNormal,
        AutoStructured,
        AutoIAFNormal,
        AutoNormalMessenger,
        listed,
        partial(AutoResidualFlow, blocks=2, hidden_dims=[8]),
        lambda model: AutoNormalizingFlow(
            model, partial(dist.transforms.iterated, 2, dist.transforms.planar)
        ),
    ],
)
def test_chunks_of_every_autoguide_are_what_the_model_says(make: Callable[..., Any]) -> None:
    """Each draw of a chunk, given to the model alone, has the same density and likelihood."""
    guide = make(hierarchical)
    guide(DATA)
    model = Counted(hierarchical)
    data = from_svi(model, guide, DATA, num_samples=30)
    assert model.runs < 12
    names = ("weights", "spread", "effect")
    for draw in (0, 17, 29):
        values = {n: torch.tensor(data.posterior[n].values[0, draw]) for n in names}
        with torch.no_grad():
            trace = poutine.trace(poutine.condition(hierarchical, values)).get_trace(DATA)
            trace.compute_log_prob()
        stats = data.sample_stats
        lp = stats["lp"].values[0, draw]
        np.testing.assert_allclose(lp, trace.log_prob_sum().item(), rtol=1e-4)
        likelihood = trace.nodes["y"]["unscaled_log_prob"].where(DATA > -0.5, torch.tensor(0.0))
        found = data.log_likelihood["y"].values[0, draw]
        np.testing.assert_allclose(found, likelihood, rtol=1e-4, atol=1e-5)
        mean = data.posterior["mean"].values[0, draw]
        np.testing.assert_allclose(mean, trace.nodes["mean"]["value"], rtol=1e-4, atol=1e-5)


def test_a_guide_that_runs_the_model_does_not_count_the_data() -> None:
    """The mean of the log weights is the ELBO."""
    guide = AutoNormalMessenger(conjugate)
    guide(Y)
    weight = from_svi(conjugate, guide, Y, num_samples=2000).sample_stats["log_weight"].values
    elbo = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    assert abs(weight.mean() + elbo.loss(conjugate, guide, Y)) < 6 * weight.std() / 2000**0.5


def test_a_thousand_draws_take_a_handful_of_runs() -> None:
    model, guide = Counted(conjugate), Counted(posterior_guide)
    from_svi(model, guide, Y, num_samples=1000)
    assert model.runs + guide.runs < 15
    model.runs = guide.runs = 0
    with pytest.warns(UserWarning, match="weights are all equal"):
        pareto_k(guide, Y, model=model, num_samples=1000)
    assert model.runs + guide.runs < 10


def test_one_by_one_if_asked_for(recwarn: pytest.WarningsRecorder) -> None:
    model = Counted(conjugate)
    data = from_svi(model, posterior_guide, Y, num_samples=40, chunk_size=1)
    assert model.runs >= 80
    assert not recwarn
    density = dist.Normal(torch.tensor(data.posterior["mu"].values)[..., None], 1.0).log_prob(Y)
    np.testing.assert_allclose(data.log_likelihood["y"], density, rtol=1e-5)


def test_chunks_of_any_size_and_a_rest() -> None:
    model = Counted(conjugate)
    data = from_svi(model, posterior_guide, Y, num_samples=25, chunk_size=10)
    mu = torch.tensor(data.posterior["mu"].values)
    assert mu.shape == (1, 25)
    assert len(mu.unique()) == 25
    density = dist.Normal(mu[..., None], 1.0).log_prob(Y)
    np.testing.assert_allclose(data.log_likelihood["y"], density, rtol=1e-5)


def mixing(y: Tensor) -> None:
    """The sum goes over the draws too: a chunk gives numbers, and all are wrong."""
    with pyro.plate("group", 3):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    with pyro.plate("observation", len(y)):
        pyro.sample("y", dist.Normal(effect.sum(), 1.0), obs=y)


def mixing_predictions(y: Tensor) -> None:
    """The same, but only of what is drawn anew."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    first = pyro.sample("first", dist.Normal(mu, 1.0), obs=y[0])
    pyro.sample("second", dist.Normal(first.mean(), 0.01), obs=y[1])


def stacking(y: Tensor) -> None:
    """A deterministic site with the draws in its second dimension."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.deterministic("powers", torch.stack([mu, mu.square()]))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y[0])


def branching(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu if mu > 0 else 2 * mu, 1.0), obs=y[0])


def indexing(y: Tensor) -> None:
    """From the left, where the draws are."""
    with pyro.plate("group", 4):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    with pyro.plate("observation", len(y)):
        pyro.sample("y", dist.Normal(effect[GROUPS[: len(y)]], 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (mixing, "the site 'y' differs from that of a single draw"),
        (mixing_predictions, "the site 'second' differs"),
        (stacking, "the site 'powers' differs"),
        (branching, "Boolean value of Tensor"),
        (indexing, "Shape mismatch"),
    ],
)
def test_models_that_do_not_vectorize_run_one_by_one(model: Any, reason: str) -> None:
    with pytest.warns(UserWarning, match=f"a run for 8 draws at once failed .*{reason}") as found:
        data = from_svi(model, AutoNormal(model), Y, num_samples=8)
    assert found[0].filename == __file__
    if model is mixing:
        total = torch.tensor(data.posterior["effect"].values).sum(-1, keepdim=True)
        expected = dist.Normal(total, 1.0).log_prob(Y)
        np.testing.assert_allclose(data.log_likelihood["y"], expected, rtol=1e-4)
    if model is mixing_predictions:
        drawn = data.posterior_predictive
        np.testing.assert_allclose(drawn["first"], drawn["second"], atol=0.1)
    if model is stacking:
        powers = data.posterior["powers"].values
        np.testing.assert_allclose(powers[..., 0] ** 2, powers[..., 1], rtol=1e-5)


def test_a_guide_that_mixes_draws_runs_one_by_one() -> None:
    def guide(y: Tensor) -> None:
        other = pyro.sample("other", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("mu", dist.Normal(other.mean(), 1.0))

    with pytest.warns(UserWarning, match="the site 'mu' differs"):
        from_svi(conjugate, guide, Y, num_samples=8)


def test_a_loop_shows_its_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(module, "tqdm", partial(tqdm, disable=False))  # whatever the environment
    from_svi(conjugate, posterior_guide, Y, num_samples=3, chunk_size=1)
    assert "draws, one by one" in capsys.readouterr().err


def test_data_without_a_plate_are_predicted_one_by_one() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    data = from_svi(model, posterior_guide, Y, num_samples=300)
    predicted = data.posterior_predictive["y"]
    assert predicted.dims == ("chain", "draw", "y_dim_0")
    residual = (predicted - data.posterior["mu"]).values
    assert abs(residual.std() - 1) < 4 / math.sqrt(2 * residual.size)
    assert data.log_likelihood["y"].shape == (1, 300, 5)


def test_what_is_computed_from_predictions_keeps_its_shape() -> None:
    """A deterministic site in a plate goes on into the model when data are drawn anew."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("person", len(y)):
            mean = pyro.deterministic("mean", mu + 0 * y)
            pyro.sample("y", dist.Normal(mean, 0.01), obs=y)

    data = from_svi(model, posterior_guide, Y, num_samples=4)
    predicted = data.posterior_predictive["y"].values
    np.testing.assert_allclose(predicted, data.posterior["mean"].values, atol=0.1)


def test_sites_that_come_and_go_are_named() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if mu > Y.mean():
            pyro.deterministic("sign", mu.sign())
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[0])

    with (
        pytest.warns(UserWarning, match="Boolean value"),
        pytest.raises(ValueError, match="model: its sites, or their shapes, are not the same"),
    ):
        from_svi(model, posterior_guide, Y, num_samples=40)


def test_arguments_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="chunk_size: expected at least 1, got 0"):
        from_svi(conjugate, posterior_guide, Y, num_samples=5, chunk_size=0)
    with pytest.raises(ValueError, match=r"max_plate_nesting: expected at least 1, .* got 0"):
        from_svi(conjugate, posterior_guide, Y, num_samples=5, max_plate_nesting=0)


def test_a_nesting_deeper_than_what_is_found() -> None:
    model = Counted(conjugate)
    data = from_svi(model, posterior_guide, Y, num_samples=50, max_plate_nesting=3)
    assert model.runs < 12
    assert data.log_likelihood["y"].dims == ("chain", "draw", "person")


def test_a_chunk_has_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large model fewer draws are taken at once: mu twice, and twice the five of y."""
    monkeypatch.setattr(module, "ENTRIES", 150)
    model = Counted(conjugate)
    pareto_k(partial(posterior_guide, widening=2.0), Y, model=model, num_samples=50)
    assert model.runs == 1 + 50 // 10 + 2
