"""Traces of functions of the Jacobian other than log(I + J)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_resflow.linearization import Negative, as_linearizable
from pyro_resflow.logdet import (
    LOG_CAYLEY,
    LOG_ONE_PLUS,
    Exact,
    Frozen,
    Krylov,
    NoTail,
    PowerSeries,
    SpectralFunction,
)
from tests.derivatives import weighted_gradients
from tests.networks import NETWORKS


@pytest.mark.parametrize(
    ("function", "coefficients"),
    [(LOG_ONE_PLUS, [1, -1, 1, -1, 1]), (LOG_CAYLEY, [-2, 0, -2, 0, -2])],
)
def test_coefficients_of_the_derivative(
    function: SpectralFunction, coefficients: list[int]
) -> None:
    assert [function.derivative_coefficient(k) for k in range(5)] == coefficients


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_exact_trace_and_gradients_are_those_of_two_determinants(name: str) -> None:
    net, event_shape = NETWORKS[name](0.9)
    net.double()
    x = torch.randn(3, *event_shape, dtype=torch.float64, requires_grad=True)
    inputs, weights = [x, *net.parameters()], torch.randn(1, 3, dtype=torch.float64)
    event_dim = len(event_shape)
    found = Exact()(net, x, event_dim, LOG_CAYLEY)[1]
    below = Exact()(Negative(as_linearizable(net)), x, event_dim)[1]
    expected = below - Exact()(net, x, event_dim)[1]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        weighted_gradients([found], weights, inputs),
        weighted_gradients([expected], weights, inputs),
    )


@pytest.mark.parametrize("estimator", [Krylov(4, tail=NoTail()), PowerSeries(60)])
def test_all_products_give_the_trace_at_a_probe(estimator: Krylov | PowerSeries) -> None:
    matrix = 0.2 * torch.randn(4, 4, dtype=torch.float64)
    net = nn.Linear(4, 4, bias=False).double()
    net.weight.data.copy_(matrix)
    estimator.probe = Frozen(seed=2)
    e = Frozen(seed=2).draw(torch.zeros(1, 4, dtype=torch.float64), 1)[0, 0]
    found = estimator(net, torch.randn(1, 4, dtype=torch.float64), 1, LOG_CAYLEY)[1]
    powers = [-2 * e @ torch.linalg.matrix_power(matrix, k) @ e / k for k in range(1, 60, 2)]
    torch.testing.assert_close(found, sum(powers)[None])


def test_double_backward() -> None:
    net, event_shape = NETWORKS["mlp"](0.9)
    net.double()
    x = torch.randn(2, *event_shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: Exact()(net, x, 1, LOG_CAYLEY)[1], x)
