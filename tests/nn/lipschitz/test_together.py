"""Weights and biases of several layers in one operation are those of each layer alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_resflow.nn import InducedNorm, LipschitzLinear, SpectralNorm, update_norms
from pyro_resflow.nn.lipschitz.together import measured_together, scaled_together


def layers() -> torch.nn.ModuleList:
    """One layer above its coefficient, and two below."""
    found = torch.nn.ModuleList(
        [
            LipschitzLinear(3, 5, SpectralNorm(0.2)),
            LipschitzLinear(5, 4),
            LipschitzLinear(4, 3, bias=False),
        ]
    ).double()
    with torch.no_grad():
        found[1].weight.mul_(0.1)
    update_norms(found)
    return found


def alone(each: torch.nn.ModuleList, gains: Tensor) -> list[Tensor]:
    weights = [layer.effective_weight(gain) for layer, gain in zip(each, gains, strict=False)]
    return [*weights, each[0].bias * gains[3], each[1].bias * gains[4]]


def together(each: torch.nn.ModuleList, gains: Tensor) -> list[Tensor]:
    measured = measured_together(each)
    assert measured is not None
    weights, biases = scaled_together(
        [layer.weight for layer in each],
        measured,
        gains[:3].unbind(),
        [each[0].bias, each[1].bias],
        gains[3:].unbind(),
    )
    return [*weights, *biases]


def gains_of() -> Tensor:
    return torch.tensor([0.9, 1.3, -0.4, 2.0, 1.1], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("used", [(0, 1, 2, 3, 4), (1,), (0, 4)])
def test_values_and_gradients_are_those_of_each_layer(used: tuple[int, ...]) -> None:
    each, gains = layers(), gains_of()
    weights = [torch.randn_like(tensor) for tensor in alone(each, gains)]
    inputs = [gains, *each.parameters()]

    def value_and_gradients(found: list[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
        loss = sum((found[i] * weights[i]).sum() for i in used)
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        return found, list(gradients)

    torch.testing.assert_close(
        value_and_gradients(together(each, gains)), value_and_gradients(alone(each, gains))
    )


def test_the_gradient_can_be_differentiated_by_what_comes_in_but_not_by_the_weight() -> None:
    each, gains = layers(), gains_of()
    incoming = [torch.randn_like(t).requires_grad_() for t in alone(each, gains)]

    def second(found: list[Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(found, [each[0].weight, gains], incoming, create_graph=True)
        return torch.autograd.grad([g.sin().sum() for g in first], [gains, *incoming])

    torch.testing.assert_close(second(together(each, gains)), second(alone(each, gains)))
    (first,) = torch.autograd.grad(together(each, gains), gains, incoming, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable only once"):
        torch.autograd.grad(first.sum(), each[0].weight)


def test_floats_and_no_biases() -> None:
    each = layers()
    measured = measured_together(each)
    weights = [layer.weight for layer in each]
    found, biases = scaled_together(weights, measured, [1.0, 0.5, 2.0], [], [])
    expected = [layer.effective_weight(g) for layer, g in zip(each, (1.0, 0.5, 2.0), strict=True)]
    torch.testing.assert_close(found, expected)
    assert biases == []


class Doubled(LipschitzLinear):
    """A layer with a weight of its own making."""

    def effective_weight(self, gain: Tensor | float = 1.0) -> Tensor:
        return 2 * super().effective_weight(gain)


@pytest.mark.parametrize(
    "other", [Doubled(3, 3), LipschitzLinear(3, 3, InducedNorm()), LipschitzLinear(3, 3).double()]
)
def test_other_layers_are_asked_themselves(other: LipschitzLinear) -> None:
    pair = torch.nn.ModuleList([LipschitzLinear(3, 3), other])
    update_norms(pair)
    assert measured_together([pair[0]]) is not None
    assert measured_together(pair) is None


def test_code_that_is_not_eager_asks_each_layer() -> None:
    each = layers()

    def call(x: Tensor) -> Tensor:
        assert measured_together(each) is None
        return x

    torch.func.vmap(call)(torch.ones(2))
    torch.func.jvp(call, (torch.ones(2),), (torch.ones(2),))
    torch.jit.trace(call, torch.ones(2), check_trace=False)
    with torch.autograd.forward_ad.dual_level():
        call(torch.ones(2))
    call_before = measured_together(each)
    assert call_before is not None
