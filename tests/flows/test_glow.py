"""Glow: its published structure and size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pyro_resflow.flows import Glow
from pyro_resflow.nn import ConvConditioner
from pyro_resflow.transforms import ActNorm, Coupling, InvertibleConv1x1, SplitPrior, initialize


def small(event_shape: tuple[int, ...] = (1, 8, 8), **options: object) -> Glow:
    return Glow(event_shape, **{"steps": (2, 1), "network": ConvConditioner(4), **options})


def members(flow: nn.Module, kind: type) -> list:  # type: ignore[type-arg]
    return [module for module in flow.modules() if type(module) is kind]


def test_parameter_count_is_the_published_one() -> None:
    with torch.device("meta"):
        flow = Glow((3, 32, 32))
    count = sum(parameter.numel() for parameter in flow.parameters())
    assert count == pytest.approx(44e6, rel=0.01)


def test_chain_is_the_published_one() -> None:
    flow = small((3, 8, 8), steps=(2, 3, 1))
    assert len(members(flow, Coupling)) == len(members(flow, InvertibleConv1x1)) == 6
    assert len(members(flow, ActNorm)) == 6 + 1  # the last is the last level's prior
    shapes = [tuple(coupling.mask.event_shape) for coupling in members(flow, Coupling)]
    assert shapes == [(12, 4, 4)] * 2 + [(24, 2, 2)] * 3 + [(48, 1, 1)]
    priors = [tuple(prior.mask.event_shape) for prior in members(flow, SplitPrior)]
    assert priors == [(12, 4, 4), (24, 2, 2)]


def test_first_batch_leaves_every_level_standard() -> None:
    flow = small((3, 8, 8))
    x = torch.rand(100, 3, 8, 8)
    initialize(flow, x)
    z = flow.inv(x)
    assert z.shape == (100, 192)
    torch.testing.assert_close(z[:, 96:].mean(), torch.zeros(()), atol=1e-4, rtol=0)
    torch.testing.assert_close(z[:, 96:].std(), torch.ones(()), atol=0.05, rtol=0)


def test_odd_images_need_one_level_less() -> None:
    d = small((1, 14, 14), steps=(2,)).distribution()
    assert d.log_prob(torch.rand(16, 1, 14, 14)).shape == (16,)
    with pytest.raises(ValueError, match=r"divisible by 4 for 2 squeezes, got \(1, 14, 14\)"):
        small((1, 14, 14))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small((8, 8)), r"expected \(C, H, W\)"),
        (lambda: small(steps=()), "steps: expected at least one scale"),
        (lambda: small(steps=(2, 0)), r"steps: expected at least one at each level, got \(2, 0\)"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
