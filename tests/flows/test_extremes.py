"""Extreme images and half precision give no NaN and no infinity."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import ConvBlock, DenseNetBlock, MLPBlock, ResidualFlow
from pyro_resflow.transforms import UniformDequantization
from tests.logdet.registry import ONE_OF_EACH_CLASS, estimator

BINS = 256
IMAGES: dict[str, Tensor] = {
    "black": torch.zeros(16, 1, 4, 4, dtype=torch.long),
    "white": torch.full((16, 1, 4, 4), BINS - 1),
    "checkered": (torch.arange(16) % 2 * (BINS - 1)).view(1, 1, 4, 4).expand(4, 1, 4, 4),
    "one image": torch.arange(16).view(1, 1, 4, 4),
}
BLOCKS: dict[str, Callable] = {"convolutions": ConvBlock(8), "dense net": DenseNetBlock(2, 8)}


def flow_of(
    initial: Tensor, *, alpha: float = 0.05, block: str = "convolutions", logdet: str = "krylov"
) -> tuple[ResidualFlow, Dequantized]:
    """A flow whose ActNorms start from some images, and its distribution of integer images."""
    flow = ResidualFlow(
        (1, 4, 4),
        (1, 1),
        network=BLOCKS[block],
        end_blocks=1,
        end_network=MLPBlock((16,)),
        alpha=alpha,
        logdet=estimator(logdet),
    )
    distribution = Dequantized(flow.distribution(), UniformDequantization(BINS), BINS)
    with torch.no_grad():
        distribution.log_prob(initial)
    return flow, distribution


def check_finite(
    flow: ResidualFlow,
    distribution: Dequantized,
    images: Tensor,
    *,
    autocast: torch.dtype | None = None,
    scale: float = 1.0,
) -> None:
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        log_prob = distribution.log_prob(images)
    assert log_prob.shape == images.shape[:1]
    assert log_prob.isfinite().all()
    (scale * log_prob.sum()).backward()
    gradients = [(name, p.grad) for name, p in flow.named_parameters() if p.grad is not None]
    assert len(gradients) == len(list(flow.parameters()))
    assert [name for name, gradient in gradients if not gradient.isfinite().all()] == []


@pytest.mark.parametrize("images", sorted(IMAGES))
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("alpha", [0.05, 1e-6])
def test_extreme_images(images, autocast, alpha):
    flow, distribution = flow_of(torch.randint(BINS, (32, 1, 4, 4)), alpha=alpha)
    check_finite(flow, distribution, IMAGES[images], autocast=autocast)


@pytest.mark.parametrize("logdet", ONE_OF_EACH_CLASS)
@pytest.mark.parametrize("block", sorted(BLOCKS))
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
def test_every_estimator_and_block_under_autocast(logdet, block, autocast):
    images = torch.randint(BINS, (32, 1, 4, 4))
    flow, distribution = flow_of(images, block=block, logdet=logdet)
    check_finite(flow, distribution, images, autocast=autocast)


@pytest.mark.parametrize("images", ["black", "white"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
def test_normalisations_that_start_from_constant_images(images, autocast):
    flow, distribution = flow_of(IMAGES[images])
    check_finite(flow, distribution, IMAGES[images], autocast=autocast)
    flow.zero_grad()
    # What is far from those images has gradients of a million: more than float16 can hold, unless
    # the loss is scaled down, as a gradient scaler does.
    scale = 2.0**-12 if autocast is torch.float16 else 1.0
    check_finite(flow, distribution, IMAGES["checkered"], autocast=autocast, scale=scale)
