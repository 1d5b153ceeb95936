"""Noise in an exponential of Pyro or torch raises an error; linear uses do not."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.oed.eig import nmc_eig, vnmc_eig
from pyro.infer import (
    Importance,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    config_enumerate,
    infer_discrete,
)
from pyro.infer.autoguide import AutoLaplaceApproximation
from pyro.infer.importance import psis_diagnostic, vectorized_importance_weights
from torch import Tensor

from pyro_resflow import conditional_residual, residual
from pyro_resflow.logdet import Exact, Frozen, Krylov, NoTail
from pyro_resflow.transforms import NoisyExponentialError, set_logdet
from tests.bases import standard

FROZEN = Krylov(2, tail=NoTail(), probe=Frozen())


pytestmark = pytest.mark.usefixtures("fresh_store")


class Problem:
    """A latent vector under a flow's prior, with a normal guide."""

    def __init__(self) -> None:
        self.flow = residual(3, [8], fast="density", logdet=Krylov())

    def model(self) -> None:
        pyro.sample("z", dist.TransformedDistribution(standard(3), [self.flow]))

    def guide(self) -> None:
        pyro.sample("z", standard(3))


def laplace(problem: Problem) -> None:
    guide = AutoLaplaceApproximation(problem.model)
    guide()
    guide.laplace_approximation()


WEIGHTS: dict[str, Callable[[Problem], object]] = {
    "renyi": lambda p: RenyiELBO(num_particles=2).loss(p.model, p.guide),
    "renyi_gradients": lambda p: RenyiELBO(
        num_particles=2, vectorize_particles=True, max_plate_nesting=0
    ).loss_and_grads(p.model, p.guide),
    "psis_diagnostic": lambda p: psis_diagnostic(
        p.model, p.guide, num_particles=100, max_plate_nesting=0
    ),
    "weights": lambda p: vectorized_importance_weights(
        p.model, p.guide, num_samples=5, max_plate_nesting=0
    ),
    "importance": lambda p: Importance(p.model, p.guide, num_samples=3).run(),
    "wake_sleep": lambda p: ReweightedWakeSleep(num_particles=2).loss(p.model, p.guide),
}
if hasattr(pyro.infer, "WeighedPredictive"):  # since Pyro 1.9.1
    WEIGHTS["weighed_predictive"] = lambda p: pyro.infer.WeighedPredictive(
        p.model, guide=p.guide, num_samples=4
    )()


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_weights_and_bounds_of_noisy_densities_are_refused(name: str) -> None:
    problem = Problem()
    with pytest.raises(ValueError, match=r"Krylov draws new noise .*set_logdet\(flow, logdet.Ex"):
        WEIGHTS[name](problem)
    for logdet in (Exact(), FROZEN):
        set_logdet(problem.flow, logdet)
        WEIGHTS[name](problem)


def test_laplace_of_a_noisy_density_is_refused() -> None:
    problem = Problem()
    with pytest.raises(ValueError, match="Hessian of AutoLaplaceApproximation"):
        laplace(problem)


class Experiment:
    """An outcome under a flow, and a nuisance under another, at the design's location."""

    def __init__(self) -> None:
        self.outcome = residual(3, [8], fast="density", logdet=Exact())
        self.nuisance = residual(3, [8], fast="density", logdet=Exact())

    def model(self, design: Tensor) -> None:
        with pyro.plate_stack("plates", design.shape[:-1]):
            base = dist.Normal(torch.zeros(*design.shape[:-1], 3), 1.0).to_event(1)
            theta = pyro.sample("theta", dist.TransformedDistribution(base, [self.nuisance]))
            around = dist.Normal(design * theta, 1.0).to_event(1)
            pyro.sample("y", dist.TransformedDistribution(around, [self.outcome]))

    def guide(self, y_dict: dict[str, Tensor], design: Tensor, *labels: object) -> None:
        with pyro.plate_stack("plates", design.shape[:-1]):
            base = dist.Normal(torch.zeros(*design.shape[:-1], 3), 1.0).to_event(1)
            pyro.sample("theta", base)


def nested(experiment: Experiment) -> Tensor:
    return nmc_eig(experiment.model, torch.ones(2, 3), "y", "theta", N=4, M=2)


def variational(experiment: Experiment) -> Tensor:
    optimizer = pyro.optim.Adam({"lr": 1e-2})
    samples = (3, 2)
    design = torch.ones(2, 3)
    return vnmc_eig(
        experiment.model, design, "y", "theta", samples, 0, experiment.guide, optimizer, False
    )


@pytest.mark.parametrize("estimate", [nested, variational])
def test_nested_averages_of_noisy_densities_are_refused(
    estimate: Callable[[Experiment], Tensor],
) -> None:
    experiment = Experiment()
    assert estimate(experiment).isfinite().all()
    set_logdet(experiment.nuisance, Krylov())
    if estimate is nested:  # whose average leaves the prior out
        estimate(experiment)
    else:
        with pytest.raises(ValueError, match="nested averages of nmc_eig and vnmc_eig"):
            estimate(experiment)
    set_logdet(experiment.nuisance, Exact())
    set_logdet(experiment.outcome, Krylov())
    with pytest.raises(ValueError, match="nested averages of nmc_eig and vnmc_eig"):
        estimate(experiment)


def test_one_particle_of_renyis_is_no_exponential() -> None:
    problem = Problem()
    RenyiELBO(num_particles=1).loss(problem.model, problem.guide)
    Trace_ELBO(num_particles=3).loss(problem.model, problem.guide)


class Components:
    """Two components, each the flow at a context of its own, and points in a plate."""

    def __init__(self, logdet: object) -> None:
        self.flow = conditional_residual(3, 2, [8], fast="density", logdet=logdet)
        self.contexts = torch.eye(2)
        self.x = torch.randn(5, 3)

    def density(self, contexts: Tensor) -> dist.TransformedDistribution:
        base = dist.Normal(torch.zeros(*contexts.shape[:-1], 3), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [self.flow.condition(contexts)])

    def mixture(self) -> Tensor:
        weights = dist.Categorical(torch.ones(2))
        return dist.MixtureSameFamily(weights, self.density(self.contexts)).log_prob(self.x).sum()

    def model(self) -> None:
        with pyro.plate("points", 5):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("x", self.density(self.contexts[z]), obs=self.x)

    def guide(self) -> None:
        pass

    def guide_of_assignments(self) -> None:
        with pyro.plate("points", 5):
            pyro.sample("z", dist.Categorical(torch.ones(2)))


@pytest.mark.parametrize("how", ["parallel", "sequential"])
def test_enumerated_components_and_mixtures_have_to_be_noiseless(how: str) -> None:
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    noisy = Components(Krylov())
    with pytest.raises(NoisyExponentialError, match="components of MixtureSameFamily"):
        noisy.mixture()
    with pytest.raises(ValueError, match="sum over an enumerated variable"):
        elbo.loss(config_enumerate(noisy.model), noisy.guide)
    exact = Components(Exact())
    loss = elbo.loss(config_enumerate(exact.model), exact.guide)
    torch.testing.assert_close(torch.tensor(-loss), exact.mixture().detach())
    # the guide averages log-densities over what it enumerates itself
    elbo.loss(noisy.model, config_enumerate(noisy.guide_of_assignments, how))


def test_discrete_posteriors_have_to_be_noiseless() -> None:
    noisy = Components(Krylov())
    sampled = infer_discrete(config_enumerate(noisy.model), first_available_dim=-2)
    with pytest.raises(ValueError, match="sum over an enumerated variable"):
        sampled()


def test_noise_that_all_components_share_is_left_alone() -> None:
    flow = residual(3, [8], fast="density", logdet=Krylov())
    means = torch.randn(4, 3)
    x = torch.randn(20, 3)

    def behind() -> dist.TransformedDistribution:
        return dist.TransformedDistribution(dist.Normal(means, 1.0).to_event(1), [flow])

    weights = dist.Categorical(torch.ones(4))
    torch.manual_seed(1)
    found = dist.MixtureSameFamily(weights, behind()).log_prob(x)
    before = dist.MixtureSameFamily(weights, dist.Normal(means, 1.0).to_event(1))
    torch.manual_seed(1)
    expected = dist.TransformedDistribution(before, [flow]).log_prob(x)
    torch.testing.assert_close(found, expected)

    def model() -> None:
        with pyro.plate("points", 20):
            z = pyro.sample("z", weights, infer={"enumerate": "parallel"})
            base = dist.Normal(means[z], 1.0).to_event(1)
            pyro.sample("x", dist.TransformedDistribution(base, [flow]), obs=x)

    TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda: None)
