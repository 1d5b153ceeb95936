"""Which sites of a trace are inferred and which observed, with their values and dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor


def sample_sites(trace: Trace) -> Iterator[Any]:
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


def is_deterministic(site: Any) -> bool:
    """Whether a site is one of ``pyro.deterministic``."""
    return bool(site["infer"].get("_deterministic"))


def was_observed(site: Any) -> bool:
    """Whether ``poutine.uncondition`` has freed an observed site."""
    return bool(site["infer"].get("was_observed"))


def observed_sites(trace: Trace) -> Iterator[Any]:
    """The sites that hold data."""
    return (s for s in sample_sites(trace) if s["is_observed"] and not is_deterministic(s))


def inferred_sites(trace: Trace) -> Iterator[Any]:
    """The latent sites and the deterministic ones."""
    return (s for s in sample_sites(trace) if not s["is_observed"] or is_deterministic(s))


def event_dim_of(site: Any) -> int:
    """Event dimensions; of a deterministic site, which Pyro takes for one event, those beyond."""
    event_dim, dims = int(site["fn"].event_dim), int(site["value"].dim())
    return 0 if is_deterministic(site) and event_dim == dims else event_dim


def full_value(site: Any) -> Tensor:
    """The value, at the batch shape of its distribution."""
    value, event_dim = site["value"], event_dim_of(site)
    if is_deterministic(site):
        return value
    return value.expand((*site["fn"].batch_shape, *value.shape[value.dim() - event_dim :]))


def log_density(site: Any) -> Tensor:
    """The log density of each observation, 0 where it is masked; double, for what sums it up."""
    density, mask = site["unscaled_log_prob"].double(), site["mask"]
    if mask is None:
        return density
    return torch.where(torch.as_tensor(mask, device=density.device), density, 0.0)


def dim_names(site: Any, given: Sequence[str]) -> list[str | None]:
    """A name for every dimension of a site's value; None for what only pads a batch shape.

    Raises:
        ValueError: if more names are given than there are dimensions beside the plates'.
    """
    shape, event_dim = full_value(site).shape, event_dim_of(site)
    plates = {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}
    rest = iter(given)
    names: list[str | None] = []
    for axis, size in enumerate(shape):
        dim = axis - (len(shape) - event_dim)
        if dim < 0 and dim in plates and plates[dim].size == size:
            names.append(plates[dim].name)
        elif dim < 0 and size == 1 and not is_deterministic(site):
            names.append(None)
        else:
            names.append(next(rest, f"{site['name']}_dim_{axis}"))
    if next(rest, None) is not None:
        raise ValueError(
            f"dims: got the names {list(given)} for site {site['name']!r}, whose dimensions are "
            f"{names}; plates are named already."
        )
    return names
