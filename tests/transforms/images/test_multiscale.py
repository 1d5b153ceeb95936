"""Squeeze, Split and Multiscale: layout and errors."""

import copy

import pyro.distributions.transforms as pyro_transforms
import pytest
import torch

from pyro_resflow import conditional_residual
from pyro_resflow.transforms import ActNorm, Compose, Logit, Multiscale, Split, Squeeze


def test_squeeze_keeps_each_2x2_block_together() -> None:
    x = torch.arange(16.0).reshape(1, 4, 4)
    y = Squeeze()(x)
    assert y.shape == (4, 2, 2)
    assert y[:, 0, 0].tolist() == [0.0, 1.0, 4.0, 5.0]


def test_squeeze_names_sizes_it_cannot_divide() -> None:
    with pytest.raises(ValueError, match="divisible by 2"):
        Squeeze()(torch.randn(2, 1, 5, 4))
    with pytest.raises(ValueError, match="C divisible by 4"):
        Squeeze().inv(torch.randn(2, 3, 4, 4))


def test_squeeze_of_an_empty_batch_has_the_shape_of_a_full_one() -> None:
    y, ladj = Squeeze().call_and_ladj(torch.rand(0, 1, 4, 6))
    assert (y.shape, ladj.shape) == ((0, 4, 2, 3), (0,))
    assert Squeeze()._inverse(y).shape == (0, 1, 4, 6)


def test_split_puts_the_factored_out_half_first() -> None:
    x = torch.randn(5, 4, 2, 2)
    y = Split(ActNorm(2, event_dim=3, initialized=True), (4, 2, 2))(x)
    assert torch.equal(y[:, :8], x[:, 2:].flatten(1))
    assert torch.equal(y[:, 8:], x[:, :2].flatten(1))


def test_split_leaves_the_factored_out_half_untouched_by_the_inner_transform() -> None:
    inner = ActNorm(2, event_dim=3)
    split = Split(inner, (4, 2, 2))
    x = torch.randn(50, 4, 2, 2)
    split(x)
    y, ladj = split.call_and_ladj(x)
    torch.testing.assert_close(ladj, inner.call_and_ladj(x[:, :2])[1])
    assert torch.equal(y[:, :8], x[:, 2:].flatten(1))


def test_split_needs_two_channels() -> None:
    with pytest.raises(ValueError, match="two channels"):
        Split(ActNorm(1, event_dim=3), (1, 4, 4))


def test_multiscale_orders_latents_from_the_first_level_on() -> None:
    levels = [Squeeze(), Squeeze(), ActNorm(4, event_dim=3, initialized=True)]
    flow = Multiscale(levels, (1, 8, 8))
    x = torch.randn(3, 1, 8, 8)
    z = flow(x)
    first = Squeeze()(x)
    second = Squeeze()(first[:, :2])
    assert z.shape == (3, 64)
    assert torch.equal(z[:, :32], first[:, 2:].flatten(1))
    assert torch.equal(z[:, 32:48], second[:, 4:].flatten(1))
    assert torch.equal(z[:, 48:], second[:, :4].flatten(1))
    assert torch.equal(flow.inv(z.clone()), x)


def test_compose_needs_a_part() -> None:
    with pytest.raises(ValueError, match="at least one transform"):
        Compose([])
    with pytest.raises(ValueError, match="levels"):
        Multiscale([], (1, 4, 4))


def test_compose_takes_bijections_only() -> None:
    with pytest.raises(ValueError, match="bijections"):
        Compose([torch.distributions.AbsTransform()])
    with pytest.raises(ValueError, match="conditioned first"):
        Compose([conditional_residual(2, 3)])


def test_compose_registers_what_torchs_inverses_and_compositions_hide() -> None:
    coupling = pyro_transforms.affine_coupling(2)
    hidden = torch.distributions.ComposeTransform([coupling.inv])
    assert list(Compose([hidden]).parameters()) == list(coupling.parameters())


def test_compose_forgets_what_pyros_transforms_remember() -> None:
    flow = Compose([pyro_transforms.spline(2), pyro_transforms.affine_coupling(2)])
    x = torch.randn(4, 2)
    with torch.no_grad():
        flow(x)
    assert flow(x).requires_grad
    flow.call_and_ladj(x)
    copy.deepcopy(flow)
    with torch.no_grad():
        before = flow(x)
        for parameter in flow.parameters():
            parameter.add_(0.5)
        assert not torch.equal(flow(x), before)


def test_levels_of_entries_end_in_a_vector_too() -> None:
    x = torch.rand(5, 4, 2, 2)
    for flow in (Multiscale([Logit(0.05)], (4, 2, 2)), Split(Logit(0.05), (4, 2, 2))):
        y, ladj = flow.call_and_ladj(x)
        assert (y.shape, ladj.shape) == ((5, 16), (5,))
        back, again = flow.inverse_and_ladj(y)
        torch.testing.assert_close(back, x)
        torch.testing.assert_close(again, ladj)
