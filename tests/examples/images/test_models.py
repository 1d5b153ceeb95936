"""Published models built from the numbers in a configuration."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning")

from torch import nn

from examples.images import models
from pyro_resflow.nn import WeightNormConv2d
from pyro_resflow.transforms import AffineMap, Columns, Coupling, LogisticMixtureMap


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
