"""The interface of a recipe for conditioners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


class Conditioner(Protocol):
    """Builds the network that computes a coupling's parameters from the half that it keeps."""

    def __call__(
        self, in_shape: Sequence[int], out_channels: int, context_channels: int = 0
    ) -> nn.Module:
        """Build a network ``net(a, context=None)``.

        Args:
            in_shape: ``(C, H, W)`` of the kept half a.
            out_channels: channels of the result, of shape ``(N, out_channels, H, W)``.
            context_channels: channels of the context, of shape ``(N, context_channels, H, W)``;
                0 for a network without a context.
        """


def check_context(context: Tensor | None, channels: int) -> None:
    """Raise unless ``context`` has shape ``(N, channels, H, W)``, or is None for 0 channels.

    Raises:
        ValueError: naming the expected and the given shape.
    """
    if context is None and not channels:
        return
    if context is None or context.dim() != 4 or context.shape[1] != channels:
        given = "None" if context is None else f"shape {tuple(context.shape)}"
        expected = f"shape (N, {channels}, H, W)" if channels else "None"
        raise ValueError(f"context: expected {expected}, got {given}.")
