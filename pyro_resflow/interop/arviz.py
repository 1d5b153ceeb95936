r"""From variational inference and NeuTra to ArviZ.

ArviZ reads Pyro's MCMC; this module reads what SVI has fitted. Draws of the guide are weighed
against the model, :math:`\log w = \log p(z, x) - \log q(z)`. Flows in the model or the guide
evaluate their exact log-determinant for that: an estimate would enter an exponential.

Written for ArviZ 0.x. ArviZ 1 keeps a ``DataTree`` in place of ``InferenceData`` and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.reparam import NeuTraReparam
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from ..logdet import Exact
from ..transforms import ConditionalResidual, ConditionedResidual, Residual
from .extras import extra

with extra("arviz"):
    import arviz as az

if int(az.__version__.split(".")[0]) >= 1:
    raise ImportError(
        f"pyro_resflow.interop.arviz is written for ArviZ 0.x, found {az.__version__}; ArviZ 1 "
        "has another interface: pip install 'pyro-resflow[arviz]' installs one that fits."
    )

Model = Callable[..., Any]
Dims = Mapping[str, Sequence[str]]
Coords = Mapping[str, Sequence[Any]]


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
    _check_number(num_samples)
    with torch.no_grad(), _exact_log_determinants(_prototypes(model, guide, args, kwargs)):
        draws = []
        for _ in range(num_samples):
            latents = poutine.trace(guide).get_trace(*args, **kwargs)
            draws.append(_Draw.of(model, latents, args, kwargs, log_q=latents.log_prob_sum()))
    data = _inference_data([draws], dims or {}, coords or {})
    log_weight = data["sample_stats"]["log_weight"].values[0]
    data["sample_stats"].attrs["pareto_k"] = _pareto_k(log_weight)
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
        prototype = _delta_trace(neutra.transform_sample(samples[shared[0]][0, 0]))
        traces = [_replayed(model, prototype, args, kwargs)]
        with _exact_log_determinants(traces):
            draws = [
                [
                    _Draw.of(model, _delta_trace(neutra.transform_sample(z)), args, kwargs)
                    for z in chain
                ]
                for chain in samples[shared[0]]
            ]
    data = _inference_data(draws, dims or {}, coords or {})
    diverging = np.zeros((len(draws), len(draws[0])), dtype=bool)
    for i, steps in enumerate(mcmc.diagnostics()["divergences"].values()):
        diverging[i, steps] = True
    data["sample_stats"]["diverging"] = (("chain", "draw"), diverging)
    return data


def pareto_k(
    guide: Model, *args: Any, model: Model | None = None, num_samples: int = 1000, **kwargs: Any
) -> float:
    r"""The Pareto shape of the tail of :math:`p(z, x) / q(z)`, z drawn from the guide.

    Below 0.5 the ratio has a finite variance; up to 0.7 importance weights repair the guide; above
    that, expectations under the guide are not those of the posterior.

    Args:
        guide: the fitted guide.
        args: arguments of the model and the guide.
        model: the model; default: that of an autoguide.
        num_samples: number of draws.
        kwargs: keyword arguments of the model and the guide.

    Raises:
        ValueError: if the guide has no model of its own and none is given, and as
            :func:`from_svi`.

    Reference:
        Yao, Vehtari, Simpson and Gelman, Yes, but Did It Work?: Evaluating Variational Inference,
        2018.
    """
    _check_number(num_samples)
    model = model if model is not None else getattr(guide, "model", None)
    if model is None:
        raise ValueError(
            "model: this guide does not know its model, as autoguides do; pass model=..."
        )
    with torch.no_grad(), _exact_log_determinants(_prototypes(model, guide, args, kwargs)):
        weights = []
        for _ in range(num_samples):
            latents = poutine.trace(guide).get_trace(*args, **kwargs)
            lp = float(_replayed(model, latents, args, kwargs).log_prob_sum())
            weights.append(lp - float(latents.log_prob_sum()))
    return _pareto_k(np.array(weights))


@dataclass(frozen=True)
class Loo:
    """Leave-one-out cross-validation.

    Attributes:
        elpd: expected log density of a new observation, summed over the observations.
        se: its standard error.
        p_loo: effective number of parameters.
        pointwise: the terms of ``elpd``, of the shape of the observations.
        pareto_k: for each of them the shape of the weights' tail; above 0.7 it cannot be trusted.
    """

    elpd: float
    se: float
    p_loo: float
    pointwise: np.ndarray
    pareto_k: np.ndarray


def loo(data: az.InferenceData, var_name: str | None = None) -> Loo:
    r"""Leave-one-out cross-validation by smoothed importance sampling, from draws of a guide.

    Leaving out observation i weighs draw z by :math:`w(z) / p(x_i | z)`. ``az.loo`` takes
    :math:`w = 1`, as if the guide were the posterior; here :math:`w = p(z, x) / q(z)`, the
    ``log_weight`` of :func:`from_svi`. Data without ``log_weight``, of MCMC, have w = 1.

    Args:
        data: with the group ``log_likelihood``.
        var_name: the observed site; default: the only one.

    Raises:
        ValueError: without log likelihood, or if there are several observed sites and no name.

    Reference:
        Magnusson, Andersen, Jonasson and Vehtari, Bayesian leave-one-out cross-validation for
        large data, 2019, section 2.
    """
    log_likelihood = _log_likelihood(data, var_name)
    shape = log_likelihood.shape[2:]
    each = log_likelihood.reshape(log_likelihood.shape[0] * log_likelihood.shape[1], -1).T
    stats = data["sample_stats"] if "sample_stats" in data.groups() else {}
    log_weight = np.asarray(stats["log_weight"]).ravel() if "log_weight" in stats else 0.0
    left_out, k = az.psislw(log_weight - each)
    whole, _ = az.psislw(np.broadcast_to(log_weight, each.shape[1:]))
    pointwise = np.logaddexp.reduce(left_out + each, axis=1)
    density = np.logaddexp.reduce(whole + each, axis=1)
    return Loo(
        elpd=float(pointwise.sum()),
        se=float(np.sqrt(len(pointwise) * pointwise.var())),
        p_loo=float((density - pointwise).sum()),
        pointwise=pointwise.reshape(shape),
        pareto_k=np.asarray(k).reshape(shape),
    )


def _log_likelihood(data: az.InferenceData, var_name: str | None) -> np.ndarray:
    """The log likelihood of one site, shape ``(chain, draw, *observations)``."""
    group = data["log_likelihood"] if "log_likelihood" in data.groups() else {}
    names = [str(name) for name in group]
    if var_name is None and len(names) == 1:
        var_name = names[0]
    if var_name not in names:
        raise ValueError(f"var_name: expected one of the observed sites {names}, got {var_name}.")
    return np.asarray(group[var_name])


def _pareto_k(log_weights: np.ndarray) -> float:
    return float(az.psislw(log_weights)[1])


@dataclass(frozen=True)
class _Draw:
    """One draw from the posterior, and what the model makes of it."""

    trace: Trace
    posterior: dict[str, Tensor]
    predictive: dict[str, Tensor]
    log_likelihood: dict[str, Tensor]
    lp: Tensor
    log_weight: Tensor | None

    @classmethod
    def of(
        cls,
        model: Model,
        latents: Trace,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        log_q: Tensor | float | None = None,
    ) -> _Draw:
        """The model at the latent values of a trace."""
        trace = _replayed(model, latents, args, kwargs)
        trace.compute_log_prob()
        free = _replayed(poutine.uncondition(model), latents, args, kwargs)
        observed = list(_observed(trace))
        lp = torch.as_tensor(trace.log_prob_sum()).double()
        return cls(
            trace,
            {site["name"]: _full_value(site) for site in _inferred(trace)},
            {site["name"]: _full_value(free.nodes[site["name"]]) for site in observed},
            {site["name"]: _log_density(site) for site in observed},
            lp,
            lp - log_q if log_q is not None else None,
        )


def _replayed(
    model: Model, latents: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Trace:
    """The trace of the model at the latent values of another trace."""
    trace = poutine.trace(poutine.replay(model, trace=latents)).get_trace(*args, **kwargs)
    for site in _samples(trace):
        if not site["is_observed"] and site["name"] not in latents and not _was_observed(site):
            raise ValueError(
                f"guide: it does not sample the latent site {site['name']!r} of the model. A site "
                "that is summed out has to be inferred first, by pyro.infer.infer_discrete."
            )
    return trace


def _delta_trace(values: Mapping[str, Tensor]) -> Trace:
    """A trace that holds some values."""

    def guide() -> None:
        for name, value in values.items():
            pyro.sample(name, dist.Delta(value, event_dim=value.dim()))

    return poutine.trace(guide).get_trace()


def _samples(trace: Trace) -> Iterator[Any]:
    """The sample sites of a model, but for its plates and factors.

    Raises:
        ValueError: for a plate that is subsampled.
    """
    site: Any
    for site in trace.nodes.values():
        if site["type"] != "sample" or site["infer"].get("is_auxiliary"):
            continue
        if not site_is_subsample(site):
            yield site
        elif site["fn"].subsample_size not in (None, site["fn"].size):
            raise ValueError(
                f"model: the plate {site['name']!r} is subsampled, so that every draw sees other "
                "observations; pass arguments for which it takes them all."
            )


def _is_deterministic(site: Any) -> bool:
    return bool(site["infer"].get("_deterministic"))


def _was_observed(site: Any) -> bool:
    return bool(site["infer"].get("was_observed"))


def _observed(trace: Trace) -> Iterator[Any]:
    return (s for s in _samples(trace) if s["is_observed"] and not _is_deterministic(s))


def _inferred(trace: Trace) -> Iterator[Any]:
    return (s for s in _samples(trace) if not s["is_observed"] or _is_deterministic(s))


def _event_dim(site: Any) -> int:
    """Event dimensions; of a deterministic site, which Pyro takes for one event, those beyond."""
    event_dim, dims = int(site["fn"].event_dim), int(site["value"].dim())
    return 0 if _is_deterministic(site) and event_dim == dims else event_dim


def _full_value(site: Any) -> Tensor:
    """The value, at the batch shape of its distribution."""
    value, event_dim = site["value"], _event_dim(site)
    if _is_deterministic(site):
        return value
    return value.expand((*site["fn"].batch_shape, *value.shape[value.dim() - event_dim :]))


def _log_density(site: Any) -> Tensor:
    """The log density of each observation, 0 where it is masked; double, for what sums it up."""
    density, mask = site["unscaled_log_prob"].double(), site["mask"]
    if mask is None:
        return density
    return torch.where(torch.as_tensor(mask, device=density.device), density, 0.0)


def _dim_names(site: Any, given: Sequence[str]) -> list[str | None]:
    """A name for every dimension of a site's value; None for what only pads a batch shape.

    Raises:
        ValueError: if more names are given than there are dimensions beside the plates'.
    """
    shape, event_dim = _full_value(site).shape, _event_dim(site)
    plates = {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}
    rest = iter(given)
    names: list[str | None] = []
    for axis, size in enumerate(shape):
        dim = axis - (len(shape) - event_dim)
        if dim < 0 and dim in plates and plates[dim].size == size:
            names.append(plates[dim].name)
        elif dim < 0 and size == 1 and not _is_deterministic(site):
            names.append(None)
        else:
            names.append(next(rest, f"{site['name']}_dim_{axis}"))
    if next(rest, None) is not None:
        raise ValueError(
            f"dims: got the names {list(given)} for site {site['name']!r}, whose dimensions are "
            f"{names}; plates are named already."
        )
    return names


def _inference_data(
    draws: Sequence[Sequence[_Draw]], dims: Dims, coords: Coords
) -> az.InferenceData:
    """Draws, chain by chain, as InferenceData."""
    first = draws[0][0].trace
    names = {s["name"]: _dim_names(s, dims.get(s["name"], ())) for s in _samples(first)}

    def dataset(select: Callable[[_Draw], Mapping[str, Tensor]]) -> Any:
        values = {
            name: np.stack([[_array(select(draw)[name]) for draw in chain] for chain in draws])
            for name in select(draws[0][0])
        }
        return _dataset(values, names, coords, leading=2)

    def stats(draw: _Draw) -> dict[str, Tensor]:
        weight = {"log_weight": draw.log_weight} if draw.log_weight is not None else {}
        return {"lp": draw.lp, **weight}

    groups = {
        "posterior": dataset(lambda draw: draw.posterior),
        "posterior_predictive": dataset(lambda draw: draw.predictive),
        "log_likelihood": dataset(lambda draw: draw.log_likelihood),
        "sample_stats": dataset(stats),
    }
    observed = {site["name"]: _array(_full_value(site)) for site in _observed(first)}
    groups["observed_data"] = _dataset(observed, names, coords, leading=0)
    return az.InferenceData(**{name: group for name, group in groups.items() if group.data_vars})


def _dataset(
    values: Mapping[str, np.ndarray],
    names: Mapping[str, Sequence[str | None]],
    coords: Coords,
    leading: int,
) -> Any:
    """Arrays as a data set: ``leading`` dimensions (chain and draw), then those that have names.

    An array may lack the event dimensions, as densities do.
    """
    squeezed, dims = {}, {}
    for name, value in values.items():
        of_site = list(names.get(name, ()))[: value.ndim - leading]
        padding = tuple(leading + i for i, dim in enumerate(of_site) if dim is None)
        squeezed[name] = value.squeeze(padding)
        dims[name] = [dim for dim in of_site if dim is not None]
    default = ["chain", "draw"] if leading else []
    return az.dict_to_dataset(
        squeezed, library=pyro, dims=dims, coords=dict(coords), default_dims=default
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.numpy(force=True)


def _prototypes(
    model: Model, guide: Model, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Trace]:
    """A trace of the guide and one of the model, which show what distributions there are."""
    latents = poutine.trace(guide).get_trace(*args, **kwargs)
    return [latents, _replayed(model, latents, args, kwargs)]


@contextmanager
def _exact_log_determinants(traces: Iterable[Trace]) -> Iterator[None]:
    """Every residual transform in the distributions of some traces uses :class:`Exact` inside."""
    transforms = {
        id(transform): transform
        for trace in traces
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for transform in _residual_transforms(site["fn"])
    }
    estimators = [(transform, transform.logdet) for transform in transforms.values()]
    for transform, _ in estimators:
        transform.logdet = Exact()
    try:
        yield
    finally:
        for transform, estimator in estimators:
            transform.logdet = estimator


def _residual_transforms(thing: object) -> Iterator[Residual | ConditionalResidual]:
    """The residual transforms inside a distribution or transform."""
    if isinstance(thing, Residual | ConditionalResidual):
        yield thing
    elif isinstance(thing, ConditionedResidual):
        yield thing.conditional
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from _residual_transforms(part)
    elif isinstance(thing, torch.distributions.Distribution | torch.distributions.Transform):
        children = list(thing.children()) if isinstance(thing, nn.Module) else []
        for part in [*children, *vars(thing).values()]:
            yield from _residual_transforms(part)


def _check_number(num_samples: int) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}.")
