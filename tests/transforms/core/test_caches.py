"""A transform uses its cache exactly as long as it is valid."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pyro_resflow import conditional_residual, residual_flow
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import GatedAttentionConditioner, LipschitzLayer, check_contraction
from pyro_resflow.transforms import ActNorm, Checkerboard, Compose, CouplingStep, TriangularAffine
from pyro_resflow.transforms.core import cache


def density(flow: Compose) -> dist.TransformedDistribution:
    event_dim = flow.domain.event_dim
    shape = (1, 2, 2) if event_dim == 3 else (3,)
    return dist.TransformedDistribution(
        dist.Normal(torch.zeros(shape), 1.0).to_event(event_dim), [flow]
    )


def vectors(**options: str) -> Compose:
    flow = residual_flow(3, 2, [8], logdet=Exact(), **options)
    with torch.no_grad():
        density(flow).log_prob(torch.randn(20, 3))
    return flow


def test_samples_changed_under_inference_mode_are_scored_as_they_are() -> None:
    model = density(vectors())
    with torch.inference_mode():
        v = model.sample((5,))
        v.clamp_(-0.1, 0.1)
        found = model.log_prob(v)
        torch.testing.assert_close(found, model.log_prob(v.clone()))


def test_a_buffer_filled_again_under_inference_mode_is_scored_anew() -> None:
    model = density(vectors())
    with torch.inference_mode():
        buffer = torch.randn(5, 3)
        model.log_prob(buffer)
        buffer.copy_(torch.randn(5, 3))
        torch.testing.assert_close(model.log_prob(buffer), model.log_prob(buffer.clone()))


def test_dropout_switched_off_is_off() -> None:
    step = CouplingStep(GatedAttentionConditioner(8, 1, dropout=0.5))
    flow = Compose([step(Checkerboard((1, 2, 2)))])
    model = density(flow)
    x = torch.randn(16, 1, 2, 2)
    with torch.no_grad():
        model.log_prob(x)
        for parameter in flow.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        model.log_prob(x)
        flow.eval()
        torch.testing.assert_close(model.log_prob(x), model.log_prob(x.clone()))


@pytest.mark.parametrize("make", [vectors, lambda: Compose([TriangularAffine(3), ActNorm(3)])])
def test_parameters_given_other_memory_are_noticed(make) -> None:
    flow = make()
    model = density(flow)
    x = torch.randn(16, 3)
    with torch.no_grad():
        model.log_prob(x)
        vector_to_parameters(3 * parameters_to_vector(flow.parameters()), flow.parameters())
        found = model.log_prob(x)
        flow.clear_cache()
        torch.testing.assert_close(found, model.log_prob(x.clone()))


def test_a_block_stays_a_contraction_when_its_weights_are_given_other_memory() -> None:
    flow = vectors()
    vector_to_parameters(30 * parameters_to_vector(flow.parameters()), flow.parameters())
    check_contraction(flow)


def test_what_was_computed_under_autocast_is_not_used_without() -> None:
    model = density(vectors(fast="density"))
    x = torch.randn(5, 3)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model.log_prob(x)
        torch.testing.assert_close(model.log_prob(x), model.log_prob(x.clone()))


def test_a_context_inside_a_composition_that_is_written_to_is_noticed() -> None:
    context = torch.randn(5, 3)
    flow = Compose([conditional_residual(2, 3, [8]).condition(context), TriangularAffine(2)])
    x = torch.randn(5, 2)
    with torch.no_grad():
        flow(x)
        context.mul_(5)
        torch.testing.assert_close(flow(x), flow(x.clone()))


def through_data(flow: Compose, x: torch.Tensor) -> None:
    for parameter in flow.parameters():
        parameter.data.mul_(0.5)


@pytest.mark.parametrize("fast", ["sampling", "density"])
def test_log_prob_follows_weights_written_through_data(fast: str) -> None:
    """It does not compare values between its pass and its log-determinant, but before."""
    flow, x = vectors(fast=fast), torch.randn(5, 3)
    before = density(flow).log_prob(x)
    through_data(flow, x)
    found = density(flow).log_prob(x)
    torch.testing.assert_close(found, density(flow).log_prob(x.clone()))
    assert not torch.allclose(found, before)


def first_layer(flow: Compose) -> LipschitzLayer:
    return next(part for part in flow.modules() if isinstance(part, LipschitzLayer))


def one_bias_through_data(flow: Compose, x: torch.Tensor) -> None:
    first_layer(flow).bias.data[3] += 0.1


def the_input_through_data(flow: Compose, x: torch.Tensor) -> None:
    x.data.add_(0.3)


def a_bias_replaced_twice(flow: Compose, x: torch.Tensor) -> None:
    for _ in range(2):
        first_layer(flow).bias = torch.nn.Parameter(torch.randn(8))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("fast", ["sampling", "density"])
@pytest.mark.parametrize(
    "change", [through_data, one_bias_through_data, the_input_through_data, a_bias_replaced_twice]
)
def test_silent_changes_are_noticed(change, fast: str, gradients: bool) -> None:
    flow = vectors(fast=fast)
    model = density(flow)
    x = torch.randn(5, 3)
    with torch.set_grad_enabled(gradients):
        for _ in range(5):
            model.log_prob(x)
            change(flow, x)
            found = model.log_prob(x)
            expected = model.log_prob(x.clone())
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_holds_is_used_again_and_nan_too() -> None:
    model = density(vectors())
    x = torch.randn(5, 3)
    x[2] = torch.nan
    flow = model.transforms[0]
    with torch.no_grad():
        y = flow(x)
        assert flow(x) is y
        assert flow.inv(y) is x


@pytest.mark.parametrize(("gradients", "passes"), [(True, 2), (False, 1)])
def test_with_gradients_a_pass_of_log_prob_serves_log_prob_alone(
    gradients: bool, passes: int
) -> None:
    flow = vectors(fast="density")
    taken: list[Tensor] = []
    name = "call_and_ladj" if gradients else "_call"
    evaluate = getattr(flow.inv, name)

    def counted(y: Tensor) -> object:
        taken.append(y)
        return evaluate(y)

    setattr(flow.inv, name, counted)
    model, y = density(flow), torch.randn(5, 3)
    with torch.set_grad_enabled(gradients):
        found = model.log_prob(y)
        x = flow.inv(y)
        again = model.base_dist.log_prob(x) - flow.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(found, again)
    assert len(taken) == passes


def test_a_solved_inverse_outlives_log_prob() -> None:
    """A flow that is fast in sampling solves once, however often a point is scored."""
    flow = vectors(fast="sampling")
    model, y = density(flow), torch.randn(5, 3)
    solved: list[Tensor] = []
    inverse = flow.inverse_and_ladj

    def counted(y: Tensor) -> object:
        solved.append(y)
        return inverse(y)

    flow.inverse_and_ladj = counted
    first, second = model.log_prob(y), model.log_prob(y)
    torch.testing.assert_close(first, second)
    assert len(solved) == 1


def test_log_prob_of_a_fast_density_keeps_no_tensors() -> None:
    flow = vectors(fast="density")
    found = density(flow).log_prob(torch.randn(5, 3))
    last = cache._LAST.passes[flow.inv]
    assert last.pair is None
    assert found.requires_grad
