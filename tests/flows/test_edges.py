"""Empty batches, other dtypes than the parameters', and single rows without a density."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_resflow import conditional_residual_flow, residual_flow
from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import (
    ConvBlock,
    FlowPlusPlus,
    Glow,
    ImageFlow,
    IResNet,
    RealNVP,
    ResidualFlow,
)
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import (
    ConvConditioner,
    GatedAttentionConditioner,
    GatedEncoder,
    ResidualConditioner,
)
from pyro_resflow.transforms import (
    CouplingStep,
    LogisticMixtureMap,
    Monotone,
    UniformDequantization,
    VariationalDequantization,
    initialize,
)

SHAPE = (1, 4, 4)
STEP = CouplingStep(
    GatedAttentionConditioner(8, 1, dropout=0.0),
    partial(LogisticMixtureMap, 2),
    mix_channels=False,
)
FLOWS: dict[str, Callable[[], ImageFlow]] = {
    "flow_plus_plus": lambda: FlowPlusPlus(SHAPE, ((0, 1), (1, 1)), step=STEP),
    "glow": lambda: Glow(SHAPE, (1, 1), network=ConvConditioner(4)),
    "i_resnet": lambda: IResNet((1, 8, 8), (1, 1), network=ConvBlock(4)),
    "real_nvp": lambda: RealNVP(SHAPE, network=ResidualConditioner(4, blocks=1)),
    "residual_flow": lambda: ResidualFlow(SHAPE, (1, 1), network=ConvBlock(4), end_blocks=1),
    "monotone": lambda: ResidualFlow(
        SHAPE, (1, 1), network=ConvBlock(4), end_blocks=1, block=Monotone
    ),
}


@pytest.fixture(params=sorted(FLOWS))
def flow(request: pytest.FixtureRequest) -> ImageFlow:
    flow = FLOWS[request.param]()
    initialize(flow, torch.rand(20, *flow.event_shape))
    return flow.eval()


@pytest.mark.parametrize("batch", [(0,), (0, 3), (2, 0)])
def test_a_batch_of_no_image(flow: ImageFlow, batch: tuple[int, ...]) -> None:
    density = flow.distribution()
    log_prob = density.log_prob(torch.empty(*batch, *flow.event_shape))
    assert log_prob.shape == batch
    log_prob.sum().backward()
    assert density.sample(batch).shape == (*batch, *flow.event_shape)
    pixels = torch.empty(*batch, *flow.event_shape, dtype=torch.long)
    assert Dequantized(density, UniformDequantization(8), 8).log_prob(pixels).shape == batch


def test_no_image_under_learned_noise() -> None:
    dequantizer = VariationalDequantization(SHAPE, 8, 2, step=STEP, features=GatedEncoder(4, 1))
    flow = FLOWS["glow"]()
    pixels = Dequantized(flow.distribution(), dequantizer, 8)
    pixels.log_prob(torch.randint(8, (20, *SHAPE)))
    none = torch.empty(0, *SHAPE, dtype=torch.long)
    assert pixels.log_prob(none).shape == (0,)
    q = dequantizer.distribution(none)
    assert q.log_prob(q.sample()).shape == (0,)


def test_images_of_another_type_are_named_with_both(flow: ImageFlow) -> None:
    message = r"images: expected torch.float32, .* got torch.float64"
    with pytest.raises(ValueError, match=message):
        flow.distribution().log_prob(torch.rand(3, *flow.event_shape).double())
    with pytest.raises(ValueError, match=r"images: expected torch.float64, .* got torch.float32"):
        flow.double().distribution().log_prob(torch.rand(3, *flow.event_shape))


@pytest.mark.parametrize("fast", ["sampling", "density"])
def test_vectors_and_contexts_of_another_type_are_named(fast: str) -> None:
    flow = residual_flow(3, 1, [8], fast=fast)
    with pytest.raises(ValueError, match=r"[xy]: expected torch.float32, .* got torch.float64"):
        flow.inv(torch.randn(5, 3).double())
    conditional = conditional_residual_flow(3, 2, 1, [8], fast=fast)
    with pytest.raises(ValueError, match=r"context: expected torch.float32, .* got torch.float64"):
        conditional.condition(torch.randn(5, 2).double())
    with pytest.raises(ValueError, match=r"[xy]: expected torch.float32, .* got torch.float64"):
        conditional.condition(torch.randn(5, 2)).inv(torch.randn(5, 3).double())


def gradients(flow: nn.Module, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("fast", ["sampling", "density"])
def test_a_masked_row_of_nan_is_replaced_before_the_call(fast: str) -> None:
    """As with any layer of torch, a mask alone keeps nan out of the loss, not of the gradients."""
    flow = residual_flow(3, 2, [8], fast=fast, logdet=Exact()).double()
    data = torch.randn(20, 3, dtype=torch.float64)
    if fast == "density":
        initialize(flow, data)
    base = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0, validate_args=False).to_event(1)
    density = dist.TransformedDistribution(base, [flow], validate_args=False)
    data[4, 1] = torch.nan
    complete = data.isfinite().all(1)

    spoilt = density.mask(complete).log_prob(data).sum()
    assert spoilt.isfinite()
    assert any(gradient.isnan().any() for gradient in gradients(flow, spoilt))

    filled = torch.where(complete[:, None], data, 0.0)
    loss, expected = (
        density.mask(complete).log_prob(filled).sum(),
        density.log_prob(data[complete]).sum(),
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(flow, loss), gradients(flow, expected))


def test_a_masked_context_of_nan_is_replaced_before_the_call() -> None:
    flow = conditional_residual_flow(3, 2, 1, [8], logdet=Exact()).double()
    data, context = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    base = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1)
    conditional = dist.ConditionalTransformedDistribution(base, [flow])
    context[4, 1] = torch.nan
    complete = context.isfinite().all(1)
    filled = torch.where(complete[:, None], context, 0.0)
    loss = conditional.condition(filled).mask(complete).log_prob(data).sum()
    expected = conditional.condition(context[complete]).log_prob(data[complete]).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(flow, loss), gradients(flow, expected))


@pytest.mark.parametrize("bad", [torch.nan, 5.0])
def test_a_row_without_a_density_leaves_the_others_alone(flow: ImageFlow, bad: float) -> None:
    density = dist.TransformedDistribution(
        flow.distribution().base_dist, [flow], validate_args=False
    )
    images = torch.rand(3, *flow.event_shape)
    images[1, 0, 0, 0] = bad
    torch.manual_seed(0)
    found = density.log_prob(images)
    assert found[[0, 2]].isfinite().all()
    assert bad == 5.0 or found[1].isnan()
