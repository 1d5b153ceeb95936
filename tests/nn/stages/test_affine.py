from __future__ import annotations

import torch

from pyro_resflow.nn import Chain, LipschitzLinear, LipSwish


def test_the_gradient_of_a_bias_sums_over_the_rows_of_a_matrix() -> None:
    """A linear layer acts on the last dimension; here as many rows come before it."""
    net = Chain([LipschitzLinear(3, 3), LipSwish(), LipschitzLinear(3, 3)], event_dim=2).double()
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    v, w = torch.randn(2, 1, *x.shape, dtype=torch.float64)
    coefficients = net.coefficients()
    needed = [True] * (1 + len(coefficients))
    with torch.no_grad():
        found = net.linearize(x, coefficients).dual_vjp(v, x, w, needed)
    point = x.clone().requires_grad_()
    linearization = net.linearize(point)
    outputs = linearization.value, linearization.jvp(v)
    expected = torch.autograd.grad(outputs, list(net.parameters()), (x, w))
    gradients = torch.autograd.grad(coefficients, list(net.parameters()), found[1:])
    torch.testing.assert_close(gradients, expected)
