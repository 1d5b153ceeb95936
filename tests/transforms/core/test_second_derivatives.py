"""Hessians, their products and score penalties: correct with Exact, an error with noise."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation
from torch import Tensor
from torch.autograd import functional

from pyro_resflow import residual
from pyro_resflow.linearization import AutogradNetwork
from pyro_resflow.logdet import (
    Exact,
    Frozen,
    Krylov,
    NoTail,
    RussianRoulette,
)
from pyro_resflow.nn import ConditionalLipschitzMLP, InducedNorm, LipschitzMLP
from pyro_resflow.solvers import Anderson
from tests.derivatives import check_gradients, hessian_by_differences
from tests.transforms.contractions import CONTRACTIONS, contraction, density, point


@pytest.fixture(autouse=True)
def _double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dim", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONTRACTIONS)
def test_hessian_of_the_log_density_is_that_of_differences(name: str, dim: int) -> None:
    log_prob = density(contraction(name, dim, Exact()), dim).log_prob
    x, v = point(dim), point(dim)
    expected = hessian_by_differences(log_prob, x)
    assert expected.abs().max() > 0.03
    found = functional.hessian(log_prob, x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found, found.mT, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(functional.hvp(log_prob, x, v)[1], found @ v)
    torch.testing.assert_close(functional.vhp(log_prob, x, v)[1], found @ v)


@pytest.mark.parametrize("name", ["density", "monotone", "sampling"])
def test_in_ten_dimensions(name: str) -> None:
    log_prob = density(contraction(name, 10, Exact(chunk_size=4)), 10).log_prob
    x = point(10)
    expected = hessian_by_differences(log_prob, x)
    torch.testing.assert_close(functional.hessian(log_prob, x), expected, rtol=1e-6, atol=1e-7)


def test_derivatives_of_the_inverse_of_one_dimension() -> None:
    """The smallest case: a second derivative that came back as None, and a first one as zero."""
    block = contraction("sampling", 1, Exact()).requires_grad_(False)
    y = point(1).requires_grad_()
    (slope,) = torch.autograd.grad(block.inv(y).sum(), y, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), y)
    x = block.inv(y).detach().requires_grad_()
    (forward,) = torch.autograd.grad(block(x).sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(forward.sum(), x)
    torch.testing.assert_close(slope, 1 / forward)
    torch.testing.assert_close(curvature, -bend / forward**3)
    torch.testing.assert_close(functional.jvp(block.inv, y, torch.ones(1))[1], slope)


@pytest.mark.parametrize("name", ["density", "flow", "monotone"])
def test_score_penalty_has_gradients_for_the_parameters(name: str) -> None:
    transform = contraction(name, 2, Exact())
    log_prob = density(transform, 2).log_prob
    x = point(2, 3).requires_grad_()
    for module in transform.modules():
        if hasattr(module, "tolerance"):
            module.tolerance, module.max_iterations = 1e-15, 2000

    @torch.enable_grad()
    def penalty() -> Tensor:
        (score,) = torch.autograd.grad(log_prob(x).sum(), x, create_graph=True)
        return score.square().sum()

    check_gradients(penalty, list(transform.parameters()), rtol=1e-5, atol=1e-6, entries=2)


def test_a_context_made_of_the_input_is_counted_once() -> None:
    """Gradients for the coefficients of a network must not go on to the input by themselves."""
    net = ConditionalLipschitzMLP(2, 2, [8])
    x = point(2)

    def logdet(x: Tensor) -> Tensor:
        batch = x[None]
        return Exact()(net.bind(2 * batch), batch)[1].sum()

    def solution(x: Tensor) -> Tensor:
        batch = x[None]
        return Anderson()(net.bind(2 * batch), batch).pow(3).sum()

    for function in (logdet, solution):
        expected = hessian_by_differences(function, x)
        torch.testing.assert_close(functional.hessian(function, x), expected, rtol=1e-6, atol=1e-7)


def test_third_derivatives_of_the_solution() -> None:
    net = LipschitzMLP(1, [8])
    y = point(1, 1).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda y: torch.autograd.grad(Anderson()(net, y).sum(), y, create_graph=True)[0], y
    )


def test_laplace_approximation_has_the_curvature() -> None:
    flow = contraction("density", 1, Exact())
    log_prob = density(flow, 1).log_prob

    def model() -> None:
        pyro.sample("x", dist.TransformedDistribution(dist.Normal(torch.zeros(1), 1.0), [flow]))

    guide = AutoLaplaceApproximation(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(30):
        svi.step()
    posterior = guide.laplace_approximation().get_posterior()
    curvature = hessian_by_differences(log_prob, posterior.loc.detach())
    torch.testing.assert_close(posterior.scale_tril.square(), -1 / curvature, rtol=1e-5, atol=1e-7)


STOCHASTIC = {
    "keep": lambda: Krylov(memory="keep"),
    "roulette": RussianRoulette,
    "frozen": lambda: Krylov(3, tail=NoTail(), probe=Frozen()),
}


def by_grad(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    x = x.requires_grad_()
    (first,) = torch.autograd.grad(function(x), x, create_graph=True)
    torch.autograd.grad(first.sum(), x, allow_unused=True)


def by_backward_inputs(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    x = x.requires_grad_()
    function(x).backward(inputs=[x], create_graph=True)
    x.grad.sum().backward(inputs=[x])


WAYS: dict[str, Callable[..., object]] = {
    "grad": by_grad,
    "backward": by_backward_inputs,
    "hessian": functional.hessian,
    "hvp": lambda f, x: functional.hvp(f, x, torch.ones_like(x)),
    "vhp": lambda f, x: functional.vhp(f, x, torch.ones_like(x)),
    "torch.func.hessian": lambda f, x: torch.func.hessian(f)(x),
    "torch.func.jacfwd": lambda f, x: torch.func.jacfwd(torch.func.jacfwd(f))(x),
    "torch.func.jacrev": lambda f, x: torch.func.jacrev(torch.func.jacrev(f))(x),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fast", ["density", "sampling"])
def test_noisy_second_derivatives_are_refused_in_every_way_of_asking(fast: str, way: str) -> None:
    for name, make in STOCHASTIC.items():
        log_prob = density(contraction(fast, 2, make()).requires_grad_(False), 2).log_prob
        with pytest.raises(RuntimeError, match=r"got a second one; .*use logdet=Exact\(\)"):
            WAYS[way](log_prob, point(2))
        assert log_prob(point(2)).isfinite(), name


def test_values_with_a_noisy_log_determinant_have_second_derivatives() -> None:
    """The noise is in the log-determinant alone."""
    exact, noisy = (contraction("sampling", 2, each) for each in (Exact(), Krylov()))
    noisy.load_state_dict(exact.state_dict())
    x = point(2)
    for pair in ((noisy, exact), (noisy.inv, exact.inv)):
        found, expected = (functional.hessian(lambda x, t=t: t(x).pow(3).sum(), x) for t in pair)
        torch.testing.assert_close(found, expected)


def test_a_first_derivative_that_torch_takes_in_two_passes() -> None:
    """functional.jvp differentiates the gradient by the weights that come in, which is right."""
    block = contraction("density", 2, Krylov(3, tail=NoTail(), probe=Frozen()))
    log_prob = density(block, 2).log_prob
    x, v = point(2), point(2)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(log_prob(x), x)
    torch.testing.assert_close(functional.jvp(log_prob, x, v)[1], gradient @ v)


@pytest.mark.parametrize("norm", ["spectral", "induced"])
def test_second_derivatives_by_a_weight_are_refused(norm: str) -> None:
    """Its norm is differentiated at fixed vectors: once."""
    norms = InducedNorm.chain(2) if norm == "induced" else None
    net = LipschitzMLP(2, [4], norm=norms)
    x = point(2, 3)
    values = {name: 9 * p.detach() for name, p in net.named_parameters()}

    def loss(weight: Tensor) -> Tensor:
        replaced = values | {"0.weight": weight}
        return torch.func.functional_call(net, replaced, x).square().sum()

    weight = values["0.weight"]
    for way in ("grad", "hessian", "torch.func.hessian"):
        with pytest.raises(RuntimeError, match="got a second one; the norm of a weight"):
            WAYS[way](loss, weight.clone())
    (by_engine,) = torch.autograd.grad(loss(w := weight.clone().requires_grad_()), w)
    torch.testing.assert_close(torch.func.jacfwd(loss)(weight), by_engine)


def test_gradients_in_batches_are_refused_by_name() -> None:
    block = residual(2, [4], logdet=Exact())
    with pytest.raises(RuntimeError, match=r"is_grads_batched, vectorize: .*torch\.func"):
        functional.jacobian(block.inv, point(2), vectorize=True)


def test_network_of_a_function_without_rules_for_torch_func() -> None:
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sin() / 2

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            return grad * ctx.saved_tensors[0].cos() / 2

    class Net(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Sine.apply(x)

    x = point(1)

    def function(x: Tensor) -> Tensor:
        solution = Anderson()(AutogradNetwork(Net()), x)
        return Exact()(Net(), solution)[1].sum()

    expected = hessian_by_differences(function, x)
    torch.testing.assert_close(functional.hessian(function, x), expected, rtol=1e-6, atol=1e-7)
