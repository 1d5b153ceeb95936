"""Real NVP: its published structure and sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pyro_resflow.flows import RealNVP
from pyro_resflow.nn import ResidualConditioner
from pyro_resflow.nn.conditioners.residual import ResidualNet
from pyro_resflow.transforms import BatchNorm, ChannelHalves, Checkerboard, Coupling, initialize


def small(event_shape: tuple[int, ...] = (1, 8, 8), **options: object) -> RealNVP:
    return RealNVP(event_shape, **{"network": ResidualConditioner(4, blocks=1), **options})


def members(flow: nn.Module, kind: type) -> list:  # type: ignore[type-arg]
    return [module for module in flow.modules() if isinstance(module, kind)]


@pytest.mark.parametrize(
    ("event_shape", "options", "millions"),
    [
        ((3, 32, 32), {}, 6.4),
        (
            (3, 32, 32),
            {"scales": 4, "network": ResidualConditioner(32, blocks=4), "growth": 2},
            46.0,
        ),
        (
            (3, 64, 64),
            {"scales": 5, "network": ResidualConditioner(32, blocks=2), "growth": 2},
            96.0,
        ),
    ],
)
def test_parameter_counts_are_the_published_ones(
    event_shape: tuple[int, ...], options: dict[str, object], millions: float
) -> None:
    with torch.device("meta"):
        flow = RealNVP(event_shape, **options)
    count = sum(parameter.numel() for parameter in flow.parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.02)


def test_couplings_are_the_published_ones() -> None:
    masks = [coupling.mask for coupling in members(small((2, 8, 8), scales=3), Coupling)]
    first, second, third = (2, 8, 8), (4, 4, 4), (8, 2, 2)
    expected = []
    for shape in (first, second):
        expected += [Checkerboard(shape, parity=parity) for parity in (0, 1, 0)]
        squeezed = (4 * shape[0], shape[1] // 2, shape[2] // 2)
        expected += [ChannelHalves(squeezed, swap=swap) for swap in (False, True, False)]
    expected += [Checkerboard(third, parity=parity) for parity in (0, 1, 0, 1)]
    assert masks == expected
    assert len(members(small(scales=3), BatchNorm)) == len(masks)


def test_width_grows_at_each_squeeze() -> None:
    flow = small((2, 8, 8), scales=2, growth=2)
    widths = [coupling.net for coupling in members(flow, Coupling)]
    channels = [
        next(m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m.affine)
        for net in widths
    ]
    assert channels == [4] * 3 + [8] * 3 + [8] * 4


def test_black_squares_are_factored_out() -> None:
    flow = small((3, 4, 4), scales=2)
    x = torch.rand(20, 3, 4, 4)
    initialize(flow, x)
    flow.eval()
    with torch.no_grad():
        for net in members(flow, ResidualNet):
            net.last.magnitude.zero_()
            net.last.bias.zero_()
        # the batch norms alone act now, each channel and square by itself
        z = flow.inv(x)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    black = (rows + columns) % 2 == 1
    pixels = torch.logit(0.05 + 0.9 * x)[:, :, black].flatten(1)
    correlations = torch.corrcoef(torch.cat([z[:, :24], pixels], dim=1).T)[:24, 24:].abs()
    assert (correlations.amax(1) > 0.999).all()
    assert correlations.argmax(1).unique().numel() == 24


@pytest.mark.parametrize("event_shape", [(1, 14, 14), (1, 6, 10), (2, 4, 2)])
def test_sizes_that_halve_to_odd_ones(event_shape: tuple[int, ...]) -> None:
    flow = small(event_shape).double()
    x = torch.rand(5, *event_shape, dtype=torch.float64)
    initialize(flow, x)
    flow.eval()
    with torch.no_grad():
        assert (flow._call(flow.inv(x)) - x).abs().max() < 1e-10


def test_one_scale_is_four_couplings() -> None:
    assert len(members(small(scales=1), Coupling)) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small((1, 7, 8)), "divisible by 2"),
        (lambda: small((8, 8)), r"expected \(C, H, W\)"),
        (lambda: small(scales=0), "scales: expected at least one"),
        (lambda: small((1, 4, 4), scales=3), "scales: expected at least two pixels at the last"),
        (lambda: small(growth=0), "growth: expected at least 1"),
        (lambda: small(alpha=0.6), "alpha"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
