"""Compare two leave-one-out estimates from draws of a guide with the exact value.

The model is hierarchical: groups of three observations around effects with a common mean and
spread. The effects have closed-form integrals, and the mean and the spread are integrated on a
grid, so that the exact value is known. A NUTS run checks it. For each guide the program prints
Pareto's k, the effective number of draws, and the error of two estimates (root mean square over
several sets of draws): ``loo``, which weights the draws, and ``az.loo``, which treats the guide as
the posterior.

    python -m benchmarks.cross_validation
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import arviz as az
import jax
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import numpyro.infer
import pyro
import pyro.distributions as dist
import torch
from jsonargparse import auto_cli
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_median
from torch import Tensor

from pyro_resflow.interop.arviz import from_svi, loo

OBSERVATIONS = 3
NOISE, MEAN_SCALE, SPREAD_SCALE = 1.0, 3.0, 2.0
GUIDES: dict[str, Callable[..., Any]] = {
    "AutoNormal": partial(AutoNormal, init_loc_fn=init_to_median),
    "AutoMultivariateNormal": partial(
        AutoMultivariateNormal, init_loc_fn=init_to_median, init_scale=0.1
    ),
}


def model(y: Tensor) -> None:
    """Observations of shape ``(groups, 3)``."""
    mean = pyro.sample("mean", dist.Normal(0.0, MEAN_SCALE))
    spread = pyro.sample("spread", dist.HalfNormal(SPREAD_SCALE))
    with pyro.plate("group", len(y), dim=-2):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
        with pyro.plate("observation", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(effect, NOISE), obs=y)


def simulated(groups: int, spread: float) -> Tensor:
    """Simulate observations of groups whose effects have this standard deviation."""
    return spread * torch.randn(groups, 1) + torch.randn(groups, OBSERVATIONS)


def exact(y: Tensor) -> float:
    """The sum of log p(y_i | all other y), by quadrature over mean and spread in float64."""
    mean = torch.linspace(-4, 4, 401, dtype=torch.float64)[:, None]
    spread = torch.linspace(5e-3, 6, 1200, dtype=torch.float64)
    prior = dist.Normal(0.0, MEAN_SCALE).log_prob(mean)
    prior = prior + dist.HalfNormal(SPREAD_SCALE).log_prob(spread)

    def of_group(values: Tensor) -> Tensor:
        """log p(values | mean, spread): the average, and the deviations from it."""
        number, middle = len(values), values.mean()
        total = (spread.square() + NOISE**2 / number).sqrt()
        left = dist.Normal(middle, NOISE).log_prob(values).sum()
        own = dist.Normal(0.0, NOISE / number**0.5).log_prob(torch.zeros((), dtype=y.dtype))
        return dist.Normal(mean, total).log_prob(middle) + left - own

    y = y.double()
    groups = [of_group(row) for row in y]
    whole = prior + sum(groups)
    terms = []
    for row, density in zip(y, groups, strict=True):
        for i in range(OBSERVATIONS):
            rest = of_group(torch.cat([row[:i], row[i + 1 :]]))
            without = whole - density + rest
            terms.append(whole.flatten().logsumexp(0) - without.flatten().logsumexp(0))
    return float(torch.stack(terms).sum())


def by_nuts(y: Tensor, draws: int, seed: int) -> Any:
    """Leave-one-out from draws of NumPyro's NUTS, with effects standardized for the sampler."""

    def standardized(y: jax.Array) -> None:
        mean = numpyro.sample("mean", numpyro_dist.Normal(0.0, MEAN_SCALE))
        spread = numpyro.sample("spread", numpyro_dist.HalfNormal(SPREAD_SCALE))
        with numpyro.plate("group", len(y)):
            noise = numpyro.sample("noise", numpyro_dist.Normal(0.0, 1.0))
        numpyro.deterministic("effect", mean + spread * noise)
        location = (mean + spread * noise)[:, None]
        numpyro.sample("y", numpyro_dist.Normal(location, NOISE).to_event(2), obs=y)

    kernel = numpyro.infer.NUTS(standardized, target_accept_prob=0.9)
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=draws // 2, num_samples=draws, progress_bar=False)
    mcmc.run(jax.random.PRNGKey(seed), y.numpy())
    effect = torch.tensor(np.array(mcmc.get_samples()["effect"]))[..., None]
    likelihood = dist.Normal(effect, NOISE).log_prob(y)[None].numpy()
    groups = {"log_likelihood": {"y": likelihood}, "posterior": {"effect": effect[None].numpy()}}
    modern = not hasattr(az, "from_pyro")
    data = az.from_dict(groups) if modern else az.from_dict(**groups)
    return az.loo(data, pointwise=True, reff=1.0)


def total(result: Any) -> float:
    """The elpd of an ``ELPDData`` of ArviZ 0.x or 1."""
    return float(result.elpd if hasattr(result, "elpd_i") else result.elpd_loo)


def fitted(make: Callable[..., Any], y: Tensor, steps: int) -> Any:
    """A guide, fitted by SVI."""
    pyro.clear_param_store()
    guide = make(model)
    optimiser = pyro.optim.ClippedAdam({"lr": 3e-2, "lrd": 0.05 ** (1 / steps)})
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=2)
    svi = SVI(model, guide, optimiser, elbo)
    for _ in range(steps):
        svi.step(y)
    return guide


def row(name: str, guide: Any, y: Tensor, truth: float, draws: int, repeats: int) -> str:
    """A row of the table: the errors of both estimates, over several sets of draws."""
    weighted, plain, k, effective = [], [], [], []
    for _ in range(repeats):
        data = from_svi(model, guide, y, num_samples=draws)
        weighted.append(total(loo(data)) - truth)
        plain.append(total(az.loo(data, pointwise=True, reff=1.0)) - truth)
        k.append(data["sample_stats"].attrs["pareto_k"])
        effective.append(data["sample_stats"].attrs["effective_draws"])
    missed = (float(np.sqrt(np.mean(np.square(each)))) for each in (weighted, plain))
    return (
        f"| {name} | {np.mean(k):.2f} | {np.mean(effective):.0f} | "
        + " | ".join(f"{each:.2f}" for each in missed)
        + " |"
    )


def main(
    groups: Sequence[int] = (8, 20),
    spreads: Sequence[float] = (1.5, 0.2),
    steps: int = 600,
    draws: int = 1000,
    repeats: int = 10,
    nuts_draws: int = 10_000,
    seed: int = 0,
) -> None:
    """Print the table.

    Args:
        groups: numbers of groups. The posterior has two more dimensions.
        spreads: standard deviations of the effects. With a small one, the posterior is a funnel.
        steps: training steps, with 8 particles each.
        draws: draws of a guide for one estimate.
        repeats: sets of draws.
        nuts_draws: draws of the NUTS run.
        seed: random seed.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # they repeat the k and the effective draws of the table
    print("| dimensions, spread | guide | Pareto k | effective draws | with weights | without |")
    print("| --- | --- | --- | --- | --- | --- |")
    for number, spread in product(groups, spreads):
        pyro.set_rng_seed(seed)
        y = simulated(number, spread)
        truth = exact(y)
        case = f"{number + 2}, {spread}"
        error = total(by_nuts(y, nuts_draws, seed)) - truth
        print(f"| {case} | NUTS; exact elpd {truth:.2f} | | | | {abs(error):.2f} |", flush=True)
        for name, make in GUIDES.items():
            guide = fitted(make, y, steps)
            print(f"| {case} {row(name, guide, y, truth, draws, repeats)}", flush=True)


if __name__ == "__main__":
    auto_cli(main)
