"""The logistic mixture: exactness, extremes, inverse and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_resflow.solvers import BracketedNewton, ConvergenceError
from pyro_resflow.transforms import LogisticMixtureMap


def drawn(mixture: LogisticMixtureMap, number: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Parameters as a network makes them, shape ``(number, num_parameters, 3)``."""
    return torch.randn(number, mixture.num_parameters, 3, dtype=dtype)


def reference(x: Tensor, parameters: Tensor, components: int) -> Tensor:
    """The map by its definition, which overflows far out."""
    h, shift = parameters[:, 0], parameters[:, 1]
    weights, means, log_scales = parameters[:, 2:].unflatten(1, (3, components)).unbind(1)
    below = torch.sigmoid((x[:, None] - means) * (-log_scales.clamp_min(-7)).exp())
    return h.tanh().exp() * (weights.softmax(1) * below).sum(1).logit() + shift


@pytest.mark.parametrize("components", [1, 2, 32])
def test_value_and_slope_are_those_of_the_definition(components: int) -> None:
    mixture = LogisticMixtureMap(components)
    parameters = drawn(mixture, 20)
    x = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    y, log_slope = mixture(x, parameters)
    expected = reference(x, parameters, components)
    torch.testing.assert_close(y, expected)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(log_slope.exp(), slope)


def test_zero_parameters_are_the_identity() -> None:
    mixture = LogisticMixtureMap(5)
    x = torch.linspace(-50, 50, 21, dtype=torch.float64)[:, None]
    y, log_slope = mixture(x, torch.zeros(21, mixture.num_parameters, 1, dtype=torch.float64))
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_slope, torch.zeros_like(x), atol=1e-14, rtol=0)


@pytest.mark.parametrize("log_scale", [-100.0, -7.0, 0.0, 7.0])
@pytest.mark.parametrize("distance", [0.0, 1.0, 30.0, 1000.0])
def test_float32_stays_finite_and_accurate_far_out(distance: float, log_scale: float) -> None:
    mixture = LogisticMixtureMap(4)
    parameters = drawn(mixture, 50, torch.float32)
    parameters[:, -4:] += log_scale
    parameters.requires_grad_()
    x = torch.where(torch.rand(50, 3) < 0.5, -distance, distance).requires_grad_()
    y, log_slope = mixture(x, parameters)
    exact_y, exact_slope = mixture(x.double(), parameters.double())
    torch.testing.assert_close(y.double(), exact_y, rtol=1e-5, atol=1e-4)
    # the rounding of z = (x - mean) / scale is as much as the shares can move by
    rounding = 1e-5 + 1e-6 * (distance + 3) * parameters[:, -4:].clamp_min(-7).neg().exp().amax(1)
    assert ((log_slope - exact_slope).abs() < rounding).all()
    (y.sum() + log_slope.sum()).backward()
    assert x.grad.isfinite().all()
    assert parameters.grad.isfinite().all()


def test_slope_does_not_underflow_between_far_modes() -> None:
    mixture = LogisticMixtureMap(2)
    parameters = torch.zeros(1, mixture.num_parameters, 1)
    parameters[:, 4, 0], parameters[:, 5, 0] = -500.0, 500.0
    y, log_slope = mixture(torch.zeros(1, 1), parameters)
    torch.testing.assert_close(y, torch.zeros(1, 1))
    # 2 e^-500 of either mode's density, over F (1 - F) = 1/4
    expected = torch.tensor([[-500 + torch.log(torch.tensor(4.0))]])
    torch.testing.assert_close(log_slope, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("components", [1, 4, 32])
def test_inverse_is_as_exact_as_the_type_allows(
    components: int, dtype: torch.dtype, tolerance: float
) -> None:
    mixture = LogisticMixtureMap(components)
    parameters = drawn(mixture, 200, dtype)
    x = 3 * torch.randn(200, 3, dtype=dtype)
    y, log_slope = mixture(x, parameters)
    found, found_log_slope = mixture.inverse(y, parameters)
    # y is known to its rounding, which the slope turns into one of x
    rounding = 8 * torch.finfo(dtype).eps * y.abs().clamp_min(10) / log_slope.exp()
    assert ((found - x).abs() < tolerance * x.abs().clamp_min(1) + rounding).all()
    torch.testing.assert_close(found_log_slope, log_slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "log_scale", "tolerance"),
    [(torch.float32, 89.0, 1e-6), (torch.float32, 1e4, 1e-6), (torch.float64, 720.0, 1e-10)],
)
@pytest.mark.parametrize("x", [0.5, 0.0, -0.5])
def test_a_component_wider_than_all_numbers_does_not_hide_the_root(
    x: float, dtype: torch.dtype, log_scale: float, tolerance: float
) -> None:
    mixture = LogisticMixtureMap(2)
    parameters = torch.zeros(1, mixture.num_parameters, 1, dtype=dtype)
    parameters[:, -2] = log_scale  # e^89 is more than float32 holds, e^720 more than float64
    y, log_slope = mixture(torch.full((1, 1), x, dtype=dtype), parameters)
    found, found_log_slope = mixture.inverse(y, parameters)
    assert found.item() == pytest.approx(x, abs=tolerance)
    torch.testing.assert_close(found_log_slope, log_slope)


def test_a_root_that_no_number_is_can_be_left_out() -> None:
    """Half of the mixture is so wide that it reaches no quantile above .75 below infinity."""
    mixture = LogisticMixtureMap(2, solver=BracketedNewton(unsolved="nan"))
    parameters = torch.zeros(4, mixture.num_parameters, 1)
    parameters[2, -2] = 200.0
    y = torch.tensor([0.3, -0.2, 5.0, 1.0])[:, None]
    with pytest.raises(ConvergenceError, match=r"for 1 of 4 entries \(\(2, 0\)\)"):
        LogisticMixtureMap(2).inverse(y, parameters)
    found, log_slope = mixture.inverse(y, parameters)
    lost = torch.tensor([False, False, True, False])[:, None]
    assert torch.equal(found.isnan(), lost)
    assert torch.equal(log_slope.isnan(), lost)
    torch.testing.assert_close(found[~lost], y[~lost])  # the identity where all are zero


@pytest.mark.parametrize("distance", [100.0, 1000.0])
def test_inverse_far_out_in_float32(distance: float) -> None:
    mixture = LogisticMixtureMap(4)
    parameters = drawn(mixture, 50, torch.float32)
    x = torch.where(torch.rand(50, 3) < 0.5, -distance, distance)
    y, _ = mixture(x, parameters)
    found, log_slope = mixture.inverse(y, parameters)
    assert ((found - x).abs() < 1e-6 * distance).all()
    assert log_slope.isfinite().all()


def test_inverse_gradients_are_those_of_the_implicit_function() -> None:
    mixture = LogisticMixtureMap(3)
    y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    parameters = drawn(mixture, 4).requires_grad_()
    assert torch.autograd.gradcheck(mixture.inverse, (y, parameters), atol=1e-6)


def test_second_derivatives_of_the_inverse_are_right_too() -> None:
    mixture = LogisticMixtureMap(2)
    y = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    parameters = drawn(mixture, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(mixture.inverse, (y, parameters), atol=1e-6)


def test_parameters_that_are_nan_are_never_inverted_silently() -> None:
    mixture = LogisticMixtureMap(3)
    parameters = drawn(mixture, 4)
    parameters[2, -1, 1] = torch.nan
    with pytest.raises(ConvergenceError, match="look for nan in the parameters"):
        mixture.inverse(torch.randn(4, 3, dtype=torch.float64), parameters)


def test_solver_can_be_chosen() -> None:
    mixture = LogisticMixtureMap(3, solver=BracketedNewton(max_iterations=3))
    with pytest.raises(ConvergenceError, match="after 3 evaluations"):
        mixture.inverse(torch.randn(4, 3, dtype=torch.float64), drawn(mixture, 4))


def test_bad_numbers_of_components_are_named() -> None:
    with pytest.raises(ValueError, match="components: expected at least one, got 0"):
        LogisticMixtureMap(0)
