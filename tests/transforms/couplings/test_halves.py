"""Each half passes its own transform."""

import math

import pytest
import torch
from torch.distributions import AffineTransform, ComposeTransform

from pyro_resflow.transforms import ActNorm, ChannelHalves, Checkerboard, Mask, OnHalves


@pytest.mark.parametrize("mask", [Checkerboard((2, 4, 4), 1), ChannelHalves((3, 4, 4))])
def test_each_half_passes_its_own_transform(mask: Mask) -> None:
    first, second = (
        ActNorm(shape, event_dim=3, initialized=True)
        for shape in (mask.kept_shape, mask.changed_shape)
    )
    with torch.no_grad():
        for norm in (first, second):
            norm.log_scale.normal_()
            norm.shift.normal_()
    x = torch.randn(5, *mask.event_shape)
    y, ladj = OnHalves(mask, first, second).call_and_ladj(x)
    kept, changed = mask.split(x)
    torch.testing.assert_close(mask.split(y)[0], first(kept))
    torch.testing.assert_close(mask.split(y)[1], second(changed))
    expected = first.log_scale.sum() + second.log_scale.sum()
    torch.testing.assert_close(ladj, expected.expand(5))


def test_wrong_shape_is_named() -> None:
    t = OnHalves(Checkerboard((2, 4, 4)), ActNorm(2, event_dim=3), ActNorm(2, event_dim=3))
    with pytest.raises(ValueError, match=r"x: expected shape \(\*batch, 2, 4, 4\)"):
        t(torch.randn(5, 2, 4, 6))


def test_transforms_of_entries_count_each_entry() -> None:
    halves = OnHalves(
        Checkerboard((2, 4, 4)), AffineTransform(0.0, 2.0), AffineTransform(1.0, 3.0)
    )
    y, ladj = halves.call_and_ladj(torch.zeros(5, 2, 4, 4))
    torch.testing.assert_close(ladj, torch.full((5,), 16 * math.log(6.0)))
    torch.testing.assert_close(halves.inverse_and_ladj(y)[1], ladj)


def test_parameters_in_torchs_own_compositions_are_registered() -> None:
    composed = ComposeTransform([ActNorm(2, event_dim=3), AffineTransform(0.0, 2.0, event_dim=3)])
    halves = OnHalves(Checkerboard((2, 4, 4)), composed, ActNorm(2, event_dim=3))
    assert len(list(halves.parameters())) == 4


def test_a_transform_of_larger_events_is_refused() -> None:
    with pytest.raises(ValueError, match="kept: expected a transform with at most 3 event"):
        OnHalves(
            Checkerboard((2, 4, 4)),
            AffineTransform(0.0, 2.0, event_dim=4),
            ActNorm(2, event_dim=3),
        )
