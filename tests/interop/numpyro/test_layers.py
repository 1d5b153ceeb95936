from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("numpyro")

import jax
import jax.numpy as jnp

from pyro_resflow.interop.numpyro import to_jax
from pyro_resflow.nn import (
    ELU,
    Activation,
    CLipSwish,
    ConditionalChain,
    ConditionalGatedLipschitzMLP,
    ConditionalLipschitzMLP,
    CPila,
    InducedNorm,
    LipschitzDenseNet,
    LipschitzLayer,
    LipschitzMLP,
    LipSwish,
    Pila,
    Softplus,
    Tanh,
)

from .precision import precision, tolerance

D, C = 3, 2
ACTIVATIONS = [LipSwish, ELU, Tanh, Softplus, Pila, CLipSwish, CPila]
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{
        kind.__name__: lambda kind=kind: LipschitzMLP(D, [8, 6], activation=kind)
        for kind in ACTIVATIONS
    },
    "preactivation": lambda: LipschitzMLP(D, [8], preactivation=True),
    "induced": lambda: LipschitzMLP(D, [8], norm=InducedNorm.chain(2)),
    "dense": lambda: LipschitzDenseNet(D, depth=2, growth=8),
    "dense_pila": lambda: LipschitzDenseNet(D, depth=3, growth=4, activation=CPila),
    "plain": lambda: nn.Sequential(nn.Linear(D, 8), nn.ELU(), nn.Linear(8, 8), nn.Softplus()),
}


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    with precision(request.param) as dtype:
        yield dtype


def spread(module: nn.Module) -> nn.Module:
    """Weights well away from their start, some of them beyond their Lipschitz bound."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_jacobians_are_torchs(name: str, dtype: torch.dtype) -> None:
    net = spread(NETWORKS[name]())
    translated = to_jax(net)
    x = 3 * torch.randn(50, D)
    tol = tolerance(dtype)
    value = net(x).detach().numpy()
    np.testing.assert_allclose(translated(jnp.array(x.numpy())), value, atol=tol, rtol=tol)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: net(x)))(x).detach().numpy()
    its = jax.vmap(jax.jacfwd(translated))(jnp.array(x.numpy()))
    np.testing.assert_allclose(its, jacobian, atol=tol, rtol=tol)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_from_end_to_end(kind: Callable[[], Activation], dtype: torch.dtype) -> None:
    """At 0 too, where some have two branches, and where torch's softplus becomes the identity."""
    phi = kind()
    x = torch.tensor([-100.0, -25, -1, -1e-3, 0, 1e-3, 1, 19, 21, 25, 100])[:, None]
    tol = tolerance(dtype)
    translated = to_jax(phi)
    its = jnp.array(x.numpy())
    np.testing.assert_allclose(translated(its), phi(x).detach().numpy(), atol=tol, rtol=tol)
    slope = jax.vmap(jax.jacfwd(translated))(its)[..., 0]
    np.testing.assert_allclose(slope, phi.slope(x).detach().numpy(), atol=1e-5, rtol=tol)
    assert np.isfinite(jax.vmap(jax.jacrev(translated))(its)).all()


def test_constants_are_as_precise_as_the_weights() -> None:
    """Of a network in float64 where torch's default is float32, and the other way round."""
    with precision("float64"):
        torch.set_default_dtype(torch.float32)
        for dtype in (torch.float32, torch.float64):
            net = LipschitzMLP(D, [8], activation=CPila).to(dtype)
            x = torch.randn(5, D, dtype=dtype)
            value = to_jax(net)(jnp.array(x.numpy()))
            assert value.dtype == x.numpy().dtype
            tol = tolerance(dtype)
            np.testing.assert_allclose(value, net(x).detach().numpy(), atol=tol, rtol=tol)


def test_weights_beyond_their_bound_arrive_divided() -> None:
    net = spread(LipschitzMLP(D, [8]))
    assert max(layer.sigma() for layer in net if isinstance(layer, LipschitzLayer)) > 1.5
    first = to_jax(net).layers[0]
    assert np.linalg.norm(first.weight, 2) < 0.99
    np.testing.assert_array_equal(first.weight, net[0].effective_weight().detach().numpy())


def test_the_copy_does_not_follow_the_original() -> None:
    net = LipschitzMLP(D, [8])
    translated = to_jax(net)
    x = jnp.ones((4, D))
    before = translated(x)
    spread(net)
    np.testing.assert_array_equal(translated(x), before)


@pytest.mark.parametrize("batch", [(), (5,), (4, 5)])
@pytest.mark.parametrize("network", [ConditionalLipschitzMLP, ConditionalGatedLipschitzMLP])
def test_conditional_networks(
    network: type[ConditionalChain], batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    net = spread(network(D, C, [8, 6], context_hidden_dims=[5]))
    x, c = torch.randn(*batch, D), torch.randn(*batch, C)
    expected = net.bind(c.reshape(-1, C))(x.reshape(-1, D)).reshape(x.shape).detach().numpy()
    bound = to_jax(net).bind(jnp.array(c.numpy()))
    tol = tolerance(dtype)
    np.testing.assert_allclose(bound(jnp.array(x.numpy())), expected, atol=tol, rtol=tol)
    assert bound.batch_shape == batch


def test_batch_dimensions_pass() -> None:
    translated = to_jax(LipschitzDenseNet(D, depth=2, growth=8))
    x = jnp.arange(24.0).reshape(2, 4, D)
    assert translated(x).shape == x.shape
    np.testing.assert_allclose(translated(x)[1, 2], translated(x[1, 2]), atol=1e-6)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), "unit stride"),
        (nn.Conv2d(1, 1, 3), "keeps the image size"),
        (nn.Sequential(nn.MaxPool2d(2)), "got MaxPool2d, which has no translation"),
        (
            nn.Sequential(nn.Linear(D, D), nn.Bilinear(2, 2, 2)),
            "got Bilinear, which has no translation",
        ),
        (nn.ELU(alpha=0.5), "expected alpha=1.0, got ELU"),
    ],
)
def test_what_cannot_be_translated_is_named(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_jax(module)


def test_translations_can_be_added() -> None:
    class Sine(nn.Module):
        pass

    class JaxSine(NamedTuple):
        frequency: float

        def __call__(self, x: jax.Array) -> jax.Array:
            return jnp.sin(self.frequency * x)

    to_jax.register(Sine, lambda module: JaxSine(9.0))
    net = to_jax(nn.Sequential(nn.Linear(D, D), Sine()))
    assert (abs(jax.jit(lambda net, x: net(x))(net, jnp.ones((2, D)))) <= 1).all()
