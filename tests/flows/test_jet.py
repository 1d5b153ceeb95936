"""Jet: its architecture, and its size."""

from __future__ import annotations

import pytest
import torch

from pyro_resflow.flows import Jet
from pyro_resflow.nn import TransformerConditioner
from pyro_resflow.transforms import (
    ChannelHalves,
    ChannelPermutation,
    Checkerboard,
    Columns,
    Coupling,
    OnFullImage,
    Rows,
)

SMALL = TransformerConditioner(8, blocks=1, heads=2)


def couplings(flow: Jet) -> list[Coupling]:
    return [part for part in flow.encoder.parts if isinstance(part, Coupling)]


def test_starts_as_the_map_to_patches_in_random_order() -> None:
    flow = Jet((1, 4, 4), 4, patch_size=2, network=SMALL)
    x = torch.rand(5, 1, 4, 4)
    z = flow.inv(x)
    torch.testing.assert_close(z.sort(-1).values, (2 * x - 1).flatten(1).sort(-1).values)
    assert not torch.equal(z, (2 * x - 1).flatten(1))
    ladj = flow.encoder.call_and_ladj(x)[1]
    torch.testing.assert_close(ladj, torch.full((5,), 16 * torch.log(torch.tensor(2.0))))


def test_couplings_of_channels_and_of_pixels_take_turns() -> None:
    flow = Jet((1, 8, 8), 21, patch_size=2, network=SMALL, channel_couplings=2)
    kinds = [type(coupling.mask) for coupling in couplings(flow)]
    assert kinds[:6] == [ChannelHalves, ChannelHalves, Checkerboard] * 2
    of_pixels = [c.mask for c in couplings(flow) if not isinstance(c.mask, ChannelHalves)]
    found = [(type(mask), mask.parity) for mask in of_pixels]
    turns = [(kind, parity) for kind in (Checkerboard, Columns, Rows) for parity in (0, 1)]
    assert found == [*turns, turns[0]]
    orders = [p.order.tolist() for p in flow.encoder.parts if isinstance(p, ChannelPermutation)]
    assert len(orders) == 14
    assert len(set(map(tuple, orders))) > 5


def test_halves_of_unequal_size_are_seen_at_their_places() -> None:
    flow = Jet((1, 6, 6), 2, patch_size=2, network=SMALL, channel_couplings=0)
    assert all(isinstance(coupling.net, OnFullImage) for coupling in couplings(flow))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    flow = flow.double()
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(flow._call(flow.inv(x)), x)


def test_published_size() -> None:
    """The model of ImageNet 64x64 in the authors' code, counted layer by layer.

    A conditioner there always sees 256 tokens of 24 channels. Here those of couplings of pixels
    see 128 tokens of 48 channels.
    """
    width, tokens, channels = 512, 256, 24
    norm = 2 * width
    block = 2 * norm + 4 * (width * width + width) + 2 * 4 * width * width + 4 * width + width

    def conditioner(tokens: int, channels: int) -> int:
        first, last = channels * width + width, width * 2 * channels + 2 * channels
        return first + tokens * width + 2 * block + norm + last

    authors = 32 * conditioner(tokens, channels)
    assert authors == 207_177_216
    difference = conditioner(tokens, channels) - conditioner(tokens // 2, 2 * channels)
    with torch.device("meta"):
        flow = Jet((3, 64, 64))
    found = sum(parameter.numel() for parameter in flow.parameters())
    assert found == authors - 6 * difference


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((1, 8, 8), {"patch_size": 3}, r"patch_size: .* got \(1, 8, 8\) and 3"),
        ((1, 8, 8), {"patch_size": 8}, "at least 2x2 patches"),
        ((8, 8), {}, r"expected \(C, H, W\)"),
        ((1, 8, 8), {"channel_couplings": -1}, "channel_couplings: expected"),
        ((1, 8, 8), {"couplings": 0}, "couplings, channel_couplings: expected"),
        ((1, 8, 8), {"patch_size": 1}, "event_shape: expected at least two channels"),
    ],
)
def test_bad_sizes_are_named(
    shape: tuple[int, ...], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Jet(shape, network=SMALL, **settings)
