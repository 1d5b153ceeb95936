"""The step of Flow++: its parts, and the input of its network."""

from functools import partial

import pytest
import torch

from pyro_resflow.nn import ConvConditioner, GatedAttentionConditioner, ResidualConditioner
from pyro_resflow.transforms import (
    ActNorm,
    AffineMap,
    ChannelHalves,
    Checkerboard,
    Columns,
    CouplingStep,
    InvertibleConv1x1,
    LogisticMixtureMap,
    Mask,
    OnFullImage,
    OnHalves,
)

SMALL = GatedAttentionConditioner(8, 1)


def test_parts_are_the_published_ones() -> None:
    norm, mix, coupling = CouplingStep(SMALL)(Checkerboard((3, 4, 4))).parts
    assert isinstance(norm, ActNorm)
    assert norm.num_features == 3 * 4 * 4
    assert isinstance(mix, OnHalves)
    assert [mix.kept.channels, mix.changed.channels] == [3, 3]
    assert isinstance(coupling.elementwise, LogisticMixtureMap)
    assert len(CouplingStep(SMALL, mix_channels=False)(Checkerboard((3, 4, 4))).parts) == 2


def test_channels_are_mixed_within_their_half() -> None:
    mix = CouplingStep(SMALL)(ChannelHalves((5, 4, 4))).parts[1]
    assert [mix.kept.channels, mix.changed.channels] == [3, 2]
    assert all(isinstance(t, InvertibleConv1x1) for t in (mix.kept, mix.changed))


@pytest.mark.parametrize(
    ("mask", "size", "whole"),
    [
        (Checkerboard((2, 4, 6)), (4, 3), False),
        (Columns((2, 4, 6)), (4, 3), False),
        (ChannelHalves((3, 4, 6)), (4, 6), False),
        (Checkerboard((2, 3, 3)), (3, 3), True),
        (Checkerboard((2, 4, 5)), (1, 10), False),
        (Columns((2, 4, 5)), (4, 5), True),
    ],
)
def test_network_sees_the_half_or_where_halves_differ_the_image(
    mask: Mask, size: tuple[int, int], whole: bool
) -> None:
    step = CouplingStep(SMALL)
    assert step.conditioner_size(mask) == size
    coupling = step(mask).parts[-1]
    assert isinstance(coupling.net, OnFullImage) == whole
    assert coupling.call_and_ladj(torch.randn(5, *mask.event_shape))[1].shape == (5,)


@pytest.mark.parametrize("mask", [Checkerboard((2, 4, 4)), Checkerboard((2, 3, 3), 1)])
@pytest.mark.parametrize("conditioner", [SMALL, ConvConditioner(8), ResidualConditioner(8, 1)])
@pytest.mark.parametrize("elementwise", [AffineMap, partial(LogisticMixtureMap, 3)])
def test_conditional_step_takes_any_conditioner_and_uses_the_context(
    mask: Mask, conditioner: object, elementwise: object
) -> None:
    step = CouplingStep(conditioner, elementwise).conditional(mask, 3)
    x = torch.randn(5, *mask.event_shape)
    context = torch.randn(5, 3, *CouplingStep.conditioner_size(mask))
    with torch.no_grad():
        step.condition(context)(x)
        for parameter in step.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    step.eval()
    y = step.condition(context)(x)
    assert (step.condition(context).inv(y.clone()) - x).abs().max() < 1e-4
    assert (step.condition(-context)(x) - y).abs().max() > 1e-3
