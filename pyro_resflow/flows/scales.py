"""Helpers that assemble the steps of an image flow at several scales, with squeezes between."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..transforms import Squeeze
from ..transforms.couplings.masks import first_half
from .assembly import UNCONDITIONAL, Assembly, Part

Step = Callable[[torch.Size, int, bool], Sequence[Part]]
"""Builds one step from the image shape, the index of the scale, and whether it is the flow's first
step."""


def steps_by_scale(
    event_shape: torch.Size, numbers: Sequence[int], step: Step, *, factor_out: bool = False
) -> tuple[list[list[Part]], torch.Size]:
    """Build the steps of each scale, with a squeeze at the end of each scale but the last.

    Args:
        event_shape: ``(C, H, W)`` of the first scale.
        numbers: number of steps at each scale.
        step: builds one step.
        factor_out: whether half of the channels are factored out after each scale but the last.

    Returns:
        The transforms of each scale, and the event shape at the end of the last scale.

    Raises:
        ValueError: for a negative number of steps.
    """
    if min(numbers) < 0:
        raise ValueError(f"blocks: expected at least 0 at each scale, got {tuple(numbers)}.")
    shape = event_shape
    scales: list[list[Part]] = []
    for scale, number in enumerate(numbers):
        steps = [t for i in range(number) for t in step(shape, scale, scale + i == 0)]
        if scale < len(numbers) - 1:
            steps.append(Squeeze())
            channels, height, width = steps[-1].forward_shape(shape)
            shape = torch.Size((first_half(channels) if factor_out else channels, height, width))
        scales.append(steps)
    return scales, shape


def joined(
    scales: Sequence[Sequence[Part]],
    event_shape: torch.Size,
    *,
    factor_out: bool,
    assembly: Assembly = UNCONDITIONAL,
) -> list[Part]:
    """Join the scales, in a Multiscale transform if channels are factored out.

    Args:
        scales: the transforms of each scale.
        event_shape: ``(C, H, W)`` of the first scale.
        factor_out: whether half of the channels are factored out after each scale but the last.
        assembly: builds compositions.
    """
    levels = [assembly.compose(steps) for steps in scales]
    return [assembly.multiscale(levels, event_shape)] if factor_out else levels
