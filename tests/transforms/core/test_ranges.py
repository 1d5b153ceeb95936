"""Images outside the known range raise an error."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from torch import Tensor

from pyro_resflow.flows import (
    ConvBlock,
    FlowPlusPlus,
    Glow,
    ImageFlow,
    IResNet,
    ResidualFlow,
)
from pyro_resflow.hybrid import Hybrid
from pyro_resflow.nn import ConvConditioner, GatedAttentionConditioner
from pyro_resflow.transforms import CouplingStep, Logit, initialize
from pyro_resflow.transforms.core.ranges import ROUNDING

SHAPE = (1, 4, 4)
PIXELS = 255 * torch.rand(32, *SHAPE, generator=torch.Generator().manual_seed(0))


def residual_flow(alpha: float | None) -> ResidualFlow:
    return ResidualFlow(SHAPE, (1,), network=ConvBlock(4), end_blocks=0, alpha=alpha)


WITH_LOGIT = {
    "residual": lambda: residual_flow(0.05),
    "flow_plus_plus": lambda: FlowPlusPlus(
        SHAPE, ((0, 1),), step=CouplingStep(GatedAttentionConditioner(4, 1))
    ),
}
WITHOUT_LOGIT = {
    "residual": lambda: residual_flow(None),
    "i_resnet": lambda: IResNet(SHAPE, (1,), network=ConvBlock(4)),
    "glow": lambda: Glow(SHAPE, (1,), network=ConvConditioner(4)),
}


def ways(flow: ImageFlow, x: Tensor) -> None:
    """Every way by which images enter a flow must refuse them."""
    for way in (flow.inv, flow.encoder.call_and_ladj, flow.encoder):
        with pytest.raises(ValueError, match=r"expected values in .*Divide pixels of 0 \.\. 255"):
            way(x)
    with pytest.raises(ValueError, match=r"expected values in|within the support"):  # or Pyro's
        flow.distribution().log_prob(x)


@pytest.mark.parametrize("name", WITH_LOGIT)
def test_a_flow_with_a_logit_refuses_what_lies_outside_its_domain(name):
    flow = WITH_LOGIT[name]()
    initialize(flow, PIXELS / 255)
    ways(flow, PIXELS)
    ways(flow, PIXELS.round())
    ways(flow, -PIXELS / 255 - 1)


@pytest.mark.parametrize("name", WITHOUT_LOGIT)
def test_a_flow_without_a_logit_refuses_pixels(name):
    flow = WITHOUT_LOGIT[name]()
    initialize(flow, PIXELS / 255)
    ways(flow, PIXELS.round())


@pytest.mark.parametrize("alpha", [0.05, None])
def test_a_hybrid_refuses_pixels(alpha):
    hybrid = Hybrid(residual_flow(alpha), 3, hidden_channels=4)
    hybrid(PIXELS / 255)
    for way in (hybrid, hybrid.logits, hybrid.class_distribution):
        with pytest.raises(ValueError, match="expected values in"):
            way(PIXELS.round())


def test_pixels_do_not_set_the_scales_of_a_new_flow():
    flow = residual_flow(None)
    before = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    with pytest.raises(ValueError, match="got integers from 0 to 255"):
        flow.distribution().log_prob(torch.tensor([0.0, 255.0]).repeat(16, 8).view(16, *SHAPE))
    assert all(torch.equal(tensor, before[name]) for name, tensor in flow.state_dict().items())


@pytest.mark.parametrize("alpha", [0.05, None])
def test_a_flow_scores_its_own_samples_and_the_ends_of_the_range(alpha):
    flow = residual_flow(alpha)
    initialize(flow, PIXELS / 255)
    samples = flow.distribution().sample((50,))
    assert flow.distribution().log_prob(samples).isfinite().all()
    assert not ((samples >= 0) & (samples <= 1)).all()  # which nothing holds them to
    ends = torch.tensor([0.0, 1.0]).repeat(8).view(1, *SHAPE)
    assert flow.distribution().log_prob(ends).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_domain_of_a_logit_ends_where_it_says(dtype):
    logit = Logit(0.1)
    assert logit.margin == pytest.approx(0.125)
    assert logit.domain.upper_bound == pytest.approx(1.125)
    logit(torch.tensor([-0.125, 1.125], dtype=dtype))
    beyond = 1.125 + 2 * ROUNDING * torch.finfo(dtype).eps
    with pytest.raises(ValueError, match=r"x: expected values in \[-0\.125, 1\.125\]"):
        logit(torch.tensor([beyond], dtype=dtype))


def test_validation_that_is_off_looks_at_nothing():
    with pyro.validation_enabled(False):
        assert Logit(0.05)(torch.tensor(255.0)).isnan()


def test_what_is_no_number_yet_is_not_looked_at():
    logit = Logit(0.05)
    assert logit(torch.empty(0)).shape == (0,)
    assert logit(torch.empty(3, device="meta")).is_meta
    x = torch.tensor([0.2, 0.7])
    torch.testing.assert_close(torch.vmap(lambda x: logit.call_and_ladj(x)[0])(x), logit(x))
    assert math.isnan(logit(torch.tensor(math.nan)))
