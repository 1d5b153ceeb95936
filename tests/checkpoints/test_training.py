"""Modes, initialisation and training continue after loading."""

from __future__ import annotations

from pathlib import Path

import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_resflow import residual, residual_flow
from pyro_resflow.checkpoints import load, save
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import LipschitzLayer
from pyro_resflow.transforms import ActNorm, Compose
from tests.checkpoints.roundtrips import again, check_same_state
from tests.transforms.registry import TRANSFORMS


@pytest.mark.parametrize("training", [True, False])
def test_training_or_evaluation_mode_is_kept(training: bool, path: Path) -> None:
    flow = TRANSFORMS["real_nvp"].build().train(training)
    loaded = again(flow, path)
    assert {part.training for part in loaded.modules()} == {training}


def trained(flow: Transform, data: Tensor) -> Transform:
    """The flow after a few steps, its last weights not measured yet."""
    size = data.shape[-1]
    base = dist.Normal(torch.zeros(size), 1.0).to_event(1)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (-dist.TransformedDistribution(base, [flow]).log_prob(data).mean()).backward()
        optimizer.step()
    return flow


def test_buffers_of_a_trained_flow(path: Path) -> None:
    data = 3 + torch.randn(50, 2)
    flow = trained(residual_flow(2, 2, [8], fast="density"), data)
    loaded = again(flow, path)
    norms = [part for part in loaded.modules() if isinstance(part, ActNorm)]
    assert all(bool(norm.initialized) for norm in norms)
    layers = [part for part in loaded.modules() if isinstance(part, LipschitzLayer)]
    assert all(layer.is_current for layer in layers)  # nothing is measured anew
    with torch.no_grad():
        assert torch.equal(loaded.inv(data), flow.inv(data))


def test_an_actnorm_that_waits_for_its_batch_goes_on_waiting(path: Path) -> None:
    loaded = again(ActNorm(2), path)
    assert not bool(loaded.initialized)
    x = 5 + torch.randn(100, 2)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    dist.TransformedDistribution(base, [loaded.inv]).log_prob(x)
    y = loaded(x)
    assert y.mean().abs() < 1e-5


def test_training_goes_on_as_if_nothing_had_happened(path: Path) -> None:
    data = torch.randn(50, 2)
    flow = trained(residual_flow(2, 2, [8], fast="density", logdet=Exact()), data)
    loaded = again(flow, path)
    check_same_state(trained(loaded, data), trained(flow, data))


def test_saving_and_loading_draw_no_random_numbers(path: Path) -> None:
    flow = Compose([residual(2, [8]), pyro_transforms.affine_coupling(2)])
    state = torch.get_rng_state()
    again(flow, path)
    assert torch.equal(torch.get_rng_state(), state)


def test_saving_leaves_the_flow_alone(path: Path) -> None:
    flow = residual_flow(2, 2, [8])
    x = torch.randn(4, 2)
    before = flow(x)
    parameters = [id(p) for p in flow.parameters()]
    save(flow, path)
    assert [id(p) for p in flow.parameters()] == parameters
    assert torch.equal(flow(x), before)


def test_loading_in_inference_mode(path: Path) -> None:
    flow = residual_flow(2, 2, [8])
    save(flow, path)
    with torch.inference_mode():
        loaded = load(path)
    assert not any(p.is_inference() for p in loaded.parameters())
    trained(loaded, torch.randn(10, 2))
