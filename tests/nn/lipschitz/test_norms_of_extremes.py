"""Norms of extreme float32 weights, and after changes that an iteration may miss."""

from __future__ import annotations

import pytest
import torch

from pyro_resflow.nn import (
    LipschitzConv2d,
    LipschitzLayer,
    LipschitzLinear,
    NonFiniteWeightError,
    SpectralNorm,
)
from tests.nn.layers import operator_norm

MAKE = {
    "linear": lambda: LipschitzLinear(20, 30),
    "thin": lambda: LipschitzConv2d(1, 16, 3, (5, 5)),
    "convolution": lambda: LipschitzConv2d(6, 8, 3, (5, 5)),
    "pixels": lambda: LipschitzConv2d(6, 8, 1, (5, 5)),
}


@pytest.mark.parametrize("size", [1e-12, 1e8, 4e9, 1e13, 1e17])
@pytest.mark.parametrize("name", MAKE)
def test_squares_of_norms_may_overflow(name: str, size: float) -> None:
    layer = MAKE[name]()
    with torch.no_grad():
        layer.weight.normal_()
        expected = layer.effective_weight() if size > 1 else size * layer.weight
        layer.weight.mul_(size)
    torch.testing.assert_close(layer.effective_weight(), expected, rtol=1e-3, atol=1e-15)
    assert layer.weight.grad is None
    if size > 1:
        assert operator_norm(layer).item() == pytest.approx(0.98, rel=1e-3)
        layer.effective_weight().sum().backward()
        assert bool(layer.weight.grad.isfinite().all())


def test_large_and_small_weights_are_measured_together() -> None:
    pair = torch.nn.ModuleList([LipschitzLinear(20, 30), LipschitzLinear(30, 20)])
    with torch.no_grad():
        pair[0].weight.mul_(1e15)
        pair[1].weight.mul_(5)
    for layer in pair:
        assert operator_norm(layer).item() == pytest.approx(0.98, rel=1e-3)


@pytest.mark.parametrize("name", MAKE)
def test_lengths_that_overflow_are_refused(name: str) -> None:
    layer = MAKE[name]()
    with torch.no_grad():
        layer.weight.fill_(3e19)
    with pytest.raises(NonFiniteWeightError, match="too large"):
        layer.effective_weight()


@pytest.mark.parametrize("value", [3e19, float("inf"), float("nan")])
@pytest.mark.parametrize("name", MAKE)
def test_without_a_tolerance_a_norm_that_is_not_finite_is_nan(name: str, value: float) -> None:
    layer = MAKE[name]()
    layer.norm.tolerance, layer.norm.max_iterations = None, 12
    weight = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.fill_(value)
        assert layer.effective_weight().isnan().any()
        layer.weight.copy_(3 * weight)  # the vectors recover
        for _ in range(3):
            layer.weight.mul_(1.1)
            layer.effective_weight()
    assert operator_norm(layer).item() == pytest.approx(0.98, rel=1e-2)


def jumped(layer: LipschitzLayer, place: int, excess: float) -> LipschitzLayer:
    """A layer that has been measured, with another singular value made the largest."""
    with torch.no_grad():
        layer.weight.normal_()
        layer.effective_weight()
        u, s, v = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
        added = torch.outer(u[:, place], v[place]) * ((1 + excess) * s[0] - s[place])
        layer.weight.add_(added.view_as(layer.weight))
    return layer


@pytest.mark.parametrize("place", [1, 5, 200])
@pytest.mark.parametrize("excess", [0.04, 0.1, 0.5])
def test_jump_in_a_wide_weight_is_seen(place: int, excess: float) -> None:
    layer = jumped(LipschitzLinear(400, 400, SpectralNorm(0.98)), place, excess)
    assert operator_norm(layer).item() == pytest.approx(0.98, rel=2e-3)


def test_a_small_jump_is_seen_by_an_update_that_follows() -> None:
    layer = jumped(LipschitzLinear(400, 400, SpectralNorm(0.98)), 200, 0.015)
    for _ in range(6):
        with torch.no_grad():
            layer.weight.add_(1e-6 * torch.randn_like(layer.weight))
        norm = operator_norm(layer).item()
    assert norm == pytest.approx(0.98, rel=2e-3)
