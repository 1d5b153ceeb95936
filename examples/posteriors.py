"""Four posteriors to test guides on, with their moments."""

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


PROBLEMS = {
    "eight_schools": Problem(eight_schools, 10, 1, eight_schools_moments),
    "funnel": Problem(funnel, 10, 0, funnel_moments),
    "banana": Problem(banana, 2, 0, banana_moments),
    "logistic_regression": Problem(logistic_regression, 31, 0, logistic_moments),
}
