"""Conditional transforms: their composition, the affine one, caches, errors."""

from __future__ import annotations

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as pyro_transforms
from torch import Tensor, nn

from pyro_resflow import conditional_residual, residual
from pyro_resflow.logdet import Exact, LogDetEstimator
from pyro_resflow.transforms import (
    ActNorm,
    Compose,
    ConditionalAffine,
    ConditionalCompose,
    ConditionalInverse,
    ConditionalResidual,
)


def composition(**options: object) -> ConditionalCompose:
    return ConditionalCompose(
        [
            ActNorm(3, initialized=True),
            conditional_residual(3, 2, [8], logdet=Exact(), **options),
            residual(3, [8], logdet=Exact()),
        ]
    )


def test_composition_conditions_its_conditional_parts_and_keeps_the_others() -> None:
    conditional = composition()
    norm, block, plain = conditional.parts
    context, x = torch.randn(7, 2), torch.randn(7, 3)
    y, ladj = conditional.condition(context).call_and_ladj(x)
    inner, first = norm.call_and_ladj(x)
    inner, second = block.condition(context).call_and_ladj(inner)
    expected, third = plain.call_and_ladj(inner)
    torch.testing.assert_close((y, ladj), (expected, first + second + third))


def test_composition_takes_one_pass_in_either_direction() -> None:
    calls = []

    class Counting(LogDetEstimator):
        def value_and_trace(self, net, x, function):
            calls.append(len(x))
            return Exact().value_and_trace(net, x, function)

    conditional = ConditionalCompose([conditional_residual(3, 2, [8], logdet=Counting())] * 2)
    for transform in (conditional, conditional.inv):
        conditioned = transform.condition(torch.randn(7, 2))
        x = torch.randn(7, 3)
        conditioned.log_abs_det_jacobian(x, conditioned(x))
        assert calls == [7, 7]
        calls.clear()


def test_every_parameter_is_registered_once() -> None:
    conditional = composition()
    expected = [p for part in conditional.parts for p in part.parameters()]
    for module in (conditional, conditional.inv, conditional.condition(torch.randn(2))):
        assert {id(p) for p in module.parameters()} == {id(p) for p in expected}
    assert conditional.inv.inv is conditional
    inverse = conditional.inv
    assert conditional.inv is inverse


def test_inverse_of_pyros_transform_is_registered_too() -> None:
    spline = pyro_transforms.spline(3, count_bins=4)
    conditional = ConditionalCompose([conditional_residual(3, 2, [8]), spline.inv])
    found = {id(p) for p in conditional.parameters()}
    assert {id(p) for p in spline.parameters()} <= found


def test_inverse_of_pyros_conditional_transform_is_one_of_ours() -> None:
    spline = pyro_transforms.conditional_spline(3, 2, [8])
    inverse = ConditionalInverse(spline)
    context, x = torch.randn(7, 2), torch.rand(7, 3)
    y = spline.condition(context)(x)
    torch.testing.assert_close(inverse.condition(context)(y), x, atol=1e-4, rtol=0)
    assert len(list(inverse.parameters())) == len(list(spline.parameters()))


def test_pyros_own_composition_agrees() -> None:
    ours = composition()
    theirs = dist.conditional.ConditionalComposeTransformModule(ours.parts)
    context, x = torch.randn(7, 2), torch.randn(7, 3)
    expected = theirs.condition(context)
    y, ladj = ours.condition(context).call_and_ladj(x)
    torch.testing.assert_close(y, expected(x))
    torch.testing.assert_close(ladj, expected.log_abs_det_jacobian(x, y))


@pytest.mark.parametrize("make", [composition, lambda: ConditionalAffine(3, 2, [8])])
def test_context_written_in_place_is_seen(make) -> None:  # type: ignore[no-untyped-def]
    conditional = make()
    with torch.no_grad():
        for parameter in conditional.parameters():
            parameter.add_(0.1)
        context, x = torch.randn(7, 2), torch.randn(7, 3)
        transform = conditional.condition(context)
        before = transform(x)
        context.mul_(3)
        after = transform(x)
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, conditional.condition(context)(x))


def test_copies_of_a_conditional_and_of_a_conditioned_transform_compute_the_same() -> None:
    conditional = composition()
    context, x = torch.randn(7, 2), torch.randn(7, 3)
    transform = conditional.condition(context)
    with torch.no_grad():
        expected = transform(x)
        copied = copy.deepcopy(conditional)
        restored = pickle.loads(pickle.dumps(conditional))
        torch.testing.assert_close(copied.condition(context)(x), expected, rtol=0, atol=0)
        torch.testing.assert_close(restored.condition(context)(x), expected, rtol=0, atol=0)
        torch.testing.assert_close(copy.deepcopy(transform)(x), expected, rtol=0, atol=0)
        for parameter in copied.parameters():  # the copy's parts are its registered modules
            parameter.mul_(0.5)
        assert not torch.allclose(copied.condition(context)(x), expected)
        torch.testing.assert_close(conditional.condition(context)(x), expected)


def test_unconditional_composition_says_what_to_do_with_a_conditional_part() -> None:
    with pytest.raises(ValueError, match="has to be conditioned first"):
        Compose([conditional_residual(3, 2)])


@pytest.mark.parametrize(
    ("parts", "message"), [([], "at least one"), ([torch.nn.Linear(3, 3)], "got Linear")]
)
def test_parts_that_compose_nothing_are_named(parts: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConditionalCompose(parts)


class PlainNetwork(nn.Module):
    """Hands out a module that knows nothing of its coefficients."""

    context_dim = 2
    event_dim = 1

    def bind(self, context: Tensor) -> nn.Module:
        return PlainBound(context)


class PlainBound(nn.Module):
    def __init__(self, context: Tensor) -> None:
        super().__init__()
        self.context = context

    def forward(self, x: Tensor) -> Tensor:
        return 0.3 * torch.tanh(x + self.context.sum(-1, keepdim=True))


def test_a_context_whose_gradient_would_be_lost_is_refused() -> None:
    conditional = ConditionalResidual(PlainNetwork())
    context, x = torch.randn(7, 2), torch.randn(7, 3)
    assert conditional.condition(context)(x).shape == (7, 3)
    with pytest.raises(ValueError, match=r"net: expected bind .* got a PlainBound; return"):
        conditional.condition(context.requires_grad_())(x)


def test_a_wrong_shape_is_named_after_its_side() -> None:
    transform = ConditionalAffine(3, 2).condition(torch.randn(7, 2))
    with pytest.raises(ValueError, match="y: expected shape"):
        transform.inv(torch.randn(7, 4))
