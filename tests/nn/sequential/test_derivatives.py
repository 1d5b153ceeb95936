"""Stages of plain networks give the values and derivatives that autograd gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_resflow.linearization import AutogradNetwork, as_linearizable
from pyro_resflow.nn.stages import StagedNetwork
from tests.derivatives import weighted_gradients
from tests.nn.sequential.variants import VARIANTS, build

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def points(event_shape: tuple[int, ...]) -> Tensor:
    """Three samples, one of which is 0, where some derivatives jump."""
    x = 2 * torch.randn(3, *event_shape, dtype=torch.float64)
    x[0] = 0
    return x


@pytest.mark.parametrize("name", VARIANTS)
def test_products_with_the_jacobian_are_those_of_autograd(name: str) -> None:
    net, event_shape = build(name)
    x = points(event_shape)
    staged, general = as_linearizable(net), AutogradNetwork(net)
    assert isinstance(staged, StagedNetwork)
    for probes in (1, 2):
        v, w = torch.randn(2, probes, *x.shape, dtype=torch.float64)
        given = [x.clone(), v.clone(), w.clone()]
        expected = general.linearize(x)
        for has_gradients in (True, False):
            with torch.set_grad_enabled(has_gradients):
                found = staged.linearize(x)
                torch.testing.assert_close(found.value, expected.value, **CLOSE)
                torch.testing.assert_close(found.vjp(w), expected.vjp(w), **CLOSE)
                torch.testing.assert_close(found.jvp(v), expected.jvp(v), **CLOSE)
                torch.testing.assert_close(staged(x), expected.value, **CLOSE)
        torch.testing.assert_close([x, v, w], given, rtol=0, atol=0)


@pytest.mark.parametrize("probes", [1, 2])
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_of_value_and_tangents_are_those_of_autograd(name: str, probes: int) -> None:
    net, event_shape = build(name)
    x = points(event_shape).requires_grad_()
    v, w = torch.randn(2, probes, *x.shape, dtype=torch.float64)
    bar = torch.randn_like(x)
    inputs = [x, *net.parameters()]
    general = AutogradNetwork(net).linearize(x)
    expected = weighted_gradients((general.value, general.jvp(v)), (bar, w), inputs)
    staged = as_linearizable(net)
    linearization = staged.linearize(x)
    outputs = linearization.value, linearization.jvp(v)
    torch.testing.assert_close(weighted_gradients(outputs, (bar, w), inputs), expected, **CLOSE)
    # by hand, as estimators do, then from the coefficients to the parameters
    coefficients = staged.coefficients()
    given = [t.clone() for t in (x, v, bar, w)]
    with torch.no_grad():
        linearization = staged.linearize(x.detach(), coefficients)
        value = linearization.value.clone()
        linearization.vjp(w)
        needed = [True, *(c.requires_grad for c in coefficients)]
        by_x, *found = linearization.dual_vjp(v, bar, w, needed)
    torch.testing.assert_close([x, v, bar, w], given, rtol=0, atol=0)
    torch.testing.assert_close(linearization.value, value, rtol=0, atol=0)
    if coefficients:
        found = weighted_gradients(coefficients, found, list(net.parameters()))
    torch.testing.assert_close([by_x, *found], expected, **CLOSE)
