"""The part of a model that a run names when values stop being finite."""

import pytest
import torch

pytest.importorskip("lightning")

from examples.images.diagnosis import origin
from examples.images.task import DensityEstimation
from pyro_resflow.flows import ConvBlock, MLPBlock, ResidualFlow
from pyro_resflow.logdet import Krylov, LogDetEstimator

BINS = 17
IMAGES = torch.randint(BINS, (16, 1, 4, 4), generator=torch.Generator().manual_seed(0))
BLOCK = "flow.transform.3.0"


@pytest.fixture
def task() -> DensityEstimation:
    flow = ResidualFlow(
        (1, 4, 4), (1, 1), network=ConvBlock(4), end_blocks=1, end_network=MLPBlock((8,))
    )
    task = DensityEstimation(flow, BINS)
    task.bits_per_dim(IMAGES)
    return task


def test_a_sound_task_has_no_origin(task):
    task.bits_per_dim(IMAGES).mean().backward()
    assert origin(task, IMAGES).startswith("no part when computed again")


def test_a_weight_that_is_not_finite(task):
    name = f"{BLOCK}.net.3.weight"
    with torch.no_grad():
        task.get_parameter(name).view(-1)[0] = torch.nan
    assert origin(task, IMAGES) == f"the weight {name!r}"


@pytest.mark.parametrize("part", ["value", "log-determinant"])
def test_a_layer_that_puts_out_what_is_not_finite(task, part):
    block = task.get_submodule(BLOCK)

    class Broken(LogDetEstimator):
        def value_and_trace(self, net, x, function):
            g, logdet = Krylov().value_and_trace(net, x, function)
            return (g * torch.nan, logdet) if part == "value" else (g, logdet + torch.inf)

    block.logdet = Broken()
    assert origin(task, IMAGES) == f"the layer {BLOCK!r} (Residual)"
    assert "call_and_ladj" not in vars(block)


def test_a_gradient_that_is_not_finite_is_named_where_backward_met_it_first(task):
    later = f"{BLOCK}.net.3.bias"
    for name in ("flow.transform.1.shift", later):
        task.get_parameter(name).register_hook(lambda gradient: gradient * torch.inf)
    task.bits_per_dim(IMAGES).mean().backward()
    assert origin(task, IMAGES) == f"the gradient of {later!r}"
