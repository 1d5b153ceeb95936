from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.distributions.conditional import ConditionalComposeTransformModule
from torch import Tensor, nn
from torch.distributions import Transform

pytest.importorskip("numpyro")

import jax
import jax.numpy as jnp
import jax.test_util
import numpyro
import numpyro.distributions as numpyro_dist
from numpyro.infer import MCMC, NUTS

from pyro_resflow import (
    conditional_residual,
    conditional_residual_flow,
    residual,
    residual_flow,
)
from pyro_resflow.guides import AutoResidualFlow
from pyro_resflow.interop.numpyro import ResidualTransform, to_numpyro
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import CPila, GatedLipschitzMLP, LipschitzDenseNet
from pyro_resflow.solvers import Anderson
from pyro_resflow.transforms import (
    ActNorm,
    Compose,
    Inverse,
    Monotone,
    Residual,
    initialize,
    monotone,
)

from .precision import precision, tolerance

D, C = 3, 2
EXACT = {"logdet": Exact(), "solver": Anderson(tolerance=1e-13)}
EXACT_32 = {"logdet": Exact()}


def guide(**options: Any) -> AutoResidualFlow:
    """A guide of a model of D latent variables, after its first call."""

    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))

    pyro.clear_param_store()
    made = AutoResidualFlow(model, blocks=1, hidden_dims=[8], **options)
    made()
    return made


TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "sampling": lambda **options: residual_flow(D, 2, [8], **options),
    "density": lambda **options: residual_flow(D, 2, [8], fast="density", **options),
    "gated": lambda **options: residual_flow(
        D, 2, [8], network=GatedLipschitzMLP, reach=2.0, **options
    ),
    "dense": lambda **options: Residual(LipschitzDenseNet(D, depth=2, growth=4), **options),
    "monotone": lambda **options: Compose(
        [monotone(D, [8], activation=CPila, **options), ActNorm(D)]
    ),
    "composed": lambda **options: Compose(
        [
            residual(D, [8], **options),
            T.Permute(torch.tensor([2, 0, 1])),
            torch.distributions.AffineTransform(0.5, torch.tensor([1.0, -2.0, 3.0])),
            Inverse(residual(D, [8], **options)),
        ]
    ),
    "guide": lambda **options: guide(**options).transform,
    "of_pyro": lambda **options: dist.ComposeTransformModule(
        [residual(D, [8], **options), T.Permute(torch.tensor([2, 0, 1]))]
    ),
}


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    with precision(request.param) as dtype:
        yield dtype


def trained(make: Callable[..., nn.Module], dtype: torch.dtype, size: int = D) -> nn.Module:
    """A transform away from its start, its reference as precise as the type allows."""
    flow = make(**(EXACT if dtype == torch.float64 else EXACT_32))
    if isinstance(flow, Transform):
        initialize(flow, 2 * torch.randn(50, size))
    elif any(isinstance(part, ActNorm) for part in flow.modules()):
        initialize(flow, 2 * torch.randn(50, size), torch.randn(50, C))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow


def density(flow: Transform) -> dist.TransformedDistribution:
    base = dist.Normal(torch.zeros(D), torch.ones(D)).to_event(1)
    return dist.TransformedDistribution(base, [flow])


def jax_array(x: Tensor) -> jax.Array:
    return jnp.array(x.detach().numpy())


def assert_equal(actual: jax.Array, expected: Tensor) -> None:
    tol = tolerance(expected.dtype)
    np.testing.assert_allclose(actual, expected.detach().numpy(), atol=tol, rtol=tol)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_densities_and_directions_are_pyros(name: str, dtype: torch.dtype) -> None:
    flow = trained(TRANSFORMS[name], dtype)
    theirs = to_numpyro(density(flow))
    x = 2 * torch.randn(4, 5, D)
    t = to_numpyro(flow)
    log_prob, y, back = jax.jit(lambda x: (theirs.log_prob(x), t(x), t.inv(x)))(jax_array(x))
    assert log_prob.dtype == jnp.dtype(str(dtype).removeprefix("torch."))
    assert_equal(log_prob, density(flow).log_prob(x))
    assert_equal(y, flow(x))
    assert_equal(back, flow.inv(x))
    assert t.domain.event_dim == t.codomain.event_dim == 1


@pytest.mark.parametrize("name", ["sampling", "density", "monotone"])
def test_gradients_are_pyros(name: str, dtype: torch.dtype) -> None:
    flow = trained(TRANSFORMS[name], dtype)
    theirs = to_numpyro(density(flow))
    x = torch.randn(5, D, requires_grad=True)
    expected = torch.autograd.grad(density(flow).log_prob(x).sum(), x)[0]
    gradient = jax.jit(jax.grad(lambda x: theirs.log_prob(x).sum()))(jax_array(x))
    assert_equal(gradient, expected)


@pytest.mark.parametrize("fast", ["sampling", "density"])
@pytest.mark.parametrize(
    "make",
    [
        lambda **options: conditional_residual(D, C, [8], **options),
        lambda **options: conditional_residual_flow(D, C, 2, [8], **options),
    ],
    ids=["block", "flow"],
)
def test_conditional(make: Callable[..., Any], fast: str, dtype: torch.dtype) -> None:
    flow = trained(lambda **options: make(fast=fast, **options), dtype)
    x, c = torch.randn(5, D), torch.randn(5, C)
    expected = density(flow.condition(c)).log_prob(x)
    t = to_numpyro(flow)
    base = numpyro_dist.Normal(jnp.zeros(D), 1.0).to_event(1)

    @jax.jit
    def log_prob(t: object, x: jax.Array, c: jax.Array) -> jax.Array:
        return numpyro_dist.TransformedDistribution(base, t.condition(c)).log_prob(x)

    assert_equal(log_prob(t, jax_array(x), jax_array(c)), expected)
    one_by_one = jax.vmap(log_prob, (None, 0, 0))(t, jax_array(x), jax_array(c))
    assert_equal(one_by_one, expected)
    assert_equal(to_numpyro(flow.condition(c))(jax_array(x)), flow.condition(c)(x))


def test_contexts_broadcast() -> None:
    flow = conditional_residual(D, C, [8])
    c, x = torch.randn(7, C), torch.randn(6, 1, D)
    t = to_numpyro(flow).condition(jax_array(c))
    assert t(jax_array(x)).shape == t.forward_shape(x.shape) == (6, 7, D)
    assert_equal(t(jax_array(x)), flow.condition(c)(x))
    base = numpyro_dist.Normal(jnp.zeros(D), 1.0).to_event(1)
    d = numpyro_dist.TransformedDistribution(base, t)
    assert d.batch_shape == (7,)
    assert d.sample(jax.random.PRNGKey(0), (2,)).shape == (2, 7, D)


def test_conditional_compositions() -> None:
    parts = [conditional_residual(D, C, [8]), ActNorm(D, initialized=True)]
    flow = ConditionalComposeTransformModule(parts)
    x, c = torch.randn(5, D), torch.randn(5, C)
    t = to_numpyro(flow).condition(jax_array(c))
    assert_equal(t(jax_array(x)), flow.condition(c)(x))


def test_value_and_log_determinant_take_one_pass() -> None:
    flow = trained(lambda **options: residual(D, [8], **options), torch.float32)
    t = to_numpyro(flow)
    x = jax_array(torch.randn(5, D))
    y, intermediates = t.call_with_intermediates(x)
    np.testing.assert_allclose(y, t(x), atol=1e-6)
    np.testing.assert_allclose(intermediates, t.log_abs_det_jacobian(x, y), atol=1e-6)
    assert t.log_abs_det_jacobian(x, y, intermediates) is intermediates


@pytest.mark.parametrize("name", ["density", "monotone"])
def test_gradients_by_the_weights_are_finite_differences(name: str) -> None:
    with precision("float64"):
        t = to_numpyro(trained(TRANSFORMS[name], torch.float64))
        x = jax_array(torch.randn(5, D))

        @jax.jit  # without it, each operation of the many evaluations is compiled alone
        def loss(t: numpyro_dist.transforms.Transform) -> jax.Array:
            y = t(x)
            return (y**2).sum() + t.log_abs_det_jacobian(x, y).sum()

        jax.test_util.check_grads(loss, (t,), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


class TestPytrees:
    @pytest.fixture(params=["density", "monotone"])
    def flow(self, request: pytest.FixtureRequest) -> Transform:
        return trained(TRANSFORMS[request.param], torch.float32)

    def test_round_trips_and_copies(self, flow: Transform) -> None:
        t = to_numpyro(flow)
        x = jax_array(torch.randn(5, D))
        leaves, tree = jax.tree_util.tree_flatten(t)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
        twins = [
            jax.tree_util.tree_unflatten(tree, leaves),
            copy.deepcopy(t),
            pickle.loads(pickle.dumps(t)),
        ]
        for twin in twins:
            np.testing.assert_array_equal(twin.inv(x), t.inv(x))

    def test_as_arguments_of_compiled_functions(self, flow: Transform) -> None:
        x = jax_array(torch.randn(5, D))
        traces = []

        @jax.jit
        def apply(t: ResidualTransform, x: jax.Array) -> jax.Array:
            traces.append(1)
            return t.inv(x)

        for _ in range(2):
            t = to_numpyro(flow)
            np.testing.assert_allclose(apply(t, x), t.inv(x), atol=1e-6)
        assert len(traces) == 1

    def test_ensembles_map(self) -> None:
        flows = [residual_flow(D, 1, [8]) for _ in range(4)]
        ensemble = [to_numpyro(flow) for flow in flows]
        stacked = jax.tree_util.tree_map(lambda *leaves: jnp.stack(leaves), *ensemble)
        x = torch.randn(5, D)
        values = jax.vmap(lambda t: t(jax_array(x)))(stacked)
        assert_equal(values, torch.stack([flow(x) for flow in flows]))

    def test_equality_is_that_of_the_weights(self) -> None:
        flow = residual(D, [8])
        first, second = to_numpyro(flow), to_numpyro(flow)
        assert bool(first.eq(second))
        assert first == jax.tree_util.tree_map(lambda leaf: leaf, first)
        assert not bool(first.eq(to_numpyro(residual(D, [8]))))
        assert not first.eq(to_numpyro(residual(D, [9])))
        assert not first.eq(second.inv)
        assert not first.eq(to_numpyro(Monotone(flow.net)))


def test_weights_are_copied() -> None:
    flow = residual_flow(D, 1, [8])
    t = to_numpyro(flow)
    x = jnp.ones((2, D))
    before = t(x)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(1)
    np.testing.assert_array_equal(t(x), before)


def test_any_normal_base() -> None:
    scale_tril = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    d = dist.TransformedDistribution(
        dist.MultivariateNormal(torch.ones(2), scale_tril=scale_tril),
        [residual(2, [8], **EXACT_32)],
    )
    x = torch.randn(5, 2)
    assert_equal(to_numpyro(d).log_prob(jax_array(x)), d.log_prob(x))


@pytest.mark.slow
@pytest.mark.parametrize("fast", ["density", "sampling"])
def test_nuts_samples_the_flow(fast: str) -> None:
    """In either direction; brought back to the base, the samples are standard normal."""
    make = partial(residual_flow, 2, 1, [8], fast=fast)
    flow = trained(make, torch.float32, size=2)
    prior = to_numpyro(
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1), [flow]
        )
    )
    kernel = NUTS(lambda: numpyro.sample("x", prior))
    mcmc = MCMC(kernel, num_warmup=200, num_samples=400, progress_bar=False)
    mcmc.run(jax.random.PRNGKey(0))
    noise = prior.transforms[0].inv(mcmc.get_samples()["x"])
    effective = numpyro.diagnostics.effective_sample_size(np.asarray(noise)[None])
    assert effective.min() > 40
    assert (abs(noise.mean(0)) < 4 / np.sqrt(effective)).all()
    spread = numpyro.diagnostics.effective_sample_size(np.asarray(noise**2)[None])
    assert (abs((noise**2).mean(0) - 1) < 4 * np.sqrt(2 / spread)).all()
    assert not mcmc.get_extra_fields()["diverging"].any()


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (T.Spline(D), "got Spline, which has no translation to NumPyro"),
        (dist.Gamma(1.0, 1.0), "got Gamma, which has no translation to NumPyro"),
        (ActNorm(D), "not initialised"),
        (T.Permute(torch.tensor([1, 0]), dim=-2), "dim=-2"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_translated_is_named(thing: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_numpyro(thing)


def test_translations_can_be_added() -> None:
    class Exponential(torch.distributions.ExpTransform):
        pass

    to_numpyro.register(Exponential, lambda flow: numpyro_dist.transforms.ExpTransform())
    flow = Compose([residual(D, [8]), Exponential()])
    x = torch.randn(5, D)
    assert_equal(to_numpyro(flow)(jax_array(x)), flow(x))
