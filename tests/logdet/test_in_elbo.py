"""The estimator that estimates inside an ELBO alone: where it does, and what it returns there."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Importance,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

from pyro_resflow import conditional_residual_flow
from pyro_resflow.guides import AmortizedResidualFlow, AutoResidualFlow
from pyro_resflow.logdet import (
    EstimatedInElbo,
    Exact,
    Frozen,
    Krylov,
    LogDetEstimator,
    NoTail,
    RussianRoulette,
)
from pyro_resflow.transforms import is_deterministic
from tests.bases import standard

pytestmark = pytest.mark.usefixtures("fresh_store")

DIMENSIONS = 3


class Recording(Exact):
    """The exact log-determinant, which counts its uses."""

    uses = 0

    def value_and_trace(self, net, x, function):
        self.uses += 1
        return super().value_and_trace(net, x, function)


def model() -> None:
    pyro.sample("x", standard(DIMENSIONS))


def guide_with(logdet: LogDetEstimator) -> AutoResidualFlow:
    pyro.set_rng_seed(0)
    guide = AutoResidualFlow(model, blocks=2, hidden_dims=[8], logdet=logdet)
    guide()
    return guide


def step(bound: Callable[..., object], guide: AutoResidualFlow, **options: object) -> None:
    loss = bound(num_particles=2, vectorize_particles=True, max_plate_nesting=0, **options)
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss).step()


class OfOnesOwn(Trace_ELBO):
    """A bound that may do anything with log-densities."""


ESTIMATED = {
    "Trace_ELBO": lambda guide: step(Trace_ELBO, guide),
    "TraceGraph_ELBO": lambda guide: step(TraceGraph_ELBO, guide),
    "TraceMeanField_ELBO": lambda guide: step(TraceMeanField_ELBO, guide),
    "Trace_ELBO as a module": lambda guide: Trace_ELBO()(model, guide)().backward(),
}
"""The calls inside which the estimate is used."""

EXACT = {
    "a bound of one's own": lambda guide: step(OfOnesOwn, guide),
    "RenyiELBO": lambda guide: step(RenyiELBO, guide),
    "TraceTailAdaptive_ELBO": lambda guide: step(TraceTailAdaptive_ELBO, guide),
    "TraceEnum_ELBO": lambda guide: step(TraceEnum_ELBO, guide),
    "JitTrace_ELBO": lambda guide: step(JitTrace_ELBO, guide),
    "ReweightedWakeSleep": lambda guide: SVI(
        model, guide, pyro.optim.Adam({"lr": 1e-2}), ReweightedWakeSleep(num_particles=2)
    ).step(),
    "evaluate_loss": lambda guide: SVI(
        model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()
    ).evaluate_loss(),
    "loss of Trace_ELBO": lambda guide: Trace_ELBO().loss(model, guide),
    "loss of TraceMeanField_ELBO": lambda guide: TraceMeanField_ELBO().loss(model, guide),
    "loss of TraceGraph_ELBO": lambda guide: TraceGraph_ELBO().loss(model, guide),
    "traces of a bound": lambda guide: Trace_ELBO()._get_trace(model, guide, (), {}),
    "Importance": lambda guide: Importance(model, guide, num_samples=2).run(),
    "NeuTra": lambda guide: MCMC(
        NUTS(NeuTraReparam(guide.requires_grad_(False)).reparam(model)),
        1,
        warmup_steps=0,
        disable_progbar=True,
    ).run(),
    "log_prob with gradients": lambda guide: guide.get_posterior().log_prob(torch.zeros(3)).sum(),
}
"""Calls inside which it is not."""


@pytest.mark.parametrize("use", [*ESTIMATED, *EXACT])
def test_the_estimate_is_used_where_an_elbo_is_trained_and_nowhere_else(use: str) -> None:
    estimate, elsewhere = Recording(), Recording()
    guide = guide_with(EstimatedInElbo(estimate, elsewhere))
    estimate.uses = elsewhere.uses = 0
    (ESTIMATED | EXACT)[use](guide)
    assert (estimate.uses > 0, elsewhere.uses > 0) == (use in ESTIMATED, use in EXACT)


ESTIMATES: dict[str, Callable[[], LogDetEstimator]] = {
    "Krylov": Krylov,
    "RussianRoulette": RussianRoulette,
    "Exact": Exact,
    "frozen": lambda: Krylov(2, tail=NoTail(), probe=Frozen()),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_a_step_is_that_of_the_estimate_alone(name: str) -> None:
    found: list[list[Tensor]] = []
    for logdet in (ESTIMATES[name](), EstimatedInElbo(ESTIMATES[name]())):
        pyro.clear_param_store()
        guide = guide_with(logdet)
        pyro.set_rng_seed(1)
        loss = Trace_ELBO(num_particles=3)(model, guide)()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in guide.parameters() if p.grad is not None)])
    assert len(found[0]) > 5
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_pass_of_an_elbo_is_not_returned_without_gradients() -> None:
    """The estimate of a guide's own sample must not serve as an exact value."""
    guide = guide_with(EstimatedInElbo(Krylov(1, tail=NoTail())))
    seen: list[Tensor] = []

    def keeping() -> None:
        seen.append(guide()["x"])

    Trace_ELBO()(model, keeping)().backward()
    flow = guide.get_transform()
    with torch.no_grad():
        noise = flow.inv(seen[0])
        found = flow.log_abs_det_jacobian(noise, seen[0])
    jacobian = torch.autograd.functional.jacobian(flow._call, noise)
    torch.testing.assert_close(found, torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-5)


def test_it_is_deterministic_outside_of_an_elbo_and_not_inside() -> None:
    guide = guide_with(EstimatedInElbo())
    inside: list[bool] = []

    def asking() -> None:
        guide()
        inside.append(is_deterministic(guide))

    assert is_deterministic(guide)
    Trace_ELBO()(model, asking)()
    assert inside == [False]
    frozen = guide_with(EstimatedInElbo(Krylov(2, tail=NoTail(), probe=Frozen())))
    assert is_deterministic(frozen)


def test_the_sum_over_a_mixture_inside_an_elbo_is_refused() -> None:
    """A mixture of flows exponentiates their log-densities, also where an ELBO is trained."""
    flow = conditional_residual_flow(3, 2, 2, [8], logdet=EstimatedInElbo())
    components = dist.TransformedDistribution(standard(3), [flow.condition(torch.eye(2))])
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), components)

    def mixed() -> None:
        pyro.module("flow", flow)
        pyro.sample("x", mixture, obs=torch.zeros(3))

    with pytest.raises(ValueError, match=r"logdet: Krylov draws .* MixtureSameFamily"):
        Trace_ELBO()(mixed, lambda: None)()


def test_an_amortized_guide_takes_it() -> None:
    estimate, elsewhere = Recording(), Recording()
    posterior = AmortizedResidualFlow(
        3, 2, blocks=2, hidden_dims=[8], logdet=EstimatedInElbo(estimate, elsewhere)
    )

    def guide() -> None:
        pyro.module("posterior", posterior)
        pyro.sample("x", posterior.condition(torch.ones(2)))

    SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step()
    assert (estimate.uses > 0, elsewhere.uses) == (True, 0)
    trained = estimate.uses
    posterior.condition(torch.ones(2)).log_prob(torch.zeros(3))
    Predictive(model, guide=guide, num_samples=2)()
    assert (estimate.uses, elsewhere.uses > 0) == (trained, True)


def test_another_kind_of_argument_is_refused() -> None:
    with pytest.raises(TypeError, match=r"estimate: expected a LogDetEstimator, got .*function"):
        EstimatedInElbo(lambda net, x: x)
    with pytest.raises(TypeError, match=r"elsewhere: expected a LogDetEstimator, got 'Exact'"):
        EstimatedInElbo(elsewhere="Exact")
