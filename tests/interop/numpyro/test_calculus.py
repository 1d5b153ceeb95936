from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("numpyro")

import jax
import jax.numpy as jnp

from pyro_resflow.interop.numpyro import Exact as JaxExact
from pyro_resflow.interop.numpyro import calculus, to_jax
from pyro_resflow.interop.numpyro.calculus import invert, linearized, solve
from pyro_resflow.interop.numpyro.layers import Chain
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import InducedNorm, LipschitzMLP
from pyro_resflow.solvers import Anderson

from ...networks import activate_constraints, dense_net_vector, mlp
from .precision import precision, tolerance

inverse = jax.jit(invert)  # compiled once for each kind of network and shape

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "mlp": lambda: mlp(0.95)[0],
    "dense": lambda: dense_net_vector(0.95)[0],
    "induced": lambda: activate_constraints(
        LipschitzMLP(4, [16], norm=InducedNorm.chain(2)), bias=1.0
    ),
}


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("network", NETWORKS)
def test_log_determinants_are_exacts(network: str, name: str) -> None:
    with precision(name) as dtype:
        net = NETWORKS[network]()
        x = 3 * torch.randn(4, 5, 4)
        g, ladj = Exact()(net, x)
        theirs, its = jax.jit(JaxExact().residual)(to_jax(net), jnp.array(x.numpy()))
        tol = tolerance(dtype)
        np.testing.assert_allclose(theirs, g.detach().numpy(), atol=tol, rtol=tol)
        np.testing.assert_allclose(its, ladj.detach().numpy(), atol=tol, rtol=tol)
        assert its.shape == (4, 5)


def test_matrices_are_those_of_the_rows() -> None:
    net = to_jax(mlp(0.9)[0])
    x = jnp.array(torch.randn(5, 4).numpy())
    matrices = linearized(net, x)[1]
    for point, matrix in zip(x, matrices, strict=True):
        np.testing.assert_allclose(matrix, np.eye(4) + jax.jacrev(net)(point), atol=1e-6)


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [0.1, 3.0, 1000.0])
def test_inverses_leave_nothing_but_rounding(network: str, name: str, size: float) -> None:
    with precision(name):
        net = to_jax(NETWORKS[network]())
        y = size * jnp.array(torch.randn(50, 4).numpy())
        x = inverse(net, y)
        residual = abs(x + net(x) - y).max()
        assert residual <= 64 * jnp.finfo(y.dtype).eps * max(1, abs(y).max())


def test_inverses_are_those_of_our_solver() -> None:
    with precision("float64"):
        net = mlp(0.95)[0]
        y = 3 * torch.randn(50, 4)
        expected = Anderson(tolerance=1e-13)(net, y).detach().numpy()
        x = inverse(to_jax(net), jnp.array(y.numpy()))
        np.testing.assert_allclose(x, expected, atol=1e-11)


def test_derivatives_of_the_inverse_are_those_of_our_solver() -> None:
    with precision("float64"):
        net = mlp(0.9)[0]
        y, w = torch.randn(2, 5, 4)
        x = Anderson(tolerance=1e-13)(net, y.requires_grad_())
        expected = torch.autograd.grad((w * x).sum(), [y, net[0].bias])
        weights, its_y = jnp.array(w.numpy()), jnp.array(y.detach().numpy())

        @jax.jit
        @partial(jax.grad, argnums=(0, 1))
        def gradients(net: Chain, y: jax.Array) -> jax.Array:
            return (weights * invert(net, y)).sum()

        by_net, by_y = gradients(to_jax(net), its_y)
        np.testing.assert_allclose(by_y, expected[0].numpy(), atol=1e-10)
        np.testing.assert_allclose(by_net.layers[0].bias, expected[1].numpy(), atol=1e-10)


def test_second_derivatives_and_forward_mode_are_those_of_differences() -> None:
    with precision("float64"):
        net = to_jax(mlp(0.9)[0])
        y, v = jnp.array(torch.randn(2, 4).numpy())

        def total(y: jax.Array) -> jax.Array:
            return (invert(net, y) ** 2).sum()

        both = jax.jit(jax.value_and_grad(total))
        above, below = both(y + 1e-5 * v), both(y - 1e-5 * v)
        bend = jax.jit(lambda y, v: jax.jvp(jax.grad(total), (y,), (v,)))(y, v)
        np.testing.assert_allclose(bend[0] @ v, (above[0] - below[0]) / 2e-5, rtol=1e-7)
        np.testing.assert_allclose(bend[1], (above[1] - below[1]) / 2e-5, atol=1e-7)


def test_each_sample_is_solved_for_itself() -> None:
    """In a batch, under vmap, and beside a sample that is not finite."""
    net = to_jax(mlp(0.9)[0])
    y = jnp.array(torch.randn(6, 4).numpy())
    together = inverse(net, y)
    np.testing.assert_allclose(inverse(net, y[::2]), together[::2], atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(invert, (None, 0)))(net, y), together, atol=1e-6)
    spoiled = inverse(net, y.at[1].set(jnp.nan))
    assert jnp.isnan(spoiled[1]).all()
    np.testing.assert_array_equal(jnp.delete(spoiled, 1, axis=0), jnp.delete(together, 1, axis=0))


def test_where_there_is_no_inverse_the_answer_is_nan() -> None:
    """x + g(x) with g(x) = -x + 1 is 1, whatever x."""
    layer = torch.nn.Linear(3, 3)
    with torch.no_grad():
        layer.weight.copy_(-torch.eye(3))
        layer.bias.fill_(1.0)
    net = to_jax(torch.nn.Sequential(layer))
    y = jnp.array([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    x = inverse(net, y)
    assert jnp.isnan(x[0]).all()


@pytest.mark.parametrize("lipschitz", [0.5, 0.99])
def test_steps_are_few(lipschitz: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten are enough where Banach's iteration alone would take hundreds."""
    monkeypatch.setattr("pyro_resflow.interop.numpyro.calculus.MAX_ITERATIONS", 10)
    net = to_jax(mlp(lipschitz)[0])
    few = jax.jit(lambda net, y: invert(net, y))
    assert jnp.isfinite(few(net, 3 * jnp.array(torch.randn(200, 4).numpy()))).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_large_events_are_solved_by_fixed_points(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As well as by matrices, inverses and their gradients alike."""
    with precision(name) as dtype:
        net = to_jax(mlp(0.9)[0])
        y = jnp.array(torch.randn(5, 4).numpy())

        def results(y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            x = invert(net, y)
            gradient = jax.grad(lambda y: (invert(net, y) ** 2).sum())(y)
            return x, gradient, solve(net, x, y)

        expected = results(y)
        monkeypatch.setattr(calculus, "DENSE_UP_TO", 3)
        for found, wanted in zip(results(y), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=10 * tolerance(dtype))
