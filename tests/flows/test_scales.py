"""The assembly of scales, which all image flows share."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Transform

from pyro_resflow.flows.scales import joined, steps_by_scale
from pyro_resflow.transforms import ActNorm, Compose, Multiscale, Squeeze

SHAPE = torch.Size((3, 8, 8))


def record(calls: list[tuple[torch.Size, int, bool]], shape: torch.Size, *step: object) -> list:
    calls.append((shape, *step))
    return [ActNorm(shape[0], event_dim=3)]


@pytest.mark.parametrize(("factor_out", "channels"), [(False, 12), (True, 6)])
def test_steps_know_their_shape_and_their_place(factor_out: bool, channels: int) -> None:
    calls: list[tuple[torch.Size, int, bool]] = []
    scales, shape = steps_by_scale(
        SHAPE, (2, 1), lambda *step: record(calls, *step), factor_out=factor_out
    )
    assert calls == [((3, 8, 8), 0, True), ((3, 8, 8), 0, False), ((channels, 4, 4), 1, False)]
    assert shape == (channels, 4, 4)
    assert [[type(t) for t in steps] for steps in scales] == [
        [ActNorm, ActNorm, Squeeze],
        [ActNorm],
    ]


@pytest.mark.parametrize("factor_out", [False, True])
def test_scales_are_joined_with_or_without_factoring_out(factor_out: bool) -> None:
    scales, _ = steps_by_scale(
        SHAPE, (1, 1), lambda *step: record([], *step), factor_out=factor_out
    )
    parts: list[Transform] = joined(scales, SHAPE, factor_out=factor_out)
    assert [type(part) for part in parts] == ([Multiscale] if factor_out else [Compose, Compose])
    y = Compose(parts)(torch.randn(5, *SHAPE))
    assert y.shape == ((5, 192) if factor_out else (5, 12, 4, 4))
