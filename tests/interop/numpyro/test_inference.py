from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("numpyro")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceEnum_ELBO
from numpyro.infer.autoguide import AutoBNAFNormal, AutoDiagonalNormal, AutoNormal
from numpyro.infer.reparam import NeuTraReparam

from pyro_resflow import residual_flow
from pyro_resflow.interop.numpyro import Composition, to_numpyro
from pyro_resflow.transforms import initialize

pytestmark = pytest.mark.slow  # compiles whole kernels


def prior(seed: int = 0) -> dist.Distribution:
    torch.manual_seed(seed)
    flow = residual_flow(2, 1, [4], fast="density")
    initialize(flow, 2 * torch.randn(50, 2))
    base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    return dist.TransformedDistribution(base, to_numpyro(flow))


@pytest.mark.parametrize("guide", [AutoNormal, AutoDiagonalNormal, AutoBNAFNormal])
def test_guides_fit_a_translated_flow(guide: type) -> None:
    model = lambda: numpyro.sample("x", prior())  # noqa: E731
    svi = SVI(model, guide(model), numpyro.optim.Adam(0.02), Trace_ELBO(num_particles=8))
    result = svi.run(jax.random.PRNGKey(0), 300, progress_bar=False)
    assert np.mean(result.losses[-50:]) < np.mean(result.losses[:50])
    assert np.mean(result.losses[-50:]) < 0.5


def test_neutra_samples_through_a_guide() -> None:
    model = lambda: numpyro.sample("x", prior())  # noqa: E731
    guide = AutoBNAFNormal(model)
    svi = SVI(model, guide, numpyro.optim.Adam(0.02), Trace_ELBO())
    fitted = svi.run(jax.random.PRNGKey(0), 200, progress_bar=False)
    neutra = NeuTraReparam(guide, fitted.params)
    mcmc = MCMC(NUTS(neutra.reparam(model)), num_warmup=100, num_samples=100, progress_bar=False)
    mcmc.run(jax.random.PRNGKey(1))
    assert mcmc.get_samples()["x"].shape == (100, 2)


def test_discrete_sites_below_a_flow_are_enumerated() -> None:
    """The noise of each datum comes from one of two normals."""
    pytest.importorskip("funsor", reason="NumPyro enumerates by funsor")
    from numpyro.contrib.funsor import config_enumerate

    flow = prior().transforms[0]
    data = jnp.array([[0.5, -0.3], [1.0, 2.0]])

    def density(z: jax.Array) -> dist.Distribution:
        noise = dist.Normal(2.0 * z[..., None] * jnp.ones(2), 1.0).to_event(1)
        return dist.TransformedDistribution(noise, flow)

    def model() -> None:
        with numpyro.plate("data", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("x", density(z), obs=data)

    elbo = TraceEnum_ELBO(max_plate_nesting=1).loss(
        jax.random.PRNGKey(0), {}, config_enumerate(model), lambda: None
    )
    each = [density(jnp.array(float(z))).log_prob(data) for z in (0, 1)]
    expected = jnp.logaddexp(np.log(0.7) + each[0], np.log(0.3) + each[1])
    np.testing.assert_allclose(elbo, -expected.sum(), rtol=1e-5)


def test_flows_are_static_arguments() -> None:
    flow = prior().transforms[0]
    x = jnp.ones((3, 2))

    @partial(jax.jit, static_argnums=0)
    def apply(t: Composition, x: jax.Array) -> jax.Array:
        return t(x)

    np.testing.assert_allclose(apply(flow, x), flow(x), atol=1e-6)
    np.testing.assert_allclose(jax.jit(flow)(x), flow(x), atol=1e-6)
