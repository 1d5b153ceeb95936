"""The learned prior of a factored-out half."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.nn import ConvConditioner, initialize_by
from pyro_resflow.transforms import ActNorm, Compose, Multiscale, Split, SplitPrior, Squeeze


def unsettled(module: nn.Module) -> None:
    """Away from where it starts."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def test_is_a_gaussian_of_the_factored_out_half_given_the_kept_one() -> None:
    prior = SplitPrior((4, 2, 2), ConvConditioner(8))
    initialize_by(prior, [torch.randn(20, 4, 2, 2)])
    unsettled(prior)
    flow = Compose([prior, Split(ActNorm(2, event_dim=3, initialized=True), (4, 2, 2))])
    base = dist.Normal(torch.zeros(16), 1.0).to_event(1)
    x = torch.randn(7, 4, 2, 2)
    kept, out = x.chunk(2, dim=1)
    h, t = prior.net(kept).chunk(2, dim=1)
    s = 5 * (h / 5).tanh()
    given = dist.Normal(-t * (-s).exp(), (-s).exp()).to_event(3)
    expected = given.log_prob(out) + dist.Normal(0.0, 1.0).expand((2, 2, 2)).to_event(3).log_prob(
        kept
    )
    density = dist.TransformedDistribution(base, [flow.inv]).log_prob(x)
    torch.testing.assert_close(density, expected)


def test_starts_as_the_standard_normal_prior() -> None:
    x = torch.randn(7, 4, 2, 2)
    y, ladj = SplitPrior((4, 2, 2), ConvConditioner(8)).call_and_ladj(x)
    assert torch.equal(y, x)
    assert torch.equal(ladj, torch.zeros(7))


def levels() -> list[Squeeze | ActNorm]:
    return [Squeeze(), Squeeze(), ActNorm(4, event_dim=3)]


def test_multiscale_puts_one_ahead_of_every_split_and_reconstructs_exactly() -> None:
    flow = Multiscale(levels(), (1, 8, 8), prior=ConvConditioner(8)).double()
    priors = [module for module in flow.modules() if isinstance(module, SplitPrior)]
    assert [tuple(prior.mask.event_shape) for prior in priors] == [(4, 4, 4), (8, 2, 2)]
    x = torch.randn(20, 1, 8, 8, dtype=torch.float64)
    initialize_by(flow, [x])
    unsettled(flow)
    with torch.no_grad():
        assert (flow._inverse(flow._call(x)) - x).abs().max() < 1e-12


def test_learns_what_the_kept_half_tells_of_the_other() -> None:
    def image(number: int) -> Tensor:
        kept = torch.randn(number, 1, 4, 4)
        return torch.cat([kept, 2 * kept + 0.5 * torch.randn_like(kept)], dim=1)

    prior = SplitPrior((2, 4, 4), lambda shape, outputs: nn.Conv2d(shape[0], outputs, 1))
    flow = Compose([prior, Split(ActNorm(1, event_dim=3, initialized=True), (2, 4, 4))])
    base = dist.Normal(torch.zeros(32), 1.0).to_event(1)
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-2)
    for _ in range(150):
        optimizer.zero_grad()
        density = dist.TransformedDistribution(base, [flow.inv])
        (-density.log_prob(image(64)).mean()).backward()
        optimizer.step()
    kept = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    mean = prior._inverse(torch.cat([kept, torch.zeros_like(kept)], dim=1))[:, 1]
    assert (mean - 2 * kept[:, 0]).abs().max() < 0.2


def test_single_channel_is_named() -> None:
    with pytest.raises(ValueError, match="event_shape: expected at least two channels"):
        SplitPrior((1, 4, 4), ConvConditioner(8))
