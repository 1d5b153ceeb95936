"""Data-dependent initialisation of whole flows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributions import ComposeTransform, Transform
from torch.distributions.transforms import _InverseTransform

from pyro_resflow import conditional_residual, residual_flow
from pyro_resflow.flows import Glow, ImageFlow, RealNVP
from pyro_resflow.nn import ConvConditioner, DataInitialized, ResidualConditioner
from pyro_resflow.transforms import (
    ActNorm,
    Compose,
    ConditionalCompose,
    Inverse,
    Multiscale,
    Squeeze,
    initialize,
)


def parts(flow: nn.Module) -> list[DataInitialized]:
    return [module for module in flow.modules() if isinstance(module, DataInitialized)]


FLOWS: dict[str, Callable[[], ImageFlow]] = {
    "glow": lambda: Glow((1, 4, 4), (2, 1), network=ConvConditioner(4)),
    "real_nvp": lambda: RealNVP((1, 4, 4), network=ResidualConditioner(4, blocks=1)),
}


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_image_flow_is_initialised_throughout_by_one_batch(name: str) -> None:
    flow = FLOWS[name]()
    images = 0.2 + 0.6 * torch.rand(32, 1, 4, 4)
    initialize(flow, images)
    assert all(bool(part.initialized) for part in parts(flow))
    z = flow.inv(images)
    assert z.mean().abs() < 0.2
    assert 0.5 < z.std() < 1.5


def test_another_call_starts_again() -> None:
    flow = FLOWS["glow"]()
    first, second = torch.rand(32, 1, 4, 4), 5 + 3 * torch.rand(32, 1, 4, 4)
    initialize(flow, second)
    expected = {name: value.clone() for name, value in flow.state_dict().items()}
    initialize(flow, first)
    assert any(not torch.equal(flow.state_dict()[name], expected[name]) for name in expected)
    initialize(flow, second)
    for name, value in flow.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wrap", [lambda t: ComposeTransform([t]), _InverseTransform])
def test_torchs_own_wrappers_are_looked_into(wrap: Callable[[Transform], Transform]) -> None:
    norm = ActNorm(3)
    for mean in (4, -4):
        data = mean + torch.randn(200, 3)
        initialize(wrap(norm), data)
        z = wrap(norm).inv(data).detach()
        torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Compose([ActNorm(3), ActNorm(3)]),
        lambda: Inverse(Compose([ActNorm(3), ActNorm(3)])),
        lambda: residual_flow(3, 2, [8]),
        lambda: residual_flow(3, 2, [8], fast="density"),
    ],
)
def test_whichever_way_a_flow_runs_data_become_standard(make: Callable[[], Compose]) -> None:
    flow = make()
    initialize(flow, 5 + 3 * torch.randn(200, 3))
    z = flow.inv(5 + 3 * torch.randn(1000, 3)).detach()
    assert z.mean(0).abs().max() < 1
    assert (z.std(0).log().abs() < 1).all()


def test_encoder_is_given_as_its_inverse() -> None:
    encoder = Multiscale([Squeeze(), ActNorm(2, event_dim=3)], (1, 4, 4))
    x = torch.randn(50, 1, 4, 4)
    initialize(encoder.inv, 3 + x)
    kept = encoder(3 + x)[:, 8:]
    torch.testing.assert_close(kept.mean(), torch.zeros(()), atol=1e-5, rtol=0)


def test_conditional_flow_at_its_contexts() -> None:
    norm = ActNorm(3)
    flow = ConditionalCompose([norm, conditional_residual(3, 2, [8])])
    initialize(flow, 4 + torch.randn(50, 3), torch.randn(50, 2))
    assert norm.initialized
    with pytest.raises(ValueError, match="context: the flow is conditional"):
        initialize(flow, torch.randn(50, 3))
    with pytest.raises(ValueError, match="context: expected none"):
        initialize(norm, torch.randn(50, 3), torch.randn(50, 2))


@pytest.mark.parametrize("shape", [(3,), (1, 3), (0, 3)])
def test_single_sample_is_named_and_nothing_forgotten(shape: tuple[int, ...]) -> None:
    norm = ActNorm(3)
    initialize(norm, torch.randn(50, 3))
    with pytest.raises(ValueError, match="data: expected a batch of at least two"):
        initialize(norm, torch.randn(shape))
    assert norm.initialized


def test_integer_images_are_named() -> None:
    with pytest.raises(ValueError, match="data: expected floating-point numbers"):
        initialize(FLOWS["glow"](), torch.randint(0, 255, (5, 1, 4, 4)))


def test_its_pass_is_not_handed_out_again_without_gradients() -> None:
    flow = FLOWS["glow"]()
    initialize(flow, images := torch.rand(32, 1, 4, 4))
    assert flow.inv(images).requires_grad
