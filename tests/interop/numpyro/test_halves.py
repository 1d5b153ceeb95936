from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("numpyro")

import jax.numpy as jnp

from pyro_resflow.interop.numpyro.halves import Halves
from pyro_resflow.transforms import ChannelHalves, Checkerboard, Columns, Mask


@pytest.mark.parametrize(
    "mask",
    [
        ChannelHalves((3,)),
        ChannelHalves((3, 2, 2), swap=True),
        Columns((2, 2, 5), parity=1),
        Checkerboard((2, 3, 4)),
        Checkerboard((2, 3, 3), parity=1),
    ],
    ids=str,
)
def test_halves_are_the_masks(mask: Mask) -> None:
    halves = Halves.of(mask)
    x = torch.randn(2, 4, *mask.event_shape)
    theirs = halves.split(jnp.array(x.numpy()))
    for half, expected in zip(theirs, mask.split(x), strict=True):
        np.testing.assert_array_equal(half, expected)
    np.testing.assert_array_equal(halves.merge(*theirs), x)
    assert hash(halves) == hash(Halves.of(mask))
