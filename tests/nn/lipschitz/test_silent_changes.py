"""Changes of a weight's values that torch does not count are noticed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal
from unittest import mock

import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_resflow import fingerprints, residual_flow
from pyro_resflow.nn import InducedNorm, LipschitzLayer, LipschitzLinear, LipschitzMLP
from pyro_resflow.transforms import initialize
from tests.networks import converged_norm
from tests.nn.layers import CountingNorm, operator_norm, redraw

_PARTS = fingerprints._parts


def network() -> LipschitzMLP:
    net = LipschitzMLP(4, [16, 16], norm=converged_norm(0.9))
    for layer in layers_of(net):
        redraw(layer)
    return net


def layers_of(net: nn.Module) -> list[LipschitzLayer]:
    return [layer for layer in net.modules() if isinstance(layer, LipschitzLayer)]


def check(net: nn.Module) -> None:
    """Each layer is held to its coefficient, neither more nor less."""
    for layer in layers_of(net):
        assert operator_norm(layer).item() == pytest.approx(0.9, rel=1e-5)


def test_weights_that_are_swapped_through_data() -> None:
    # as an averaging callback does around a validation
    net, average = network(), network()
    x = torch.randn(5, 4)
    for _ in range(2):
        net(x), average(x)
        for own, other in zip(net.parameters(), average.parameters(), strict=True):
            kept = own.data.clone()
            own.data.copy_(other.data)
            other.data.copy_(kept)
        check(net)
        check(average)


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: net(x),
        lambda net, x: net.state_dict(),
        lambda net, x: copy.deepcopy(net),
        lambda net, x: net.double().float(),
    ],
    ids=["evaluation", "state_dict", "copy", "move"],
)
def test_whatever_happens_between_backward_and_step(
    between: Callable[[nn.Module, torch.Tensor], object],
) -> None:
    net = network()
    x = torch.randn(5, 4)
    adam = pyro.optim.clipped_adam.ClippedAdam(net.parameters(), lr=0.1)  # writes through data
    for _ in range(5):
        adam.zero_grad()
        (net(x) - 1).square().sum().backward()
        with torch.no_grad():
            between(net, x)
        adam.step()
        check(net)


def test_weight_replaced_twice_whose_memory_comes_back() -> None:
    layer = LipschitzLinear(8, 8, converged_norm(0.9))
    for _ in range(20):
        layer(torch.randn(3, 8))
        for _ in range(2):
            layer.weight = nn.Parameter(5 * torch.randn(8, 8))
        check(layer)


def test_orders_written_through_data() -> None:
    norm = InducedNorm(3.0, 1.5)
    layer = LipschitzLinear(4, 5, norm)
    redraw(layer)
    with torch.no_grad():
        layer(torch.randn(3, 4))
        norm.codomain_logit.data.add_(1.0)
        assert not layer.is_current


def test_a_single_entry_of_a_wide_weight() -> None:
    norm = CountingNorm(0.9)
    layer = LipschitzLinear(300, 200, norm)
    with torch.no_grad():
        layer(torch.randn(3, 300))
        layer(torch.randn(3, 300))
        assert norm.updates == 1
        layer.weight.data[17, 4] += 0.01
        layer(torch.randn(3, 300))
    assert norm.updates == 2


class Comparisons(TorchDispatchMode):
    """Counts comparisons of values, each of which waits for an accelerator."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten.equal.default
        return func(*args, **(kwargs or {}))


def flow_and_model(
    fast: Literal["sampling", "density"] = "sampling",
) -> tuple[nn.Module, dist.TransformedDistribution]:
    flow = residual_flow(3, 2, [8], fast=fast)
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    return flow, dist.TransformedDistribution(base, [flow])


def test_an_evaluation_compares_the_weights_of_all_layers_at_once() -> None:
    flow, model = flow_and_model()
    with torch.no_grad():
        model.log_prob(torch.randn(5, 3))
        # a score takes two passes, the inverse and the log-determinant at it
        for evaluation, passes in ((flow._call, 1), (flow._inverse, 1), (model.log_prob, 2)):
            with Comparisons() as made:
                evaluation(torch.randn(5, 3))
            # one for the layers' norms, and one for the coefficients that the last pass has kept
            assert made.count == 2 * passes


def test_one_changed_weight_among_others_is_measured_alone() -> None:
    flow, _ = flow_and_model()
    with torch.no_grad():
        flow._call(torch.randn(5, 3))
        first, *others = layers_of(flow)
        first.weight.data.mul_(30)
        seen = [layer.norm_state.seen for layer in others]
        flow._call(torch.randn(5, 3))
        assert operator_norm(first) < 0.99
        assert all(layer.norm_state.seen is each for layer, each in zip(others, seen, strict=True))


@pytest.mark.parametrize(("fast", "passes"), [("sampling", [1]), ("density", [])])
def test_a_training_step_copies_weights_once_and_compares_nothing(
    fast: Literal["sampling", "density"], passes: list[int]
) -> None:
    flow, model = flow_and_model(fast=fast)
    initialize(flow, torch.randn(20, 3))
    adam = torch.optim.Adam(flow.parameters())
    model.log_prob(torch.randn(5, 3)).sum().backward()
    adam.step()
    for _ in range(2):
        taken = mock.patch.object(fingerprints, "_parts", side_effect=_PARTS)
        with taken as parts, Comparisons() as made:
            model.log_prob(torch.randn(5, 3)).sum().backward()
        adam.step()
        copied = [len(call.args[0]) for call in parts.call_args_list]
        assert copied == [len(layers_of(flow)), *passes]  # the layers are of one shape
        assert made.count == 0
