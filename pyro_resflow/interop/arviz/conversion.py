"""Convert draws of a fitted guide, or of a NeuTra run, to ArviZ."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.reparam import NeuTraReparam
from pyro.poutine import Trace
from torch import Tensor

from .datasets import Coords, Dims, as_array, container_of
from .draws import Model, check_number
from .evaluation import Evaluation, GuideLatents
from .library import Container
from .sites import checked_names
from .weights import smoothed_weights


def from_svi(
    model: Model,
    guide: Model,
    *args: Any,
    num_samples: int = 1000,
    dims: Dims | None = None,
    coords: Coords | None = None,
    max_plate_nesting: int | None = None,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> Container:
    r"""Draws of a fitted guide in ArviZ's container, one chain.

    The container is that of the installed version: ``InferenceData`` in ArviZ 0.x, ``DataTree`` in
    ArviZ 1. Its groups: ``posterior`` (latent and deterministic sites), ``posterior_predictive``,
    ``log_likelihood`` (one entry per independent observation, without ``poutine.scale``),
    ``observed_data``, and ``sample_stats`` with ``lp`` :math:`= \log p(z, x)` and ``log_weight``
    :math:`= \log p(z, x) - \log q(z)`. The attributes ``pareto_k`` and ``effective_draws`` of the
    latter group measure how far the weights can be trusted; if k is not defined it is nan, and
    ``pareto_k_note`` gives the reason. Dimensions that belong to plates have the plates' names.

    Many draws run together, inside a plate on the left of the model's own plates. If this fails,
    or changes values, the model and the guide run draw by draw, with a warning.

    Args:
        model: the model, with its data in ``args`` and ``kwargs``.
        guide: any Pyro guide.
        args: arguments of the model and the guide.
        num_samples: number of draws.
        dims: names of event dimensions, by site.
        coords: labels along dimensions, including plates.
        max_plate_nesting: the number of nested plates, if a single run does not show all of them.
        chunk_size: draws in one run; default: as many as fit into a few dozen megabytes. 1 runs
            the guide once and the model twice for each draw.
        kwargs: keyword arguments of the model and the guide.

    Returns:
        The container.

    Raises:
        ValueError: if the guide does not sample a latent site of the model; if a plate is
            subsampled; if a plate, site or dimension is named ``chain`` or ``draw``; if ``dims``
            or ``coords`` do not fit the model; or if a number is too small.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_resflow.interop.arviz import from_svi
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("person", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> data = from_svi(model, AutoNormal(model), torch.randn(5), num_samples=20)
        >>> dict(data["log_likelihood"].sizes)
        {'chain': 1, 'draw': 20, 'person': 5}
    """
    check_number(num_samples)
    evaluation = Evaluation(model, GuideLatents(guide, args, kwargs), args, kwargs)
    single = evaluation.one(0)
    names = checked_names(single.model, dims or {}, coords or {})
    draws = evaluation.draws(num_samples, single, max_plate_nesting, chunk_size)
    if not draws.log_likelihood:
        warnings.warn(
            "model: expected an observed site, got none; did you leave the data out of the "
            "arguments? from_svi(model, guide, *args, **kwargs) passes them to the model and the "
            "guide.",
            stacklevel=2,
        )
    stats = {"lp": as_array(draws.lp)[None], "log_weight": as_array(draws.log_weight)[None]}
    smoothed = smoothed_weights(draws, single.model)
    attributes = {"pareto_k": smoothed.k, "effective_draws": smoothed.effective_draws}
    note = {"pareto_k_note": smoothed.note} if smoothed.note else {}
    return container_of(draws, 1, single.model, names, coords or {}, stats, {**attributes, **note})


def from_neutra(
    mcmc: MCMC,
    neutra: NeuTraReparam,
    *args: Any,
    dims: Dims | None = None,
    coords: Coords | None = None,
    max_plate_nesting: int | None = None,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> Container:
    """Samples of a NeuTra-reparameterised MCMC run, transformed to the model's own sites.

    The run itself has a single shared latent vector. The groups are those of :func:`from_svi`,
    with ``diverging`` instead of ``log_weight``.

    Args:
        mcmc: the finished run, on ``neutra.reparam(model)``.
        neutra: the reparameteriser.
        args: arguments of the model.
        dims: see :func:`from_svi`.
        coords: see :func:`from_svi`.
        max_plate_nesting: see :func:`from_svi`.
        chunk_size: see :func:`from_svi`.
        kwargs: keyword arguments of the model.

    Returns:
        The container, with one chain for each chain of the run.

    Raises:
        ValueError: if the run has no shared latent, if ``neutra`` was not used in it, and as
            :func:`from_svi`.
    """
    samples = mcmc.get_samples(group_by_chain=True)
    shared = [name for name in samples if name.endswith("_shared_latent")]
    if len(shared) != 1:
        raise ValueError(
            f"mcmc: expected one shared latent of NeuTraReparam among the sites, got "
            f"{sorted(samples)}. Pass the run that sampled neutra.reparam(model)."
        )
    if neutra.transform is None:
        raise ValueError(
            "neutra: expected the reparameteriser of the run, got one that has not "
            "reparameterised a model yet; call neutra.reparam(model) once."
        )
    noise = samples[shared[0]]
    latents = NeuTraLatents(neutra, noise.flatten(0, 1))
    evaluation = Evaluation(neutra.guide.model, latents, args, kwargs)
    single = evaluation.one(0)
    names = checked_names(single.model, dims or {}, coords or {})
    draws = evaluation.draws(len(latents.noise), single, max_plate_nesting, chunk_size)
    diverging = np.zeros(noise.shape[:2], dtype=bool)
    for chain, steps in enumerate(mcmc.diagnostics()["divergences"].values()):
        diverging[chain, steps] = True
    stats = {"lp": as_array(draws.lp).reshape(noise.shape[:2]), "diverging": diverging}
    return container_of(draws, len(noise), single.model, names, coords or {}, stats, {})


@dataclass(frozen=True)
class NeuTraLatents:
    """The draws of a NeuTra run.

    Attributes:
        neutra: the reparameteriser.
        noise: the shared latent, shape ``(draws, latent_dim)``.
    """

    neutra: NeuTraReparam
    noise: Tensor

    def one(self, index: int) -> Trace:
        return delta_trace(self.neutra.transform_sample(self.noise[index]))

    def many(self, draws: range, single: Trace, nesting: int) -> Trace:
        noise = self.noise[draws.start : draws.stop]
        padded = noise.unflatten(0, (len(draws), *(1,) * nesting))  # left of the model's plates
        return delta_trace(self.neutra.transform_sample(padded))

    def check(self, latents: Trace, single: Trace, number: int, place: int) -> None:
        """Check nothing: the guide's transform supports batches."""


def delta_trace(values: dict[str, Tensor]) -> Trace:
    """A trace with these values."""

    def guide() -> None:
        for name, value in values.items():
            pyro.sample(name, dist.Delta(value, event_dim=value.dim()))

    return poutine.trace(guide).get_trace()
