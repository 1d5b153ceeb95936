"""The quadrature rule against the logarithm, on circles up to the unit circle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_resflow.quadrature import log_quadrature


def circle(distance: float) -> tuple[Tensor, Tensor]:
    """z and 1 + z on the circle that passes -1 at a distance; 1 + z without cancellation."""
    angles = torch.cat([torch.logspace(-12, 0, 600), torch.linspace(1, math.pi, 400)]).double()
    radius = 1 - distance
    # z = -radius exp(i angle)
    real = distance + 2 * radius * (angles / 2).sin().square()
    one_plus_z = torch.complex(real, -radius * angles.sin())
    return torch.complex(-radius * angles.cos(), -radius * angles.sin()), one_plus_z


@pytest.mark.parametrize(
    ("dtype", "distances", "error"),
    [
        (torch.float64, [0.99, 0.5, 0.02, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10], 2e-13),
        (torch.float32, [0.99, 0.5, 0.02, 1e-3, 1e-4, 1e-6], 4e-7),
    ],
)
def test_logarithm_on_the_disc_is_right_to_rounding(
    dtype: torch.dtype, distances: list[float], error: float
) -> None:
    nodes, weights = (x.double() for x in log_quadrature(dtype, torch.device("cpu")))
    for distance in distances:
        z, one_plus_z = circle(distance)
        found = (weights[:, None] * z / (one_plus_z - (1 - nodes[:, None]) * z)).sum(0)
        exact = one_plus_z.log()
        # the nodes are rounded, as z is
        rounding = torch.finfo(dtype).eps / distance
        assert ((found - exact).abs() / exact.abs().clamp_min(1)).max() < error + rounding


def test_single_precision_rounds_a_rule_that_is_right_to_its_last_digits() -> None:
    nodes, weights = log_quadrature(torch.float32, torch.device("cpu"))
    assert len(nodes) == 32
    assert bool(((nodes > 0) & (nodes <= 1)).all())
    assert abs(weights.double().sum().item() - 1) < 2e-7
