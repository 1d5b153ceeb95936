"""The bias of the truncated series: its closed form, its growth, the table."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from benchmarks.truncation_bias import bias, bound, fitted, main
from pyro_resflow.logdet import PowerSeries
from pyro_resflow.nn import check_contraction
from pyro_resflow.transforms import Inverse, Residual


def shrinking(lipschitz: float) -> dist.TransformedDistribution:
    """A density through g(x) = -L x, for which the series is as wrong as it can be."""
    net = nn.Linear(2, 2, bias=False).double()
    net.weight.data.copy_(-lipschitz * torch.eye(2, dtype=torch.float64))
    base = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    return dist.TransformedDistribution(base, [Inverse(Residual(net))])


def test_bias_reaches_the_bound_and_grows_with_the_lipschitz_constant() -> None:
    points = torch.randn(5, 2, dtype=torch.float64)
    last = torch.zeros(5, dtype=torch.float64)
    for lipschitz in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98):
        found = bias(shrinking(lipschitz), points, PowerSeries(5))
        expected = torch.full_like(found, 2 * bound(lipschitz, 5))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert (found > last).all()
        last = found


def test_longer_series_is_less_biased() -> None:
    points = torch.randn(5, 2, dtype=torch.float64)
    found = [bias(shrinking(0.9), points, PowerSeries(terms)) for terms in (2, 5, 20)]
    assert (found[0] > found[1]).all()
    assert (found[1] > found[2]).all()


def test_flow_is_held_to_the_constant() -> None:
    density = fitted(0.5, PowerSeries(5), blocks=2, steps=3)
    (flow,) = density.transforms
    check_contraction(flow)
    assert all(block.net.lipschitz_bound() < 0.52 for block in residuals(flow))


def residuals(flow: nn.Module) -> list[Residual]:
    return [part for part in flow.modules() if isinstance(part, Residual)]


def test_a_row_is_printed_for_each_constant(capsys: pytest.CaptureFixture[str]) -> None:
    main([0.5, 0.9], blocks=1, steps=2, samples=20, probes=1)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 0")]
    assert [row.split(" | ")[0] for row in rows] == ["| 0.5", "| 0.9"]
    assert all(row.count("±") == 2 for row in rows)
