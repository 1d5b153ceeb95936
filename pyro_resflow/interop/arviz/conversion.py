"""From a fitted guide, or a NeuTra run, to InferenceData."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.reparam import NeuTraReparam

from .datasets import Coords, Dims, inference_data
from .draws import Draw, Model, check_number, delta_trace, exact_densities, prototypes, replayed
from .version import arviz as az
from .weights import tail_shape


def from_svi(
    model: Model,
    guide: Model,
    *args: Any,
    num_samples: int = 1000,
    dims: Dims | None = None,
    coords: Coords | None = None,
    **kwargs: Any,
) -> az.InferenceData:
    r"""Draws of a fitted guide as InferenceData, one chain.

    Its groups: ``posterior`` (latent and deterministic sites), ``posterior_predictive``,
    ``log_likelihood`` (one entry per independent observation, without ``poutine.scale``),
    ``observed_data``, and ``sample_stats`` with ``lp`` :math:`= \log p(z, x)` and ``log_weight``
    :math:`= \log p(z, x) - \log q(z)`; the attribute ``pareto_k`` of the latter group says how far
    the weights can be trusted. Dimensions that belong to plates have the plates' names.

    Args:
        model: the model, with its data in ``args`` and ``kwargs``.
        guide: the guide; any, of any kind of Pyro's.
        args: arguments of the model and the guide.
        num_samples: number of draws. Each runs the guide once and the model twice.
        dims: names of event dimensions, site by site.
        coords: labels along dimensions, plates too.
        kwargs: keyword arguments of the model and the guide.

    Raises:
        ValueError: if the guide does not sample a latent site of the model, a plate is subsampled,
            or ``num_samples`` is not positive.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_resflow.interop.arviz import from_svi
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("person", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> data = from_svi(model, AutoNormal(model), torch.randn(5), num_samples=20)
        >>> dict(data.log_likelihood.sizes)
        {'chain': 1, 'draw': 20, 'person': 5}
    """
    check_number(num_samples)
    with torch.no_grad(), exact_densities(prototypes(model, guide, args, kwargs)):
        draws = []
        for _ in range(num_samples):
            latents = poutine.trace(guide).get_trace(*args, **kwargs)
            draws.append(Draw.of(model, latents, args, kwargs, log_q=latents.log_prob_sum()))
    data = inference_data([draws], dims or {}, coords or {})
    log_weight = data["sample_stats"]["log_weight"].values[0]
    data["sample_stats"].attrs["pareto_k"] = tail_shape(log_weight)
    return data


def from_neutra(
    mcmc: MCMC,
    neutra: NeuTraReparam,
    *args: Any,
    dims: Dims | None = None,
    coords: Coords | None = None,
    **kwargs: Any,
) -> az.InferenceData:
    """Samples of a NeuTra-reparameterised MCMC run, brought back to the model's own sites.

    The run itself knows one shared latent vector only. The groups are those of :func:`from_svi`,
    with ``diverging`` in place of ``log_weight``.

    Args:
        mcmc: the finished run, on ``neutra.reparam(model)``.
        neutra: the reparameteriser.
        args: arguments of the model.
        dims: see :func:`from_svi`.
        coords: see :func:`from_svi`.
        kwargs: keyword arguments of the model.

    Raises:
        ValueError: if the run has no shared latent, or a plate is subsampled.
    """
    samples = mcmc.get_samples(group_by_chain=True)
    shared = [name for name in samples if name.endswith("_shared_latent")]
    if len(shared) != 1:
        raise ValueError(
            f"mcmc: expected one shared latent of NeuTraReparam among the sites, got "
            f"{sorted(samples)}. Give the run that sampled neutra.reparam(model)."
        )
    model = neutra.guide.model
    with torch.no_grad():
        prototype = delta_trace(neutra.transform_sample(samples[shared[0]][0, 0]))
        with exact_densities([replayed(model, prototype, args, kwargs)]):
            draws = [
                [
                    Draw.of(model, delta_trace(neutra.transform_sample(z)), args, kwargs)
                    for z in chain
                ]
                for chain in samples[shared[0]]
            ]
    data = inference_data(draws, dims or {}, coords or {})
    diverging = np.zeros((len(draws), len(draws[0])), dtype=bool)
    for i, steps in enumerate(mcmc.diagnostics()["divergences"].values()):
        diverging[i, steps] = True
    data["sample_stats"]["diverging"] = (("chain", "draw"), diverging)
    return data
