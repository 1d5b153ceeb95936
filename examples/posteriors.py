"""Five posteriors to test guides on, with their moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from sklearn.datasets import load_breast_cancer
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Means and standard deviations of the posterior.

    Attributes:
        mean: Means by the variable's name, each of the variable's shape.
        std: Standard deviations, likewise.
        log_evidence: The value of log p(data), if it is known.
    """

    mean: dict[str, Tensor]
    std: dict[str, Tensor]
    log_evidence: float | None = None


@dataclass(frozen=True)
class Problem:
    """A model, and the moments of its posterior.

    Attributes:
        model: A Pyro model without arguments.
        latent_dim: Number of unconstrained latent dimensions.
        max_plate_nesting: Number of nested plates.
        moments: Returns the true moments; takes the number of draws to sample them with.
    """

    model: Callable[[], None]
    latent_dim: int
    max_plate_nesting: int
    moments: Callable[[int], Moments]


# Eight schools, Rubin (1981), with the effects centred on their mean

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools() -> None:
    """Model the effects of coaching: normal around their mean, with a half-Cauchy spread."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, ERRORS), obs=EFFECTS)


def eight_schools_moments(_: int) -> Moments:
    """Integrate over tau on a grid of its logarithm; given tau, everything is normal."""
    log_tau = torch.linspace(-12, 12, 20001, dtype=torch.float64)[:, None]
    tau, error, effect = log_tau.exp(), ERRORS.double(), EFFECTS.double()
    marginal = error.square() + tau.square()
    mu_var = 1 / (1 / 25 + (1 / marginal).sum(-1, keepdim=True))
    mu_mean = mu_var * (effect / marginal).sum(-1, keepdim=True)
    covariance = torch.diag_embed(marginal) + 25
    evidence = dist.MultivariateNormal(torch.zeros_like(marginal), covariance).log_prob(effect)
    prior = dist.HalfCauchy(torch.tensor(5.0, dtype=torch.float64)).log_prob(tau[:, 0])
    log_weight = evidence + prior + log_tau[:, 0]
    weight = log_weight.softmax(0)[:, None]
    share = (1 / tau.square()) / (1 / error.square() + 1 / tau.square())
    theta_mean = (1 - share) * effect + share * mu_mean
    theta_var = share * tau.square() + share.square() * mu_var

    def moments(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        first = (weight * mean).sum(0)
        return first, ((weight * (var + mean.square())).sum(0) - first.square()).sqrt()

    found = {
        "mu": moments(mu_mean[:, 0:1], mu_var),
        "tau": moments(tau, torch.zeros_like(tau)),
        "theta": moments(theta_mean, theta_var),
    }
    step = (log_tau[1] - log_tau[0]).log()
    return Moments(
        mean={name: mean.squeeze() for name, (mean, _) in found.items()},
        std={name: std.squeeze() for name, (_, std) in found.items()},
        log_evidence=float(log_weight.logsumexp(0) + step),
    )


# Neal's funnel (2003) in ten dimensions


def funnel() -> None:
    """Model nine normal variables; a tenth one is their log-variance."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    scale = (v / 2).exp()[..., None]
    pyro.sample("x", dist.Normal(torch.zeros(9), scale).to_event(1))


def funnel_moments(_: int) -> Moments:
    """Return the moments in closed form, with E exp(v) = exp(9 / 2)."""
    return Moments(
        mean={"v": torch.tensor(0.0), "x": torch.zeros(9)},
        std={"v": torch.tensor(3.0), "x": torch.full((9,), 2.25).exp()},
        log_evidence=0.0,
    )


# A banana


def banana() -> None:
    """Model a normal variable, and a second one around its square."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    pyro.sample("b", dist.Normal(0.5 * a.square() - 2, 0.5))


def banana_moments(_: int) -> Moments:
    """Return the moments in closed form: the variance of a squared is 32."""
    return Moments(
        mean={"a": torch.tensor(0.0), "b": torch.tensor(0.0)},
        std={"a": torch.tensor(2.0), "b": torch.tensor(8.25).sqrt()},
        log_evidence=0.0,
    )


# Logistic regression

FEATURES, LABELS = (torch.tensor(part) for part in load_breast_cancer(return_X_y=True))
FEATURES = ((FEATURES - FEATURES.mean(0)) / FEATURES.std(0)).float()
LABELS = LABELS.float()


def logistic_regression() -> None:
    """Model benign or malign tumours by 30 standardised measurements, data of scikit-learn."""
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    weights = pyro.sample("weights", dist.Normal(torch.zeros(30), 1.0).to_event(1))
    logits = weights @ FEATURES.T + bias[..., None]
    pyro.sample("benign", dist.Bernoulli(logits=logits).to_event(1), obs=LABELS)


def logistic_moments(draws: int) -> Moments:
    """Return the moments of a NUTS chain."""
    mcmc = MCMC(NUTS(logistic_regression), draws, warmup_steps=draws // 4, disable_progbar=True)
    mcmc.run()
    samples = mcmc.get_samples()
    return Moments(
        mean={name: values.mean(0) for name, values in samples.items()},
        std={name: values.std(0) for name, values in samples.items()},
    )


# Group effects: a regression with an intercept for each of 30 groups


def simulated_groups() -> tuple[Tensor, Tensor, Tensor]:
    """Simulate measurements in 30 groups of 1 to 8: the group, a binary predictor, the outcome."""
    generator = torch.Generator().manual_seed(7)
    sizes = torch.randint(1, 9, (30,), generator=generator)
    group = torch.repeat_interleave(torch.arange(30), sizes)
    predictor = (torch.rand(len(group), generator=generator) < 0.25).float()
    intercepts = 1.3 + 0.3 * torch.randn(30, generator=generator)
    noise = 0.75 * torch.randn(len(group), generator=generator)
    return group, predictor, intercepts[group] - 0.6 * predictor + noise


GROUP, PREDICTOR, OUTCOME = simulated_groups()


def group_effects() -> None:
    """Model an outcome by a predictor and by the intercept of its group, with unknown spreads."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    centre = mu[..., None].expand(*mu.shape, 30)
    effect = pyro.sample("effect", dist.Normal(centre, tau[..., None]).to_event(1))
    mean = effect[..., GROUP] + slope[..., None] * PREDICTOR
    pyro.sample("outcome", dist.Normal(mean, sigma[..., None]).to_event(1), obs=OUTCOME)


GRID = (-9.0, 3.0, 61, -1.2, 0.6, 31)
"""First and last logarithm of tau, and their number; then of sigma. Beyond is no mass that counts:
a grid of twice the points changes no moment by 1e-3 standard deviations."""


def group_effects_moments(_: int) -> Moments:
    """Sum over a grid of both spreads; given them, everything is normal."""
    first, last, tau_points, low, high, sigma_points = GRID
    log_tau = torch.linspace(first, last, tau_points, dtype=torch.float64)
    log_sigma = torch.linspace(low, high, sigma_points, dtype=torch.float64)
    found = [given_spreads(each, log_sigma) for each in log_tau]
    log_weight, mean, square = (torch.stack(each) for each in zip(*found, strict=True))
    weight = log_weight.flatten().softmax(0).reshape(*log_weight.shape, 1)
    mean = (weight * mean).sum((0, 1))
    std = ((weight * square).sum((0, 1)) - mean.square()).sqrt()
    cell = (log_tau[1] - log_tau[0]).log() + (log_sigma[1] - log_sigma[0]).log()

    def by_name(values: Tensor) -> dict[str, Tensor]:
        mu, slope, effect, tau, sigma = values.split([1, 1, 30, 1, 1])
        scalars = {"mu": mu, "slope": slope, "tau": tau, "sigma": sigma}
        return {**{name: each.squeeze(0) for name, each in scalars.items()}, "effect": effect}

    return Moments(by_name(mean), by_name(std), float(log_weight.logsumexp((0, 1)) + cell))


def given_spreads(log_tau: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the posterior of all else at one tau and at each sigma.

    Returns:
        The log joint density of the outcome and of the logarithms of both spreads, ``(S,)``; the
        means of mu, the slope, the effects, tau and sigma, ``(S, 34)``; those of their squares.
    """
    tau, sigma, outcome = log_tau.exp(), log_sigma.exp(), OUTCOME.double()
    # the unknowns are mu, the slope, and the effects, which are mu plus deviations
    prior = torch.full((32, 32), 25.0, dtype=torch.float64)
    prior[1, :] = prior[:, 1] = 0
    prior[1, 1] = 25
    prior[2:, 2:] += tau.square() * torch.eye(30, dtype=torch.float64)
    design = torch.zeros(len(outcome), 32, dtype=torch.float64)
    design[:, 1] = PREDICTOR.double()
    design[torch.arange(len(outcome)), 2 + GROUP] = 1
    across = design @ prior
    noise = torch.diag_embed(sigma.square()[:, None].expand(-1, len(outcome)))
    covariance = across @ design.T + noise
    evidence = dist.MultivariateNormal(torch.zeros_like(outcome), covariance).log_prob(outcome)
    spread = dist.HalfCauchy(torch.ones((), dtype=torch.float64))
    log_prior = spread.log_prob(tau) + spread.log_prob(sigma)
    gain = torch.linalg.solve(covariance, across).mT
    mean = gain @ outcome
    variance = prior.diagonal() - (gain * across.T).sum(-1)
    known = torch.stack([tau.expand_as(sigma), sigma], dim=-1)
    return (
        evidence + log_prior + log_tau + log_sigma,
        torch.cat([mean, known], dim=-1),
        torch.cat([variance + mean.square(), known.square()], dim=-1),
    )


PROBLEMS = {
    "eight_schools": Problem(eight_schools, 10, 1, eight_schools_moments),
    "funnel": Problem(funnel, 10, 0, funnel_moments),
    "banana": Problem(banana, 2, 0, banana_moments),
    "group_effects": Problem(group_effects, 34, 0, group_effects_moments),
    "logistic_regression": Problem(logistic_regression, 31, 0, logistic_moments),
}
