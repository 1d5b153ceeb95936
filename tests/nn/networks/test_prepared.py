"""Passes without gradients keep coefficients, and give what passes with gradients give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.operations import OperationCounter
from pyro_resflow import residual_flow
from pyro_resflow.nn import LipSwish
from pyro_resflow.transforms import Compose
from tests.nn.networks.variants import VARIANTS


@pytest.fixture
def flow() -> Compose:
    torch.manual_seed(0)
    return residual_flow(3, 2, (5, 4))


def expected(flow: Compose, x: Tensor) -> tuple[Tensor, Tensor]:
    """The pass with gradients, which computes all coefficients."""
    with torch.enable_grad():
        y, ladj = flow.call_and_ladj(x)
    return y.detach(), ladj.detach()


@torch.no_grad()
def test_coefficients_are_kept_where_nothing_has_changed(flow: Compose) -> None:
    x = torch.randn(7, 3)
    flow._call(x)
    with OperationCounter() as counter:
        y = flow._call(x)
    assert "aten._foreach_mul.List" not in counter.counts
    assert "aten.softplus.default" not in counter.counts
    torch.testing.assert_close(y, expected(flow, x)[0])


def write(flow: Compose) -> None:
    flow.parts[0].net[0].weight.data.mul_(0.5)


def write_bias(flow: Compose) -> None:
    flow.parts[2].net[2].bias.data.add_(1)


def write_beta(flow: Compose) -> None:
    flow.parts[0].net[1].raw_beta.data.add_(2)


def replace_bias(flow: Compose) -> None:
    flow.parts[0].net[0].bias = torch.nn.Parameter(torch.ones(5))


def remove_bias(flow: Compose) -> None:
    flow.parts[0].net[0].bias = None


def lower_coefficient(flow: Compose) -> None:
    flow.parts[0].net[0].norm.coefficient = 0.1


def replace_layer(flow: Compose) -> None:
    flow.parts[0].net[1] = LipSwish()


def load(flow: Compose) -> None:
    flow.load_state_dict(residual_flow(3, 2, (5, 4)).state_dict())


CHANGES = (
    write,
    write_bias,
    write_beta,
    replace_bias,
    remove_bias,
    lower_coefficient,
    replace_layer,
    load,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
@torch.no_grad()
def test_each_change_is_noticed(flow: Compose, change: Callable[[Compose], None]) -> None:
    x = torch.randn(7, 3)
    before = flow._call(x)
    change(flow)
    found = flow.call_and_ladj(x)
    if change is not replace_layer:  # by an equal one
        assert not torch.allclose(found[0], before, atol=1e-4)
    torch.testing.assert_close(found, expected(flow, x))


@torch.no_grad()
def test_tensors_of_one_call_are_not_kept(flow: Compose) -> None:
    x = torch.randn(7, 3)
    before = flow._call(x)
    other = residual_flow(3, 2, (5, 4))
    found = functional_call(flow, dict(other.named_parameters()), (x,))
    torch.testing.assert_close(found, expected(other, x)[0])
    torch.testing.assert_close(flow._call(x), before)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_network_without_gradients_is_the_same_and_leaves_its_input(name: str) -> None:
    net, event_shape = VARIANTS[name]()
    x = torch.randn(4, *event_shape)
    given = x.clone()
    with torch.no_grad():
        found = net(x)
    torch.testing.assert_close(found, net(x).detach())
    assert torch.equal(x, given)
