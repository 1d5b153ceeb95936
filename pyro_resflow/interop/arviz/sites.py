"""The inferred and observed sites of a trace, with their values and dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .library import SAMPLE_DIMS


def sample_sites(trace: Trace) -> Iterator[Any]:
    """The sample sites of a model, without its plates and factors.

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
                f"model: expected plates without subsampling, got a subsampled plate "
                f"{site['name']!r}, in which every draw sees other observations; pass arguments "
                "for which the plate is complete."
            )


def all_sites(trace: Trace) -> Iterator[Any]:
    """All sample sites of a model or a guide, with factors and auxiliary sites but no plates."""
    site: Any
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield site


def is_deterministic(site: Any) -> bool:
    """Whether a site comes from ``pyro.deterministic``."""
    return bool(site["infer"].get("_deterministic"))


def was_observed(site: Any) -> bool:
    """Whether ``poutine.uncondition`` has unconditioned an observed site."""
    return bool(site["infer"].get("was_observed"))


def observed_sites(trace: Trace) -> Iterator[Any]:
    """The sites with data."""
    return (s for s in sample_sites(trace) if s["is_observed"] and not is_deterministic(s))


def inferred_sites(trace: Trace) -> Iterator[Any]:
    """The latent and the deterministic sites."""
    return (s for s in sample_sites(trace) if not s["is_observed"] or is_deterministic(s))


def event_dim_of(site: Any) -> int:
    """The event dimensions of a site; 0 for a deterministic site that Pyro treats as one event."""
    event_dim, dims = int(site["fn"].event_dim), int(site["value"].dim())
    return 0 if is_deterministic(site) and event_dim == dims else event_dim


def batch_shape_of(site: Any) -> torch.Size:
    """The shape of a site's log density: the broadcast shape of its distribution and value."""
    value = site["value"]
    batch = value.shape[: value.dim() - event_dim_of(site)]
    if is_deterministic(site):
        return batch
    return torch.broadcast_shapes(site["fn"].batch_shape, batch)


def full_value(site: Any) -> Tensor:
    """The value, expanded to the batch shape of its distribution."""
    value = site["value"]
    return value.expand((*batch_shape_of(site), *value.shape[value.dim() - event_dim_of(site) :]))


def log_density(site: Any) -> Tensor:
    """The log density of each observation, 0 where masked; in double precision for later sums."""
    density, mask = site["unscaled_log_prob"].double(), site["mask"]
    if mask is None:
        return density
    return torch.where(torch.as_tensor(mask, device=density.device), density, 0.0)


def plate_nesting(traces: Sequence[Trace]) -> int:
    """The number of batch dimensions that the plates and sites of traces occupy."""
    sites = [site for trace in traces for site in all_sites(trace)]
    plates = [-f.dim for s in sites for f in s["cond_indep_stack"] if f.vectorized]
    batches = [len(batch_shape_of(s)) for s in sites if not is_deterministic(s)]
    return max([0, *plates, *batches])


def dim_names(site: Any, given: Sequence[str]) -> list[str | None]:
    """A name for every dimension of a site's value; None for padding of the batch shape.

    Raises:
        ValueError: if more names are given than there are dimensions without a plate.
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


def checked_names(
    trace: Trace, dims: Mapping[str, Sequence[str]], coords: Mapping[str, Sequence[Any]]
) -> dict[str, list[str | None]]:
    """The names of the dimensions of every site of a model; see :func:`dim_names`.

    Raises:
        ValueError: for a site, plate or dimension with a name that ArviZ reserves, for ``dims`` of
            an unknown site, and for ``coords`` of an unknown dimension or of a wrong length.
    """
    sites = {site["name"]: site for site in sample_sites(trace)}
    names = {name: dim_names(site, dims.get(name, ())) for name, site in sites.items()}
    for name in dims:
        if name not in sites:
            raise ValueError(f"dims: expected sites of the model, {sorted(sites)}, got {name!r}.")
    sizes = {
        dim: size
        for name, site in sites.items()
        for dim, size in zip(names[name], full_value(site).shape, strict=True)
        if dim is not None
    }
    for reserved in SAMPLE_DIMS:
        _refuse_name(reserved, sites, sizes, dims)
    for dim, labels in coords.items():
        if dim not in sizes:
            raise ValueError(f"coords: expected dimensions, {[*sizes]}, got {dim!r}.")
        if len(labels) != sizes[dim]:
            raise ValueError(
                f"coords: expected {sizes[dim]} labels along {dim!r}, got {len(labels)}."
            )
    return names


def _refuse_name(
    reserved: str,
    sites: Mapping[str, Any],
    sizes: Mapping[str, int],
    dims: Mapping[str, Sequence[str]],
) -> None:
    """Raise if a site, plate or dimension has a name that ArviZ reserves."""
    reason = "ArviZ keeps 'chain' and 'draw' for the dimensions of the draws; rename it."
    for site, given in dims.items():
        if reserved in given:
            raise ValueError(f"dims: {reserved!r} cannot be a dimension of {site!r}: {reason}")
    if reserved in sizes:
        raise ValueError(f"model: a plate cannot have the name {reserved!r}: {reason}")
    if reserved in sites:
        raise ValueError(f"model: a site cannot have the name {reserved!r}: {reason}")
