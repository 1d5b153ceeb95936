"""Changes of a weight that leave no trace but its values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest import mock

import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from torch import nn

from pyro_resflow import fingerprints, residual_flow
from pyro_resflow.fingerprints import Fingerprint
from pyro_resflow.nn import InducedNorm, LipschitzLayer, LipschitzLinear, LipschitzMLP
from tests.networks import converged_norm
from tests.nn.layers import CountingNorm, operator_norm, redraw

_FITS, _VALUES = Fingerprint.fits, fingerprints._values


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


def test_a_pass_looks_once_whether_a_weight_has_changed() -> None:
    flow = residual_flow(3, 2, [8])
    with torch.no_grad():
        flow(torch.randn(5, 3))
        with mock.patch.object(Fingerprint, "fits", autospec=True, side_effect=_FITS) as fits:
            flow._call(torch.randn(5, 3))
        assert fits.call_count == len(layers_of(flow))
        flow.parts[0].net[0].weight.data.mul_(30)
        flow._call(torch.randn(5, 3))
        assert operator_norm(flow.parts[0].net[0]) < 0.99


def test_training_step_takes_one_fingerprint_of_each_weight_and_compares_none() -> None:
    flow = residual_flow(3, 2, [8])
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    model = dist.TransformedDistribution(base, [flow])
    adam = torch.optim.Adam(flow.parameters())
    for _ in range(2):
        with mock.patch.object(fingerprints, "_values", side_effect=_VALUES) as values:
            model.log_prob(torch.randn(5, 3)).sum().backward()
        adam.step()
        of_weights = [call for call in values.call_args_list if len(call.args[0]) == 1]
        assert len(of_weights) == len(layers_of(flow))
        # and one of all that the pass depends on, to be compared when it is used again
        assert len(values.call_args_list) - len(of_weights) == 2
