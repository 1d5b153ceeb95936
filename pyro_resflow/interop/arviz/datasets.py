"""Draws as ArviZ's InferenceData."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
from torch import Tensor

from .draws import Draw
from .sites import dim_names, full_value, observed_sites, sample_sites
from .version import arviz as az

Dims = Mapping[str, Sequence[str]]
Coords = Mapping[str, Sequence[Any]]


def inference_data(
    draws: Sequence[Sequence[Draw]], dims: Dims, coords: Coords
) -> az.InferenceData:
    """Draws, chain by chain, as InferenceData."""
    first = draws[0][0].trace
    names = {s["name"]: dim_names(s, dims.get(s["name"], ())) for s in sample_sites(first)}

    def dataset(select: Callable[[Draw], Mapping[str, Tensor]]) -> Any:
        values = {
            name: np.stack([[as_array(select(draw)[name]) for draw in chain] for chain in draws])
            for name in select(draws[0][0])
        }
        return dataset_of(values, names, coords, leading=2)

    def stats(draw: Draw) -> dict[str, Tensor]:
        weight = {"log_weight": draw.log_weight} if draw.log_weight is not None else {}
        return {"lp": draw.lp, **weight}

    groups = {
        "posterior": dataset(lambda draw: draw.posterior),
        "posterior_predictive": dataset(lambda draw: draw.predictive),
        "log_likelihood": dataset(lambda draw: draw.log_likelihood),
        "sample_stats": dataset(stats),
    }
    observed = {site["name"]: as_array(full_value(site)) for site in observed_sites(first)}
    groups["observed_data"] = dataset_of(observed, names, coords, leading=0)
    return az.InferenceData(**{name: group for name, group in groups.items() if group.data_vars})


def dataset_of(
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


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor, from whatever device and graph, as an array."""
    return tensor.numpy(force=True)
