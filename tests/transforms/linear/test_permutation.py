"""Permutations of channels."""

import pytest
import torch

from pyro_resflow.transforms import ChannelPermutation


def test_channels_come_in_the_order_asked_for_and_return() -> None:
    x = torch.randn(7, 3, 2, 2)
    transform = ChannelPermutation([2, 0, 1])
    y, ladj = transform.call_and_ladj(x)
    assert torch.equal(y, x[:, [2, 0, 1]])
    assert torch.equal(ladj, torch.zeros(7))
    assert torch.equal(transform._inverse(y), x)


@pytest.mark.parametrize("order", [[0, 2], [0, 0], [1]])
def test_orders_that_are_no_permutation_are_named(order: list[int]) -> None:
    with pytest.raises(ValueError, match="order: expected a permutation"):
        ChannelPermutation(order)


def test_wrong_number_of_channels_is_named() -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \(\*batch, 2, 3, 3\)"):
        ChannelPermutation([1, 0])(torch.randn(7, 5, 3, 3))
