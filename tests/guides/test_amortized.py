"""Amortized guides, in plates and outside."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_resflow.guides import (
    AmortizedResidualFlow,
)


@pytest.mark.parametrize("batch", [(), (7,), (6, 7)])
def test_amortized_posterior_has_the_contexts_batch_shape(
    batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    posterior = AmortizedResidualFlow(2, 3, blocks=2, hidden_dims=[8])
    conditioned = posterior.condition(torch.randn(*batch, 3))
    assert conditioned.batch_shape == batch
    assert conditioned.event_shape == (2,)
    draws = conditioned.rsample((5,))
    assert draws.shape == (5, *batch, 2)
    assert draws.dtype == dtype
    assert conditioned.log_prob(draws).shape == (5, *batch)


def test_amortized_density_integrates_to_one_for_each_context() -> None:
    posterior = perturbed_module(AmortizedResidualFlow(1, 2, blocks=2, hidden_dims=[8]))
    conditioned = posterior.condition(torch.randn(3, 2))
    grid = torch.linspace(-30, 30, 6001)
    with torch.no_grad():
        density = conditioned.log_prob(grid[:, None, None]).exp()
    torch.testing.assert_close(torch.trapezoid(density, grid, dim=0), torch.ones(3))


def perturbed_module(module: AmortizedResidualFlow) -> AmortizedResidualFlow:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def test_amortized_guide_in_a_plate_outside_and_with_particles() -> None:
    posterior = AmortizedResidualFlow(2, 3, blocks=1, hidden_dims=[8])
    context = torch.randn(5, 3)

    def guide() -> None:
        pyro.module("posterior", posterior)
        with pyro.plate("data", 5):
            pyro.sample("z", posterior.condition(context))
        pyro.sample("alone", posterior.condition(context[0]))
        pyro.sample("joint", posterior.condition(context).to_event(1))

    with pyro.plate("particles", 4, dim=-2):
        trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["value"].shape == (4, 5, 2)
    assert trace.nodes["z"]["log_prob"].shape == (4, 5)
    assert trace.nodes["alone"]["log_prob"].shape == (4, 1)
    assert trace.nodes["joint"]["log_prob"].shape == (4, 1)
    registered = {name for name in pyro.get_param_store() if name.startswith("posterior$$$")}
    assert len(registered) == len(list(posterior.parameters()))


def test_amortized_guide_learns_the_posteriors_of_subsamples() -> None:
    data = 2 * torch.randn(200, 1)

    def model(batch: Tensor) -> None:
        with pyro.plate("data", len(batch)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=batch)

    posterior = AmortizedResidualFlow(1, 1, blocks=1, hidden_dims=[16])

    def guide(batch: Tensor) -> None:
        pyro.module("posterior", posterior)
        with pyro.plate("data", len(batch)):
            pyro.sample("z", posterior.condition(batch))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(200):
        svi.step(data[torch.randint(200, (128,))])
    context = torch.tensor([[-2.0], [0.0], [2.0]])
    with torch.no_grad():
        draws = posterior.condition(context).sample((4000,))
    # the posterior of z given x is normal: mean 0.8 x, variance 0.2
    assert (draws.mean(0) - 0.8 * context).abs().max() < 0.15
    assert (draws.std(0) - 0.2**0.5).abs().max() < 0.1


def test_draws_keep_the_parameters_precision_under_autocast() -> None:
    posterior = AmortizedResidualFlow(3, 2, blocks=1, hidden_dims=[8])
    encoder = torch.nn.Linear(4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = posterior.condition(encoder(torch.randn(7, 4)))
        z = q.rsample()
        log_prob = q.log_prob(z)
    assert q.base_dist.mean.dtype == torch.float32
    assert (z.dtype, log_prob.dtype) == (torch.float32, torch.float32)


def test_a_guide_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks: expected at least one residual block, got 0"):
        AmortizedResidualFlow(2, 3, blocks=0)


def test_the_networks_of_the_context_are_as_wide_as_asked() -> None:
    posterior = AmortizedResidualFlow(2, 3, blocks=1, context_hidden_dims=[5, 6])
    assert [part.out_features for part in posterior.flow.parts[-1].net[::2]] == [5, 6, 4]
