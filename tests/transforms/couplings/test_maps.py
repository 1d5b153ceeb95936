"""Scales of affine maps, and their initial values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pyro_resflow.transforms import AffineMap, BoundedLogScale, LearnedLogScale, SigmoidScale


@pytest.mark.parametrize("scale", [BoundedLogScale(), BoundedLogScale(5.0), LearnedLogScale()])
def test_zero_parameters_are_the_identity(scale: nn.Module) -> None:
    x = torch.randn(7, 3)
    y, log_slope = AffineMap(scale)(x, torch.zeros(7, 2, 3))
    assert torch.equal(y, x)
    assert torch.equal(log_slope, torch.zeros(7, 3))


def test_learned_amplitude_starts_at_zero_and_learns() -> None:
    scale = LearnedLogScale()
    h = torch.randn(7, 3)
    assert torch.equal(scale(h), torch.zeros(7, 3))
    scale(h).sum().backward()
    torch.testing.assert_close(scale.amplitude.grad, h.tanh().sum())


def test_glows_scale_starts_at_its_offset() -> None:
    y, log_slope = AffineMap(SigmoidScale())(torch.ones(7, 3), torch.zeros(7, 2, 3))
    torch.testing.assert_close(y, torch.full((7, 3), 2.0).sigmoid())
    torch.testing.assert_close(log_slope.exp(), y)


def test_jets_scale_starts_at_one_and_stays_below_two() -> None:
    scale = SigmoidScale(offset=0.0, factor=2.0)
    scales = scale(torch.tensor([-3.0, 0.0, 30.0])).exp()
    torch.testing.assert_close(scales, torch.tensor([2 / (1 + math.exp(3)), 1.0, 2.0]))
    with pytest.raises(ValueError, match="factor: expected a positive number, got 0"):
        SigmoidScale(factor=0.0)


def test_bounded_log_scale_keeps_within_its_bound_and_the_slope_at_zero() -> None:
    scale = BoundedLogScale(5.0)
    assert scale(torch.tensor([-1e10, 1e10])).tolist() == [-5.0, 5.0]
    h = torch.zeros((), requires_grad=True)
    scale(h).backward()
    assert h.grad == 1


def test_affine_takes_scale_then_shift() -> None:
    x, h, shift = torch.randn(3, 7, 4).unbind()
    y, log_slope = AffineMap()(x, torch.stack([h, shift], dim=1))
    torch.testing.assert_close(y, x * h.tanh().exp() + shift)
    torch.testing.assert_close(log_slope, h.tanh())


def test_bad_bounds_are_named() -> None:
    with pytest.raises(ValueError, match=r"bound: expected a positive number, got 0"):
        BoundedLogScale(0)
