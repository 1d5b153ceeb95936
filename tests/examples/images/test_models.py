"""Published models built from the numbers in a configuration."""

from __future__ import annotations

import inspect

import pytest
import torch

pytest.importorskip("lightning")

from torch import nn

from examples.images import models, weights
from pyro_resflow import checkpoints
from pyro_resflow.nn import WeightNormConv2d
from pyro_resflow.transforms import AffineMap, Columns, Coupling, LogisticMixtureMap


@pytest.mark.parametrize(
    ("elementwise", "components"),
    [(AffineMap(), None), (LogisticMixtureMap(3), 3), (None, 32)],
    ids=["affine", "mixture", "default"],
)
def test_flow_plus_plus_is_made_of_its_numbers(elementwise, components):
    step = models.GatedStep(8, 1, elementwise, "none", 0.1, weight_norm=True)
    flow = models.FlowPlusPlus((1, 4, 4), ((0, 2), (2, 2)), step)
    couplings = [part for part in flow.modules() if isinstance(part, Coupling)]
    assert len(couplings) == 6
    assert len({id(coupling.elementwise) for coupling in couplings}) == 6  # a copy for each
    found = {getattr(coupling.elementwise, "components", None) for coupling in couplings}
    assert found == {components}
    assert sum(isinstance(coupling.mask, Columns) for coupling in couplings) == 4
    assert any(isinstance(part, WeightNormConv2d) for part in flow.modules())
    assert {part.p for part in flow.modules() if isinstance(part, nn.Dropout)} == {0.1}


@pytest.mark.parametrize(
    ("components", "kind"), [(0, AffineMap), (3, LogisticMixtureMap)], ids=["affine", "mixture"]
)
def test_the_older_form_of_the_map_is_read(components, kind, tmp_path):
    step = models.GatedStep(8, 1, mixing="none", components=components)
    assert type(step.elementwise) is kind
    flow = models.FlowPlusPlus((1, 4, 4), ((0, 1), (1, 1)), step).requires_grad_(False)
    checkpoints.save(flow, tmp_path / "flow.safetensors")
    loaded = weights.load_part(tmp_path / "flow.safetensors")
    couplings = [part for part in loaded.modules() if isinstance(part, Coupling)]
    assert {type(coupling.elementwise) for coupling in couplings} == {kind}
    assert {getattr(c.elementwise, "components", 0) for c in couplings} == {components}


def test_a_step_has_one_map():
    with pytest.raises(ValueError, match="components 3, elementwise AffineMap: both choose"):
        models.GatedStep(elementwise=AffineMap(), components=3)
    with pytest.raises(TypeError, match=r"elementwise: expected a map such as .*, got 3"):
        models.GatedStep(8, 1, 3)


def test_every_model_of_the_examples_can_be_loaded():
    own = [each for each in vars(models).values() if inspect.isclass(each)]
    own = [each for each in own if each.__module__ == models.__name__]
    assert own
    assert own == models.SAVED_CLASSES


@pytest.mark.parametrize("mixing", ["attention", "maxout"])
def test_what_stands_in_for_attention_has_as_many_parameters(mixing):
    with torch.device("meta"):
        steps = [models.GatedStep(8, 2, LogisticMixtureMap(4), m) for m in (mixing, "attention")]
        flows = [models.FlowPlusPlus((1, 8, 8), step=step) for step in steps]
    sizes = [sum(p.numel() for p in each.parameters()) for each in flows]
    assert sizes[0] == sizes[1]


def test_a_dequantizer_is_made_of_its_numbers():
    dequantizer = models.VariationalDequantization(
        (1, 4, 4), 16, 2, models.GatedStep(8, 1, LogisticMixtureMap(2)), models.Features(4, 1)
    )
    images = torch.randint(0, 16, (5, 1, 4, 4))
    v = dequantizer.distribution(images).sample()
    assert torch.equal((16 * v).floor().long(), images)
    assert isinstance(dequantizer.mask, Columns)
