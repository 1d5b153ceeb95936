"""Scalings by the gains of activations, and shifts."""

from __future__ import annotations

import torch

from pyro_resflow.nn import Chain, LipschitzMLP, Shift


def test_shift_leaves_the_jacobian_alone() -> None:
    shift = Chain([Shift(torch.randn(5, 3))])
    x, v = torch.randn(5, 3), torch.randn(2, 5, 3)
    linearization = shift.linearize(x)
    torch.testing.assert_close(linearization.value, x + shift[0].shift)
    torch.testing.assert_close(shift(x), x + shift[0].shift)
    products = (linearization.vjp(v), linearization.jvp(v))
    torch.testing.assert_close(products, (v, v), rtol=0, atol=0)


def test_scalars_stay_where_they_are_when_another_device_is_the_default() -> None:
    network = LipschitzMLP(3, [8])
    network(torch.randn(5, 3))
    with torch.device("meta"):
        assert not any(coefficient.is_meta for coefficient in network.coefficients())
