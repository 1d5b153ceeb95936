"""Scale and shift by a context."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_resflow.transforms import ConditionalAffine


def affine(context_dim: int = 2) -> ConditionalAffine:
    transform = ConditionalAffine(3, context_dim, [8])
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return transform


def test_affine_map_starts_as_the_identity() -> None:
    x = torch.randn(7, 3)
    y, ladj = ConditionalAffine(3, 2).condition(torch.randn(7, 2)).call_and_ladj(x)
    assert torch.equal(y, x)
    assert torch.equal(ladj, torch.zeros(7))


def test_affine_map_is_that_of_its_scales_and_shifts() -> None:
    transform, context, x = affine(), torch.randn(7, 2), torch.randn(7, 3)
    log_scale, shift = transform.log_scale_and_shift(context)
    assert log_scale.abs().max() > 0.01
    expected = torch.distributions.AffineTransform(shift, log_scale.exp(), event_dim=1)
    y, ladj = transform.condition(context).call_and_ladj(x)
    torch.testing.assert_close(y, expected(x))
    torch.testing.assert_close(ladj, expected.log_abs_det_jacobian(x, y))


def test_no_context_makes_a_scale_overflow() -> None:
    transform = affine().condition(1e10 * torch.randn(7, 2))
    log_scale, _ = transform.conditional.log_scale_and_shift(transform.context)
    assert log_scale.abs().max() <= 5
    assert log_scale.abs().max() > 4.9
    y, ladj = transform.call_and_ladj(torch.randn(7, 3))
    assert y.isfinite().all()
    assert ladj.isfinite().all()


def test_affine_map_of_noise_fits_a_heteroscedastic_normal() -> None:
    x = 2 * torch.rand(500, 1) - 1
    y = 2 * x + (x - 1).exp() * torch.randn(500, 1)
    transform = ConditionalAffine(1, 1, [16])
    base = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    conditional = dist.ConditionalTransformedDistribution(base, [transform])
    optimizer = torch.optim.Adam(transform.parameters(), lr=2e-2)
    for _ in range(300):
        optimizer.zero_grad()
        (-conditional.condition(x).log_prob(y).mean()).backward()
        optimizer.step()
    at = torch.tensor([[-0.8], [0.0], [0.8]])
    log_scale, shift = transform.log_scale_and_shift(at)
    # some 100 points around each: the scale is known to a tenth, the mean to a fifth of it
    assert (log_scale - (at - 1)).abs().max() < 0.3
    assert ((shift - 2 * at).abs() / (at - 1).exp()).max() < 0.5


def test_the_affine_transform_keeps_its_precision_under_autocast() -> None:
    conditional = ConditionalAffine(3, 2)
    with torch.no_grad():
        for parameter in conditional.parameters():
            parameter.add_(torch.randn_like(parameter))
    transform = conditional.condition(torch.randn(7, 2))
    x = torch.randn(7, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, ladj = transform.call_and_ladj(x)
        slopes = torch.autograd.grad(y.sum(), x)[0]
        back = transform.inverse_and_ladj(y)[0]
    assert (y.dtype, ladj.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(ladj, slopes.abs().log().sum(-1))
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-4)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"context: expected shape \(\*batch, 2\)"):
        affine().condition(torch.randn(7, 3))
    with pytest.raises(ValueError, match=r"x: expected shape \(\*batch, 3\)"):
        affine().condition(torch.randn(7, 2))(torch.randn(7, 2))
