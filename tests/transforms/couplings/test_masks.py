"""Masks: which entries are kept, shapes of odd sizes, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pyro_resflow.transforms import ChannelHalves, Checkerboard, Columns, Mask, Rows

MASKS: dict[str, Callable[[], Mask]] = {
    "checkerboard": lambda: Checkerboard((2, 3, 4)),
    "checkerboard_other_colour": lambda: Checkerboard((2, 4, 2), parity=1),
    "checkerboard_odd_width": lambda: Checkerboard((2, 4, 3)),
    "checkerboard_odd_sizes": lambda: Checkerboard((2, 3, 5), parity=1),
    "checkerboard_one_column": lambda: Checkerboard((1, 3, 1)),
    "columns": lambda: Columns((2, 3, 4)),
    "columns_odd_width": lambda: Columns((2, 3, 5), parity=1),
    "rows": lambda: Rows((2, 4, 3)),
    "rows_odd_height": lambda: Rows((2, 5, 3), parity=1),
    "channels": lambda: ChannelHalves((5, 2, 3)),
    "channels_swapped": lambda: ChannelHalves((5, 2, 3), swap=True),
    "vector": lambda: ChannelHalves((3,), swap=True),
}


@pytest.fixture(params=sorted(MASKS))
def mask(request: pytest.FixtureRequest) -> Mask:
    return MASKS[request.param]()


@pytest.mark.parametrize("batch_shape", [(), (0,), (5,), (2, 3)])
def test_halves_hold_every_entry_once_and_merge_back(
    mask: Mask, batch_shape: tuple[int, ...]
) -> None:
    x = torch.randn(*batch_shape, *mask.event_shape)
    kept, changed = mask.split(x)
    assert kept.shape == (*batch_shape, *mask.kept_shape)
    assert changed.shape == (*batch_shape, *mask.changed_shape)
    entries = mask.kept_shape.numel() + mask.changed_shape.numel()
    assert entries == torch.Size(mask.event_shape).numel()
    assert torch.equal(mask.merge(kept, changed), x)


def test_masks_are_values() -> None:
    assert Checkerboard((1, 4, 4)) == Checkerboard((1, 4, 4))
    assert Checkerboard((1, 4, 4)) != Checkerboard((1, 4, 4), parity=1)
    with pytest.raises(AttributeError):
        Checkerboard((1, 4, 4)).parity = 1  # type: ignore[misc]


def kept_places(mask: Mask) -> torch.Tensor:
    """1 where an entry is kept, shape ``event_shape``."""
    kept, changed = torch.ones(mask.kept_shape), torch.zeros(mask.changed_shape)
    return mask.merge(kept, changed)


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("size", [(4, 4), (3, 4), (4, 3), (5, 7)])
def test_checkerboard_keeps_one_colour(size: tuple[int, int], parity: int) -> None:
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    expected = ((rows + columns) % 2 == parity).float()
    assert torch.equal(kept_places(Checkerboard((2, *size), parity)), expected.expand(2, *size))


def test_packed_checkerboard_keeps_rows_in_place_and_order() -> None:
    x = torch.arange(16.0).reshape(1, 4, 4)
    kept, changed = Checkerboard((1, 4, 4)).split(x)
    assert kept[0].tolist() == [[0, 2], [5, 7], [8, 10], [13, 15]]
    assert changed[0].tolist() == [[1, 3], [4, 6], [9, 11], [12, 14]]


@pytest.mark.parametrize("parity", [0, 1])
def test_columns_keep_every_other_column(parity: int) -> None:
    places = kept_places(Columns((1, 2, 5), parity))[0]
    expected = (torch.arange(5) % 2 == parity).float()
    assert torch.equal(places, expected.expand(2, 5))


@pytest.mark.parametrize("parity", [0, 1])
def test_rows_keep_every_other_row(parity: int) -> None:
    places = kept_places(Rows((1, 5, 2), parity))[0]
    expected = (torch.arange(5) % 2 == parity).float()
    assert torch.equal(places, expected[:, None].expand(5, 2))


def test_channel_halves_keep_the_first_channels_or_the_others() -> None:
    x = torch.randn(7, 5, 2, 2)
    kept, changed = ChannelHalves((5, 2, 2)).split(x)
    assert torch.equal(kept, x[:, :3])
    assert torch.equal(changed, x[:, 3:])
    kept, changed = ChannelHalves((5, 2, 2), swap=True).split(x)
    assert torch.equal(kept, x[:, 3:])
    assert torch.equal(changed, x[:, :3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Checkerboard((1, 1, 1)), r"event_shape: .*got \(1, 1, 1\)"),
        (lambda: Checkerboard((4, 4)), r"event_shape: expected \(C, H, W\)"),
        (lambda: Checkerboard((1, 4, 4), parity=2), "parity: expected 0 or 1, got 2"),
        (lambda: Columns((1, 4, 1)), r"event_shape: .*got \(1, 4, 1\)"),
        (lambda: Rows((1, 1, 4)), r"at least two rows or pixels .*got \(1, 1, 4\)"),
        (lambda: ChannelHalves((1, 4, 4)), "event_shape: expected at least two channels"),
        (lambda: ChannelHalves(()), "event_shape: expected at least two channels"),
    ],
)
def test_events_without_two_halves_are_named(make: Callable[[], Mask], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
