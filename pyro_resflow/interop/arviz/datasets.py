"""Convert draws to the container of the installed version of ArviZ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pyro.poutine import Trace
from torch import Tensor

from .draws import Draws
from .library import LIBRARY, SAMPLE_DIMS, Container
from .sites import full_value, observed_sites

Dims = Mapping[str, Sequence[str]]
Coords = Mapping[str, Sequence[Any]]


def container_of(
    draws: Draws,
    chains: int,
    model: Trace,
    names: Mapping[str, Sequence[str | None]],
    coords: Coords,
    stats: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
) -> Container:
    """The container with all groups.

    Args:
        draws: draws of all chains, one chain after another.
        chains: number of chains.
        model: the model's trace of one draw.
        names: the dimensions of every site, see :func:`sites.checked_names`.
        coords: labels along dimensions.
        stats: values of ``sample_stats``, shape ``(chains, draws)``.
        attributes: attributes of the group ``sample_stats``.
    """

    def dataset(values: Mapping[str, Tensor]) -> Any:
        arrays = {name: as_array(value) for name, value in values.items()}
        by_chain = {n: a.reshape(chains, -1, *a.shape[1:]) for n, a in arrays.items()}
        return dataset_of(by_chain, names, coords, SAMPLE_DIMS)

    observed = {site["name"]: as_array(full_value(site)) for site in observed_sites(model)}
    groups = {
        "posterior": dataset(draws.posterior),
        "posterior_predictive": dataset(draws.predictive),
        "log_likelihood": dataset(draws.log_likelihood),
        "sample_stats": dataset_of(stats, {}, {}, SAMPLE_DIMS),
        "observed_data": dataset_of(observed, names, coords, ()),
    }
    groups["sample_stats"].attrs.update(attributes)
    return LIBRARY.container({name: group for name, group in groups.items() if group.data_vars})


def dataset_of(
    values: Mapping[str, np.ndarray],
    names: Mapping[str, Sequence[str | None]],
    coords: Coords,
    sample_dims: Sequence[str],
) -> Any:
    """A data set of arrays: the dimensions of the draws come first, then the named ones.

    An array may lack the event dimensions, as densities do.
    """
    squeezed, dims = {}, {}
    for name, value in values.items():
        of_site = list(names.get(name, ()))[: value.ndim - len(sample_dims)]
        padding = tuple(len(sample_dims) + i for i, dim in enumerate(of_site) if dim is None)
        squeezed[name] = value.squeeze(padding)
        dims[name] = [dim for dim in of_site if dim is not None]
    used = {dim for each in dims.values() for dim in each}
    labels = {dim: each for dim, each in coords.items() if dim in used}
    return LIBRARY.dataset(squeezed, dims, labels, sample_dims)


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor on any device, with or without a graph, as an array."""
    return tensor.numpy(force=True)
