from __future__ import annotations

import importlib
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
)
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

pytest.importorskip("arviz")

import arviz as az

from pyro_resflow import residual_flow
from pyro_resflow.interop.arviz import from_neutra, from_svi, loo, pareto_k, version
from pyro_resflow.logdet import Exact, Krylov

Y = torch.tensor([0.3, -1.2, 2.0, 0.7, 1.1])


@pytest.fixture(autouse=True)
def _fresh() -> None:
    pyro.clear_param_store()


def conjugate(y: Tensor) -> None:
    """A normal mean with a standard normal prior."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("person", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def posterior_guide(y: Tensor, widening: float = 1.0) -> None:
    """Its exact posterior, or a wider one."""
    n = len(y) + 1
    pyro.sample("mu", dist.Normal(y.sum() / n, widening / math.sqrt(n)))


def log_evidence(y: Tensor) -> float:
    covariance = torch.eye(len(y)) + 1
    return dist.MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y).item()


def exact_loo(y: Tensor) -> np.ndarray:
    """log p(y_i | the others), one by one."""
    n = len(y)
    mean = (y.sum() - y) / n
    return dist.Normal(mean, math.sqrt(1 + 1 / n)).log_prob(y).numpy()


class RefusingKrylov(Krylov):
    """An estimator that is not to be asked."""

    def __call__(self, *args: object) -> tuple[Tensor, Tensor]:
        raise AssertionError("an estimate was about to enter a weight")


def flow_guide(model: object, estimator: Krylov | Exact) -> AutoNormalizingFlow:
    return AutoNormalizingFlow(
        model, partial(residual_flow, blocks=2, hidden_dims=[8], logdet=estimator)
    )


class TestFromSvi:
    def test_groups_and_values(self) -> None:
        data = from_svi(conjugate, posterior_guide, Y, num_samples=400)
        assert set(data.groups()) == {
            "posterior",
            "posterior_predictive",
            "log_likelihood",
            "sample_stats",
            "observed_data",
        }
        mu = data.posterior["mu"].values
        assert mu.shape == (1, 400)
        z = (mu.mean() - Y.sum().item() / 6) * math.sqrt(400 * 6)
        assert abs(z) < 4
        density = dist.Normal(torch.tensor(mu)[..., None], 1.0).log_prob(Y).numpy()
        np.testing.assert_allclose(data.log_likelihood["y"], density, rtol=1e-5)
        np.testing.assert_array_equal(data.observed_data["y"], Y.numpy())
        residual = (data.posterior_predictive["y"] - data.posterior["mu"]).values
        assert abs(residual.std() - 1) < 4 / math.sqrt(2 * residual.size)

    def test_weights_of_the_exact_posterior_are_the_evidence(self) -> None:
        stats = from_svi(conjugate, posterior_guide, Y, num_samples=30).sample_stats
        np.testing.assert_allclose(stats["log_weight"], log_evidence(Y), rtol=1e-5)
        assert stats["lp"].shape == (1, 30)
        assert stats["lp"].std() > 0.1

    def test_scale_enters_the_weight_and_not_the_likelihood(self) -> None:
        data = from_svi(poutine.scale(conjugate, 0.5), posterior_guide, Y, num_samples=3)
        prior = dist.Normal(0.0, 1.0).log_prob(torch.tensor(data.posterior["mu"].values))
        whole = data.log_likelihood["y"].sum("person").values + prior.numpy()
        np.testing.assert_allclose(data.sample_stats["lp"], 0.5 * whole, rtol=1e-5)

    def test_masked_observations_and_factors_do_not_count(self) -> None:
        def model(y: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.factor("bonus", torch.tensor(3.0))
            with pyro.plate("person", len(y)), poutine.mask(mask=y > 0):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        data = from_svi(model, posterior_guide, Y, num_samples=3)
        assert list(data.log_likelihood) == ["y"]
        assert (data.log_likelihood["y"].values[..., 1] == 0).all()
        assert (data.log_likelihood["y"].values[..., 0] != 0).all()
        assert "bonus" not in data.observed_data

    def test_dims_and_coords_come_from_plates(self) -> None:
        def model(y: Tensor) -> None:
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("group", 3, dim=-2):
                pyro.sample("a", dist.Normal(0.0, 1.0))
                with pyro.plate("person", 4, dim=-1):
                    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                    pyro.deterministic("total", b.sum(-1))
                    pyro.deterministic("pair", b, event_dim=1)
                    pyro.sample("y", dist.Normal(b + w, 1.0).to_event(1), obs=y)

        data = from_svi(
            model,
            AutoNormal(model),
            torch.randn(3, 4, 2),
            num_samples=5,
            dims={"w": ["feature"], "y": ["feature"], "pair": ["feature"]},
            coords={"feature": ["left", "right"], "group": ["p", "q", "r"]},
        )
        draws = ("chain", "draw")
        assert data.posterior["w"].dims == (*draws, "feature")
        assert data.posterior["a"].dims == (*draws, "group")
        assert data.posterior["b"].dims == (*draws, "group", "person", "b_dim_2")
        assert data.posterior["total"].dims == (*draws, "group", "person")
        assert data.posterior["pair"].dims == (*draws, "group", "person", "feature")
        assert data.log_likelihood["y"].dims == (*draws, "group", "person")
        assert data.posterior_predictive["y"].dims == (*draws, "group", "person", "feature")
        assert data.observed_data["y"].dims == ("group", "person", "feature")
        assert data.observed_data["feature"].values.tolist() == ["left", "right"]
        assert data.posterior["group"].values.tolist() == ["p", "q", "r"]
        pair = data.posterior["pair"].sum("feature")
        np.testing.assert_allclose(pair, data.posterior["total"], rtol=1e-4, atol=1e-5)

    def test_names_beyond_the_dimensions_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"dims: got the names \['extra'\] for site 'mu'"):
            from_svi(conjugate, posterior_guide, Y, num_samples=1, dims={"mu": ["extra"]})

    def test_predictions_follow_each_other(self) -> None:
        """What is observed upstream is drawn anew for what depends on it."""

        def model() -> None:
            pyro.sample("mu", dist.Normal(0.0, 1.0))
            first = pyro.sample("first", dist.Normal(0.0, 1.0), obs=torch.tensor(50.0))
            pyro.sample("second", dist.Normal(first, 0.01), obs=torch.tensor(50.0))

        drawn = from_svi(model, AutoNormal(model), num_samples=20).posterior_predictive
        assert abs(drawn["first"]).max() < 10
        np.testing.assert_allclose(drawn["first"], drawn["second"], atol=0.1)

    def test_a_model_without_data(self) -> None:
        def model() -> None:
            pyro.sample("mu", dist.Normal(0.0, 1.0))

        data = from_svi(model, AutoNormal(model), num_samples=3)
        assert set(data.groups()) == {"posterior", "sample_stats"}

    def test_any_guide(self) -> None:
        guide = AutoGuideList(conjugate)
        guide.append(AutoDelta(poutine.block(conjugate, expose=["mu"])))
        data = from_svi(conjugate, guide, Y, num_samples=3)
        assert data.posterior["mu"].std() == 0

    def test_flows_in_guide_and_model_are_weighed_exactly(self) -> None:
        flow = residual_flow(2, 2, [8], logdet=RefusingKrylov())

        def model(y: Tensor) -> None:
            base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
            z = pyro.sample("z", dist.TransformedDistribution(base, [flow]))
            pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)

        guide = flow_guide(model, RefusingKrylov())
        data = from_svi(model, guide, torch.tensor(0.5), num_samples=10)
        assert np.isfinite(data.sample_stats["log_weight"]).all()
        used = [m.logdet for m in [*flow.modules(), *guide.modules()] if hasattr(m, "logdet")]
        assert len(used) == 4
        assert all(isinstance(estimator, RefusingKrylov) for estimator in used)

    def test_a_site_that_the_guide_leaves_out_is_named(self) -> None:
        def model(y: Tensor) -> None:
            pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.sample("kind", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y[0])

        with pytest.raises(ValueError, match="latent site 'kind'"):
            from_svi(model, posterior_guide, Y, num_samples=1)

    def test_a_subsampled_plate_is_named(self) -> None:
        def model(y: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("person", len(y), subsample_size=2) as some:
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y[some])

        with pytest.raises(ValueError, match="plate 'person' is subsampled"):
            from_svi(model, posterior_guide, Y, num_samples=1)

    def test_no_samples_are_refused(self) -> None:
        with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
            from_svi(conjugate, posterior_guide, Y, num_samples=0)


class TestParetoK:
    @pytest.mark.parametrize("width", [0.5, 0.8])
    def test_a_narrow_guide_has_the_tail_that_theory_says(self, width: float) -> None:
        """The ratio of N(0, 1) to N(0, s^2), s < 1, has a Pareto tail of shape 1 - s^2."""

        def model() -> None:
            pyro.sample("z", dist.Normal(0.0, 1.0))

        def guide() -> None:
            pyro.sample("z", dist.Normal(0.0, width))

        # the shape is fitted to the 3 sqrt(S) largest of S ratios
        expected, draws = 1 - width**2, 3000
        error = (1 + expected) / math.sqrt(3 * math.sqrt(draws))
        assert abs(pareto_k(guide, model=model, num_samples=draws) - expected) < 3 * error

    def test_autoguides_know_their_model(self) -> None:
        guide = flow_guide(conjugate, RefusingKrylov())
        assert -1 < pareto_k(guide, Y, num_samples=60) < 3

    def test_it_is_what_from_svi_notes(self) -> None:
        guide = partial(posterior_guide, widening=0.7)
        torch.manual_seed(1)
        data = from_svi(conjugate, guide, Y, num_samples=200)
        log_weight = data.sample_stats["log_weight"].values[0]
        assert data.sample_stats.attrs["pareto_k"] == float(az.psislw(log_weight)[1])

    def test_other_guides_need_the_model(self) -> None:
        with pytest.raises(ValueError, match="model: this guide does not know its model"):
            pareto_k(posterior_guide, Y)


class TestLoo:
    def test_a_guide_that_is_off_is_corrected(self) -> None:
        """Weights of a guide of twice the width bring what is exact; ArviZ's own does not."""
        guide = partial(posterior_guide, widening=2.0)
        data = from_svi(conjugate, guide, Y, num_samples=1500)
        result, exact = loo(data), exact_loo(Y)
        np.testing.assert_allclose(result.pointwise, exact, atol=0.1)
        assert abs(result.elpd - exact.sum()) < 0.1
        assert abs(az.loo(data).elpd_loo - exact.sum()) > 0.5
        assert result.pareto_k.shape == (5,)
        assert result.pareto_k.max() < 0.7

    def test_effective_number_of_parameters(self) -> None:
        data = from_svi(conjugate, posterior_guide, Y, num_samples=1500)
        n = len(Y)
        in_sample = dist.Normal(Y.sum() / (n + 1), math.sqrt(1 + 1 / (n + 1))).log_prob(Y).sum()
        assert abs(loo(data).p_loo - (in_sample.item() - exact_loo(Y).sum())) < 0.1

    def test_without_weights_it_is_arvizs(self) -> None:
        data = from_svi(conjugate, posterior_guide, Y, num_samples=500)
        del data.sample_stats["log_weight"]
        theirs = az.loo(data, pointwise=True, reff=1.0)
        ours = loo(data)
        assert abs(ours.elpd - theirs.elpd_loo) < 1e-6
        assert abs(ours.se - theirs.se) < 1e-6
        np.testing.assert_allclose(ours.pareto_k, theirs.pareto_k, rtol=1e-6)

    def test_observations_of_any_shape_and_name(self) -> None:
        def model(y: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("row", 2, dim=-2), pyro.plate("column", 3, dim=-1):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
                pyro.sample("other", dist.Normal(mu, 1.0), obs=y)

        guide = partial(posterior_guide)
        data = from_svi(model, lambda y: guide(Y), torch.randn(2, 3), num_samples=100)
        assert loo(data, "y").pointwise.shape == (2, 3)
        with pytest.raises(ValueError, match=r"var_name: expected one of .*'other'"):
            loo(data)


def test_neutra_samples_come_back_to_the_models_sites() -> None:
    guide = AutoMultivariateNormal(conjugate, init_scale=0.4)
    guide(Y)
    neutra = NeuTraReparam(guide.requires_grad_(False))
    kernel = NUTS(neutra.reparam(conjugate))
    mcmc = MCMC(kernel, num_samples=60, warmup_steps=40, disable_progbar=True)
    mcmc.run(Y)
    data = from_neutra(mcmc, neutra, Y)
    assert list(data.posterior) == ["mu"]
    assert data.posterior["mu"].shape == (1, 60)
    assert data.log_likelihood["y"].dims == ("chain", "draw", "person")
    z = (data.posterior["mu"].mean().item() - Y.sum().item() / 6) * math.sqrt(6)
    assert abs(z) < 4 / math.sqrt(15)  # at least one in four counts
    assert data.sample_stats["diverging"].shape == (1, 60)
    latent = mcmc.get_samples()["mu_shared_latent"]
    expected = neutra.transform_sample(latent)["mu"]
    np.testing.assert_allclose(data.posterior["mu"][0], expected.numpy(), rtol=1e-6)


def test_a_run_without_neutra_is_refused() -> None:
    mcmc = MCMC(NUTS(conjugate), num_samples=2, warmup_steps=1, disable_progbar=True)
    mcmc.run(Y)
    guide = AutoMultivariateNormal(conjugate)
    with pytest.raises(ValueError, match="mcmc: expected one shared latent"):
        from_neutra(mcmc, NeuTraReparam(guide), Y)


def test_arviz_1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(az, "__version__", "1.0.0")
    with pytest.raises(ImportError, match=r"written for ArviZ 0.x, found 1.0.0"):
        importlib.reload(version)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_precisions(dtype: torch.dtype) -> None:
    guide = AutoNormal(conjugate)
    torch.set_default_dtype(dtype)
    try:
        data = from_svi(conjugate, guide, Y.to(dtype), num_samples=3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert data.posterior["mu"].dtype == torch.zeros((), dtype=dtype).numpy().dtype
    assert data.sample_stats["log_weight"].dtype == np.float64
