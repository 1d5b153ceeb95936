"""What configurations name beside flows and data: models, penalties."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")

from torch import nn

from examples.images import models
from examples.images.freezing import FrozenAtFirst
from examples.images.naming import parameters_named
from examples.images.penalty import SquaredPenalty
from pyro_resflow.nn import WeightNormConv2d
from pyro_resflow.transforms import AffineMap, Columns, Coupling, LogisticMixtureMap


def test_parameters_are_found_by_the_end_of_their_name():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    assert parameters_named(net, ["bias"]) == [net[0].bias, net[1].bias]
    with pytest.raises(ValueError, match="the model has none named magnitude"):
        parameters_named(net, ["bias", "magnitude"])


def test_a_penalty_adds_its_gradient():
    net = nn.Linear(2, 1)
    x = torch.randn(5, 2)
    (net(x).mean() + 0.3 * net.weight.square().sum()).backward()
    expected = [net.weight.grad.clone(), net.bias.grad.clone()]
    net.zero_grad()
    net(x).mean().backward()
    SquaredPenalty(0.3, ["weight"]).on_before_optimizer_step(None, net, None)
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_skipped_step_gets_no_penalty():
    net = nn.Linear(2, 1)
    SquaredPenalty(0.3, ["weight"]).on_before_optimizer_step(None, net, None)
    assert net.weight.grad is None


@pytest.mark.parametrize(("epoch", "learns"), [(0, False), (1, False), (2, True)])
def test_frozen_parameters_learn_later(epoch, learns):
    net = nn.Linear(2, 1)
    net(torch.randn(5, 2)).mean().backward()
    trainer = SimpleNamespace(current_epoch=epoch)
    FrozenAtFirst(["bias"], epochs=2).on_before_optimizer_step(trainer, net, None)
    assert (net.bias.grad is not None) == learns
    assert net.weight.grad is not None


@pytest.mark.parametrize(
    ("components", "kind"), [(0, AffineMap), (3, LogisticMixtureMap)], ids=["affine", "mixture"]
)
def test_flow_plus_plus_is_made_of_its_numbers(components, kind):
    step = models.GatedStep(8, 1, components, "none", 0.1, weight_norm=True)
    flow = models.FlowPlusPlus((1, 4, 4), ((0, 2), (2, 2)), step)
    couplings = [part for part in flow.modules() if isinstance(part, Coupling)]
    assert len(couplings) == 6
    assert all(isinstance(coupling.elementwise, kind) for coupling in couplings)
    assert sum(isinstance(coupling.mask, Columns) for coupling in couplings) == 4
    assert any(isinstance(part, WeightNormConv2d) for part in flow.modules())
    assert {part.p for part in flow.modules() if isinstance(part, nn.Dropout)} == {0.1}
    if components:
        assert {coupling.elementwise.components for coupling in couplings} == {components}


@pytest.mark.parametrize("mixing", ["attention", "maxout"])
def test_what_stands_in_for_attention_has_as_many_parameters(mixing):
    with torch.device("meta"):
        flow = models.FlowPlusPlus((1, 8, 8), step=models.GatedStep(8, 2, 4, mixing))
        attending = models.FlowPlusPlus((1, 8, 8), step=models.GatedStep(8, 2, 4))
    sizes = [sum(p.numel() for p in each.parameters()) for each in (flow, attending)]
    assert sizes[0] == sizes[1]


def test_a_dequantizer_is_made_of_its_numbers():
    dequantizer = models.VariationalDequantization(
        (1, 4, 4), 16, 2, models.GatedStep(8, 1, 2), models.Features(4, 1)
    )
    images = torch.randint(0, 16, (5, 1, 4, 4))
    v = dequantizer.distribution(images).sample()
    assert torch.equal((16 * v).floor().long(), images)
    assert isinstance(dequantizer.mask, Columns)
