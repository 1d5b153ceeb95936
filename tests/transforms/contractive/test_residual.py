"""Residual transforms: options, errors, caching of the one pass."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import iterated
from torch import Tensor, nn
from torch.func import functional_call

from pyro_resflow import conditional_residual, residual, residual_flow
from pyro_resflow.logdet import Exact, Frozen, Krylov, LogDetEstimator
from pyro_resflow.nn import LipschitzConvNet, LipschitzMLP
from pyro_resflow.solvers import ConvergenceError, FixedPoint
from pyro_resflow.transforms import Inverse, Residual, initialize, monotone


class CountingLogDet(LogDetEstimator):
    """An estimator that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def value_and_trace(self, net, x, function):
        self.calls += 1
        return Exact().value_and_trace(net, x, function)


def test_value_and_log_det_come_from_one_pass() -> None:
    logdet = CountingLogDet()
    transform = Residual(LipschitzMLP(3, [8]), logdet=logdet)
    x = torch.randn(5, 3)
    y = transform(x)
    transform.log_abs_det_jacobian(x, y)
    assert logdet.calls == 1


def test_asking_again_is_another_estimate() -> None:
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    net = LipschitzMLP(3, [8])
    flow = dist.TransformedDistribution(base, [Inverse(Residual(net, logdet=Krylov(1)))])
    x = torch.randn(5, 3)
    assert not torch.equal(flow.log_prob(x), flow.log_prob(x))


def test_input_written_in_place_is_scored_anew() -> None:
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    flow = dist.TransformedDistribution(base, [residual(3, [8], fast="density", logdet=Exact())])
    x = torch.randn(5, 3)
    with torch.no_grad():
        flow.log_prob(x)
        x.mul_(3)
        torch.testing.assert_close(flow.log_prob(x), flow.log_prob(x.clone()))


def test_gradient_asked_for_after_a_first_score_is_there() -> None:
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    transform = residual(3, [8], fast="density", logdet=Exact())
    transform.requires_grad_(False)
    flow = dist.TransformedDistribution(base, [transform])
    x = torch.randn(5, 3)
    flow.log_prob(x)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    assert gradient.abs().sum() > 0
    transform.requires_grad_(True)
    assert flow.log_prob(x.detach()).requires_grad


class Scored(nn.Module):
    """log|det| and inverse of a transform as a module, for functional_call."""

    def __init__(self, transform: Residual) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        y, ladj = self.transform.call_and_ladj(x)
        return y.sum() + ladj.sum() + self.transform._inverse(x).square().sum()


@pytest.mark.parametrize("net", [LipschitzMLP(2, [8]), nn.Sequential(nn.Linear(2, 2), nn.Tanh())])
def test_functional_call_gets_every_gradient(net: nn.Module) -> None:
    nn.init.normal_(next(net.parameters()), std=0.2)
    transform = Residual(net.double(), logdet=Krylov(2, probe=Frozen()))
    module = Scored(transform)
    x = torch.randn(4, 2, dtype=torch.float64)
    module(x).backward()
    expected = {name: p.grad for name, p in module.named_parameters()}
    copies = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
    functional_call(module, copies, (x,)).backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(copies[name].grad, gradient, rtol=1e-4, atol=1e-6)


def test_sampling_under_autocast() -> None:
    transform = residual(3, [8], fast="density")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        x = transform(torch.randn(5, 3))
    assert x.dtype == torch.float32
    assert torch.isfinite(x).all()


def test_inference_mode() -> None:
    plain = Residual(nn.Sequential(nn.Linear(3, 3), Small()))
    conditional = conditional_residual(3, 2)
    with torch.inference_mode():
        x = torch.randn(5, 3)
        assert plain.call_and_ladj(x)[1].shape == (5,)
        assert conditional.condition(torch.randn(5, 2))(x).shape == (5, 3)


class Small(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.3 * torch.tanh(x)


def test_nan_is_named_and_not_blamed_on_the_network() -> None:
    y = torch.randn(4, 2)
    y[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"y: expected finite values, .* 1 of 4 samples \(2\)"):
        residual(2).inv(y)


@pytest.mark.parametrize("kind", [residual, monotone])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_without_validation_nan_stays_with_its_sample(kind: object, bad: float) -> None:
    block = kind(3, [8], logdet=Exact())
    base = dist.Normal(torch.zeros(3), 1.0, validate_args=False).to_event(1)
    density = dist.TransformedDistribution(base, [block], validate_args=False)
    y = torch.randn(4, 3)
    expected = density.log_prob(y)
    y = y.clone()
    y[1, 0] = bad
    found = density.log_prob(y)
    assert found.isfinite().tolist() == [True, False, True, True]
    torch.testing.assert_close(found[[0, 2, 3]], expected[[0, 2, 3]])
    masked = density.mask(torch.tensor([True, False, True, True])).log_prob(y.clone())
    assert masked[1] == 0
    with pyro.validation_enabled(False):
        assert block.inv(y.clone()).isfinite().all(1).tolist() == [True, False, True, True]


def test_sampling_without_gradients_skips_the_log_det() -> None:
    logdet = CountingLogDet()
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    flow = dist.TransformedDistribution(base, [residual_flow(3, 2, [8], logdet=logdet)])
    flow.sample((5,))
    assert logdet.calls == 0


def test_scoring_takes_one_pass_a_block() -> None:
    logdet = CountingLogDet()
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    blocks = residual_flow(3, 2, [8], fast="density", logdet=logdet)
    flow = dist.TransformedDistribution(base, [blocks])
    flow.log_prob(torch.randn(16, 3))
    assert logdet.calls == 2


@pytest.mark.parametrize("fast", ["sampling", "density"])
def test_fast_direction_does_not_iterate(fast: str) -> None:
    calls = []

    class Spy(FixedPoint):
        def __call__(self, *args: object) -> Tensor:
            calls.append(args)
            return super().__call__(*args)

    transform = residual(3, [8], fast=fast, solver=Spy())
    x = torch.randn(5, 3)
    transform(x) if fast == "sampling" else transform.inv(x)
    assert not calls
    transform.inv(x.clone()) if fast == "sampling" else transform(x.clone())
    assert calls


def test_cached_log_det_is_not_used_for_another_input() -> None:
    transform = residual(3, [8], logdet=Exact())
    x = torch.randn(5, 3)
    y = transform(x)
    other = torch.randn(5, 3)
    found = transform.log_abs_det_jacobian(other, transform._call(other))
    assert not torch.equal(found, transform.log_abs_det_jacobian(x, y))


def test_training_draws_reach_the_parameters_through_the_inverse() -> None:
    flow = residual_flow(2, 2, [16], fast="density", logdet=Exact())
    initialize(flow, torch.randn(50, 2))
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    sample = dist.TransformedDistribution(base, [flow]).rsample((7,))
    sample.square().sum().backward()
    weights = [p for name, p in flow.named_parameters() if name.endswith("weight")]
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in weights)


def test_iterated_takes_the_factory() -> None:
    stack = iterated(3, residual, 2, [8])
    x = torch.randn(4, 2)
    y = stack(x)
    assert stack.log_abs_det_jacobian(x, y).shape == (4,)
    assert len(list(Inverse(stack).parameters())) == len(list(stack.parameters()))


def test_frozen_probes_make_log_prob_a_function() -> None:
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    flow = dist.TransformedDistribution(base, [residual(3, [8], logdet=Krylov(probe=Frozen()))])
    x = torch.randn(5, 3)
    assert torch.equal(flow.log_prob(x.clone()), flow.log_prob(x.clone()))


def test_wrong_event_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \(\*batch, 3\), got \(5, 4\)"):
        residual(3)(torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"y: expected shape"):
        residual(3).inv(torch.randn(5, 4))


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        residual(3)(torch.ones(5, 3, dtype=torch.long))


def test_wrong_context_width_is_named() -> None:
    with pytest.raises(ValueError, match=r"context: expected shape \(\*batch, 4\), got \(5, 3\)"):
        conditional_residual(2, 4).condition(torch.randn(5, 3))


@pytest.mark.parametrize("factory", [residual, residual_flow])
def test_unknown_direction_is_named(factory) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="fast: expected 'sampling' or 'density'"):
        factory(2, fast="both")


def test_non_contractive_coefficient_is_named() -> None:
    from pyro_resflow.nn import SpectralNorm

    with pytest.raises(ValueError, match="coefficient"):
        residual(2, norm=SpectralNorm(1.0))


@pytest.mark.parametrize("size", [3, 4])
def test_network_that_is_no_contraction_fails_to_invert_with_figures(size: int) -> None:
    class Expands(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) - x

    with pytest.raises(ConvergenceError, match="contraction factor") as error:
        Residual(Expands()).inv(torch.full((2, size), 3.0))
    assert error.value.contraction == pytest.approx(1, abs=1e-6)
    # of 3 equal entries the factor is measured just below 1: rounding, so Newton does not try
    assert error.value.iterations == 1000
    assert error.value.residual > 0.5


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: residual(8), Exact),
        (lambda: residual(9), Krylov),
        (lambda: conditional_residual(8, 2), Exact),
        (lambda: conditional_residual(9, 2), Krylov),
        (lambda: Residual(LipschitzConvNet((1, 2, 4), [4, 4])), Exact),
        (lambda: Residual(LipschitzConvNet((1, 3, 3), [4, 4])), Krylov),
        (lambda: Residual(nn.Tanh()), Krylov),  # of any size
    ],
)
def test_default_log_determinant_is_exact_for_small_events(make, expected: type) -> None:
    assert isinstance(make().logdet, expected)


@pytest.mark.parametrize("kind", [Exact, Krylov])
def test_without_validation_a_nan_context_stays_with_its_sample(kind: type) -> None:
    block = conditional_residual(2, 3, [8], logdet=kind())
    context, y = torch.randn(5, 3), torch.randn(5, 2)
    context[1] = torch.nan
    base = dist.Normal(torch.zeros(2), 1.0, validate_args=False).to_event(1)
    model = dist.TransformedDistribution(base, [block.condition(context)], validate_args=False)
    torch.manual_seed(0)
    found = model.log_prob(y)
    rest = torch.tensor([0, 2, 3, 4])
    assert found[1].isnan()
    alone = dist.TransformedDistribution(base, [block.condition(context[rest])])
    if kind is Exact:
        torch.testing.assert_close(found[rest], alone.log_prob(y[rest]))
    assert found[rest].isfinite().all()


def test_with_validation_a_nan_context_is_named_at_once() -> None:
    context = torch.randn(5, 3)
    context[1] = torch.nan
    with pytest.raises(ValueError, match=r"context: expected finite.* 1 of 5 samples \(1\)"):
        conditional_residual(2, 3, [8]).condition(context).inv(torch.randn(5, 2))
