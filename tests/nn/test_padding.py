"""Channels of zeros and their left inverse."""

from __future__ import annotations

import pytest
import torch

from pyro_resflow.nn import InjectivePadding


@pytest.mark.parametrize("batch", [(), (5,), (2, 5), (0,)])
@pytest.mark.parametrize("channels", [0, 4])
def test_zeros_come_and_go(channels: int, batch: tuple[int, ...]) -> None:
    pad, x = InjectivePadding(channels), torch.rand(*batch, 3, 2, 5)
    y = pad(x)
    assert y.shape == (*batch, 3 + channels, 2, 5)
    assert torch.equal(y[..., :3, :, :], x)
    assert not y[..., 3:, :, :].any()
    assert torch.equal(pad.inverse(y), x)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="channels"):
        InjectivePadding(-1)
    with pytest.raises(ValueError, match="more than 4 channels"):
        InjectivePadding(4).inverse(torch.rand(5, 4, 2, 2))
