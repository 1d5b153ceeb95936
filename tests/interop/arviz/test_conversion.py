from __future__ import annotations

import math
from pathlib import Path
from typing import Any

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
)
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

pytest.importorskip("arviz")

import arviz as az

from pyro_resflow import residual_flow
from pyro_resflow.interop.arviz import from_neutra, from_svi

from .posteriors import (
    RefusingKrylov,
    Y,
    conjugate,
    flow_guide,
    groups,
    log_evidence,
    posterior_guide,
)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    pyro.clear_param_store()


class TestFromSvi:
    def test_groups_and_values(self) -> None:
        data = from_svi(conjugate, posterior_guide, Y, num_samples=400)
        assert groups(data) == {
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

        with pytest.warns(UserWarning, match="expected an observed site, got none") as found:
            data = from_svi(model, AutoNormal(model), num_samples=3)
        assert found[0].filename == __file__
        assert groups(data) == {"posterior", "sample_stats"}

    def test_data_left_out_are_asked_for(self) -> None:
        def model(y: Tensor | None = None) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        guide = AutoNormal(model)
        guide(Y[0])
        with pytest.raises(ValueError, match=r"without 'y'\. .*leave the observations out"):
            from_svi(model, guide, num_samples=3)

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

        with pytest.raises(ValueError, match="latent sites of the model, got one without 'kind'"):
            from_svi(model, posterior_guide, Y, num_samples=1)

    def test_a_subsampled_plate_is_named(self) -> None:
        def model(y: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("person", len(y), subsample_size=2) as some:
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y[some])

        with pytest.raises(ValueError, match="a subsampled plate 'person'"):
            from_svi(model, posterior_guide, Y, num_samples=1)

    @pytest.mark.parametrize("name", ["chain", "draw"])
    def test_names_that_arviz_keeps_are_named(self, name: str) -> None:
        def of_plate() -> None:
            with pyro.plate(name, 2):
                pyro.sample("mu", dist.Normal(0.0, 1.0))

        def of_site() -> None:
            pyro.sample(name, dist.Normal(0.0, 1.0))

        def of_event() -> None:
            pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))

        with pytest.raises(ValueError, match=f"model: a plate cannot have the name '{name}'"):
            from_svi(of_plate, AutoNormal(of_plate), num_samples=3)
        with pytest.raises(ValueError, match=f"model: a site cannot have the name '{name}'"):
            from_svi(of_site, AutoNormal(of_site), num_samples=3)
        with pytest.raises(ValueError, match=f"dims: '{name}' cannot be a dimension of 'mu'"):
            from_svi(of_event, AutoNormal(of_event), num_samples=3, dims={"mu": [name]})

    def test_dims_and_coords_of_nothing_are_named(self) -> None:
        with pytest.raises(ValueError, match=r"dims: expected .*\['mu', 'y'\], got 'nu'"):
            from_svi(conjugate, posterior_guide, Y, num_samples=3, dims={"nu": ["a"]})
        with pytest.raises(ValueError, match=r"coords: expected dimensions, .* got 'persons'"):
            from_svi(conjugate, posterior_guide, Y, num_samples=3, coords={"persons": [*"ABCDE"]})
        with pytest.raises(ValueError, match="coords: expected 5 labels along 'person', got 2"):
            from_svi(conjugate, posterior_guide, Y, num_samples=3, coords={"person": [*"AB"]})

    def test_no_samples_are_refused(self) -> None:
        with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
            from_svi(conjugate, posterior_guide, Y, num_samples=0)


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


def test_neutra_chains_keep_their_order() -> None:
    """Divergences and samples of two chains; one of the draws at a time gives the same."""
    guide = AutoMultivariateNormal(grouped, init_scale=0.4)
    guide(Y)
    neutra = NeuTraReparam(guide.requires_grad_(False))
    neutra.reparam(grouped)(Y)
    noise = torch.arange(2 * 6 * 3.0).reshape(2, 6, 3) / 10

    class Run:
        def get_samples(self, group_by_chain: bool) -> dict[str, Tensor]:
            return {"_shared_latent": noise}

        def diagnostics(self) -> dict[str, dict[str, list[int]]]:
            return {"divergences": {"chain 0": [], "chain 1": [4]}}

    data = from_neutra(Run(), neutra, Y, coords={"side": ["left", "right"]})
    expected = neutra.transform_sample(noise.unsqueeze(-2))
    expected["mu"] = expected["mu"].squeeze(-1)
    assert data.posterior["effect"].dims == ("chain", "draw", "side")
    for name in ("effect", "mu"):
        np.testing.assert_allclose(data.posterior[name], expected[name].numpy(), rtol=1e-6)
    np.testing.assert_array_equal(np.argwhere(data.sample_stats["diverging"].values), [[1, 4]])
    one_by_one = from_neutra(Run(), neutra, Y, chunk_size=1)
    for group, name in (("log_likelihood", "y"), ("sample_stats", "lp")):
        np.testing.assert_allclose(data[group][name], one_by_one[group][name], rtol=1e-5)


def grouped(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("side", 2):
        effect = pyro.sample("effect", dist.LogNormal(mu, 1.0))
    with pyro.plate("person", len(y)):
        pyro.sample("y", dist.Normal(effect.sum(-1, keepdim=True), 1.0), obs=y)


class TestSchema:
    """What the installed ArviZ asks of its container."""

    @pytest.fixture
    def data(self) -> object:
        guide = AutoNormal(conjugate)
        return from_svi(conjugate, guide, Y, num_samples=30, coords={"person": [*"ABCDE"]})

    def test_it_is_arvizs_own(self, data: Any) -> None:
        if hasattr(az, "from_pyro"):
            assert isinstance(data, az.InferenceData)
            assert set(data.groups()) <= set(az.data.inference_data.SUPPORTED_GROUPS)
        else:
            assert type(data).__name__ == "DataTree"
            named = {
                g: [*data[g].attrs.get("sample_dims", "?")] for g in groups(data)
            }  # not in 1.0
            assert named["posterior"] in (["chain", "draw"], ["?"])
            assert named["observed_data"] in ([], ["?"])

    def test_attributes(self, data: Any) -> None:
        for group in groups(data):
            attributes = data[group].attrs
            assert attributes["inference_library"] == "pyro"
            assert attributes["inference_library_version"] == pyro.__version__
            assert "created_at" in attributes

    def test_dimensions_and_coordinates(self, data: Any) -> None:
        for group in groups(data) - {"observed_data"}:
            for variable in data[group].data_vars.values():
                assert variable.dims[:2] == ("chain", "draw")
            np.testing.assert_array_equal(data[group]["draw"], np.arange(30))
            np.testing.assert_array_equal(data[group]["chain"], [0])
        assert data["observed_data"]["person"].values.tolist() == [*"ABCDE"]
        assert set(data["sample_stats"].data_vars) == {"lp", "log_weight"}

    def test_the_library_reads_it(self, data: Any) -> None:
        summary = az.summary(data, var_names=["mu"])
        assert summary.index.tolist() == ["mu"]
        assert float(summary["mean"].iloc[0]) == pytest.approx(
            float(data.posterior["mu"].mean()), abs=0.06
        )

    def test_files_keep_it(self, data: Any, tmp_path: Path) -> None:
        path = tmp_path / "data.nc"
        data.to_netcdf(str(path))
        read = az.from_netcdf(str(path))
        assert groups(read) == groups(data)
        for name in ("pareto_k", "effective_draws"):
            found, expected = (d["sample_stats"].attrs[name] for d in (read, data))
            assert found == pytest.approx(expected)
        np.testing.assert_array_equal(read["posterior"]["mu"], data["posterior"]["mu"])


class Unrun:
    """Samples of a run that another reparameteriser made."""

    def get_samples(self, group_by_chain: bool) -> dict[str, Tensor]:
        return {"mu_shared_latent": torch.zeros(1, 2, 1)}


def test_a_run_without_neutra_is_refused() -> None:
    mcmc = MCMC(NUTS(conjugate), num_samples=2, warmup_steps=1, disable_progbar=True)
    mcmc.run(Y)
    guide = AutoMultivariateNormal(conjugate)
    with pytest.raises(ValueError, match=r"neutra: .* has not reparameterised a model yet"):
        from_neutra(Unrun(), NeuTraReparam(guide), Y)
    with pytest.raises(ValueError, match="mcmc: expected one shared latent"):
        from_neutra(mcmc, NeuTraReparam(guide), Y)


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
