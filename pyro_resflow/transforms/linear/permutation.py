"""A fixed permutation of channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from ..core.checks import check_event_shape
from ..core.one_pass_transform import OnePassTransform


class ChannelPermutation(OnePassTransform):
    """Reorder the channels of images.

    Args:
        order: channel i of the output is channel ``order[i]`` of the input.
        cache_size: 0 or 1.

    Raises:
        ValueError: if ``order`` is not a permutation of 0, 1, ...; when called, if the input has
            another number of channels.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import ChannelPermutation
        >>> x = torch.arange(3.0).reshape(3, 1, 1)
        >>> ChannelPermutation([2, 0, 1])(x).flatten()
        tensor([2., 0., 1.])
    """

    domain = constraints.independent(constraints.real, 3)
    codomain = constraints.independent(constraints.real, 3)

    order: Tensor

    def __init__(self, order: Sequence[int], *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        if sorted(order) != list(range(len(order))):
            raise ValueError(
                f"order: expected a permutation of 0 .. {len(order) - 1}, got {list(order)}."
            )
        self.channels = len(order)
        self.register_buffer("order", torch.tensor(order))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event_shape("x", x, (self.channels, *x.shape[-2:]))
        return x.index_select(-3, self.order), x.new_zeros(x.shape[:-3])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        check_event_shape("y", y, (self.channels, *y.shape[-2:]))
        return y.index_select(-3, self.order.argsort()), y.new_zeros(y.shape[:-3])

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]
