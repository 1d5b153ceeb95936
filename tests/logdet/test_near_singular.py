"""Krylov estimates of linear maps with a coefficient close to 1 agree with exact values."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_resflow.logdet import (
    LOG_CAYLEY,
    LOG_ONE_PLUS,
    AdaptiveKrylov,
    Exact,
    Geometric,
    Krylov,
    NoTail,
    SpectralFunction,
    StochasticEstimator,
)
from pyro_resflow.nn import LipschitzLinear, SpectralNorm
from pyro_resflow.nn.networks import Chain

D = 12
FUNCTIONS = {"log(1 + z)": LOG_ONE_PLUS, "Cayley": LOG_CAYLEY}
COEFFICIENTS = [0.98, 0.999, 0.9999]


def network(coefficient: float) -> tuple[Chain, Tensor]:
    """A symmetric linear layer held to a coefficient, and its eigenvalues, half at the limit."""
    others = torch.linspace(-0.6, 0.9, D // 2, dtype=torch.float64)
    eigenvalues = torch.cat([-torch.ones(D - D // 2, dtype=torch.float64), others])
    vectors, _ = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))
    norm = SpectralNorm(coefficient, tolerance=1e-14, max_iterations=2000)
    layer = LipschitzLinear(D, D, norm).double()
    with torch.no_grad():
        layer.weight.copy_(3 * vectors @ eigenvalues.diag() @ vectors.T)
    return Chain([layer]), coefficient * eigenvalues


def trace(function: SpectralFunction, eigenvalues: Tensor) -> float:
    return float(sum(s * (t * eigenvalues).log1p().sum() for s, t in function.terms))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_mean_over_all_probes_is_the_trace(coefficient: float, function: SpectralFunction) -> None:
    net, eigenvalues = network(coefficient)
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=D - 1)), dtype=torch.float64)
    probes = torch.cat([torch.ones(len(signs), 1), signs], dim=1).double()[:, None]
    vjp = net.linearize(torch.zeros(1, D, dtype=torch.float64)).vjp
    with torch.no_grad():  # all 12 products: nothing is left out
        estimate = Krylov(D, tail=NoTail()).estimate(vjp, probes, function)
    exact = trace(function, eigenvalues)
    assert float(estimate.value.mean()) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(
    "estimator",
    [
        lambda: Krylov(6, tail=Geometric(0.5)),
        lambda: AdaptiveKrylov(0.1, max_terms=6, tail=Geometric(0.3)),
    ],
    ids=["krylov", "adaptive"],
)
def test_estimates_are_unbiased(estimator: Callable[[], StochasticEstimator]) -> None:
    net, eigenvalues = network(0.9999)
    exact = trace(LOG_ONE_PLUS, eigenvalues)
    x = torch.randn(500, D, dtype=torch.float64)
    with torch.no_grad():
        assert float(Exact()(net, x[:1])[1]) == pytest.approx(exact, abs=1e-7)
        draws = torch.stack([estimator()(net, x)[1].mean() for _ in range(20)])
    standard_error = float(draws.std()) / len(draws) ** 0.5
    assert standard_error < 0.5  # a quadrature by 32 Legendre nodes is off by 7.8 nats here
    assert abs(float(draws.mean()) - exact) < 4 * standard_error
