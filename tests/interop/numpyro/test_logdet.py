from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("numpyro")

import jax
import jax.numpy as jnp
import jax.test_util

from pyro_resflow import conditional_residual, residual_flow
from pyro_resflow.interop.numpyro import Krylov, to_jax, to_numpyro, with_logdet
from pyro_resflow.interop.numpyro.layers import Chain, Linear
from pyro_resflow.interop.numpyro.logdet import EXACT_UP_TO, Exact, _first_column_of_inverse
from pyro_resflow.nn import LipschitzConvNet
from pyro_resflow.transforms import Residual, monotone

from ...networks import mlp
from .precision import precision, quick_compilation

KEYS = 400


def linear(matrix: np.ndarray) -> Chain:
    return Chain((Linear(jnp.asarray(matrix), None),))


@pytest.mark.parametrize("name", ["residual", "cayley"])
def test_estimates_average_to_the_exact_value(name: str) -> None:
    """By z-scores over keys; with as many products as dimensions nothing is left out."""
    with precision("float64"), quick_compilation():
        net = to_jax(mlp(0.95)[0])
        x = jnp.array(torch.randn(2, 4).numpy())

        def value(logdet: Exact | Krylov) -> jax.Array:
            result = getattr(logdet, name)(net, x)
            return result[1] if name == "residual" else result

        keys = jax.random.split(jax.random.PRNGKey(0), KEYS)
        draws = jax.jit(jax.vmap(lambda key: value(Krylov(key))))(keys)
        z = (draws.mean(0) - value(Exact())) / (draws.std(0) / np.sqrt(KEYS))
        assert (abs(z) < 4).all()
        assert (draws.std(0) > 1e-3).all()


@pytest.mark.parametrize("size", [1, 2, 7])
def test_hessenberg_systems_are_solved(size: int) -> None:
    with precision("float64"):
        matrices = np.eye(size) + 0.5 * np.triu(
            np.random.default_rng(0).normal(size=(5, size, size)), -1
        )
        unit = np.broadcast_to(np.eye(size)[:, :1], (5, size, 1))
        np.testing.assert_allclose(
            _first_column_of_inverse(jnp.asarray(matrices)),
            np.linalg.solve(matrices, unit)[..., 0],
            rtol=1e-10,
        )


@pytest.mark.parametrize("name", ["residual", "cayley"])
def test_estimates_run_without_lapack(name: str) -> None:
    """Batched calls of which hang on two cores, see :func:`_first_column_of_inverse`."""
    net = to_jax(mlp(0.95)[0])
    krylov = Krylov(jax.random.PRNGKey(0))
    program = str(jax.make_jaxpr(lambda x: getattr(krylov, name)(net, x))(jnp.ones((2, 4))))
    assert "dot_general" in program
    assert not [call for call in ("triangular_solve", "lu[", "lu_solve") if call in program]


@pytest.mark.parametrize("eigenvalue", [-0.99, 0.5])
def test_multiples_of_the_identity_are_exact(eigenvalue: float) -> None:
    """Whose Krylov space ends after one product, and whose estimate has no noise."""
    with precision("float64"):
        net = linear(eigenvalue * np.eye(3))
        ladj = Krylov(jax.random.PRNGKey(1), products=3).residual(net, jnp.ones((2, 3)))[1]
        np.testing.assert_allclose(ladj, 3 * np.log1p(eigenvalue), rtol=1e-11)


def test_the_gradient_is_that_of_the_value() -> None:
    with precision("float64"), quick_compilation():
        net = to_jax(mlp(0.9)[0])
        krylov = Krylov(jax.random.PRNGKey(2), products=3, probes=2)
        x = jnp.array(torch.randn(2, 4).numpy())
        value = jax.jit(lambda net, x: krylov.residual(net, x)[1].sum())
        jax.test_util.check_grads(value, (net, x), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_gradients_are_finite_where_the_space_is_exhausted() -> None:
    gradient = jax.grad(
        lambda matrix: (
            Krylov(jax.random.PRNGKey(0), products=3)
            .residual(linear(matrix), jnp.ones((1, 3)))[1]
            .sum()
        )
    )(0.5 * jnp.eye(3))
    np.testing.assert_allclose(jnp.trace(gradient), 3 / 1.5, rtol=1e-5)


def test_each_block_gets_probes_of_its_own() -> None:
    flow = with_logdet(to_numpyro(residual_flow(3, 2, [4])), Krylov(jax.random.PRNGKey(0), 2))
    blocks = [part for part in flow.parts if hasattr(part, "logdet")]
    assert len(blocks) == 2
    assert {(block.logdet.products, block.logdet.probes) for block in blocks} == {(2, 1)}
    first, second = (block.logdet.key for block in blocks)
    assert not np.array_equal(first, second)
    assert isinstance(with_logdet(blocks[0], Exact()).logdet, Exact)


def test_conditional_and_monotone_flows_take_estimators() -> None:
    krylov = Krylov(jax.random.PRNGKey(0))
    conditional = with_logdet(to_numpyro(conditional_residual(3, 2, [4])), krylov)
    assert isinstance(conditional.condition(jnp.ones(2)).logdet, Krylov)
    assert isinstance(with_logdet(to_numpyro(monotone(3, [4])), krylov).logdet, Krylov)


@pytest.mark.slow
def test_large_events_are_scored_by_estimates_alone() -> None:
    event = (1, 33, 32)
    flow = to_numpyro(Residual(LipschitzConvNet(event, (1,), kernel_sizes=(3, 1))))
    x = jnp.zeros((1, *event))
    with pytest.raises(ValueError, match=f"at most {EXACT_UP_TO}.*with_logdet"):
        flow.log_abs_det_jacobian(x, x)
    estimated = with_logdet(flow, Krylov(jax.random.PRNGKey(0), products=2))
    assert estimated.log_abs_det_jacobian(x, x).shape == (1,)
    np.testing.assert_allclose(estimated.inv(estimated(x + 1)), x + 1, atol=1e-5)


@pytest.mark.parametrize("name", ["products", "probes"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        Krylov(jax.random.PRNGKey(0), **{name: 0})
