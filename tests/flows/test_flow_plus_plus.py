"""Flow++: structure and sizes of the published models, and its use as an image flow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import FlowPlusPlus
from pyro_resflow.nn import (
    ConvConditioner,
    GatedAttentionConditioner,
    GatedEncoder,
    GatedMaxout,
    GatedSelfAttention,
    WeightNormConv2d,
)
from pyro_resflow.transforms import (
    AffineMap,
    ChannelHalves,
    Checkerboard,
    Columns,
    Coupling,
    CouplingStep,
    LogisticMixtureMap,
    VariationalDequantization,
    initialize,
)


def small(
    event_shape: tuple[int, int, int] = (1, 8, 8),
    conditioner: object = None,
    **options: object,
) -> FlowPlusPlus:
    conditioner = conditioner if conditioner is not None else GatedAttentionConditioner(8, 1)
    options = {"couplings": ((0, 2), (2, 1)), **options}
    step = CouplingStep(conditioner, partial(LogisticMixtureMap, 4))
    return FlowPlusPlus(event_shape, **{"step": step, **options})


def numbers(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_published_model_of_cifar10() -> None:
    with torch.device("meta"):
        flow = FlowPlusPlus((3, 32, 32))
        dequantization = VariationalDequantization((3, 32, 32), 256)
    # the LU factors of a 1x1 convolution of C channels hold C numbers more than its matrix
    halves = [3] * 4 + [6] * 2 + [12] * 3 + [3] * 4
    assert numbers(flow, dequantization) == 31_443_440 + sum(2 * channels for channels in halves)


def test_published_model_of_imagenet32() -> None:
    network = partial(
        GatedAttentionConditioner, 128, convolution=WeightNormConv2d, last_activation=True
    )
    with torch.device("meta"):
        flow = FlowPlusPlus(
            (3, 32, 32), ((0, 7), (3, 3)), step=CouplingStep(network(20), mix_channels=False)
        )
        dequantization = VariationalDequantization(
            (3, 32, 32),
            256,
            8,
            step=CouplingStep(network(8), mix_channels=False),
            features=GatedEncoder(
                blocks=8, norm=True, mixing=GatedSelfAttention(), convolution=WeightNormConv2d
            ),
        )
    assert numbers(flow, dequantization) == 168_955_724


def test_published_model_of_imagenet64() -> None:
    network = partial(GatedAttentionConditioner, 96, last_activation=True)
    mixture = partial(LogisticMixtureMap, 4)
    with torch.device("meta"):
        flow = FlowPlusPlus(
            (3, 64, 64),
            ((0, 4), (2, 2), (2, 2)),
            step=CouplingStep(network(16), mixture, mix_channels=False),
            squeeze_first=True,
        )
        dequantization = VariationalDequantization(
            (3, 64, 64),
            256,
            step=CouplingStep(network(5, mixing=None), mixture, mix_channels=False),
            features=GatedEncoder(blocks=5, norm=True),
        )
    # the authors' dequantizer, which has no attention, makes positions and does not use them
    unused = 4 * 96 * 64 * 32
    assert numbers(flow, dequantization) == 73_489_960 - unused


def test_masks_alternate_in_the_published_order() -> None:
    flow = small(couplings=((0, 3), (2, 2)))
    masks = [part.mask for part in flow.modules() if isinstance(part, Coupling)]
    assert masks == [
        Checkerboard((1, 8, 8), 0),
        Checkerboard((1, 8, 8), 1),
        Checkerboard((1, 8, 8), 0),
        ChannelHalves((4, 4, 4)),
        ChannelHalves((4, 4, 4), swap=True),
        Checkerboard((4, 4, 4), 0),
        Checkerboard((4, 4, 4), 1),
    ]


@pytest.mark.parametrize(
    "make",
    [
        small,
        lambda: small((3, 8, 8), squeeze_first=True),
        lambda: small((1, 6, 6)),  # 3x3 at the second scale: the halves are unequal
        lambda: small((2, 4, 8), mask=Columns),
        lambda: small(step=CouplingStep(GatedAttentionConditioner(8, 1), AffineMap)),
        lambda: small(conditioner=GatedAttentionConditioner(8, 1, mixing=None)),
        lambda: small(conditioner=GatedAttentionConditioner(8, 1, mixing=GatedMaxout())),
        lambda: small(conditioner=ConvConditioner(8)),
    ],
)
def test_scores_samples_and_reconstructs_images(make: Callable[[], FlowPlusPlus]) -> None:
    flow = make()
    x = torch.rand(16, *flow.event_shape)
    d = flow.distribution()
    d.log_prob(x).sum().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())
    assert d.sample((3,)).shape == (3, *flow.event_shape)
    with torch.no_grad():
        assert (flow(flow.inv(x).clone()) - x).abs().max() < 1e-4


def test_one_call_initialises_every_coupling_near_the_identity() -> None:
    flow = small()
    initialize(flow, torch.rand(100, 1, 8, 8))
    z = flow.inv(torch.rand(100, 1, 8, 8))
    assert 0.5 < z.std() < 2
    assert z.mean().abs() < 0.3


def test_training_with_variational_dequantization_lowers_the_bits() -> None:
    flow = small()
    step = CouplingStep(GatedAttentionConditioner(8, 1), partial(LogisticMixtureMap, 4))
    dequantization = VariationalDequantization(
        (1, 8, 8), 16, 2, step=step, features=GatedEncoder(4, 1)
    )
    rows = torch.arange(8)[:, None].expand(64, 1, 8, 8)
    images = rows + torch.randint(3, (64, 1, 8, 8))
    model = nn.ModuleList([flow, dequantization])
    d = Dequantized(flow.distribution(), dequantization, 16)
    d.log_prob(images)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    bits = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = d.bits_per_dim(images).mean()
        loss.backward()
        optimizer.step()
        bits.append(loss.item())
    assert bits[-1] < bits[0] - 0.3
    assert bits[-1] > 1.5  # log2 of 3: no model codes uniform noise of three levels in less
    assert (
        Dequantized(flow.distribution(), dequantization, 16, num_samples=4)
        .log_prob(images)
        .isfinite()
        .all()
    )


def test_bfloat16_autocast_gives_nearly_the_same_loss_and_gradient() -> None:
    flow = small()
    images = torch.rand(20, 1, 8, 8)
    initialize(flow, images)
    losses, gradients = [], []
    for enabled in (False, True):
        flow.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = -flow.distribution().log_prob(images).mean()
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in flow.parameters()]))
    assert loss.dtype == torch.float32
    assert not torch.equal(*gradients)  # bfloat16 was at work
    assert (losses[1] - losses[0]).abs() < 0.02 * losses[0].abs()
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize("images", [torch.zeros(5, 1, 8, 8), torch.ones(5, 1, 8, 8)])
def test_constant_images_stay_finite(images: torch.Tensor) -> None:
    flow = small()
    initialize(flow, torch.rand(20, 1, 8, 8))
    assert flow.distribution().log_prob(images).isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small((1, 9, 9)), "event_shape: expected .* divisible by 2"),
        (lambda: small(couplings=()), "couplings: expected at least one scale"),
        (lambda: small(couplings=((0, -1),)), "couplings: expected a pair"),
        (lambda: small(couplings=((4,),)), "couplings: expected a pair"),
        (lambda: small(couplings=((1, 1),)), "two channels to split"),
        (lambda: small()(torch.randn(3, 5)), r"noise: expected shape \(\*batch, 64\)"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
