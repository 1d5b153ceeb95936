"""Second derivatives, and errors where there are none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, vmap

from pyro_resflow.differentiation import (
    differentiable_once,
    is_transformed,
    outside_torch_func,
    pulled_back,
    pushed_forward,
    refusing,
    saving_hooks,
    torch_func_is_active,
)
from tests.versions import torch_is

X = torch.tensor([0.5, -1.5], dtype=torch.float64)


def cube(x: Tensor, factor: Tensor) -> Tensor:
    return factor * x**3


def test_gradients_can_be_differentiated_by_inputs_and_cotangents() -> None:
    x, factor, w = X.clone().requires_grad_(), 2 * torch.ones_like(X), X.exp().requires_grad_()
    (found, none) = pulled_back(cube, [x, factor], w, [True, False])
    assert none is None
    torch.testing.assert_close(found, 6 * x**2 * w)
    by_x, by_w = torch.autograd.grad(found.sum(), [x, w])
    torch.testing.assert_close((by_x, by_w), (12 * x * w, 6 * x**2))


def test_gradients_stop_at_an_input_that_was_made_of_another() -> None:
    x = X.clone().requires_grad_()
    by_x, by_factor = pulled_back(cube, [x, 2 * x], torch.ones_like(x))
    torch.testing.assert_close(by_x, 6 * x**3)
    torch.testing.assert_close(by_factor, x**3)


def test_an_output_that_depends_on_nothing_has_zero_gradients() -> None:
    (found,) = pulled_back(lambda x: torch.ones_like(x), [X], X)
    torch.testing.assert_close(found, torch.zeros_like(X))


def test_tangents_are_pushed_forward_inside_and_outside_of_torch_func() -> None:
    factor = torch.ones_like(X)

    def tangent(x: Tensor) -> Tensor:
        return pushed_forward(cube, [x, factor], [torch.ones_like(x), None], x)

    torch.testing.assert_close(tangent(X), 3 * X**2)
    torch.testing.assert_close(jacfwd(tangent)(X), (6 * X).diag())
    nothing = pushed_forward(cube, [X, factor], [None, None], X)
    torch.testing.assert_close(nothing, torch.zeros_like(X))


def test_refusing_meets_only_who_asks() -> None:
    x, w = X.clone().requires_grad_(), X.clone().requires_grad_()
    product = refusing(x, "do something else.") * w
    (found,) = torch.autograd.grad(product.sum(), w, retain_graph=True)
    torch.testing.assert_close(found, X)
    with pytest.raises(RuntimeError, match="got a second one; do something else"):
        torch.autograd.grad(product.sum(), x)
    with pytest.raises(RuntimeError, match="do something else"):
        jacfwd(lambda x: refusing(x, "do something else."))(X)


def test_differentiable_once_is_so_in_both_modes() -> None:
    def function(x: Tensor) -> Tensor:
        return differentiable_once(x**3, "stop here.").sum()

    torch.testing.assert_close(grad(function)(X), 3 * X**2)
    torch.testing.assert_close(jacfwd(function)(X), 3 * X**2)
    x = X.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(x), x, create_graph=True)
    torch.testing.assert_close(first, 3 * X**2)
    for second in (
        lambda: torch.autograd.grad(first.sum(), x),
        lambda: grad(lambda x: grad(function)(x).sum())(X),
        lambda: jacfwd(grad(function))(X),
        lambda: jacfwd(jacfwd(function))(X),
    ):
        with pytest.raises(RuntimeError, match="got a second one; stop here"):
            second()


def test_what_is_at_work_is_told() -> None:
    assert not is_transformed(X, None)
    with forward_ad.dual_level():
        assert not is_transformed(X)
        assert is_transformed(X, forward_ad.make_dual(X, X))
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(is_transformed(x))
        outside_torch_func(lambda: seen.append(torch_func_is_active()))
        return x.sum()

    for transformation in (vmap, grad, jacfwd):
        transformation(look)(X)
    assert seen == [True, False] * 3


@pytest.mark.skipif(not torch_is("2.8"), reason="torch before 2.8 does not tell its hooks")
def test_hooks_of_saved_tensors_are_told() -> None:
    assert saving_hooks() == ()
    with torch.autograd.graph.save_on_cpu():
        assert len(saving_hooks()) == 2
