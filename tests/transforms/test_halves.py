"""Each half passes its own transform."""

import pytest
import torch

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
